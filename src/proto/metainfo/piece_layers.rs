//! `piece layers` (BEP 52): the hashes of all pieces of the files that have more than one.

use std::collections::{BTreeMap, BTreeSet};

use super::info::Info;
use crate::proto::bencode::{Dict, DictWriter, Value};
use crate::proto::merkle::{Hash, Shape, subtree_root};

/// The piece layers of a torrent's files by the root of the file, each checked against that root.
///
/// Some or all may be missing, as they are from the description that peers hand on (BEP 9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PieceLayers(BTreeMap<Hash, Vec<Hash>>);

impl PieceLayers {
    /// Reads the layers of `info` and checks each; `None` if one is not what its root says, or that of
    /// no file.
    pub(super) fn parse(layers: Value<'_>, info: &Info) -> Option<Self> {
        let mut read = BTreeMap::new();
        for (root, hashes) in layers.as_dict()?.iter() {
            let root = Hash::try_from(root).ok()?;
            let (hashes, []) = hashes.as_bytes()?.as_chunks::<32>() else { return None };
            read.insert(root, hashes.to_vec());
        }
        Self::checked(read, info)
    }

    /// Layers from anywhere, by the roots of their files; `None` if one is not what its root says, or
    /// that of no file. Those of files of one piece are left out: some programs write them, and nobody
    /// needs them.
    pub fn checked(mut layers: BTreeMap<Hash, Vec<Hash>>, info: &Info) -> Option<Self> {
        let mut strange: BTreeSet<&Hash> = layers.keys().collect();
        for root in info.v2.iter().flat_map(|v2| &v2.roots).flatten() {
            strange.remove(root);
        }
        if !strange.is_empty() {
            return None;
        }
        let needed = info.files_with_layers().map(|(root, _)| root);
        let needed: BTreeSet<Hash> = needed.filter(|r| layers.contains_key(*r)).copied().collect();
        layers.retain(|root, _| needed.contains(root));
        let piece_length = info.geometry.piece_length();
        let base = Shape::piece_layer(piece_length);
        // The height follows from the number of hashes, because there are more than one.
        let height = |hashes: &[Hash]| hashes.len().next_power_of_two().trailing_zeros();
        let right = |(root, hashes): (&Hash, &Vec<Hash>)| {
            hashes.len() > 1 && subtree_root(hashes, base, height(hashes)) == *root
        };
        if !layers.iter().all(right) {
            return None;
        }
        let whole = |(root, length): (&Hash, u64)| {
            let pieces = length.div_ceil(piece_length.into());
            layers.get(root).is_none_or(|hashes| hashes.len() as u64 == pieces)
        };
        info.files_with_layers().all(whole).then_some(Self(layers))
    }

    /// The hashes of all pieces of the file with this root, if they are known.
    pub fn get(&self, root: &Hash) -> Option<&[Hash]> {
        self.0.get(root).map(Vec::as_slice)
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bencoded dictionary.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut dict = DictWriter::new();
        for (root, hashes) in &self.0 {
            dict.bytes(root, hashes.as_flattened());
        }
        dict.finish()
    }
}

/// The layers as `dict` has them; [`Dict`] is a whole .torrent file.
pub(super) fn layers_of(dict: Dict<'_>, info: &Info) -> Option<PieceLayers> {
    match dict.get(b"piece layers") {
        Some(layers) if info.v2.is_some() => PieceLayers::parse(layers, info),
        _ => Some(PieceLayers::default()),
    }
}
