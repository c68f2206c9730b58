//! Whom to ask for what: readers first, then the background; `late` is about what does not come.

mod late;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use self::late::Late;
use super::hashes::FEW_BLOCKS;
use super::{Output, Torrent};
use crate::proto::demand::Wanted;
use crate::proto::geometry::{BLOCK_LEN, Block, PieceIndex};
use crate::proto::peer::PeerSession;
use crate::proto::swarm::{PeerKey, Priority};
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawBlock};

/// Hinted pieces hashed at once in the background.
const BACKGROUND_CHECKS: usize = 2;

/// No more hinted pieces are looked at in the background while so many wait for their hash (BEP 52).
const MAX_UNPROVEN: usize = 64;

/// Three pieces up to this size in all may always be held: one on its way in, one being verified
/// or written, and one for a reader.
const FEW_PIECES: u64 = 96 << 20;

/// Out of this many parts of the buffer budget, one is kept for readers.
const READER_RESERVE: u64 = 4;

/// What is asked of all peers together is no more than comes within this time. Each of them alone
/// cannot see that it is our downlink that is slow: many windows, small as each may be, would make a
/// queue in front of it in which blocks come so late that they are asked for again.
const QUEUE: Duration = Duration::from_secs(2);

/// What is asked for a second time so that what comes before is sent at once, in bytes: no less than a packet
/// holds.
pub(super) const TAIL: u32 = 2048;

/// That is asked for so much later.
const TAIL_AFTER: Duration = Duration::from_millis(2);

/// A round trip below which that is not worth it.
const FAR: Duration = Duration::from_millis(10);

/// Blocks that may be asked for before anything is known of our downlink, and on a slow one.
const MIN_QUEUE: usize = 64;

impl Torrent {
    /// Fills the request windows.
    pub(super) fn plan_requests(&mut self, now: Timestamp) {
        (self.paced, self.tail_due) = (None, None);
        let Some(order) = self.ordered() else { return };
        let Some(epoch) = self.active.as_ref().map(|a| a.epoch()) else { return };
        self.check_hinted(&order, now);
        self.prove_wanted(&order, now);
        self.ask_for_waiting(&order, now);
        if self.is_left_to_readers(now) && order.is_empty() {
            return;
        }
        let askable = self.askable();
        let alone = self.peers.values().filter(|p| !p.window.is_empty()).count() <= 1;
        self.peers.values_mut().for_each(|p| p.window.set_alone(alone));
        let of_use = |p: &PeerSession| !p.peer_choking && p.am_interested && p.answers(now);
        let somebody_answers = self.peers.values().any(of_use);
        let mut keys: Vec<_> = askable
            .iter()
            .filter_map(|key| Some((*key, self.peers.get(key)?)))
            .filter(|(_, p)| !p.window.is_silent(now) || !somebody_answers)
            .filter(|(_, p)| p.nothing_at != Some(epoch) || !order.is_empty())
            .filter(|(_, p)| p.window.room(now) > 0)
            .map(|(key, p)| (Reverse(p.window.rate() as u64), key))
            .collect();
        keys.sort_unstable();
        let asked = askable.iter().filter_map(|key| self.peers.get(key)).map(|p| p.window.len());
        let asked: usize = asked.sum();
        let mut spare = self.downlink_queue(now).saturating_sub(asked);
        self.askable = Some(askable);
        for (_, key) in keys {
            let answers = !somebody_answers || self.peers.get(&key).is_some_and(|p| p.answers(now));
            self.fill(key, &order, answers, &mut spare, now);
        }
        self.push_tails(&order, now);
        let askable = self.askable();
        let peers = askable.iter().filter_map(|key| self.peers.get(key));
        self.paced = peers.filter_map(|p| p.window.paced_until(now)).min();
        self.askable = Some(askable);
    }

