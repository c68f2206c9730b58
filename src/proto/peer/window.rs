//! The request window: how many blocks to keep asked of one peer.
//!
//! The target is the bandwidth-delay product and a little more: what the peer delivers in
//! `1.5 × round trip + 30 ms`. While the window is what limits the rate, that product exceeds the
//! window and it grows by at least a quarter each round trip; once the link is the limit, the rate
//! stands still and so does the window. What is queued at the peer stays short, so a read that
//! arrives finds a short queue.
//!
//! Peers that share a line each believe, as their blocks come in bunches, that it carries more of
//! theirs than it does. So all windows together hold no more than what all peers together deliver
//! calls for ([`blocks_for_all`]).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use super::delivery::{Delivery, Mark, Response};
use crate::proto::geometry::{BLOCK_LEN, Block};
use crate::proto::time::Timestamp;

/// Blocks asked for before anything is known of the peer.
const START: usize = 16;

/// A round trip's worth of blocks never falls below this.
const MIN: usize = 4;

/// Above this nothing is gained: 512 blocks are 8 MiB.
const MAX: usize = 512;

/// What the target holds beyond the round trip, for scheduling hiccups on both sides.
const SLACK: Duration = Duration::from_millis(30);

/// After this long without a shorter one, the round trip may be found to have grown.
const RTT_AGES: Duration = Duration::from_secs(10);

/// The round trip assumed before one was seen.
const ASSUMED_RTT: Duration = Duration::from_millis(100);

/// The rate assumed before one was seen, in bytes a second: a newcomer is worth a try.
const ASSUMED_RATE: f64 = 512.0 * 1024.0;

/// Silence with requests outstanding after which a peer counts as stalled, at least.
const MIN_STALL: Duration = Duration::from_secs(4);

/// The same, at most.
const MAX_STALL: Duration = Duration::from_secs(30);

/// Time after which a block that did not come is asked for again, at least.
const MIN_OVERDUE: Duration = Duration::from_secs(10);

/// The same, at most.
const MAX_OVERDUE: Duration = Duration::from_secs(60);

/// A block that another peer sent first says something about this one when it was asked for at
/// least this long ago.
const BEATEN_AFTER: Duration = Duration::from_millis(150);

/// So many such blocks in a row, and the peer counts as stalled.
const MAX_BEATEN: u32 = 4;

/// When a stalled peer that is asked for nothing counts as a newcomer again.
const FORGIVE: Duration = Duration::from_secs(60);

/// A block that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    block: Block,
    at: Timestamp,
    /// What had been delivered by then, by this peer and by all.
    mark: Mark,
    mark_of_all: Mark,
    /// It filled the window.
    filled: bool,
    /// It has hardly anything of ours in front of it.
    first: bool,
}

/// Requests outstanding at one peer and what is known of how it answers.
#[derive(Clone, Debug)]
pub struct RequestWindow {
    outstanding: VecDeque<Asked>,
    outstanding_bytes: u64,
    limit: usize,
    /// Blocks that rate and round trip call for.
    target: usize,
    delivery: Delivery,
    rtt: Option<Duration>,
    /// When the round trip was last seen to be that short.
    rtt_seen: Timestamp,
    last_progress: Timestamp,
    /// Blocks that other peers sent first while this one sent nothing.
    beaten: u32,
    stalled: bool,
}

impl Default for RequestWindow {
    fn default() -> Self {
        Self {
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            limit: MAX,
            target: START,
            delivery: Delivery::default(),
            rtt: None,
            rtt_seen: Timestamp::ZERO,
            last_progress: Timestamp::ZERO,
            beaten: 0,
            stalled: false,
        }
    }
}

impl RequestWindow {
    /// It took so long to connect to the peer. No block has come so soon yet: the first ones wait for
    /// those before them, on a connection that is slow at first.
    pub fn connected_in(&mut self, round_trip: Duration, now: Timestamp) {
        self.rtt = Some(round_trip);
        self.rtt_seen = now;
    }

