//! What does not come: blocks that are asked for a second time, and what is taken from peers that do not answer.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use crate::proto::geometry::{BLOCK_LEN, Block, PieceIndex};
use crate::proto::peer::RequestWindow;
use crate::proto::swarm::{PeerKey, Priority};
use crate::proto::time::Timestamp;
use crate::proto::torrent::{Output, Torrent};

/// A block that a reader waits for is asked of a second peer after this long at least, and after the usual pause of
/// whoever was asked.
const HEDGE_AFTER: Duration = Duration::from_millis(200);

/// For so long it is tried again and again.
const HEDGING: Duration = Duration::from_millis(20);

/// After this long it is asked of another in any case, however much was already asked for twice.
pub(super) const OVERLONG: Duration = Duration::from_secs(2);

/// One byte in this many may be asked for twice for the sake of waiting readers, ...
const HEDGE_SHARE: u64 = 25;

/// ... beyond this many, so that the first piece can be; what silent peers owe may be when these are used up, too.
const HEDGE_ALLOWANCE: u64 = 1 << 20;

/// When there is no memory to begin another piece, a block is asked of a second peer after this
/// long at least: one block that does not come keeps the memory of its whole piece.
const SLOW: Duration = Duration::from_secs(2);

/// A block is asked of so many peers at once at most, those that are stalled aside; where a reader waits also those
/// that are silent.
const MAX_COPIES: usize = 3;

/// Why a block may be asked of a second peer, and so when it is late enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// A reader waits for it.
    Waited,
    /// The same, when much was asked for twice already.
    Overlong,
    /// It keeps memory.
    Slow,
    /// In endgame: after twice what whoever was asked should need. When it is our downlink that is slow, a
    /// second copy makes everything slower.
    Endgame,
}

impl Late {
    /// Whether `age` is late for a block asked of a peer with `window`, when another would probably send it within
    /// half of `ours`.
    fn is(self, age: Duration, window: &RequestWindow, ours: Duration, now: Timestamp) -> bool {
        age > match self {
            // Not sooner than the other would have sent it: perhaps it is our line that is slow.
            Self::Waited | Self::Overlong if window.is_silent(now) => ours,
            Self::Waited => ours.max(window.usual_pause(now) + HEDGE_AFTER),
            Self::Overlong => ours.max(OVERLONG),
            Self::Slow => ours.max(SLOW),
            Self::Endgame => ours.max(window.expected_delay() * 2),
        }
    }

    /// Whether a peer that was asked counts towards [`MAX_COPIES`].
    fn counts(self, window: &RequestWindow, now: Timestamp) -> bool {
        let reader = matches!(self, Self::Waited | Self::Overlong);
        !(window.is_stalled() || reader && window.is_silent(now))
    }
}

impl Torrent {
    /// Asks for a block of any begun piece a second time; in endgame only of what is wanted in the background: it
    /// is [`Self::hedge`] that looks after readers, and there is an end to what it asks for twice.
    pub(super) fn duplicate_any(&mut self, key: PeerKey, late: Late, now: Timestamp) -> bool {
        let Some(active) = &self.active else { return false };
        let picker = &active.picker;
        let wanted = |p: &PieceIndex| late != Late::Endgame || picker.priority(*p) > Priority::None;
        let pieces: Vec<_> = picker.partial_pieces().filter(wanted).collect();
        pieces.into_iter().any(|piece| self.duplicate(key, piece, &(0..u32::MAX), late, now))
    }

    /// From now on [`Self::hedge`] is called in each plan, for a moment: who had no room may have it soon.
    pub(in crate::proto::torrent) fn hedge_soon(&mut self, now: Timestamp) {
        self.hedging = now + HEDGING;
    }

    /// Asks other peers for blocks that readers wait for and that whoever was asked is slow to
    /// send; whether there were any. It comes before all that is only read ahead, so windows may be exceeded
    /// for it too.
    pub(in crate::proto::torrent) fn hedge(&mut self, now: Timestamp) -> bool {
        let Some(order) = self.ordered() else { return false };
        let mut any = false;
        for wanted in order.iter().filter(|w| w.waiting_since.is_some()) {
            while let Some(active) = &self.active {
                let budget = HEDGE_ALLOWANCE + self.totals.downloaded / HEDGE_SHARE;
                let within = active.hedged_bytes <= budget;
                let late = if within { Late::Waited } else { Late::Overlong };
                let (piece, blocks) = (wanted.piece, &wanted.blocks);
                let mut keys = self.helpers(piece, now).into_iter();
                if !keys.any(|key| self.duplicate(key, piece, blocks, late, now)) {
                    break;
                }
                any = true;
                if let Some(active) = self.active.as_mut().filter(|_| within) {
                    active.hedged_bytes += u64::from(BLOCK_LEN);
                }
            }
        }
        any
    }

    /// Who may be asked for blocks of `piece` that are late, the fastest first. Whoever has never answered is no help
    /// where somebody has who would send it sooner: that there is room again is worth a moment.
    fn helpers(&self, piece: PieceIndex, now: Timestamp) -> Vec<PeerKey> {
        let able = self.peers.iter().filter(|(_, p)| p.serves(piece) && p.answers(now));
        let proven = able.clone().filter(|(_, p)| p.window.rtt().is_some());
        let soonest = proven.map(|(_, p)| p.window.expected_delay()).min();
        let mut helpers: Vec<_> = able
            .filter(|(_, p)| p.window.has_room_for_readers(now))
            .map(|(k, p)| (p.window.expected_delay(), p.window.rtt().is_some(), *k))
            .filter(|(delay, proven, _)| *proven || soonest.is_none_or(|soonest| *delay < soonest))
            .collect();
        helpers.sort_unstable();
        helpers.into_iter().map(|(.., key)| key).collect()
    }

