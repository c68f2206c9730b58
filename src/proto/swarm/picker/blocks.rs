//! Blocks that are verified alone (BEP 52), before their piece is whole.

use std::ops::Range;

use super::partial::{BlockSlot, Trust};
use super::{PeerKey, Picker, PieceIndex, State};

impl Picker {
    /// Whether all of these blocks of a piece that is not whole are proven.
    pub fn are_proven(&self, piece: PieceIndex, blocks: Range<u32>) -> bool {
        if let Some(at_rest) = self.at_rest.get(&piece) {
            let first = at_rest.partition_point(|index| *index < blocks.start);
            let end = at_rest.partition_point(|index| *index < blocks.end);
            return end.saturating_sub(first) == blocks.len();
        }
        let partial = self.partials.get(&piece);
        let slots = partial.and_then(|p| p.blocks.get(blocks.start as usize..blocks.end as usize));
        slots.is_some_and(|slots| slots.iter().all(|b| b.trust == Trust::Proven))
    }

    /// Those of some blocks of a begun piece that are in memory, not known to be good, and not at the
    /// gate.
    pub fn unproven(&self, piece: PieceIndex, blocks: Range<u32>) -> Vec<u32> {
        let partial = self.partials.get(&piece).filter(|_| self.is_partial(piece));
        let Some(partial) = partial else { return Vec::new() };
        let end = (blocks.end as usize).min(partial.blocks.len());
        let slots = partial.blocks.get(blocks.start as usize..end).unwrap_or_default();
        let slots = (blocks.start..).zip(slots).filter(|(_, b)| b.is_here());
        let unproven = |b: &BlockSlot| matches!(b.trust, Trust::Unknown | Trust::Doubted);
        slots.filter(|(_, b)| unproven(b)).map(|(index, _)| index).collect()
    }

    /// The gate has `block`.
    pub fn checking(&mut self, piece: PieceIndex, index: u32) {
        if let Some(slot) = self.slot(piece, index).filter(|b| b.is_here())
            && slot.trust != Trust::Proven
        {
            slot.trust = Trust::Checking;
        }
    }

    /// The gate let a block through, if it still counts as at the gate.
    pub fn proven(&mut self, piece: PieceIndex, index: u32) -> bool {
        let slot = self.slot(piece, index).filter(|b| b.trust == Trust::Checking);
        slot.map(|b| b.trust = Trust::Proven).is_some()
    }

    /// The gate refused a block, or its bytes are gone. Returns who sent it.
    pub fn refused(&mut self, piece: PieceIndex, index: u32) -> Option<PeerKey> {
        if let Some(at_rest) = self.at_rest.get_mut(&piece) {
            at_rest.retain(|other| *other != index);
            if at_rest.is_empty() {
                self.at_rest.remove(&piece);
            }
            self.epoch += 1;
            return None;
        }
        let slot = self.slot(piece, index).filter(|b| b.is_here())?;
        let from = slot.from;
        *slot = BlockSlot::default();
        let partial = self.partials.get_mut(&piece)?;
        partial.arrived -= 1;
        partial.free += 1;
        // While the gate has the whole piece, nothing more of it is asked for.
        if self.is_partial(piece) {
            self.open.insert(piece);
        }
        self.epoch += 1;
        from
    }

    /// The gate refused a piece of whose blocks it can be said which are wrong. All of them are in
    /// memory, those too that were at rest, and have to be judged (again). Returns the blocks that were
    /// refused, or lost, meanwhile.
    pub fn reopen(&mut self, piece: PieceIndex) -> Vec<u32> {
        let Some(partial) = self.partials.get_mut(&piece) else { return Vec::new() };
        for slot in partial.blocks.iter_mut().filter(|b| b.is_here()) {
            slot.trust = if slot.from.is_some() { Trust::Unknown } else { Trust::Doubted };
        }
        let missing = (0..).zip(&partial.blocks).filter(|(_, b)| !b.is_here());
        let missing: Vec<_> = missing.map(|(index, _)| index).collect();
        if partial.free > 0 {
            self.open.insert(piece);
        }
        self.set_state(piece, State::Partial);
        self.epoch += 1;
        missing
    }

    /// All blocks of a begun piece are here, and the gate has it once more.
    pub fn judged_again(&mut self, piece: PieceIndex) {
        if self.is_partial(piece) {
            self.set_state(piece, State::Verifying);
        }
    }

    fn slot(&mut self, piece: PieceIndex, index: u32) -> Option<&mut BlockSlot> {
        self.partials.get_mut(&piece)?.blocks.get_mut(index as usize)
    }
}
