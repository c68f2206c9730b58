//! One atomic word a piece: what is known about it, and how many readers hold it now.
//!
//! Only a [`VerifiedRange`] moves a piece to a verified state. Readers pin what they read, so that
//! whoever takes pieces away (eviction) can take those with no pins only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::gate::VerifiedRange;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Geometry, PieceIndex};

/// What is known about a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is here.
    Absent = 0,
    /// The index says that it is at rest; not hashed in this life of the daemon.
    Hinted = 1,
    /// Verified, and in memory.
    Held = 2,
    /// Verified, and at rest.
    AtRest = 3,
    /// Verified, and in files of somebody else (`lent.rs`); nothing is in the cache.
    Lent = 4,
}

impl State {
    fn of(word: u32) -> Self {
        match word & STATE {
            0 => Self::Absent,
            1 => Self::Hinted,
            2 => Self::Held,
            3 => Self::AtRest,
            _ => Self::Lent,
        }
    }

    pub(super) fn is_verified(self) -> bool {
        matches!(self, Self::Held | Self::AtRest | Self::Lent)
    }
}

/// The bits of a word that hold the [`State`]; those above count pins.
const STATE: u32 = 0b111;
const ONE_PIN: u32 = STATE + 1;

/// The words of a torrent's pieces.
pub(super) struct States {
    words: Box<[AtomicU32]>,
    /// When each was last read; 0 for never.
    used: Box<[AtomicU32]>,
}

impl States {
    /// All pieces of `hinted` hinted, the others absent; with when each was last read.
    pub(super) fn new(geometry: &Geometry, hinted: &Bitfield, used: Vec<u32>) -> Self {
        let state = |p| if hinted.contains(p) { State::Hinted } else { State::Absent };
        let words = geometry.pieces().map(|p| AtomicU32::new(state(p) as u32)).collect();
        let used = used.into_iter().map(AtomicU32::new).collect();
        Self { words, used }
    }

    /// The state of a piece now.
    pub(super) fn get(&self, piece: PieceIndex) -> State {
        let word = self.words.get(piece.index());
        word.map_or(State::Absent, |w| State::of(w.load(Ordering::Acquire)))
    }

    /// The bytes are in memory. A piece that is at rest or lent already stays so (`false`).
    pub(super) fn hold(&self, range: &VerifiedRange) -> bool {
        let better = |s| matches!(s, State::AtRest | State::Lent);
        self.change(range.piece(), |s| (!better(s)).then_some(State::Held)).is_some()
    }

    /// The bytes are in files of somebody else, exactly these. What is here already stays (`false`).
    pub(super) fn lend(&self, range: &VerifiedRange) -> bool {
        self.change(range.piece(), |s| (s == State::Absent).then_some(State::Lent)).is_some()
    }

    /// The bytes are on disk, exactly these.
    pub(super) fn at_rest(&self, range: &VerifiedRange) {
        self.change(range.piece(), |_| Some(State::AtRest));
    }

    /// The bytes of a piece at rest are from now on those of somebody else, if nobody has pinned it;
    /// whether they are.
    pub(super) fn give(&self, piece: PieceIndex) -> bool {
        let Some(word) = self.words.get(piece.index()) else { return false };
        let (from, to) = (State::AtRest as u32, State::Lent as u32);
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Undoes [`Self::give`].
    pub(super) fn take_back(&self, piece: PieceIndex) {
        self.change(piece, |s| (s == State::Lent).then_some(State::AtRest));
    }

    /// Pins a piece that is verified.
    pub(super) fn pin_one(self: &Arc<Self>, piece: PieceIndex) -> Option<Pin> {
        self.pin_all(piece.index()..piece.index() + 1)
    }

    /// Pins these pieces, if all of them are verified.
    pub(super) fn pin_all(self: &Arc<Self>, pieces: Range<usize>) -> Option<Pin> {
        std::mem::forget(self.pin(pieces.clone())?);
        Some(Pin { states: self.clone(), pieces })
    }

    /// Makes a piece absent that nobody has pinned, if it is at rest or hinted.
    pub(super) fn evict(&self, piece: PieceIndex) -> bool {
        let Some(word) = self.words.get(piece.index()) else { return false };
        let free = |w: u32| matches!(State::of(w), State::AtRest | State::Hinted) && w < ONE_PIN;
        let gone = |w: u32| free(w).then_some(State::Absent as u32);
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, gone).is_ok()
    }

