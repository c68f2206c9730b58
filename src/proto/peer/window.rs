//! The request window: how many blocks to keep asked of one peer.
//!
//! The target is the bandwidth-delay product and a little more: what the peer delivers in
//! `1.25 × round trip + 20 ms`. While the window is what limits the rate, that product exceeds the
//! window and it grows by at least a quarter each round trip; once the link is the limit, the rate
//! stands still and so does the window. What is queued at the peer stays short, so a read that
//! arrives finds a short queue.

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

/// Requests outstanding at one peer and what is known of how it answers.
#[derive(Clone, Debug)]
pub struct RequestWindow {
    outstanding: VecDeque<(Block, Timestamp)>,
    outstanding_bytes: u64,
    limit: usize,
    /// Blocks that rate and round trip call for.
    target: usize,
    /// Bytes a second while requests were outstanding.
    rate: f64,
    rtt: Option<Duration>,
    sample_bytes: u64,
    sample_since: Timestamp,
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
            rate: 0.0,
            rtt: None,
            sample_bytes: 0,
            sample_since: Timestamp::ZERO,
            last_progress: Timestamp::ZERO,
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

    fn aim(&mut self) {
        if let Some(rtt) = self.rtt.filter(|_| self.rate > 0.0) {
            let seconds = (rtt.mul_f64(1.25) + SLACK).as_secs_f64();
            let blocks = self.rate * seconds / f64::from(BLOCK_LEN);
            self.target = (blocks.ceil() as usize).clamp(MIN, MAX);
        }
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
        self.outstanding.iter().map(|(b, _)| *b)
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
        self.outstanding.iter().find(|(b, _)| *b == block).map(|(_, at)| now.since(*at))
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

    /// `block` was asked for.
    pub fn sent(&mut self, block: Block, now: Timestamp) {
        if self.outstanding.is_empty() {
            self.sample_bytes = 0;
            self.sample_since = now;
            self.last_progress = now;
        }
        self.outstanding.push_back((block, now));
        self.outstanding_bytes += u64::from(block.length);
    }

    /// `block` arrived; false when it was not outstanding.
    pub fn arrived(&mut self, block: Block, now: Timestamp) -> bool {
        let Some(sent) = self.remove(block) else { return false };
        self.heard(now);
        let response = now.since(sent);
        self.rtt = Some(self.rtt.map_or(response, |rtt| rtt.min(response)));
        self.sample_bytes += u64::from(block.length);
        let elapsed = now.since(self.sample_since);
        let step = self.rtt.unwrap_or(ASSUMED_RTT).div_f64(2.0);
        if elapsed >= step.clamp(Duration::from_millis(5), Duration::from_millis(100)) {
            self.fold(self.sample_bytes as f64 / elapsed.as_secs_f64());
            self.sample_bytes = 0;
            self.sample_since = now;
            self.aim();
        }
        true
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
        let Some(sent) = self.remove(block) else { return false };
        if self.last_progress <= sent && now.since(sent) > BEATEN_AFTER {
            self.beaten += 1;
            self.stalled |= self.beaten >= MAX_BEATEN;
        }
        true
    }

    /// Follows a rise fast and a fall slowly: one late block is no trend.
    fn fold(&mut self, sample: f64) {
        let weight = if sample > self.rate { 0.5 } else { 0.1 };
        self.rate += (sample - self.rate) * weight;
    }

    /// `block` will not come; false when it was not outstanding.
    pub fn withdrawn(&mut self, block: Block) -> bool {
        self.remove(block).is_some()
    }

    /// Nothing outstanding will come.
    pub fn clear(&mut self) -> Vec<Block> {
        self.outstanding_bytes = 0;
        self.outstanding.drain(..).map(|(b, _)| b).collect()
    }

    fn remove(&mut self, block: Block) -> Option<Timestamp> {
        let at = self.outstanding.iter().position(|(b, _)| *b == block)?;
        let (_, sent) = self.outstanding.remove(at)?;
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(u64::from(block.length));
        Some(sent)
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
            self.rate /= 2.0;
            self.aim();
            self.last_progress = now;
            return true;
        }
        false
    }

    /// Takes back what has been outstanding for so long that the peer must have forgotten it, or
    /// keeps us waiting, though it may send other blocks all the while.
    pub fn take_overdue(&mut self, now: Timestamp) -> Vec<Block> {
        let patience = (self.expected_delay() * 4).clamp(MIN_OVERDUE, MAX_OVERDUE);
        let overdue = |(_, at): &&(Block, Timestamp)| now.since(*at) > patience;
        let blocks: Vec<_> = self.outstanding.iter().take_while(overdue).map(|(b, _)| *b).collect();
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

    /// A peer behind a link: answers in order at `rate` bytes a second, `rtt` after the request.
    fn settle(rate: f64, rtt: Duration) -> (usize, f64) {
        let geometry = Geometry::new(1 << 40, 16 << 20).unwrap();
        let mut blocks = geometry.pieces().flat_map(|p| geometry.blocks(p).collect::<Vec<_>>());
        let mut window = RequestWindow::default();
        let mut wire: VecDeque<(Block, Timestamp)> = VecDeque::new();
        let (mut now, mut free_at, mut bytes) = (Timestamp::ZERO, Timestamp::ZERO, 0u64);
        let end = Timestamp::ZERO + Duration::from_secs(5);
        while now < end {
            while window.room() > 0 {
                let block = blocks.next().unwrap();
                window.sent(block, now);
                let start = free_at.max(now + rtt);
                free_at = start + Duration::from_secs_f64(f64::from(block.length) / rate);
                wire.push_back((block, free_at));
            }
            let (block, at) = wire.pop_front().unwrap();
            now = at;
            bytes += u64::from(block.length);
            assert!(window.arrived(block, now));
        }
        (window.size(), bytes as f64 / 5.0)
    }

    #[test]
    fn a_long_link_is_filled_without_a_long_queue() {
        let (size, rate) = settle(12.5e6, Duration::from_millis(50));
        assert!(rate > 0.93 * 12.5e6, "{rate}");
        let bdp = 12.5e6 * 0.05 / f64::from(BLOCK_LEN);
        assert!((size as f64) < 3.0 * bdp, "{size}");
    }

    #[test]
    fn a_short_fat_link_is_filled() {
        let (_, rate) = settle(400e6, Duration::from_micros(300));
        assert!(rate > 0.95 * 400e6, "{rate}");
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
