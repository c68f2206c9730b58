use std::collections::BTreeMap;

use super::{Hash, HashRange, MAX_HASHES, Place, RangeError, Shape, Tree, pad_hash};

/// A hash that leads up to the root of a file: what has it is the file's. Only [`Known`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trusted(Hash);

impl Trusted {
    /// The hash.
    pub const fn get(&self) -> &Hash {
        &self.0
    }
}

/// What is known of one file's tree: its root, perhaps its piece layer, and hashes that came with
/// their proof.
#[derive(Clone, Debug)]
pub struct Known {
    shape: Shape,
    /// The layer of which a hash covers a piece, or that of the root when there is only one.
    base: u32,
    root: Hash,
    /// The tree above the piece layer, once all of that is known.
    pieces: Option<Tree>,
    /// Other hashes, by layer and index; those below the piece layer until their piece is verified.
    nodes: BTreeMap<Place, Hash>,
    /// How many of them are of the piece layer.
    known_pieces: u64,
}

impl Known {
    /// The tree of a file with this root, in a torrent with pieces of `piece_length` bytes.
    pub fn new(shape: Shape, root: Hash, piece_length: u32) -> Self {
        let base = Shape::piece_layer(piece_length).min(shape.height());
        Self { shape, base, root, pieces: None, nodes: BTreeMap::new(), known_pieces: 0 }
    }

    /// The same with its piece layer; as it was if that is not the layer of this root.
    #[must_use]
    pub fn with_pieces(mut self, layer: &[Hash]) -> Self {
        let tree = Tree::new(self.shape, self.base, layer.to_vec());
        self.pieces = tree.filter(|tree| tree.root() == self.root);
        self
    }

    /// The layer of which a hash covers a piece.
    pub const fn base(&self) -> u32 {
        self.base
    }

    /// The hashes of all pieces, once all are known of a file with more than one.
    pub fn piece_layer(&self) -> Option<&[Hash]> {
        self.pieces.as_ref().map(Tree::lowest)
    }

    /// The `index`-th hash of a layer, if it is known. What lies beyond the end of the file is zeros.
    pub fn hash(&self, layer: u32, index: u64) -> Option<Hash> {
        let height = self.shape.height();
        if layer > height || index >= 1 << (height - layer) {
            return None;
        }
        if layer == height {
            return Some(self.root);
        }
        if index >= self.shape.layer_len(layer) {
            return Some(pad_hash(layer));
        }
        let above = self.pieces.as_ref().and_then(|tree| tree.hash(layer, index));
        above.or_else(|| self.nodes.get(&(layer, index)).copied())
    }

    /// The same, to be given to whoever checks bytes.
    pub fn trusted(&self, layer: u32, index: u64) -> Option<Trusted> {
        self.hash(layer, index).map(Trusted)
    }

    /// A range that has the first unknown hash from `first` to before `end` of a layer, with as much of
    /// its proof as is needed; `None` if all are known. It is as long as what is unknown, but never
    /// above a hash that is known.
    pub fn lacking(&self, layer: u32, first: u64, end: u64) -> Option<HashRange> {
        let end = end.min(self.shape.layer_len(layer));
        let first = (first..end).find(|&index| self.hash(layer, index).is_none())?;
        let known = (layer..=self.shape.height())
            .find(|&above| self.hash(above, first >> (above - layer)).is_some())?;
        let most = MAX_HASHES.min(1u32.checked_shl(known - layer).unwrap_or(MAX_HASHES));
        let least = 1u64 << (known - layer).min(1);
        let mut length = least;
        while length < u64::from(most) && first / length * length + length < end {
            length *= 2;
        }
        let up = length.trailing_zeros();
        let proof = (known - layer).saturating_sub(1);
        let proof = if known - layer > up { proof } else { 0 };
        let index = u32::try_from(first / length * length).ok()?;
        HashRange::new(layer, index, length as u32, proof).ok()
    }

    /// Takes hashes that came for `range`, its own and then the proof, if they lead to a hash that is
    /// known.
    pub fn learn(&mut self, range: HashRange, hashes: &[Hash]) -> Result<(), RangeError> {
        range.fits(self.shape)?;
        let (layer, index) = range.top();
        let top = self.hash(layer, index).ok_or(RangeError::Unknown)?;
        let path = range.check(&top, hashes)?;
        let nodes = range.nodes().zip(hashes.iter().copied()).chain(path);
        for ((layer, index), hash) in nodes {
            if self.hash(layer, index).is_none() {
                self.nodes.insert((layer, index), hash);
                self.known_pieces += u64::from(layer == self.base);
            }
        }
        self.complete_pieces();
        Ok(())
    }

    /// Makes a tree of the piece layer when the last of its hashes is known.
    fn complete_pieces(&mut self) {
        let (base, count) = (self.base, self.shape.layer_len(self.base));
        if self.pieces.is_some() || base == self.shape.height() || self.known_pieces < count {
            return;
        }
        let layer = self.nodes.range((base, 0)..(base, count)).map(|(_, hash)| *hash).collect();
        self.pieces = Tree::new(self.shape, base, layer);
        self.nodes.retain(|(layer, _), _| *layer < base);
    }

    /// Forgets what is below the hash of a piece.
    pub fn forget_below(&mut self, piece: u64) {
        for layer in 0..self.base {
            let up = self.base - layer;
            let below: Vec<_> = self
                .nodes
                .range((layer, piece << up)..(layer, (piece + 1) << up))
                .map(|(node, _)| *node)
                .collect();
            for node in below {
                self.nodes.remove(&node);
            }
        }
    }

    /// What a peer that asks for `range` is sent, where all of it is at or above the piece layer.
    pub fn answer(&self, range: HashRange) -> Result<Vec<Hash>, RangeError> {
        self.answer_with(range, |_, _| None)
    }

    /// The same, where `below` gives hashes below the piece layer.
    pub fn answer_with(
        &self,
        range: HashRange,
        below: impl Fn(u32, u64) -> Option<Hash>,
    ) -> Result<Vec<Hash>, RangeError> {
        range.answer(self.shape, |layer, index| {
            self.hash(layer, index).or_else(|| below(layer, index))
        })
    }

    /// Its form.
    pub const fn shape(&self) -> Shape {
        self.shape
    }
}
