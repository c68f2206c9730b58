//! The hash trees of BitTorrent v2 (BEP 52): SHA-256 over blocks of 16 KiB, one tree a file.
//!
//! A leaf is the hash of a block, which may be shorter at the end of the file. Leaves beyond the end,
//! up to a power of two, are zeros; every other node is the hash of its two children. Layers are
//! counted from the leaves: layer 0 has them, layer [`Shape::height`] has the root alone. Hashes that
//! cover nothing of the file are never kept or sent as part of a layer: they are [`pad_hash`].
//!
//! [`Tree`] keeps layers and answers for them, [`HashRange::check`] believes nothing that does not
//! lead to a hash already trusted.

mod known;
mod range;
mod sha256;
#[cfg(test)]
mod tests;
mod tree;

pub use known::{Known, Trusted};
pub use range::{HashRange, MAX_HASHES, MAX_MESSAGE_HASHES, RangeError};
pub use tree::Tree;

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use super::geometry::BLOCK_LEN;

/// A node of a tree.
pub type Hash = [u8; 32];

/// Layer and index of a node; the leaves are layer 0.
pub type Place = (u32, u64);

/// The most layers above the leaves: files are shorter than 2^63 bytes.
const MAX_HEIGHT: u32 = 49;

/// The hash of one block.
pub fn block_hash(block: &[u8]) -> Hash {
    Sha256::digest(block).into()
}

/// The hashes of the blocks of some bytes that begin with a block; the last one may be shorter.
pub fn block_hashes(bytes: &[u8]) -> Vec<Hash> {
    let (pairs, rest) = bytes.as_chunks::<{ 2 * BLOCK_LEN as usize }>();
    let both = pairs.iter().flat_map(|pair| {
        let (first, second) = pair.split_at(BLOCK_LEN as usize);
        sha256::pair([first, second])
    });
    both.chain(rest.chunks(BLOCK_LEN as usize).map(block_hash)).collect()
}

/// The hash of a node from those of its children.
pub fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut both = [0; 64];
    let (a, b) = both.split_at_mut(32);
    a.copy_from_slice(left);
    b.copy_from_slice(right);
    Sha256::digest(both).into()
}

/// The hash of a node at `layer` all of whose leaves are beyond the end of the file.
pub fn pad_hash(layer: u32) -> Hash {
    static PADS: LazyLock<Vec<Hash>> = LazyLock::new(|| {
        let above = |below: &Hash| Some(parent(below, below));
        std::iter::successors(Some(Hash::default()), above).take(MAX_HEIGHT as usize + 1).collect()
    });
    PADS.get(layer.min(MAX_HEIGHT) as usize).copied().unwrap_or_default()
}

/// The node `up` layers above the first hashes of `layer`; missing ones are padding, those beyond the
/// 2^`up` that have a place there do not count.
pub fn subtree_root(hashes: &[Hash], layer: u32, up: u32) -> Hash {
    let room = 1usize.checked_shl(up).unwrap_or(usize::MAX);
    let mut row = hashes.get(..room).unwrap_or(hashes).to_vec();
    let mut pad = pad_hash(layer);
    if row.is_empty() {
        return pad_hash(layer.saturating_add(up));
    }
    for _ in 0..up.min(MAX_HEIGHT) {
        halve(&mut row, &pad);
        pad = parent(&pad, &pad);
    }
    row.first().copied().unwrap_or(pad)
}

/// The root of one piece of a file of `length` bytes, from the hashes of its blocks. That of a file's
/// only piece is the file's: it covers no more than the file's tree does.
pub fn piece_root(blocks: &[Hash], length: u64, piece_length: u32) -> Hash {
    let height = Shape::of(length).map_or(0, Shape::height);
    subtree_root(blocks, 0, Shape::piece_layer(piece_length).min(height))
}

/// Replaces the hashes of a layer by those of the layer above it.
fn halve(row: &mut Vec<Hash>, pad: &Hash) {
    let above = row.len().div_ceil(2);
    for i in 0..above {
        let left = row.get(2 * i).unwrap_or(pad);
        let hash = parent(left, row.get(2 * i + 1).unwrap_or(pad));
        if let Some(slot) = row.get_mut(i) {
            *slot = hash;
        }
    }
    row.truncate(above);
}

/// The form of the tree of a file, which follows from its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    blocks: u64,
}

impl Shape {
    /// The tree of a file of `length` bytes; `None` for an empty one, which has none, and for more
    /// than 2^63 bytes.
    pub const fn of(length: u64) -> Option<Self> {
        match length {
            0 => None,
            n if n > 1 << 63 => None,
            n => Some(Self { blocks: n.div_ceil(BLOCK_LEN as u64) }),
        }
    }

    /// Blocks of the file, which are the leaves that are not padding.
    pub const fn blocks(self) -> u64 {
        self.blocks
    }

    /// The layer of the root.
    pub const fn height(self) -> u32 {
        self.blocks.next_power_of_two().trailing_zeros()
    }

    /// Hashes of a layer that cover something of the file; none above the root.
    pub const fn layer_len(self, layer: u32) -> u64 {
        if layer > self.height() { 0 } else { self.blocks.div_ceil(1 << layer) }
    }

    /// The layer of which one hash covers `piece_length` bytes, a power of two from 16 KiB: the piece
    /// layer. It lies above the root when the file is no longer than half of that.
    pub const fn piece_layer(piece_length: u32) -> u32 {
        (piece_length / BLOCK_LEN).trailing_zeros()
    }

    /// The root over all hashes of one layer; `None` if they are not as many as the layer has.
    pub fn root(self, layer: u32, hashes: &[Hash]) -> Option<Hash> {
        let up = self.height().checked_sub(layer)?;
        let all = hashes.len() as u64 == self.layer_len(layer);
        all.then(|| subtree_root(hashes, layer, up))
    }
}
