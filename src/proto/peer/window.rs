//! The request window: how many blocks to keep asked of one peer.
//!
//! The target is the bandwidth-delay product and a little more: what the peer delivers in
//! `1.25 × round trip + 20 ms`. While the window is what limits the rate, that product exceeds the
//! window and it grows by at least a quarter each round trip; once the link is the limit, the rate
//! stands still and so does the window. What is queued at the peer stays short, so a read that
//! arrives finds a short queue.
//!
//! The rate is sampled as TCP BBR does (draft-cheng-iccrg-delivery-rate-estimation): what arrived
//! between the request for a block and its arrival, by that time or by the time in which it had been
//! asked for, whichever is longer. However blocks are bunched on the way, that is never more than
//! one window in one round trip.

use std::collections::VecDeque;
use std::time::Duration;

use crate::proto::geometry::{BLOCK_LEN, Block};
use crate::proto::time::Timestamp;

/// Blocks asked for before anything is known of the peer.
const START: usize = 16;

/// A round trip's worth of blocks never falls below this.
const MIN: usize = 4;

/// Above this nothing is gained: 512 blocks are 8 MiB.
const MAX: usize = 512;

/// What the target holds beyond the round trip, for scheduling hiccups on both sides.
const SLACK: Duration = Duration::from_millis(20);

/// After this long without a shorter one, the round trip may be found to have grown.
const RTT_AGES: Duration = Duration::from_secs(10);

/// What arrives sooner counts as if it took this long: clocks have a resolution.
const RESOLUTION: Duration = Duration::from_micros(1);

/// Requests are sent at so many times the rate at most, or what has come at once after a lost packet would be
/// asked for again at once, and come as a burst that a router's queue does not hold.
const PACE: f64 = 2.0;

/// What may be asked for at once, in time.
const BURST: Duration = Duration::from_millis(10);

/// How much a higher sample of the rate counts. Each is an average over a round trip already.
const RISE: f64 = 0.25;

/// How much a lower one counts, of which there is at most one in half a round trip: all that comes
/// in a burst after a pause tells of the same pause.
const FALL: f64 = 0.2;

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
    /// Bytes that had been delivered by then.
    delivered: u64,
    /// When that was asked for which came last before.
    began: Timestamp,
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
    /// Bytes a second while requests were outstanding.
    rate: f64,
    rtt: Option<Duration>,
    /// When the round trip was last seen to be that short.
    rtt_seen: Timestamp,
    /// Bytes of all blocks that came when they were outstanding.
    delivered: u64,
    /// When the last of these was asked for.
    delivered_asked: Timestamp,
    /// When the rate last fell.
    fell: Timestamp,
    last_progress: Timestamp,
    /// Blocks that might be asked for at once, and when.
    credit: f64,
    credit_at: Timestamp,
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
            rate: 0.0,
            rtt: None,
            rtt_seen: Timestamp::ZERO,
            delivered: 0,
            delivered_asked: Timestamp::ZERO,
            fell: Timestamp::ZERO,
            last_progress: Timestamp::ZERO,
            credit: START as f64,
            credit_at: Timestamp::ZERO,
            beaten: 0,
            stalled: false,
        }
    }
}