    /// The peer's `reqq`: more requests than that it drops (BEP 10).
    pub fn set_limit(&mut self, reqq: u32) {
        self.limit = (reqq as usize).clamp(1, MAX);
    }

    /// How many blocks may be outstanding now.
    pub fn size(&self) -> usize {
        if self.stalled { 1 } else { self.target.min(self.limit) }
    }

    /// What the window holds at most, in time.
    fn span(&self) -> Duration {
        self.rtt.unwrap_or(ASSUMED_RTT).mul_f64(1.5) + SLACK
    }

    /// The window that rate and round trip call for.
    fn aim(&self) -> usize {
        let blocks = self.rate() * self.span().as_secs_f64() / f64::from(BLOCK_LEN);
        (blocks.ceil() as usize).clamp(MIN, MAX)
    }

    /// Blocks that may still be asked for now.
    pub fn room(&self) -> usize {
        self.size().saturating_sub(self.outstanding.len())
    }

    /// Whether one more block may be asked for that a reader waits for: the window may be exceeded
    /// by a quarter for it, but never what the peer is willing to queue.
    pub fn has_room_for_readers(&self) -> bool {
        self.outstanding.len() < (self.size() * 5 / 4 + 1).min(self.limit)
    }

    /// Blocks asked for and not answered, oldest first.
    pub fn outstanding(&self) -> impl Iterator<Item = Block> + '_ {
        self.outstanding.iter().map(|a| a.block)
    }

    /// How many blocks are asked for and not answered.
    pub fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// How long `block` has been outstanding here.
    pub fn age_of(&self, block: Block, now: Timestamp) -> Option<Duration> {
        self.outstanding.iter().find(|a| a.block == block).map(|a| now.since(a.at))
    }

    /// When a block asked for now would probably be here.
    pub fn expected_delay(&self) -> Duration {
        let queued = (self.outstanding_bytes + u64::from(BLOCK_LEN)) as f64;
        let rate = match self.rate() {
            _ if self.stalled => 1.0,
            0.0 => ASSUMED_RATE,
            rate => rate.max(f64::from(BLOCK_LEN)),
        };
        self.rtt.unwrap_or(ASSUMED_RTT) + Duration::from_secs_f64((queued / rate).min(3_600.0))
    }

    /// Bytes a second that the peer delivers while asked.
    pub fn rate(&self) -> f64 {
        self.delivery.rate()
    }

    /// `block` was asked for; `all` is what all peers together have delivered.
    pub fn sent(&mut self, block: Block, all: &Delivery, now: Timestamp) {
        if self.outstanding.is_empty() {
            self.last_progress = now;
        }
        let before = self.outstanding.len();
        self.outstanding.push_back(Asked {
            block,
            at: now,
            mark: self.delivery.mark(before == 0, now),
            mark_of_all: all.mark(false, now),
            filled: before + 1 >= self.size(),
            first: before < MIN,
        });
        self.outstanding_bytes += u64::from(block.length);
    }

    /// `block` arrived, which counts for `all` too; false when it was not outstanding.
    pub fn arrived(&mut self, block: Block, all: &mut Delivery, now: Timestamp) -> bool {
        let Some(asked) = self.remove(block) else { return false };
        self.heard(now);
        let time = now.since(asked.at);
        self.note_round_trip(time, asked.first, now);
        let (bytes, rtt) = (u64::from(block.length), self.rtt.unwrap_or(ASSUMED_RTT));
        let late = time > self.span();
        all.came(Response { bytes, rtt, telling: late }, asked.mark_of_all, now);
        let telling = asked.filled || late;
        match self.delivery.came(Response { bytes, rtt, telling }, asked.mark, now) {
            Ordering::Greater => self.target = self.target.max(self.aim()),
            Ordering::Less => self.target = self.aim(),
            Ordering::Equal => {}
        }
        true
    }

    /// A longer round trip than before may be our own queue, unless there was none.
    fn note_round_trip(&mut self, response: Duration, first: bool, now: Timestamp) {
        let aged = now.since(self.rtt_seen) > RTT_AGES;
        if self.rtt.is_none_or(|rtt| response <= rtt || (first && aged)) {
            self.rtt = Some(response);
            self.rtt_seen = now;
        }
    }

    /// Payload came, perhaps too late to be of use.
    pub fn heard(&mut self, now: Timestamp) {
        self.last_progress = now;
        self.beaten = 0;
        self.stalled = false;
    }

    /// Another peer sent `block` first; false when it was not outstanding here. Who is beaten a few
    /// times without a sign of life counts as stalled: it would never come to a long silence, since
    /// what it owes is taken from it.
    pub fn beaten(&mut self, block: Block, now: Timestamp) -> bool {
        let Some(asked) = self.remove(block) else { return false };
        if self.last_progress <= asked.at && now.since(asked.at) > BEATEN_AFTER {
            self.beaten += 1;
            self.stalled |= self.beaten >= MAX_BEATEN;
        }
        true
    }

    /// `block` will not come; false when it was not outstanding.
    pub fn withdrawn(&mut self, block: Block) -> bool {
        self.remove(block).is_some()
    }

    /// Nothing outstanding will come.
    pub fn clear(&mut self) -> Vec<Block> {
        self.outstanding_bytes = 0;
        self.outstanding.drain(..).map(|a| a.block).collect()
    }

    fn remove(&mut self, block: Block) -> Option<Asked> {
        let at = self.outstanding.iter().position(|a| a.block == block)?;
        let asked = self.outstanding.remove(at)?;
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(u64::from(block.length));
        Some(asked)
    }

    /// Whether the peer has been silent for too long with requests outstanding. From then on it is
    /// asked for one block at a time, until one arrives; one that is asked for nothing is given
    /// another chance after a minute.
    pub fn check_stall(&mut self, now: Timestamp) -> bool {
        if self.outstanding.is_empty() && now.since(self.last_progress) > FORGIVE {
            self.beaten = 0;
            self.stalled = false;
        }
        let patience = (self.expected_delay() * 4).clamp(MIN_STALL, MAX_STALL);
        if !self.outstanding.is_empty() && now.since(self.last_progress) > patience {
            self.stalled = true;
            self.delivery.halve();
            if self.rate() > 0.0 {
                self.target = self.aim();
            }
            self.last_progress = now;
            return true;
        }
        false
    }

    /// Takes back what has been outstanding for so long that the peer must have forgotten it, or
    /// keeps us waiting, though it may send other blocks all the while.
    pub fn take_overdue(&mut self, now: Timestamp) -> Vec<Block> {
        let patience = (self.expected_delay() * 4).clamp(MIN_OVERDUE, MAX_OVERDUE);
        let overdue = |asked: &&Asked| now.since(asked.at) > patience;
        let blocks: Vec<_> = self.outstanding.iter().take_while(overdue).map(|a| a.block).collect();
        for block in &blocks {
            self.remove(*block);
        }
        blocks
    }

    /// Whether nothing came for so long that what is outstanding takes no room on the way to us.
    pub fn is_silent(&self, now: Timestamp) -> bool {
        now.since(self.last_progress) > 2 * self.span()
    }

    /// Whether it may be asked for more even if all together hold enough: a peer that sends little is
    /// idle between two blocks otherwise.
    pub fn is_small(&self) -> bool {
        self.outstanding.len() < MIN
    }

    /// Whether the peer counts as stalled.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }
}

