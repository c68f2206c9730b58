//! Verified blocks of pieces that are not whole (BEP 52): what readers got before the rest came.
//!
//! They are written at once and are not in the index: after a restart they are fetched again, unless
//! their piece became whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use super::gate::VerifiedRange;
use super::lock;
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};

/// Blocks that the disk refused and that are kept in memory; the oldest is lost for the next one.
pub(super) const MAX_UNWRITTEN: usize = 256;

/// Where a verified block is.
pub(super) enum Place {
    Memory(VerifiedRange),
    Disk,
}

/// The blocks of one torrent.
#[derive(Default)]
pub(super) struct Blocks(Mutex<State>);

#[derive(Default)]
struct State {
    /// By piece and number; `None` for those on disk.
    blocks: BTreeMap<(PieceIndex, u32), Option<VerifiedRange>>,
    unwritten: VecDeque<(PieceIndex, u32)>,
}

fn key(range: &VerifiedRange) -> (PieceIndex, u32) {
    (range.piece(), range.begin() / BLOCK_LEN)
}

impl Blocks {
    /// A block is verified, and in memory.
    pub(super) fn hold(&self, range: &VerifiedRange) {
        lock(&self.0).blocks.insert(key(range), Some(range.clone()));
    }

    /// A block is on disk, exactly these bytes.
    pub(super) fn at_rest(&self, range: &VerifiedRange) {
        // Not if its piece became whole meanwhile.
        if let Some(block) = lock(&self.0).blocks.get_mut(&key(range)) {
            *block = None;
        }
    }

    /// A block cannot be written. Returns the one that is lost for it.
    pub(super) fn keep_unwritten(&self, range: &VerifiedRange) -> Option<(PieceIndex, u32)> {
        let mut state = lock(&self.0);
        state.unwritten.push_back(key(range));
        if state.unwritten.len() <= MAX_UNWRITTEN {
            return None;
        }
        let oldest = state.unwritten.pop_front()?;
        let held = state.blocks.get(&oldest).is_some_and(Option::is_some);
        held.then(|| state.blocks.remove(&oldest)).map(|_| oldest)
    }

    /// Where a block is, if it is verified.
    pub(super) fn find(&self, piece: PieceIndex, index: u32) -> Option<Place> {
        let state = lock(&self.0);
        let place = state.blocks.get(&(piece, index))?.clone();
        Some(place.map_or(Place::Disk, Place::Memory))
    }

    /// Whether a block is verified.
    pub(super) fn has(&self, piece: PieceIndex, index: u32) -> bool {
        lock(&self.0).blocks.contains_key(&(piece, index))
    }

    /// Whether every block is written, or cannot be.
    #[cfg(test)]
    pub(super) fn are_settled(&self) -> bool {
        let state = lock(&self.0);
        let mut held = state.blocks.iter().filter(|(_, block)| block.is_some());
        held.all(|(key, _)| state.unwritten.contains(key))
    }

    /// Whether a piece has verified blocks.
    pub(super) fn any(&self, piece: PieceIndex) -> bool {
        let state = lock(&self.0);
        state.blocks.range((piece, 0)..=(piece, u32::MAX)).next().is_some()
    }

    /// The pieces that have verified blocks, all of them at rest, and how many.
    pub(super) fn at_rest_of(&self) -> BTreeMap<PieceIndex, u32> {
        let state = lock(&self.0);
        let mut pieces = BTreeMap::new();
        for (piece, _) in state.blocks.keys() {
            *pieces.entry(*piece).or_default() += 1;
        }
        for ((piece, _), _) in state.blocks.iter().filter(|(_, block)| block.is_some()) {
            pieces.remove(piece);
        }
        pieces
    }

    /// Forgets the blocks of a piece if all of them are at rest. Returns which there were.
    pub(super) fn evict(&self, piece: PieceIndex) -> Vec<u32> {
        let mut state = lock(&self.0);
        let mut of_piece = state.blocks.range((piece, 0)..=(piece, u32::MAX));
        if of_piece.any(|(_, block)| block.is_some()) {
            return Vec::new();
        }
        take(&mut state, piece)
    }

    /// Forgets one block, which is not what it should be.
    pub(super) fn forget_one(&self, piece: PieceIndex, index: u32) {
        lock(&self.0).blocks.remove(&(piece, index));
    }

    /// Forgets the blocks of a piece: it is whole, or they cannot be read. Returns which there were.
    pub(super) fn forget(&self, piece: PieceIndex) -> Vec<u32> {
        take(&mut lock(&self.0), piece)
    }
}

fn take(state: &mut State, piece: PieceIndex) -> Vec<u32> {
    let of_piece = state.blocks.range((piece, 0)..=(piece, u32::MAX));
    let indexes: Vec<_> = of_piece.map(|((_, index), _)| *index).collect();
    for index in &indexes {
        state.blocks.remove(&(piece, *index));
    }
    indexes
}
