//! What readers want: the reads that wait now, and what open handles will probably read next.
//!
//! Demand is derived, never remembered: the order of pieces is computed from the reads and the
//! windows that exist at that moment, so nothing has to lower a priority again.

pub mod window;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::proto::geometry::{Geometry, PieceIndex};
use crate::proto::time::Timestamp;

/// Names one waiting read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one open file handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

#[derive(Clone, Debug)]
struct Wait {
    handle: HandleId,
    range: Range<u64>,
    since: Timestamp,
    expires: Timestamp,
    /// False once the handle was flushed: its reader may be dead.
    urgent: bool,
}

/// A piece somebody wants, or part of one, in the order of a [`Demand::order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The piece.
    pub piece: PieceIndex,
    /// The blocks of it that are of use before the others are here: all, if they can only be verified
    /// together.
    pub blocks: Range<u32>,
    /// Since when a reader waits for it; `None` when it is only read ahead.
    pub waiting_since: Option<Timestamp>,
    /// The handle reads on and on: what comes next is asked for in any case.
    pub streamed: bool,
}

/// All demand on one torrent. Ranges are in bytes of the torrent.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    waits: BTreeMap<Ticket, Wait>,
    windows: BTreeMap<HandleId, Range<u64>>,
}

impl Demand {
    /// A read begins to wait for `range`.
    pub fn wait(
        &mut self,
        ticket: Ticket,
        handle: HandleId,
        range: Range<u64>,
        now: Timestamp,
        expires: Timestamp,
    ) {
        self.waits.insert(ticket, Wait { handle, range, since: now, expires, urgent: true });
    }

    /// What `handle` will probably read next; an empty range for nothing.
    pub fn read_ahead(&mut self, handle: HandleId, range: Range<u64>) {
        if range.is_empty() {
            self.windows.remove(&handle);
        } else {
            self.windows.insert(handle, range);
        }
    }

    /// A descriptor of `handle` was closed: nothing of it is urgent any more.
    pub fn flushed(&mut self, handle: HandleId) {
        self.windows.remove(&handle);
        for wait in self.waits.values_mut().filter(|w| w.handle == handle) {
            wait.urgent = false;
        }
    }

    /// `handle` is gone; returns the reads of it that still waited.
    pub fn closed(&mut self, handle: HandleId) -> Vec<Ticket> {
        self.windows.remove(&handle);
        self.end(|w| w.handle == handle)
    }

