//! A piece that is begun, and its blocks.

use std::ops::Range;

use super::PeerKey;

#[derive(Clone, Debug, Default)]
pub(super) struct BlockSlot {
    pub(super) requesters: Vec<PeerKey>,
    /// Who sent it, while its bytes are in memory.
    pub(super) from: Option<PeerKey>,
    pub(super) trust: Trust,
}

impl BlockSlot {
    pub(super) fn is_here(&self) -> bool {
        self.from.is_some() || self.trust != Trust::Unknown
    }

    /// Whether its bytes are in memory, or on their way there.
    pub(super) fn is_in_memory(&self) -> bool {
        let only_at_rest = self.from.is_none() && self.trust == Trust::Proven;
        self.is_here() && !only_at_rest || !self.requesters.is_empty()
    }

    pub(super) fn is_free(&self) -> bool {
        !self.is_here() && self.requesters.is_empty()
    }
}

/// What is known of one block beside its piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trust {
    #[default]
    Unknown,
    /// The gate has it.
    Checking,
    /// It has the hash that the tree of its file says, and stays even if the piece is given up.
    Proven,
    /// It was proven and nobody of late sent it, but the gate refused its piece: its bytes, which are in
    /// memory, have to be judged again.
    Doubted,
}

/// A piece some of whose blocks were asked for.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) blocks: Vec<BlockSlot>,
    pub(super) free: u32,
    pub(super) arrived: u32,
    /// After a failed check: only this peer is asked, so that a second failure is proof.
    pub(super) sole_source: Option<PeerKey>,
}

impl Partial {
    pub(super) fn is_open_to(&self, peer: PeerKey) -> bool {
        self.free > 0 && self.sole_source.is_none_or(|only| only == peer)
    }

    /// The first free one of some blocks.
    pub(super) fn first_free(&self, blocks: Range<u32>) -> Option<usize> {
        let end = (blocks.end as usize).min(self.blocks.len());
        let slots = self.blocks.get(blocks.start as usize..end)?;
        let at = slots.iter().position(BlockSlot::is_free)?;
        Some(blocks.start as usize + at)
    }
}
