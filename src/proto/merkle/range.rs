//! Runs of hashes with their proof, as peers ask for them and send them.

use super::{Hash, MAX_HEIGHT, Place, Shape, parent};
use crate::proto::wire::RawHashes;

/// The most hashes of the lowest layer in one range (BEP 52: "SHOULD NOT be greater than 512"): half of
/// a piece of 16 MiB. What others ask for may be so much; we never ask for more.
pub const MAX_HASHES: u32 = 512;

/// The most hashes that one message carries: a range of [`MAX_HASHES`] and its proof.
pub const MAX_MESSAGE_HASHES: usize = MAX_HASHES as usize + MAX_HEIGHT as usize;

/// Why numbers do not name hashes of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a power of two from 2 to [`MAX_HASHES`].
    #[error("{0} hashes are not a power of two from 2 to {MAX_HASHES}")]
    Length(u32),
    /// The range does not begin with a multiple of its length.
    #[error("hash {0} is not where a range can begin")]
    Index(u64),
    /// It reaches beyond the file, or above its root.
    #[error("no such hashes in the tree of the file")]
    Outside,
    /// Not as many hashes as were asked for.
    #[error("{found} hashes came where {expected} belong")]
    Count {
        /// How many came.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// The proof does not lead to the hash that is trusted.
    #[error("hashes that are not those of the file")]
    Mismatch,
    /// Hashes that we do not have.
    #[error("hashes that are not here")]
    Unknown,
}

/// Some hashes of one layer and of how many layers above them the uncles belong to it (BEP 52 "hash
/// request").
///
/// The hashes are a whole subtree, so that one uncle a layer leads from its root up. Layers within the
/// subtree are counted too, but have no uncle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashRange {
    layer: u32,
    index: u64,
    length: u32,
    proof_layers: u32,
}

impl HashRange {
    /// The range that numbers from the wire name. Whether a file has it, [`Self::fits`] says.
    pub fn new(layer: u32, index: u32, length: u32, proof_layers: u32) -> Result<Self, RangeError> {
        if !length.is_power_of_two() || !(2..=MAX_HASHES).contains(&length) {
            return Err(RangeError::Length(length));
        }
        if !index.is_multiple_of(length) {
            return Err(RangeError::Index(index.into()));
        }
        if layer > MAX_HEIGHT || proof_layers > MAX_HEIGHT {
            return Err(RangeError::Outside);
        }
        Ok(Self { layer, index: index.into(), length, proof_layers })
    }

    /// The range that a message names.
    pub fn of(raw: &RawHashes) -> Result<Self, RangeError> {
        Self::new(raw.layer, raw.index, raw.length, raw.proof_layers)
    }

    /// How a message names it in the tree with this root.
    pub fn raw(self, root: Hash) -> RawHashes {
        let Self { layer, index, length, proof_layers } = self;
        RawHashes { root, layer, index: index as u32, length, proof_layers }
    }

    /// The layer of its hashes, 0 for those of blocks.
    pub const fn layer(self) -> u32 {
        self.layer
    }

    /// The number of its first hash in the layer.
    pub const fn index(self) -> u64 {
        self.index
    }

    /// The number of the hash behind its last.
    pub const fn end(self) -> u64 {
        self.index + self.length as u64
    }

    /// How many hashes, a power of two from 2 to [`MAX_HASHES`].
    pub const fn length(self) -> u32 {
        self.length
    }

    /// How many layers above its own the proof covers.
    pub const fn proof_layers(self) -> u32 {
        self.proof_layers
    }

    /// The layer of the root of the subtree that the hashes are.
    const fn subtree(self) -> u32 {
        self.layer + self.length.trailing_zeros()
    }

    /// The layer and index of the node that the hashes and their proof lead to.
    pub const fn top(self) -> Place {
        let proven = self.layer + self.proof_layers + 1;
        let top = if proven > self.subtree() { proven } else { self.subtree() };
        (top, self.index >> (top - self.layer))
    }

    /// Layer and index of each uncle, lowest first.
    pub fn uncles(self) -> impl Iterator<Item = Place> {
        let (top, _) = self.top();
        (self.subtree()..top).map(move |layer| (layer, (self.index >> (layer - self.layer)) ^ 1))
    }

    /// Layer and index of everything that a message about it carries, in its order.
    pub fn nodes(self) -> impl Iterator<Item = Place> {
        let own = self.index..self.index + u64::from(self.length);
        own.map(move |index| (self.layer, index)).chain(self.uncles())
    }

    /// What a peer that asks for it is sent: its hashes, then the uncles, lowest first, as `hash` has
    /// them.
    pub fn answer(
        self,
        shape: Shape,
        hash: impl Fn(u32, u64) -> Option<Hash>,
    ) -> Result<Vec<Hash>, RangeError> {
        self.fits(shape)?;
        let hashes = self.nodes().map(|(layer, index)| hash(layer, index));
        hashes.collect::<Option<_>>().ok_or(RangeError::Unknown)
    }

    /// How many hashes a message about it carries.
    pub fn count(self) -> usize {
        self.length as usize + (self.top().0 - self.subtree()) as usize
    }

    /// Whether the tree of a file has this range: part of it covers something of the file, and neither
    /// it nor its proof goes above the root.
    pub fn fits(self, shape: Shape) -> Result<(), RangeError> {
        let inside = self.index < shape.layer_len(self.layer) && self.top().0 <= shape.height();
        if inside { Ok(()) } else { Err(RangeError::Outside) }
    }

    /// Checks hashes and uncles that a peer sent against the trusted hash of [`Self::top`], and
    /// gives what follows from them: the nodes from the root of the range's subtree up to there.
    pub fn check(self, trusted: &Hash, hashes: &[Hash]) -> Result<Vec<(Place, Hash)>, RangeError> {
        let (found, expected) = (hashes.len(), self.count());
        let bad = RangeError::Count { found, expected };
        let (own, uncles) = hashes.split_at_checked(self.length as usize).ok_or(bad)?;
        if found != expected {
            return Err(bad);
        }
        let up = self.subtree() - self.layer;
        let mut hash = super::subtree_root(own, self.layer, up);
        let mut path = vec![((self.subtree(), self.index >> up), hash)];
        for ((layer, index), uncle) in self.uncles().zip(uncles) {
            let right = index.is_multiple_of(2);
            hash = if right { parent(uncle, &hash) } else { parent(&hash, uncle) };
            path.push(((layer + 1, index / 2), hash));
        }
        if hash == *trusted { Ok(path) } else { Err(RangeError::Mismatch) }
    }
}
