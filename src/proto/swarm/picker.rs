//! The piece picker: who is asked for which block.
//!
//! Pieces nobody has begun lie in buckets by priority and availability, so that the rarest is found
//! without sorting and a `have` costs one swap. A piece begun is a [`Partial`]; its blocks are free,
//! asked of one or more peers, or here. Invariant: a missing wanted piece is in exactly one
//! bucket, and a partial piece is in none.
//!
//! The order for one peer: what readers wait for (the caller passes it), then partial pieces, then
//! (after the first few pieces, which are random so that there is soon something to trade) the
//! rarest; when nothing is free any more, the last blocks are asked of several peers (endgame).

mod blocks;
mod partial;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rand::{Rng, RngExt};

use self::partial::{BlockSlot, Partial, Trust};
use super::PeerKey;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Block, Geometry, PieceIndex};

/// Pieces picked at random before rarest first begins (BEP 3's "random first piece").
const RANDOM_FIRST_PIECES: u32 = 4;

/// How much a piece is wanted when nobody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Only when a reader asks.
    None,
    /// In the background, rarest first.
    Normal,
    /// Before everything normal: somebody asked for it ahead of time.
    Prefetch,
}

/// What one peer has.
#[derive(Clone, Debug)]
pub enum Holds {
    /// Everything.
    All,
    /// These pieces.
    Some(Bitfield),
}