    /// Asks for one of some blocks of `piece` a second time, if `key` answers, and whoever was asked first is stalled
    /// or `late`.
    fn duplicate(
        &mut self,
        key: PeerKey,
        piece: PieceIndex,
        blocks: &Range<u32>,
        late: Late,
        now: Timestamp,
    ) -> bool {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get(&key)) else {
            return false;
        };
        if !active.picker.is_partial(piece) || !peer.serves(piece) || !peer.answers(now) {
            return false;
        }
        let ours = peer.window.expected_delay() * 2;
        let peers = &self.peers;
        let block = active.picker.take_duplicate(piece, blocks, key, |block, asked| {
            let asked = || asked.iter().filter_map(|k| peers.get(k)).map(|p| &p.window);
            let is_late = |window: &RequestWindow| {
                let age = || window.age_of(block, now);
                window.is_stalled() || age().is_none_or(|age| late.is(age, window, ours, now))
            };
            asked().filter(|w| late.counts(w, now)).count() < MAX_COPIES && asked().all(is_late)
        });
        let Some(block) = block else { return false };
        self.request(key, block, now);
        true
    }

    /// A peer that has been silent for too long loses what others who answer would send; when it is found so again,
    /// what others might. And whoever is busy loses what it must have forgotten. What a reader waits for is not taken
    /// from it at first but asked for twice: after a pause that was longer than usual it sends that before anything
    /// that others were asked for since.
    pub(in crate::proto::torrent) fn check_stall(
        &mut self,
        key: PeerKey,
        waited: &BTreeSet<PieceIndex>,
        now: Timestamp,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let was = peer.window.is_stalled();
        let again = peer.window.check_stall(now) && was;
        let mut blocks = peer.window.take_overdue(waited, now);
        // The last block is the one by which it is tried.
        if peer.window.is_stalled() && (again || peer.window.len() > 1) {
            let kept = if again { &BTreeSet::new() } else { waited };
            blocks.extend(self.take_for_others(key, again, kept, now));
        }
        self.withdraw(key, blocks);
    }

    /// The pieces that readers wait for.
    pub(in crate::proto::torrent) fn waited(&mut self) -> BTreeSet<PieceIndex> {
        let order = self.ordered();
        let wanted = order.iter().flat_map(|order| order.iter());
        wanted.filter(|w| w.waiting_since.is_some()).map(|w| w.piece).collect()
    }

    /// Takes from the window of a peer what others would send, or only those who answer; nothing of the pieces
    /// to be `kept`.
    fn take_for_others(
        &mut self,
        key: PeerKey,
        any: bool,
        kept: &BTreeSet<PieceIndex>,
        now: Timestamp,
    ) -> Vec<Block> {
        let Some(peer) = self.peers.get(&key) else { return Vec::new() };
        let others = self.peers.iter().filter(|(k, p)| **k != key && (any || p.answers(now)));
        let others: Vec<_> = others.map(|(_, p)| p).collect();
        let pieces: BTreeSet<_> = peer.window.outstanding().map(|block| block.piece).collect();
        let would_send = |piece: &&PieceIndex| others.iter().any(|p| p.serves(**piece));
        let pieces: BTreeSet<_> = pieces.difference(kept).filter(would_send).copied().collect();
        let Some(peer) = self.peers.get_mut(&key) else { return Vec::new() };
        peer.window.clear_if(|block| pieces.contains(&block.piece))
    }

    /// A peer is not to send `blocks`, which its window has given back.
    pub(in crate::proto::torrent) fn withdraw(&mut self, key: PeerKey, blocks: Vec<Block>) {
        for block in blocks {
            self.outputs.push_back(Output::Cancel(key, block));
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.note_cancelled();
            }
            if let Some(active) = &mut self.active {
                active.release(block, key, &mut self.outputs);
            }
        }
    }

    /// Gives up suspicious pieces whose only source left, serves them no longer, or stalls while others answer, so
    /// that another peer can be asked for all of their blocks. Where a reader waits, silence is enough, and whoever
    /// is silent counts as stalled then: it would be asked at once again, once it owes nothing.
    pub(in crate::proto::torrent) fn free_suspicious(
        &mut self,
        waited: &BTreeSet<PieceIndex>,
        now: Timestamp,
    ) {
        let Some(active) = &self.active else { return };
        for (piece, source) in active.picker.sole_sources() {
            let mut others = self.peers.iter().filter(|(k, _)| **k != source);
            let replaced = others.any(|(_, p)| p.serves(piece) && p.answers(now));
            let Some(peer) = self.peers.get_mut(&source) else {
                self.give_up(piece);
                continue;
            };
            let silent = waited.contains(&piece) && peer.window.is_silent(now);
            if replaced && (silent || peer.window.is_stalled()) {
                peer.window.stall();
                let blocks = peer.window.clear_if(|block| block.piece == piece);
                self.withdraw(source, blocks);
                self.give_up(piece);
            } else if !peer.serves(piece) && peer.window.outstanding().all(|b| b.piece != piece) {
                self.give_up(piece);
            }
        }
    }

    fn give_up(&mut self, piece: PieceIndex) {
        if let Some(active) = &mut self.active {
            active.abandon(piece, &mut self.outputs);
        }
    }
}