    /// Most peers send the end of what they were asked for only when all before it is acknowledged, a round
    /// trip later (Nagle), unless there is more to send. So whoever owes what a reader waits for, and nothing
    /// else, is asked for the beginning of the last block once more. A little later: many do not answer in the
    /// order of what they were asked for.
    fn push_tails(&mut self, order: &[Wanted], now: Timestamp) {
        let waits = |w: &&Wanted| w.waiting_since.is_some() && !w.streamed;
        let waiting: BTreeSet<_> = order.iter().filter(waits).map(|w| w.piece).collect();
        if waiting.is_empty() {
            return;
        }
        let tail = |(key, p): (&PeerKey, &PeerSession)| {
            let (last, at) = p.window.unpushed().filter(|(last, _)| last.length > TAIL)?;
            let alone = p.window.outstanding().all(|block| waiting.contains(&block.piece));
            let far = p.window.rtt().is_none_or(|rtt| rtt > FAR);
            let raw = RawBlock { length: TAIL, ..last.into() };
            (alone && far && !p.sends_at_once()).then_some((*key, raw, at + TAIL_AFTER))
        };
        let tails: Vec<_> = self.peers.iter().filter_map(tail).collect();
        for (key, raw, due) in tails {
            if now < due {
                self.tail_due = Some(self.tail_due.map_or(due, |first| first.min(due)));
                continue;
            }
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.note_cancelled();
                peer.window.pushed();
            }
            self.send(key, Message::Request(raw), now);
        }
    }

    /// Whether the metadata came just now. Whoever mounts a torrent mostly reads from it at once, and a
    /// connection that was never used is slow at first: what is asked for there before comes before.
    fn is_left_to_readers(&mut self, now: Timestamp) -> bool {
        let Some(active) = &mut self.active else { return false };
        active.first_chance = active.first_chance.filter(|until| now < *until);
        active.first_chance.is_some()
    }

    /// What readers want, in order.
    fn ordered(&mut self) -> Option<Arc<[Wanted]>> {
        let active = self.active.as_mut()?;
        let givers: Vec<_> = match active.by_blocks {
            true => self.peers.values().filter(|p| p.proves_soon(&active.info)).collect(),
            false => Vec::new(),
        };
        let geometry = active.geometry.clone();
        let by_blocks = |piece| {
            !givers.is_empty()
                && geometry.block_count(piece) > FEW_BLOCKS
                && givers.iter().any(|p| p.has(piece))
        };
        let order = active.ordered(by_blocks);
        if active.unwritten.is_empty() {
            return Some(order);
        }
        // What is only read ahead would push out of memory what the disk has not taken.
        Some(order.iter().filter(|w| w.waiting_since.is_some()).cloned().collect())
    }

    /// How many blocks may be asked for in all, waiting readers' and one of each peer aside.
    fn downlink_queue(&mut self, now: Timestamp) -> usize {
        let bytes = self.totals.down.per_second(now) * QUEUE.as_secs_f64();
        ((bytes / f64::from(BLOCK_LEN)) as usize).max(MIN_QUEUE)
    }

    /// The peers that do not choke us or let us ask for something all the same.
    fn askable(&mut self) -> Vec<PeerKey> {
        self.askable.take().unwrap_or_else(|| {
            let may_be_asked = |p: &PeerSession| !p.peer_choking || !p.allowed_to_us.is_empty();
            self.peers.iter().filter(|(_, p)| may_be_asked(p)).map(|(k, _)| *k).collect()
        })
    }

    /// Has hinted pieces hashed: first those that readers want, then the rest a few at a time (on
    /// demand only those that are wanted in the background all the same).
    fn check_hinted(&mut self, order: &[Wanted], now: Timestamp) {
        let on_demand = self.options.on_demand;
        for wanted in order {
            if self.active.as_ref().is_some_and(|a| a.picker.has(wanted.piece)) {
                self.check_at_rest(wanted.piece, now);
            }
        }
        while let Some(active) = &mut self.active
            && active.checking.len() < BACKGROUND_CHECKS
            && active.trees.as_ref().is_none_or(|t| t.unproven.len() < MAX_UNPROVEN)
            && let Some(piece) = active.geometry.piece(active.next_check)
        {
            active.next_check += 1;
            if active.announced.contains(piece)
                && !active.readable.contains(piece)
                && (!on_demand || active.unfinished.contains(piece))
            {
                self.check_at_rest(piece, now);
            }
        }
    }

    /// Stripes the blocks of pieces that readers wait for over the peers that will deliver them
    /// first.
    fn ask_for_waiting(&mut self, order: &[Wanted], now: Timestamp) {
        for wanted in order.iter().filter(|w| w.waiting_since.is_some()) {
            while let Some(key) = self.fastest_for(wanted, now) {
                if !self.ask(key, wanted.piece, &wanted.blocks, true, now) {
                    break;
                }
            }
        }
    }

    fn fastest_for(&self, wanted: &Wanted, now: Timestamp) -> Option<PeerKey> {
        let Wanted { piece, ref blocks, streamed, .. } = *wanted;
        let active = self.active.as_ref()?;
        if !active.picker.is_wanting(piece) {
            return None;
        }
        let somebody_answers = self.peers.values().any(|p| p.serves(piece) && p.answers(now));
        let fits = |k: &PeerKey, p: &PeerSession| {
            p.answers(now) == somebody_answers
                && if streamed {
                    p.window.room(now) > 0
                } else {
                    p.window.has_room_for_readers(now)
                }
                && p.serves(piece)
                && active.picker.is_open_to(piece, blocks, *k)
        };
        let able = self.peers.iter().filter(|(k, p)| fits(k, p));
        let suspicious = active.picker.is_suspicious(piece);
        // Of those that are stalled each has its turn.
        let turn = |p: &PeerSession| p.window.is_stalled().then_some(p.last_sent);
        let (key, peer) = able.min_by_key(|(k, p)| {
            let suspected = if suspicious { p.suspected } else { 0 };
            (suspected, turn(p), p.window.expected_delay(), **k)
        })?;
        let in_time = suspicious || self.is_in_time(peer, piece, Duration::ZERO, now);
        in_time.then_some(*key)
    }

    /// Whether `piece` is no worse off with this peer than with the others: either none of them
    /// would send it in half the time, or they are busy for long enough before they come to it.
    fn is_in_time(
        &self,
        peer: &PeerSession,
        piece: PieceIndex,
        busy: Duration,
        now: Timestamp,
    ) -> bool {
        let delay = peer.window.expected_delay();
        let faster =
            |p: &PeerSession| p.window.expected_delay() + busy < delay / 2 && p.answers(now);
        !self.peers.values().any(|p| faster(p) && p.serves(piece))
    }

    /// Fills one peer's window: with the first of the wanted pieces that are not worse off with it
    /// than with others, or else the last that is read ahead. So a slow peer is asked for what lies
    /// far ahead, and whoever has not answered for what lies farthest: nobody waits for it, and one block shows
    /// whether it answers again. At most `spare` blocks beyond its first.
    fn fill(
        &mut self,
        key: PeerKey,
        order: &[Wanted],
        answers: bool,
        spare: &mut usize,
        now: Timestamp,
    ) {
        let Some(active) = &self.active else { return };
        let epoch = active.epoch();
        let background = self.peers.get(&key).is_some_and(|p| p.nothing_at != Some(epoch));
        let crowd = !order.is_empty() && self.peers.values().any(|p| p.fast && !p.is_seed());
        let rate = match order {
            [] => 1.0,
            _ => self.peers.values().map(|p| p.window.rate()).sum::<f64>().max(1.0),
        };
        // Of three in memory one is kept for who waits; of two one would be too many.
        let huge = 3 * u64::from(active.geometry.piece_length()) > FEW_PIECES;
        let may_ask =
            |p: &&PeerSession, spare| p.window.room(now) > 0 && (spare > 0 || p.window.is_empty());
        while let Some(peer) = self.peers.get(&key).filter(|p| may_ask(p, *spare)) {
            *spare = spare.saturating_sub(1);
            let Some(active) = &self.active else { return };
            let (picker, geometry) = (&active.picker, &active.geometry);
            let open =
                |w: &Wanted| picker.is_open_to(w.piece, &w.blocks, key) && peer.serves(w.piece);
            // In a crowd a seed is not asked for what others are given and will pass on.
            let theirs = crowd && peer.is_suggesting(now);
            let ours = |w: &Wanted| !theirs || w.waiting_since.is_some() || peer.suggests(w.piece);
            let mut before = 0;
            let wanting = order.iter().filter(|w| picker.is_wanting(w.piece));
            let in_time = wanting.clone().find(|w| {
                let busy = Duration::from_secs_f64(before as f64 / rate);
                before += u64::from(geometry.piece_len(w.piece))
                    .min(w.blocks.len() as u64 * u64::from(BLOCK_LEN));
                answers && open(w) && ours(w) && self.is_in_time(peer, w.piece, busy, now)
            });
            let last = || {
                let mut back = wanting.rev();
                back.find(|w| w.waiting_since.is_none() && open(w) && ours(w))
            };
            let demanded = in_time.or_else(last).cloned();
            if let Some(Wanted { piece, blocks, waiting_since, .. }) = demanded
                && self.ask(key, piece, &blocks, waiting_since.is_some() || huge, now)
            {
                continue;
            }
            if background && (answers || order.is_empty()) && self.ask_background(key, now) {
                continue;
            }
            if let (Some(peer), Some(active)) = (self.peers.get_mut(&key), &self.active) {
                peer.nothing_at = Some(active.epoch());
            }
            return;
        }
    }

    /// Asks for something nobody waits for: a partial piece, a rare one, or in endgame a block
    /// that another peer was asked for.
    fn ask_background(&mut self, key: PeerKey, now: Timestamp) -> bool {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get(&key)) else {
            return false;
        };
        let Some(holds) = &peer.holds else { return false };
        if !active.unwritten.is_empty() {
            return false;
        }
        let (careful, may_begin) = (peer.suspected, active.fits(self.room));
        let allowed = |p: PieceIndex| careful == 0 || !active.picker.is_suspicious(p);
        let picker = &active.picker;
        if peer.peer_choking {
            // Few pieces, while all that are missing may be many.
            let wanted = |p: &PieceIndex| {
                picker.priority(*p) > Priority::None
                    && peer.serves(*p)
                    && allowed(*p)
                    && (may_begin || picker.is_partial(*p))
                    && picker.is_open_to(*p, &(0..active.geometry.block_count(*p)), key)
            };
            let piece = peer.allowed_to_us.iter().copied().find(wanted);
            return match piece {
                Some(piece) => self.ask_any(key, piece, now),
                None => self.endgame(key, now),
            };
        }
        if peer.is_suggesting(now) && !picker.wants_something_first() {
            let all = |p| 0..active.geometry.block_count(p);
            let open = |p| picker.is_open_to(p, &all(p), key);
            let wanted = |p| {
                open(p)
                    && picker.priority(p) > Priority::None
                    && (may_begin || picker.is_partial(p))
            };
            let suggested = peer.suggestion(|p| wanted(p) && peer.serves(p) && allowed(p));
            return suggested.is_some_and(|piece| self.ask_any(key, piece, now));
        }
        let begun = picker.pick_partial(key, holds, allowed);
        let new = match begun {
            Some(begun) if !picker.has_rarer(begun, holds) => None,
            _ if !may_begin => None,
            _ => picker.pick_new(holds, &mut self.rng, allowed),
        };
        let rarer = |new: &PieceIndex| {
            begun.is_none_or(|begun| {
                picker.availability(*new) < picker.availability(begun)
                    && picker.priority(*new) >= picker.priority(begun)
            })
        };
        let new = new.filter(rarer);
        // Whoever is suspected is asked for suspicious pieces only when nothing else is left.
        let careless = |p: PieceIndex| peer.serves(p);
        let mut suspicious = || {
            let begun = picker.pick_partial(key, holds, careless);
            let mut begin = || picker.pick_new(holds, &mut self.rng, careless);
            begun.or_else(|| may_begin.then(&mut begin).flatten())
        };
        let piece = new.or(begun).or_else(|| (careful > 0).then(&mut suspicious).flatten());
        match piece {
            Some(piece) => {
                self.ask_any(key, piece, now)
                    || begun.is_some_and(|begun| self.ask_any(key, begun, now))
                    || self.duplicate_any(key, Late::Slow, now)
            }
            None => self.endgame(key, now),
        }
    }

    fn endgame(&mut self, key: PeerKey, now: Timestamp) -> bool {
        let Some(active) = &self.active else { return false };
        active.picker.is_endgame() && self.duplicate_any(key, Late::Endgame, now)
    }

    /// Asks `key` for any free block of `piece` in the background.
    fn ask_any(&mut self, key: PeerKey, piece: PieceIndex, now: Timestamp) -> bool {
        let count = self.active.as_ref().map_or(0, |a| a.geometry.block_count(piece));
        self.ask(key, piece, &(0..count), false, now)
    }

    /// Asks `key` for a free one of some `blocks` of `piece`, if there is memory for it.
    fn ask(
        &mut self,
        key: PeerKey,
        piece: PieceIndex,
        blocks: &Range<u32>,
        demanded: bool,
        now: Timestamp,
    ) -> bool {
        let Some(active) = &self.active else { return false };
        let bytes = active.buffer_with(piece, blocks);
        if !self.has_memory_for(piece, bytes, demanded) {
            return false;
        }
        let Some(active) = &mut self.active else { return false };
        let begun = !active.picker.is_missing(piece);
        let Some(block) = active.picker.take_from(piece, blocks.clone(), key) else { return false };
        active.buffer_begun(piece, bytes);
        self.request(key, block, now);
        if !begun {
            self.prove_piece(piece, now);
        }
        true
    }

    fn request(&mut self, key: PeerKey, block: Block, now: Timestamp) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.window.sent(block, now);
            peer.last_sent = now;
            self.outputs.push_back(Output::Request(key, block));
        }
    }

    /// Whether `piece` may take memory, `bytes` with what it has. Readers may use the reserve. When memory is short, begun
    /// pieces that nobody is being asked for are given up: any for a reader; for the background
    /// those that nobody wants any more, and those that nobody would send us now.
    fn has_memory_for(&mut self, piece: PieceIndex, bytes: u32, demanded: bool) -> bool {
        let budget = self.options.buffer_budget;
        let Some(active) = &mut self.active else { return false };
        let held = active.buffered.get(&piece).copied().unwrap_or(0);
        let more = u64::from(bytes.saturating_sub(held));
        let piece_length = u64::from(active.geometry.piece_length());
        let budget = budget.max((3 * piece_length).min(FEW_PIECES)).max(2 * piece_length);
        let usable = if demanded { budget } else { budget - budget / READER_RESERVE };
        let usable = usable.max(piece_length);
        if more == 0 || active.buffered_bytes + more <= usable {
            return true;
        }
        for idle in active.picker.idle_partials() {
            let useless = active.is_unwanted(idle) || !self.peers.values().any(|p| p.serves(idle));
            if idle != piece && (demanded || useless) {
                active.abandon(idle, &mut self.outputs);
            }
            if active.buffered_bytes + more <= usable {
                return true;
            }
        }
        false
    }
}