impl Holds {
    /// Whether the peer has `piece`.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        match self {
            Self::All => true,
            Self::Some(bits) => bits.contains(piece),
        }
    }

    /// Whether the peer has every piece.
    pub fn is_full(&self) -> bool {
        match self {
            Self::All => true,
            Self::Some(bits) => bits.is_full(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Missing,
    Partial,
    /// All blocks are here; the gate has it.
    Verifying,
    Have,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    priority: Priority,
    /// Connected peers that have it, those that have everything not counted.
    availability: u16,
    /// Position in its bucket, while in one.
    position: u32,
}

/// The picker of one torrent.
#[derive(Clone, Debug)]
pub struct Picker {
    geometry: Geometry,
    slots: Vec<Slot>,
    /// `[priority][availability]` → pieces, for [`Priority::Normal`] and [`Priority::Prefetch`].
    buckets: [Vec<Vec<u32>>; 2],
    seeds: u32,
    have: u32,
    partials: BTreeMap<PieceIndex, Partial>,
    /// Partials with free blocks.
    open: BTreeSet<PieceIndex>,
    /// Pieces that failed a check and must come from one peer.
    suspicious: BTreeSet<PieceIndex>,
    /// Proven blocks of pieces that are not begun, in order.
    at_rest: BTreeMap<PieceIndex, Vec<u32>>,
    epoch: u64,
}

impl Picker {
    /// A picker that wants every piece with `priority` and has those in `have`.
    pub fn new(geometry: Geometry, have: &Bitfield, priority: Priority) -> Self {
        let slot = Slot { state: State::Missing, priority, availability: 0, position: 0 };
        let mut picker = Self {
            geometry: geometry.clone(),
            slots: vec![slot; geometry.piece_count() as usize],
            buckets: [Vec::new(), Vec::new()],
            seeds: 0,
            have: 0,
            partials: BTreeMap::new(),
            open: BTreeSet::new(),
            suspicious: BTreeSet::new(),
            at_rest: BTreeMap::new(),
            epoch: 0,
        };
        for piece in geometry.pieces() {
            if have.contains(piece) {
                picker.slots[piece.index()].state = State::Have;
                picker.have += 1;
            } else {
                picker.enter_bucket(piece);
            }
        }
        picker
    }

    /// Changes whenever blocks may have become free: a peer for whom nothing was found need not be
    /// looked at again before.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Connected peers that have `piece`.
    pub fn availability(&self, piece: PieceIndex) -> u32 {
        self.seeds + u32::from(self.slots[piece.index()].availability)
    }

    /// Whether no connected peer has `piece` but those that have everything.
    pub fn is_only_at_seeds(&self, piece: PieceIndex) -> bool {
        self.slots[piece.index()].availability == 0
    }

    /// Pieces that are begun, with or without free blocks.
    pub fn partial_pieces(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.partials.keys().copied()
    }

    /// Whether `piece` is here (or said to be, by the cache's index).
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.slots[piece.index()].state == State::Have
    }

    /// Whether `piece` has to be fetched still (nobody has all of its blocks).
    pub fn is_wanting(&self, piece: PieceIndex) -> bool {
        matches!(self.slots[piece.index()].state, State::Missing | State::Partial)
    }

    /// Whether nobody was asked for `piece` yet.
    pub fn is_missing(&self, piece: PieceIndex) -> bool {
        self.slots[piece.index()].state == State::Missing
    }

    /// Whether blocks of `piece` were asked for and it is not complete.
    pub fn is_partial(&self, piece: PieceIndex) -> bool {
        self.slots[piece.index()].state == State::Partial
    }

    /// How much `piece` is wanted in the background.
    pub fn priority(&self, piece: PieceIndex) -> Priority {
        self.slots[piece.index()].priority
    }

    /// Sets how much `piece` is wanted in the background.
    pub fn set_priority(&mut self, piece: PieceIndex, priority: Priority) {
        self.leave_bucket(piece);
        self.slots[piece.index()].priority = priority;
        self.enter_bucket(piece);
        self.epoch += 1;
    }

    // ---- availability

    /// A peer with `holds` came.
    pub fn peer_came(&mut self, holds: &Holds) {
        match holds {
            Holds::All => self.seeds += 1,
            Holds::Some(bits) => {
                for piece in bits.iter(&self.geometry) {
                    self.peer_got(piece);
                }
            }
        }
        self.epoch += 1;
    }

    /// A peer with `holds` left.
    pub fn peer_left(&mut self, holds: &Holds) {
        match holds {
            Holds::All => self.seeds = self.seeds.saturating_sub(1),
            Holds::Some(bits) => {
                for piece in bits.iter(&self.geometry) {
                    self.peer_lost(piece);
                }
            }
        }
    }

    /// A peer that does not have everything got `piece`.
    pub fn peer_got(&mut self, piece: PieceIndex) {
        self.shift(piece, |a| a.saturating_add(1));
    }

    /// A peer that does not have everything lost `piece`.
    pub fn peer_lost(&mut self, piece: PieceIndex) {
        self.shift(piece, |a| a.saturating_sub(1));
    }

    fn shift(&mut self, piece: PieceIndex, change: impl Fn(u16) -> u16) {
        self.leave_bucket(piece);
        let slot = &mut self.slots[piece.index()];
        slot.availability = change(slot.availability);
        self.enter_bucket(piece);
    }

    fn bucket_of(&self, piece: PieceIndex) -> Option<(usize, usize)> {
        let slot = self.slots[piece.index()];
        let class = match slot.priority {
            Priority::None => return None,
            Priority::Normal => 0,
            Priority::Prefetch => 1,
        };
        (slot.state == State::Missing).then_some((class, usize::from(slot.availability)))
    }

    fn enter_bucket(&mut self, piece: PieceIndex) {
        let Some((class, availability)) = self.bucket_of(piece) else { return };
        let buckets = &mut self.buckets[class];
        if buckets.len() <= availability {
            buckets.resize_with(availability + 1, Vec::new);
        }
        self.slots[piece.index()].position = buckets[availability].len() as u32;
        buckets[availability].push(piece.get());
    }

    fn leave_bucket(&mut self, piece: PieceIndex) {
        let Some((class, availability)) = self.bucket_of(piece) else { return };
        let at = self.slots[piece.index()].position as usize;
        let bucket = &mut self.buckets[class][availability];
        bucket.swap_remove(at);
        if let Some(&moved) = bucket.get(at) {
            self.slots[moved as usize].position = at as u32;
        }
    }

    fn set_state(&mut self, piece: PieceIndex, state: State) {
        self.leave_bucket(piece);
        let slot = &mut self.slots[piece.index()];
        self.have -= u32::from(slot.state == State::Have);
        self.have += u32::from(state == State::Have);
        slot.state = state;
        self.enter_bucket(piece);
    }

    // ---- picking

    /// Marks a free one of some `blocks` of `piece` as asked of `peer`; begins the piece if need be.
    /// `None` when none is free for this peer.
    pub fn take_from(
        &mut self,
        piece: PieceIndex,
        blocks: Range<u32>,
        peer: PeerKey,
    ) -> Option<Block> {
        if self.is_missing(piece) {
            if !self.is_open_to(piece, &blocks, peer) {
                return None;
            }
            self.begin(piece, peer);
        }
        // While the gate has the whole piece, nothing more of it is asked for.
        if !self.is_partial(piece) {
            return None;
        }
        let partial = self.partials.get_mut(&piece).filter(|p| p.is_open_to(peer))?;
        let at = partial.first_free(blocks)?;
        partial.blocks[at].requesters.push(peer);
        partial.free -= 1;
        if partial.free == 0 {
            self.open.remove(&piece);
        }
        self.geometry.block(piece, at as u32)
    }

    /// Whether some `blocks` of `piece` have one that `peer` may be asked for now.
    pub fn is_open_to(&self, piece: PieceIndex, blocks: &Range<u32>, peer: PeerKey) -> bool {
        let any_of_all = |p: &Partial| blocks.len() >= p.blocks.len();
        let open = |p: &Partial| {
            p.is_open_to(peer) && (any_of_all(p) || p.first_free(blocks.clone()).is_some())
        };
        match self.slots[piece.index()].state {
            State::Missing => {
                let end = blocks.end.min(self.geometry.block_count(piece));
                !self.are_proven(piece, blocks.start..end)
            }
            State::Partial => self.partials.get(&piece).is_some_and(open),
            State::Verifying | State::Have => false,
        }
    }

    /// The begun piece with a free block for a peer with `holds`: the rarest, and of these the one
    /// with fewest blocks to go, so that pieces get whole.
    pub fn pick_partial(
        &self,
        peer: PeerKey,
        holds: &Holds,
        allowed: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        self.open
            .iter()
            .filter(|&&p| holds.contains(p) && allowed(p))
            .filter(|&&p| self.slots[p.index()].priority > Priority::None)
            .filter_map(|&p| Some((p, self.partials.get(&p)?)))
            .filter(|(_, partial)| partial.is_open_to(peer))
            .min_by_key(|(p, partial)| (self.slots[p.index()].availability, partial.free))
            .map(|(p, _)| p)
    }

    /// Whether a peer with `holds` may have a missing piece that is rarer than `begun` and wanted no
    /// less. What only seeds have is what a seed should be asked for: nobody else can bring it into
    /// the swarm.
    pub fn has_rarer(&self, begun: PieceIndex, holds: &Holds) -> bool {
        let slot = self.slots[begun.index()];
        let least = usize::from(!matches!(holds, Holds::All));
        let rarer = usize::from(slot.availability);
        self.have >= RANDOM_FIRST_PIECES
            && self
                .buckets
                .iter()
                .skip(usize::from(slot.priority == Priority::Prefetch))
                .any(|class| class.iter().take(rarer).skip(least).any(|bucket| !bucket.is_empty()))
    }

    /// A piece to begin for a peer with `holds`: random while there is little to trade, then the
    /// rarest, ties broken at random.
    pub fn pick_new(
        &self,
        holds: &Holds,
        rng: &mut impl Rng,
        allowed: impl Fn(PieceIndex) -> bool,
    ) -> Option<PieceIndex> {
        let fits =
            |&index: &u32| self.geometry.piece(index).filter(|&p| holds.contains(p) && allowed(p));
        for class in self.buckets.iter().rev() {
            if self.have < RANDOM_FIRST_PIECES
                && let Some(piece) = pick_random(class, rng, fits)
            {
                return Some(piece);
            }
            // What nobody has but seeds, only a seed can be asked for.
            let least = usize::from(!matches!(holds, Holds::All));
            for bucket in class.iter().skip(least).filter(|b| !b.is_empty()) {
                let (before, after) = bucket.split_at(rng.random_range(0..bucket.len()));
                if let Some(piece) = after.iter().chain(before).find_map(fits) {
                    return Some(piece);
                }
            }
        }
        None
    }

    /// Marks a block that others were already asked for as asked of `peer` too. Used in endgame and
    /// when a reader waits for a slow peer.
    pub fn take_duplicate(
        &mut self,
        piece: PieceIndex,
        blocks: &Range<u32>,
        peer: PeerKey,
        worth: impl Fn(Block, &[PeerKey]) -> bool,
    ) -> Option<Block> {
        let geometry = &self.geometry;
        let partial = self.partials.get_mut(&piece)?;
        if partial.sole_source.is_some_and(|only| only != peer) {
            return None;
        }
        partial.blocks.iter_mut().enumerate().find_map(|(at, slot)| {
            let asked = &slot.requesters;
            if slot.is_here()
                || !blocks.contains(&(at as u32))
                || asked.is_empty()
                || asked.contains(&peer)
            {
                return None;
            }
            let block = geometry.block(piece, at as u32).filter(|b| worth(*b, asked))?;
            slot.requesters.push(peer);
            Some(block)
        })
    }

    /// Whether something that is wanted before everything normal can be asked for.
    pub fn wants_something_first(&self) -> bool {
        let first = |p: &PieceIndex| self.slots[p.index()].priority == Priority::Prefetch;
        self.buckets[1].iter().any(|bucket| !bucket.is_empty()) || self.open.iter().any(first)
    }

    /// Whether a wanted piece is not begun.
    pub fn has_unbegun(&self) -> bool {
        self.buckets.iter().flatten().any(|bucket| !bucket.is_empty())
    }

    /// Whether every wanted piece is begun and no begun wanted piece has a free block: time for
    /// endgame.
    pub fn is_endgame(&self) -> bool {
        !self.has_unbegun()
            && self.open.iter().all(|p| self.slots[p.index()].priority == Priority::None)
    }

    fn begin(&mut self, piece: PieceIndex, peer: PeerKey) {
        self.set_state(piece, State::Partial);
        let count = self.geometry.block_count(piece);
        let mut blocks = vec![BlockSlot::default(); count as usize];
        let proven = self.at_rest.remove(&piece).unwrap_or_default();
        for index in &proven {
            if let Some(slot) = blocks.get_mut(*index as usize) {
                slot.trust = Trust::Proven;
            }
        }
        let arrived = proven.len() as u32;
        let partial = Partial {
            blocks,
            free: count - arrived,
            arrived,
            sole_source: self.suspicious.contains(&piece).then_some(peer),
        };
        self.partials.insert(piece, partial);
        self.open.insert(piece);
    }

    // ---- what came of it

    /// `block` came from `peer` and was kept. Returns the other peers that were asked for it, whose
    /// requests can be cancelled, and whether the piece now waits for the gate.
    pub fn arrived(&mut self, block: Block, peer: PeerKey) -> Option<(Vec<PeerKey>, bool)> {
        let partial = self.partials.get_mut(&block.piece)?;
        let slot = partial.blocks.get_mut(block.index as usize)?;
        if slot.is_here() {
            return None;
        }
        slot.from = Some(peer);
        partial.arrived += 1;
        let mut others = std::mem::take(&mut slot.requesters);
        if others.is_empty() {
            partial.free -= 1;
        }
        others.retain(|&p| p != peer);
        let whole = partial.arrived as usize == partial.blocks.len();
        if partial.free == 0 {
            self.open.remove(&block.piece);
        }
        if whole {
            self.set_state(block.piece, State::Verifying);
        }
        Some((others, whole))
    }

    /// `peer` will not send `block` after all.
    pub fn released(&mut self, block: Block, peer: PeerKey) {
        let Some(partial) = self.partials.get_mut(&block.piece) else { return };
        let Some(slot) = partial.blocks.get_mut(block.index as usize) else { return };
        let Some(at) = slot.requesters.iter().position(|&p| p == peer) else { return };
        slot.requesters.swap_remove(at);
        if slot.is_free() {
            partial.free += 1;
            self.open.insert(block.piece);
            // Nothing of it is in memory and nobody is asked: it is as good as any other again.
            let held = partial.blocks.iter().any(BlockSlot::is_in_memory);
            if !held || partial.sole_source == Some(peer) {
                self.abandon(block.piece);
            }
        }
        self.epoch += 1;
    }

    /// Forgets a begun piece but for its proven blocks: the others were lost or are not worth the
    /// memory. If all are proven and it is not verified all the same, they are forgotten too.
    pub fn abandon(&mut self, piece: PieceIndex) {
        let Some(partial) = self.partials.remove(&piece) else { return };
        self.open.remove(&piece);
        self.epoch += 1;
        let proven = (0..).zip(&partial.blocks).filter(|(_, b)| b.trust == Trust::Proven);
        let proven: Vec<_> = proven.map(|(index, _)| index).collect();
        if !proven.is_empty() && proven.len() < partial.blocks.len() {
            self.at_rest.insert(piece, proven);
        }
        self.set_state(piece, State::Missing);
    }

    /// Whether a begun piece has blocks in memory, or on their way there.
    pub fn is_in_memory(&self, piece: PieceIndex) -> bool {
        self.partials.get(&piece).is_some_and(|p| p.blocks.iter().any(BlockSlot::is_in_memory))
    }

    /// Begun pieces nobody is being asked for, fewest blocks first: what to give up when memory is
    /// needed.
    pub fn idle_partials(&self) -> Vec<PieceIndex> {
        let mut idle: Vec<_> = self
            .partials
            .iter()
            .filter(|(p, _)| self.slots[p.index()].state == State::Partial)
            .filter(|(_, partial)| partial.blocks.iter().all(|b| b.requesters.is_empty()))
            .map(|(&p, partial)| (partial.arrived, p))
            .collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, p)| p).collect()
    }

    /// Begun pieces that only one peer may be asked for, and who that is.
    pub fn sole_sources(&self) -> Vec<(PieceIndex, PeerKey)> {
        self.suspicious
            .iter()
            .filter_map(|&p| Some((p, self.partials.get(&p)?)))
            .filter(|(p, _)| self.slots[p.index()].state == State::Partial)
            .filter_map(|(p, partial)| Some((p, partial.sole_source?)))
            .collect()
    }

    /// Who sent each block of a complete piece.
    pub fn sources(&self, piece: PieceIndex) -> Vec<PeerKey> {
        self.partials
            .get(&piece)
            .map(|p| p.blocks.iter().filter_map(|b| b.from).collect())
            .unwrap_or_default()
    }

    /// The gate let `piece` through (or its bytes were found at rest).
    pub fn verified(&mut self, piece: PieceIndex) {
        self.partials.remove(&piece);
        self.open.remove(&piece);
        self.suspicious.remove(&piece);
        self.at_rest.remove(&piece);
        self.set_state(piece, State::Have);
    }

    /// The gate refused `piece`: it is missing again, and from now on asked of one peer at a time.
    pub fn failed(&mut self, piece: PieceIndex) {
        self.abandon(piece);
        self.suspicious.insert(piece);
    }

    /// A piece we had is gone.
    pub fn lost(&mut self, piece: PieceIndex) {
        if self.slots[piece.index()].state == State::Have {
            self.set_state(piece, State::Missing);
            self.epoch += 1;
        }
    }

    /// Whether `piece` failed a check and has not passed one since.
    pub fn is_suspicious(&self, piece: PieceIndex) -> bool {
        self.suspicious.contains(&piece)
    }
}

/// A random piece out of all buckets: a few throws, since most pieces fit while all are missing.
fn pick_random(
    class: &[Vec<u32>],
    rng: &mut impl Rng,
    fits: impl Fn(&u32) -> Option<PieceIndex>,
) -> Option<PieceIndex> {
    let total: usize = class.iter().map(Vec::len).sum();
    if total == 0 {
        return None;
    }
    (0..32).find_map(|_| {
        let mut at = rng.random_range(0..total);
        let bucket = class.iter().find(|b| {
            let here = at < b.len();
            at -= if here { 0 } else { b.len() };
            here
        })?;
        fits(bucket.get(at)?)
    })
}

#[cfg(test)]
mod tests;