/// Blocks that all windows together should hold: what `all` peers together deliver in the time that
/// each of the windows is for. `None` while nothing is known of them.
pub fn blocks_for_all<'a>(
    all: &Delivery,
    windows: impl Iterator<Item = &'a RequestWindow>,
) -> Option<usize> {
    let (mut rates, mut bytes) = (0.0, 0.0);
    for window in windows {
        rates += window.rate();
        bytes += window.rate() * window.span().as_secs_f64();
    }
    let share = all.rate() / rates;
    let blocks = (bytes * share / f64::from(BLOCK_LEN)).ceil() as usize;
    (rates > 0.0).then(|| blocks.max(START))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::geometry::Geometry;

    /// Peers that answer in order, all behind the same downlink.
    struct Link {
        /// Bytes a second.
        rate: f64,
        rtt: Duration,
        /// What has come is handed over so often only: in bursts.
        bunch: Duration,
        windows: Vec<RequestWindow>,
        wire: VecDeque<(usize, Block, Timestamp)>,
        blocks: u32,
        free_at: Timestamp,
        now: Timestamp,
        arrived: u64,
        all: Delivery,
    }

    impl Link {
        fn new(peers: usize, mbit: f64, rtt: Duration) -> Self {
            let mut window = RequestWindow::default();
            window.connected_in(rtt, Timestamp::ZERO);
            Self {
                rate: mbit * 125_000.0,
                rtt,
                bunch: Duration::from_nanos(1),
                windows: vec![window; peers],
                wire: VecDeque::new(),
                blocks: 0,
                free_at: Timestamp::ZERO,
                now: Timestamp::ZERO,
                arrived: 0,
                all: Delivery::default(),
            }
        }

        fn fill(&mut self) {
            let geometry = Geometry::new(1 << 34, u64::from(BLOCK_LEN)).unwrap();
            // In turn, as the answers of many share a line.
            while let Some(peer) = (0..self.windows.len())
                .filter(|_| self.outstanding() < self.most())
                .filter(|i| self.windows[*i].room() > 0)
                .max_by_key(|i| self.windows[*i].room() * 1000 / self.windows[*i].size())
            {
                let block = geometry.block_at(self.blocks, 0, BLOCK_LEN).unwrap();
                self.blocks += 1;
                self.windows[peer].sent(block, &self.all, self.now);
                let start = self.free_at.max(self.now + self.rtt);
                self.free_at = start + Duration::from_secs_f64(f64::from(BLOCK_LEN) / self.rate);
                let bunch = self.bunch.as_nanos() as u64;
                let at = self.free_at.as_nanos().div_ceil(bunch) * bunch;
                self.wire.push_back((peer, block, Timestamp::from_nanos(at)));
            }
        }

        /// Bytes a second that came.
        fn run(&mut self, time: Duration) -> f64 {
            let (end, before) = (self.now + time, self.arrived);
            while self.now < end {
                self.fill();
                self.now = self.wire.front().unwrap().2;
                while let Some(&(peer, block, at)) = self.wire.front()
                    && at <= self.now
                {
                    self.wire.pop_front();
                    self.arrived += u64::from(block.length);
                    assert!(self.windows[peer].arrived(block, &mut self.all, self.now));
                }
            }
            (self.arrived - before) as f64 / time.as_secs_f64()
        }

        fn outstanding(&self) -> usize {
            self.windows.iter().map(RequestWindow::len).sum()
        }

        fn most(&self) -> usize {
            blocks_for_all(&self.all, self.windows.iter()).unwrap_or(usize::MAX)
        }

        /// Blocks that all windows may hold, by what the line holds in a round trip.
        fn held(&self) -> f64 {
            let held: usize = self.windows.iter().map(RequestWindow::size).sum();
            held.min(self.most()) as f64 * f64::from(BLOCK_LEN)
                / (self.rate * self.rtt.as_secs_f64())
        }
    }

    const FAR: Duration = Duration::from_millis(50);

    #[test]
    fn a_long_link_is_filled_without_a_long_queue() {
        for (peers, bunch) in [(1, 0), (1, 10), (1, 30), (4, 0), (4, 10), (4, 30)] {
            let mut link = Link::new(peers, 100.0, FAR);
            link.bunch = Duration::from_millis(bunch).max(link.bunch);
            let first = link.run(Duration::from_secs(1)) / link.rate;
            assert!(first > 0.7, "{peers} peers, bursts of {bunch} ms: {first}");
            let rate = link.run(Duration::from_secs(20)) / link.rate;
            assert!(rate > 0.97, "{peers} peers, bursts of {bunch} ms: {rate}");
            assert!(link.held() < 2.25, "{peers} peers, bursts of {bunch} ms: {}", link.held());
        }
    }

    #[test]
    fn a_window_opens_within_a_second_on_a_fast_long_link() {
        for (peers, least) in [(1, 0.6), (4, 0.75)] {
            let mut link = Link::new(peers, 1000.0, FAR);
            let first = link.run(Duration::from_secs(1)) / link.rate;
            assert!(first > least, "{peers} peers: {first}");
            let rate = link.run(Duration::from_secs(2)) / link.rate;
            assert!(rate > 0.97, "{peers} peers: {rate}");
        }
    }

    #[test]
    fn one_pause_does_not_close_a_window() {
        let mut link = Link::new(1, 100.0, FAR);
        link.run(Duration::from_secs(2));
        let size = link.windows[0].size();
        let pause = link.now + Duration::from_millis(300);
        for (_, _, at) in &mut link.wire {
            *at = (*at).max(pause);
        }
        link.free_at = pause;
        link.run(Duration::from_millis(301));
        assert!(link.windows[0].size() > size * 3 / 4, "{size}: {}", link.windows[0].size());
    }

    #[test]
    fn few_requests_say_nothing_against_the_rate() {
        let mut link = Link::new(1, 100.0, FAR);
        link.run(Duration::from_secs(2));
        let before = link.windows[0].rate();
        let window = &mut link.windows[0];
        for block in window.clear() {
            assert!(!window.withdrawn(block));
        }
        let mut now = link.now + Duration::from_secs(1);
        let geometry = Geometry::new(1 << 30, 1 << 20).unwrap();
        for block in geometry.blocks(geometry.piece(0).unwrap()) {
            window.sent(block, &link.all, now);
            now = now + FAR + Duration::from_millis(2);
            assert!(window.arrived(block, &mut link.all, now));
        }
        assert!(window.rate() == before, "{before}: {}", window.rate());
    }

    #[test]
    fn a_short_fat_link_is_filled() {
        let mut link = Link::new(1, 3200.0, Duration::from_micros(300));
        let rate = link.run(Duration::from_secs(1));
        assert!(rate > 0.95 * link.rate, "{rate}");
    }

    #[test]
    fn a_window_follows_a_round_trip_that_grows() {
        let mut link = Link::new(1, 100.0, FAR);
        link.run(Duration::from_secs(2));
        link.rtt = 4 * FAR;
        link.run(Duration::from_secs(15));
        let rate = link.run(Duration::from_secs(5)) / link.rate;
        assert!(rate > 0.9, "{rate}");
    }

    #[test]
    fn a_silent_peer_is_asked_for_one_block_at_a_time() {
        let geometry = Geometry::new(1 << 30, 1 << 20).unwrap();
        let mut window = RequestWindow::default();
        let block = geometry.block_at(0, 0, BLOCK_LEN).unwrap();
        let mut all = Delivery::default();
        window.sent(block, &all, Timestamp::ZERO);
        assert!(!window.check_stall(Timestamp::ZERO + Duration::from_secs(3)));
        assert!(window.check_stall(Timestamp::ZERO + Duration::from_secs(31)));
        assert_eq!(window.size(), 1);
        assert!(window.arrived(block, &mut all, Timestamp::ZERO + Duration::from_secs(32)));
        assert!(window.size() > 1);
    }
}