    /// Reads that wait.
    pub fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// The reads that wait, and how long they have at `now`.
    pub fn waits(&self, now: Timestamp) -> impl Iterator<Item = (Range<u64>, Duration)> + '_ {
        self.waits.values().map(move |w| (w.range.clone(), now.since(w.since)))
    }

    /// Whether nobody wants anything.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty() && self.windows.is_empty()
    }

    /// Ends the reads whose range satisfies `here`, of those that touch `piece`.
    pub fn satisfied(
        &mut self,
        geometry: &Geometry,
        piece: PieceIndex,
        here: impl Fn(&Range<u64>) -> bool,
    ) -> Vec<Ticket> {
        let at = geometry.piece_range(piece);
        self.end(|w| w.range.start < at.end && at.start < w.range.end && here(&w.range))
    }

    /// Ends the reads whose time is over.
    pub fn expired(&mut self, now: Timestamp) -> Vec<Ticket> {
        self.end(|w| w.expires <= now)
    }

    /// Ends all reads.
    pub fn end_all(&mut self) -> Vec<Ticket> {
        self.end(|_| true)
    }

    fn end(&mut self, over: impl Fn(&Wait) -> bool) -> Vec<Ticket> {
        let ended: Vec<_> = self.waits.iter().filter(|(_, w)| over(w)).map(|(t, _)| *t).collect();
        for ticket in &ended {
            self.waits.remove(ticket);
        }
        ended
    }

    /// When the first read expires.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.waits.values().map(|w| w.expires).min().filter(|t| *t < Timestamp::FAR_FUTURE)
    }

    /// The pieces that are wanted and satisfy `missing`, each once: first what readers wait for, of
    /// each handle the first read in the file, the longest wait first, then the second of each, and
    /// so on: a program waits for the first, the system reads ahead for it with the others; then what is read ahead, the nearest pieces of all handles first;
    /// then reads whose reader is probably gone. `by_blocks` says of which pieces the blocks can be
    /// verified alone: of these only those are wanted that somebody wants, each once.
    pub fn order(
        &self,
        geometry: &Geometry,
        by_blocks: impl Fn(PieceIndex) -> bool,
        missing: impl Fn(PieceIndex) -> bool,
    ) -> Vec<Wanted> {
        let mut order = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut add = |piece, range: &Range<u64>, waiting_since, streamed| {
            let blocks = match by_blocks(piece) {
                true => geometry.blocks_of(piece, range.clone()),
                false => 0..geometry.block_count(piece),
            };
            if missing(piece)
                && !blocks.is_empty()
                && seen.insert((piece, blocks.start, blocks.end))
            {
                order.push(Wanted { piece, blocks, waiting_since, streamed });
            }
        };
        let pieces_of = |range: &Range<u64>| geometry.pieces_of(range.clone());
        for wait in self.urgent() {
            let streamed = self.windows.contains_key(&wait.handle);
            let since = Some(wait.since);
            pieces_of(&wait.range).for_each(|p| add(p, &wait.range, since, streamed));
        }
        let mut windows: Vec<_> = self.windows.values().map(|r| (pieces_of(r), r)).collect();
        while !windows.is_empty() {
            windows.retain_mut(|(pieces, range)| {
                pieces.next().map(|p| add(p, range, None, true)).is_some()
            });
        }
        for wait in self.waits.values().filter(|w| !w.urgent) {
            pieces_of(&wait.range).for_each(|p| add(p, &wait.range, None, true));
        }
        order
    }

    /// The reads that readers wait for, in order.
    fn urgent(&self) -> impl Iterator<Item = &Wait> {
        let mut waits: Vec<_> = self.waits.values().filter(|w| w.urgent).collect();
        waits.sort_by_key(|w| (w.handle, w.range.start));
        let of_handles = waits.chunk_by(|a, b| a.handle == b.handle);
        let mut ranked: Vec<_> =
            of_handles.flat_map(|waits| waits.iter().copied().enumerate()).collect();
        ranked.sort_by_key(|(rank, wait)| (*rank, wait.since));
        ranked.into_iter().map(|(_, wait)| wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn geometry() -> Geometry {
        Geometry::new(100 * MIB, MIB).unwrap()
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_nanos(secs * 1_000_000_000)
    }

    fn order(demand: &Demand) -> Vec<u32> {
        demand.order(&geometry(), |_| false, |_| true).iter().map(|w| w.piece.get()).collect()
    }

    #[test]
    fn waiting_reads_come_first_and_windows_interleave() {
        let mut d = Demand::default();
        d.read_ahead(HandleId(1), 10 * MIB..13 * MIB);
        d.read_ahead(HandleId(2), 50 * MIB..52 * MIB);
        d.wait(Ticket(1), HandleId(2), 49 * MIB..49 * MIB + 1, at(5), Timestamp::FAR_FUTURE);
        d.wait(Ticket(2), HandleId(1), 9 * MIB..10 * MIB + 1, at(4), Timestamp::FAR_FUTURE);
        assert_eq!(order(&d), [9, 10, 49, 50, 11, 51, 12]);
    }

    #[test]
    fn what_the_system_reads_ahead_comes_after_what_another_program_waits_for() {
        let mut d = Demand::default();
        for (ticket, piece) in [(1, 11), (2, 10), (3, 12)] {
            let range = piece * MIB..(piece + 1) * MIB;
            d.wait(Ticket(ticket), HandleId(1), range, at(ticket), Timestamp::FAR_FUTURE);
        }
        d.wait(Ticket(4), HandleId(2), 70 * MIB..70 * MIB + 1, at(4), Timestamp::FAR_FUTURE);
        assert_eq!(order(&d), [10, 70, 11, 12]);
    }

    #[test]
    fn a_flush_takes_the_urgency_but_not_the_read() {
        let mut d = Demand::default();
        d.wait(Ticket(1), HandleId(1), 0..1, at(1), Timestamp::FAR_FUTURE);
        d.wait(Ticket(2), HandleId(2), MIB..MIB + 1, at(2), Timestamp::FAR_FUTURE);
        d.flushed(HandleId(1));
        assert_eq!(order(&d), [1, 0]);
        assert_eq!(d.waiting(), 2);
        let piece = geometry().piece(0).unwrap();
        assert_eq!(d.satisfied(&geometry(), piece, |r| r.start < MIB), [Ticket(1)]);
    }

    #[test]
    fn a_read_that_straddles_pieces_ends_when_both_are_here() {
        let mut d = Demand::default();
        let g = geometry();
        d.wait(Ticket(1), HandleId(1), MIB - 1..MIB + 1, at(1), at(9));
        let (first, second) = (g.piece(0).unwrap(), g.piece(1).unwrap());
        assert_eq!(d.satisfied(&g, first, |_| false), []);
        assert_eq!(d.satisfied(&g, second, |_| true), [Ticket(1)]);
    }

    #[test]
    fn where_blocks_count_alone_only_those_are_wanted_that_somebody_wants() {
        let mut d = Demand::default();
        d.wait(Ticket(1), HandleId(1), MIB - 1..MIB + 1, at(1), at(9));
        d.wait(Ticket(2), HandleId(1), MIB..MIB + 4096, at(2), at(9));
        d.read_ahead(HandleId(1), MIB + 40_000..MIB + 60_000);
        d.read_ahead(HandleId(2), 2 * MIB..2 * MIB + 1);
        let order = d.order(&geometry(), |p| p.get() < 2, |_| true);
        let wanted: Vec<_> = order.iter().map(|w| (w.piece.get(), w.blocks.clone())).collect();
        assert_eq!(wanted, [(0, 63..64), (1, 0..1), (1, 2..4), (2, 0..64)]);
    }

    #[test]
    fn reads_expire_at_their_time() {
        let mut d = Demand::default();
        d.wait(Ticket(1), HandleId(1), 0..1, at(1), at(3));
        assert_eq!(d.next_expiry(), Some(at(3)));
        assert_eq!(d.expired(at(2)), []);
        assert_eq!(d.expired(at(3)), [Ticket(1)]);
        assert_eq!(d.next_expiry(), None);
    }
}