    /// Whether nothing of a piece is here, nor held by anybody.
    pub(super) fn is_vacant(&self, piece: PieceIndex) -> bool {
        let word = self.words.get(piece.index());
        word.is_some_and(|w| w.load(Ordering::Acquire) == State::Absent as u32)
    }

    /// Whether a piece is at rest or hinted, and nobody has pinned it.
    pub(super) fn is_evictable(&self, piece: PieceIndex) -> bool {
        let word = self.words.get(piece.index()).map_or(0, |w| w.load(Ordering::Acquire));
        matches!(State::of(word), State::AtRest | State::Hinted) && word < ONE_PIN
    }

    /// Notes that pieces are read at `moment`.
    pub(super) fn touch(&self, pieces: Range<usize>, moment: u32) {
        for used in self.used.get(pieces).unwrap_or_default() {
            used.store(moment, Ordering::Relaxed);
        }
    }

    /// When a piece was last read; 0 for never.
    pub(super) fn used(&self, piece: PieceIndex) -> u32 {
        self.used.get(piece.index()).map_or(0, |used| used.load(Ordering::Relaxed))
    }

    /// When each piece was last read, if one was at `since` or later.
    pub(super) fn order(&self, since: u32) -> Option<Vec<u32>> {
        let used: Vec<_> = self.used.iter().map(|used| used.load(Ordering::Relaxed)).collect();
        used.iter().any(|used| *used >= since.max(1)).then_some(used)
    }

    /// Makes a piece absent if `which` says so of its state; returns the state it had if it did.
    pub(super) fn lose(&self, piece: PieceIndex, which: impl Fn(State) -> bool) -> Option<State> {
        self.change(piece, |s| which(s).then_some(State::Absent))
    }

    /// Pins these pieces, if all of them are verified.
    pub(super) fn pin(&self, pieces: Range<usize>) -> Option<Pins<'_>> {
        let mut pins = Pins { states: self, pieces: pieces.start..pieces.start };
        for word in self.words.get(pieces)? {
            let pinned = |w: u32| State::of(w).is_verified().then_some(w + ONE_PIN);
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, pinned).ok()?;
            pins.pieces.end += 1;
        }
        Some(pins)
    }

    fn change(&self, piece: PieceIndex, to: impl Fn(State) -> Option<State>) -> Option<State> {
        let word = self.words.get(piece.index())?;
        let changed = |w: u32| to(State::of(w)).map(|s| w & !STATE | s as u32);
        let old = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed).ok()?;
        Some(State::of(old))
    }

    #[cfg(test)]
    pub(super) fn pins(&self, piece: PieceIndex) -> u32 {
        self.words[piece.index()].load(Ordering::Acquire) / ONE_PIN
    }
}

/// Verified pieces that stay where they are until this is dropped.
pub(super) struct Pins<'a> {
    states: &'a States,
    pieces: Range<usize>,
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        for word in self.states.words.get(self.pieces.clone()).unwrap_or_default() {
            word.fetch_sub(ONE_PIN, Ordering::AcqRel);
        }
    }
}

/// The same, for whoever outlives the torrent.
pub(super) struct Pin {
    states: Arc<States>,
    pieces: Range<usize>,
}

impl Pin {
    pub(super) fn pieces(&self) -> Range<usize> {
        self.pieces.clone()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        drop(Pins { states: &self.states, pieces: self.pieces.clone() });
    }
}