impl RequestWindow {
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
        self.rtt.unwrap_or(ASSUMED_RTT).mul_f64(1.25) + SLACK
    }

    /// The window that rate and round trip call for.
    fn aim(&self) -> usize {
        let blocks = self.rate * self.span().as_secs_f64() / f64::from(BLOCK_LEN);
        (blocks.ceil() as usize).clamp(MIN, MAX)
    }

    /// Blocks that may still be asked for now.
    pub fn room(&self, now: Timestamp) -> usize {
        self.size().saturating_sub(self.outstanding.len()).min(self.credit(now) as usize)
    }

    /// Whether one more block may be asked for that a reader waits for: the window may be exceeded
    /// by a quarter for it, but never what the peer is willing to queue.
    pub fn has_room_for_readers(&self, now: Timestamp) -> bool {
        self.is_open_to_readers() && self.credit(now) >= 1.0
    }

    fn is_open_to_readers(&self) -> bool {
        self.outstanding.len() < (self.size() * 5 / 4 + 1).min(self.limit)
    }

    /// Blocks that may be asked for at once.
    fn credit(&self, now: Timestamp) -> f64 {
        let most = (self.rate * BURST.as_secs_f64() / f64::from(BLOCK_LEN)).max(MIN as f64);
        match self.outstanding.is_empty() || self.rate == 0.0 {
            true => most.max(START as f64),
            false => {
                (self.credit + self.pace() * now.since(self.credit_at).as_secs_f64()).min(most)
            }
        }
    }

    /// Blocks a second that may be asked for.
    fn pace(&self) -> f64 {
        self.rate * PACE / f64::from(BLOCK_LEN)
    }

    /// When a block may be asked for again, if none may now although the window is not full.
    pub fn paced_until(&self, now: Timestamp) -> Option<Timestamp> {
        let lacking = 1.0 - self.credit(now);
        let paced = lacking > 0.0 && self.is_open_to_readers();
        let wait = || Duration::try_from_secs_f64((1.0 + lacking) / self.pace()).ok();
        paced.then(wait).flatten().map(|wait| now + wait)
    }

    /// Blocks asked for and not answered, oldest first.
    pub fn outstanding(&self) -> impl Iterator<Item = Block> + '_ {
        self.outstanding.iter().map(|a| a.block)
    }

    /// The block that was asked for last, if that was at `now`.
    pub fn last_asked(&self, now: Timestamp) -> Option<Block> {
        self.outstanding.back().filter(|asked| asked.at == now).map(|asked| asked.block)
    }

    /// The shortest round trip seen.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
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
        let rate = match self.rate {
            _ if self.stalled => 1.0,
            0.0 => ASSUMED_RATE,
            rate => rate.max(f64::from(BLOCK_LEN)),
        };
        self.rtt.unwrap_or(ASSUMED_RTT) + Duration::from_secs_f64((queued / rate).min(3_600.0))
    }

    /// Bytes a second that the peer delivers while asked.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// How long nothing has come although something was asked for.
    pub fn silence(&self, now: Timestamp) -> Duration {
        if self.outstanding.is_empty() { Duration::ZERO } else { now.since(self.last_progress) }
    }

    /// `block` was asked for.
    pub fn sent(&mut self, block: Block, now: Timestamp) {
        if self.outstanding.is_empty() {
            self.last_progress = now;
            self.delivered_asked = now;
        }
        self.credit = self.credit(now) - 1.0;
        self.credit_at = now;
        let before = self.outstanding.len();
        self.outstanding.push_back(Asked {
            block,
            at: now,
            delivered: self.delivered,
            began: self.delivered_asked,
            filled: before + 1 >= self.size(),
            first: before < MIN,
        });
        self.outstanding_bytes += u64::from(block.length);
    }

    /// `block` arrived; false when it was not outstanding.
    pub fn arrived(&mut self, block: Block, now: Timestamp) -> bool {
        let Some(asked) = self.remove(block) else { return false };
        self.heard(now);
        self.delivered += u64::from(block.length);
        self.delivered_asked = self.delivered_asked.max(asked.at);
        let response = now.since(asked.at).max(RESOLUTION);
        self.note_round_trip(response, asked.first, now);
        let came = (self.delivered - asked.delivered) as f64;
        let sample = came / response.as_secs_f64();
        // What came at once after a lost packet had been asked for in a longer time.
        let asked_in = asked.at.since(asked.began);
        let lasting = came / response.max(asked_in).as_secs_f64();
        if lasting > self.rate {
            self.rate += (lasting - self.rate) * RISE;
            self.target = self.target.max(self.aim());
        } else if sample < self.rate && (asked.filled || response > self.span()) {
            self.fall(sample, now);
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

    /// Less came than the rate says, though enough had been asked for, or late.
    fn fall(&mut self, sample: f64, now: Timestamp) {
        let step = self.rtt.unwrap_or(ASSUMED_RTT).div_f64(2.0);
        let step = step.clamp(Duration::from_millis(5), Duration::from_millis(100));
        if now.since(self.fell) >= step {
            self.fell = now;
            self.rate += (sample - self.rate) * FALL;
            self.target = self.aim();
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
        if self.stalled && self.outstanding.len() > 1 {
            // Others were faster: what it still owes is theirs, too.
            return true;
        }
        let patience = (self.expected_delay() * 4).clamp(MIN_STALL, MAX_STALL);
        if !self.outstanding.is_empty() && now.since(self.last_progress) > patience {
            self.stalled = true;
            self.rate /= 2.0;
            if self.rate > 0.0 {
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

    /// Whether the peer counts as stalled.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }
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
    }

    impl Link {
        fn new(peers: usize, mbit: f64, rtt: Duration) -> Self {
            Self {
                rate: mbit * 125_000.0,
                rtt,
                bunch: Duration::from_nanos(1),
                windows: vec![RequestWindow::default(); peers],
                wire: VecDeque::new(),
                blocks: 0,
                free_at: Timestamp::ZERO,
                now: Timestamp::ZERO,
                arrived: 0,
            }
        }

        fn fill(&mut self) {
            let geometry = Geometry::new(1 << 34, u64::from(BLOCK_LEN)).unwrap();
            // In turn, as the answers of many share a line.
            while let Some(peer) = (0..self.windows.len())
                .filter(|i| self.windows[*i].room(self.now) > 0)
                .max_by_key(|i| self.windows[*i].room(self.now) * 1000 / self.windows[*i].size())
            {
                let block = geometry.block_at(self.blocks, 0, BLOCK_LEN).unwrap();
                self.blocks += 1;
                self.windows[peer].sent(block, self.now);
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
                let paced = self.windows.iter().filter_map(|w| w.paced_until(self.now)).min();
                let next = self.wire.front().map(|block| block.2);
                self.now = next.into_iter().chain(paced).min().unwrap();
                while let Some(&(peer, block, at)) = self.wire.front()
                    && at <= self.now
                {
                    self.wire.pop_front();
                    self.arrived += u64::from(block.length);
                    assert!(self.windows[peer].arrived(block, self.now));
                }
            }
            (self.arrived - before) as f64 / time.as_secs_f64()
        }

        /// Blocks that all windows hold, by what the line holds in a round trip.
        fn held(&self) -> f64 {
            let held: usize = self.windows.iter().map(RequestWindow::size).sum();
            held as f64 * f64::from(BLOCK_LEN) / (self.rate * self.rtt.as_secs_f64())
        }
    }

    const FAR: Duration = Duration::from_millis(50);

    #[test]
    fn a_long_link_is_filled_without_a_long_queue() {
        for (peers, bunch) in [(1, 0), (1, 10), (1, 30), (4, 0), (4, 10), (4, 30)] {
            let mut link = Link::new(peers, 100.0, FAR);
            link.bunch = Duration::from_millis(bunch).max(link.bunch);
            let first = link.run(Duration::from_secs(1)) / link.rate;
            // In a second of long bursts there is little to learn from.
            assert!(
                first > if bunch < 30 { 0.75 } else { 0.6 },
                "{peers} peers, bursts of {bunch} ms: {first}"
            );
            let rate = link.run(Duration::from_secs(20)) / link.rate;
            assert!(rate > 0.97, "{peers} peers, bursts of {bunch} ms: {rate}");
            assert!(link.held() < 2.1, "{peers} peers, bursts of {bunch} ms: {}", link.held());
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
    fn what_comes_at_once_after_a_lost_packet_is_not_asked_for_at_once() {
        let mut link = Link::new(1, 100.0, FAR);
        link.run(Duration::from_secs(2));
        // Nothing is handed over for two round trips, while the line goes on.
        let hole = link.now + 2 * FAR;
        for (_, _, at) in &mut link.wire {
            *at = (*at).max(hole);
        }
        let mut asked = link.blocks;
        while link.now < hole + 4 * FAR {
            link.run(Duration::from_millis(1));
            let at_once = link.blocks - asked;
            asked = link.blocks;
            let most = (link.windows[0].pace() * BURST.as_secs_f64() * 1.5) as u32;
            assert!(at_once <= most, "{at_once} blocks at once");
            assert!(link.windows[0].rate() < 1.1 * link.rate, "{}", link.windows[0].rate());
        }
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
            window.sent(block, now);
            now = now + FAR + Duration::from_millis(2);
            assert!(window.arrived(block, now));
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
        window.sent(block, Timestamp::ZERO);
        assert!(!window.check_stall(Timestamp::ZERO + Duration::from_secs(3)));
        assert!(window.check_stall(Timestamp::ZERO + Duration::from_secs(31)));
        assert_eq!(window.size(), 1);
        assert!(window.arrived(block, Timestamp::ZERO + Duration::from_secs(32)));
        assert!(window.size() > 1);
    }
}
