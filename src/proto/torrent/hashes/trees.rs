//! What is known of the hash trees of a torrent's files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::proto::geometry::PieceIndex;
use crate::proto::merkle::{Hash, HashRange, Known, Shape, Trusted, subtree_root};
use crate::proto::metainfo::{Info, PieceLayers};
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::wire::RawHashes;

/// The hash trees of a torrent with a v2 half.
pub struct Trees {
    info: Arc<Info>,
    /// Of the files of which more than the root is known, or was looked for.
    files: BTreeMap<usize, Known>,
    /// The file with each root, from the first time that a peer names one.
    by_root: Option<HashMap<Hash, usize>>,
    /// Whom we asked for hashes of which file, and when.
    pub(super) asked: BTreeMap<(usize, HashRange), Vec<(PeerKey, Timestamp)>>,
    /// Pieces that are whole, or at rest, and cannot be verified before their hash is known.
    pub(in super::super) unproven: BTreeSet<PieceIndex>,
    /// Pieces that the gate refused and whose bad blocks are being looked for, since when.
    pub(super) broken: BTreeMap<PieceIndex, Timestamp>,
    /// Pieces that are being hashed because peers asked for hashes of their blocks.
    pub(super) reading: BTreeSet<PieceIndex>,
}

impl Trees {
    /// The trees of a torrent; `None` without a v2 half.
    pub fn new(info: &Arc<Info>) -> Option<Self> {
        info.v2.as_ref()?;
        Some(Self {
            info: info.clone(),
            files: BTreeMap::new(),
            by_root: None,
            asked: BTreeMap::new(),
            unproven: BTreeSet::new(),
            broken: BTreeMap::new(),
            reading: BTreeSet::new(),
        })
    }

    /// Learns piece layers.
    pub fn know(&mut self, layers: &PieceLayers) {
        for file in 0..self.info.files.len() {
            let layer = self.root(file).and_then(|root| layers.get(&root));
            if let Some((layer, known)) = layer.zip(self.new_file(file)) {
                self.files.insert(file, known.with_pieces(layer));
            }
        }
    }

    /// The hash of a piece, if it is known.
    pub fn piece_root(&mut self, piece: PieceIndex) -> Option<Trusted> {
        let (_, known, at) = self.at(piece)?;
        known.trusted(known.base(), at)
    }

    /// The hash of a block, if it is known.
    pub(super) fn block(&mut self, piece: PieceIndex, index: u32) -> Option<Trusted> {
        let (_, known, at) = self.at(piece)?;
        known.trusted(0, (at << known.base()) + u64::from(index))
    }

    /// A piece was verified: the hashes of its blocks are of use no longer.
    pub(in super::super) fn verified(&mut self, piece: PieceIndex) {
        self.unproven.remove(&piece);
        self.broken.remove(&piece);
        if let Some((_, known, at)) = self.at(piece) {
            known.forget_below(at);
        }
    }

    /// A begun piece was given up for its memory: so are the hashes of its blocks.
    pub(in super::super) fn abandoned(&mut self, piece: PieceIndex) {
        if let Some((_, known, at)) = self.at(piece) {
            known.forget_below(at);
        }
    }

    /// Who was asked something more than `time` ago and has not answered.
    pub(super) fn late(&self, now: Timestamp, time: Duration) -> BTreeSet<PeerKey> {
        let asked = self.asked.values().flatten();
        asked.filter(|(_, since)| now.since(*since) >= time).map(|(key, _)| *key).collect()
    }

    /// The root of a file that has bytes.
    pub(super) fn root(&self, file: usize) -> Option<Hash> {
        *self.info.v2.as_ref()?.roots.get(file)?
    }

    fn new_file(&self, file: usize) -> Option<Known> {
        let shape = Shape::of(self.info.files.get(file)?.length)?;
        Some(Known::new(shape, self.root(file)?, self.info.geometry.piece_length()))
    }

    /// What is known of a file that has bytes.
    pub(super) fn file(&mut self, file: usize) -> Option<&mut Known> {
        if !self.files.contains_key(&file) {
            let known = self.new_file(file)?;
            self.files.insert(file, known);
        }
        self.files.get_mut(&file)
    }

    /// The file of a piece, and the number of the piece in it.
    pub(super) fn at(&mut self, piece: PieceIndex) -> Option<(usize, &mut Known, u64)> {
        let start = self.info.geometry.piece_range(piece).start;
        let file = self.info.file_at(start)?;
        let offset = self.info.files.get(file)?.offset;
        let at = (start - offset) / u64::from(self.info.geometry.piece_length());
        Some((file, self.file(file)?, at))
    }

    /// The file with a root that a peer names.
    pub(super) fn with_root(&mut self, root: &Hash) -> Option<usize> {
        let by_root = self.by_root.get_or_insert_with(|| {
            let roots = self.info.v2.iter().flat_map(|v2| v2.roots.iter().enumerate());
            roots.filter_map(|(file, root)| Some(((*root)?, file))).collect()
        });
        by_root.get(root).copied()
    }

    /// What a peer that answers had been asked; nothing if that was not it.
    pub(super) fn answered(&mut self, key: PeerKey, raw: &RawHashes) -> Option<(usize, HashRange)> {
        let range = HashRange::of(raw).ok()?;
        let roots = &self.info.v2.as_ref()?.roots;
        let is_it = |(file, asked): &(usize, HashRange)| {
            *asked == range && roots.get(*file) == Some(&Some(raw.root))
        };
        let found = self.asked.iter_mut().filter(|(question, _)| is_it(question));
        let mut found = found.filter_map(|(question, whom)| {
            let place = whom.iter().position(|(asked, _)| *asked == key)?;
            whom.swap_remove(place);
            Some((*question, whom.is_empty()))
        });
        let (question, nobody_else) = found.next()?;
        drop(found);
        if nobody_else {
            self.asked.remove(&question);
        }
        Some(question)
    }

    /// What a peer that asks for hashes below the piece layer is sent, from those of the piece's blocks.
    pub(super) fn answer(
        &mut self,
        piece: PieceIndex,
        raw: &RawHashes,
        blocks: &[Hash],
    ) -> Option<Vec<Hash>> {
        let range = HashRange::of(raw).ok()?;
        let (_, known, at) = self.at(piece)?;
        let first = at << known.base();
        let below = |layer: u32, index: u64| {
            let begin = (index << layer).checked_sub(first)?;
            let begin = usize::try_from(begin).ok()?;
            let own = blocks.get(begin..(begin + (1 << layer)).min(blocks.len()))?;
            Some(subtree_root(own, 0, layer))
        };
        known.answer_with(range, below).ok()
    }
}
