//! Windows over simulated links.

use super::*;
use crate::proto::geometry::Geometry;

/// Peers that answer in order, all behind the same downlink.
struct Link {
    /// Bytes a second.
    rate: f64,
    rtt: Duration,
    /// What has come is handed over so often only: in bursts.
    bunch: Duration,
    /// One in so many blocks is lost and comes a round trip later, and what is behind it waits.
    loss: Option<u32>,
    held_until: Timestamp,
    windows: Vec<RequestWindow>,
    wire: VecDeque<(usize, Block, Timestamp)>,
    blocks: u32,
    free_at: Timestamp,
    now: Timestamp,
    arrived: u64,
}

impl Link {
    fn new(peers: usize, mbit: f64, rtt: Duration) -> Self {
        let mut window = RequestWindow::default();
        window.set_limit(MAX as u32);
        Self {
            rate: mbit * 125_000.0,
            rtt,
            bunch: Duration::from_nanos(1),
            loss: None,
            held_until: Timestamp::ZERO,
            windows: vec![window; peers],
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
            let at = Timestamp::from_nanos(at);
            if self.loss.is_some_and(|n| self.blocks.is_multiple_of(n)) {
                self.held_until = self.held_until.max(at + self.rtt);
            }
            self.wire.push_back((peer, block, at.max(self.held_until)));
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

    /// Blocks that all windows hold, by what the line holds until the end of a round trip is handed over.
    fn held(&self) -> f64 {
        let held: usize = self.windows.iter().map(RequestWindow::size).sum();
        held as f64 * f64::from(BLOCK_LEN) / (self.rate * (self.rtt + self.bunch).as_secs_f64())
    }
}

const FAR: Duration = Duration::from_millis(50);

#[test]
fn a_long_link_is_filled_without_a_long_queue() {
    for (peers, bunch) in [(1, 0), (1, 10), (1, 30), (4, 0), (4, 10), (4, 30)] {
        let mut link = Link::new(peers, 100.0, FAR);
        link.bunch = Duration::from_millis(bunch).max(link.bunch);
        let first = link.run(Duration::from_secs(1)) / link.rate;
        // One peer's long bursts tell little in a second.
        assert!(
            first > if (peers, bunch) == (1, 30) { 0.6 } else { 0.75 },
            "{peers} peers, bursts of {bunch} ms: {first}"
        );
        let rate = link.run(Duration::from_secs(20)) / link.rate;
        assert!(rate > 0.97, "{peers} peers, bursts of {bunch} ms: {rate}");
        assert!(link.held() < 1.9, "{peers} peers, bursts of {bunch} ms: {}", link.held());
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
fn a_lone_peer_behind_losses_is_never_left_without_requests() {
    for (mbit, rtt, blocks) in [(20.0, 150, 28), (20.0, 300, 9), (50.0, 100, 9)] {
        let mut link = Link::new(1, mbit, Duration::from_millis(rtt));
        link.loss = Some(blocks);
        link.windows[0].set_alone(true);
        link.run(Duration::from_secs(6));
        // Long enough for the round trip to be looked for a few times.
        for second in 0..60 {
            let rate = link.run(Duration::from_secs(1)) / link.rate;
            assert!(rate > 0.5, "{mbit} Mbit/s, {rtt} ms, second {second}: {rate}");
        }
        let rate = link.run(Duration::from_secs(60)) / link.rate;
        assert!(rate > 0.9, "{mbit} Mbit/s, {rtt} ms: {rate}");
        let queue = link.windows[0].size() as f64 * f64::from(BLOCK_LEN) / link.rate;
        assert!(queue < 6.0 * link.rtt.as_secs_f64(), "{mbit} Mbit/s, {rtt} ms: {queue} s");
    }
}

#[test]
fn a_lone_peer_on_a_clean_line_is_never_left_without_requests() {
    for (mbit, rtt) in [(100.0, 200), (20.0, 150), (300.0, 100), (50.0, 100)] {
        let mut link = Link::new(1, mbit, Duration::from_millis(rtt));
        link.windows[0].set_alone(true);
        link.run(Duration::from_secs(6));
        // Long enough for the round trip to be looked for a few times, if anybody did.
        for second in 0..60 {
            let rate = link.run(Duration::from_secs(1)) / link.rate;
            assert!(rate > 0.95, "{mbit} Mbit/s, {rtt} ms, second {second}: {rate}");
        }
    }
}

#[test]
fn the_window_of_a_lone_peer_that_is_seldom_asked_stays_as_it_was() {
    let mut link = Link::new(1, 100.0, Duration::from_millis(100));
    link.windows[0].set_alone(true);
    link.run(Duration::from_secs(6));
    let before = link.windows[0].size();
    let window = &mut link.windows[0];
    window.clear();
    let geometry = Geometry::new(1 << 34, u64::from(BLOCK_LEN)).unwrap();
    let mut now = link.now;
    for piece in 1_000_000..1_000_008 {
        now = now + Duration::from_secs(12);
        let block = geometry.block_at(piece, 0, BLOCK_LEN).unwrap();
        window.sent(block, now);
        assert!(window.arrived(block, now + Duration::from_millis(102)));
        assert!(window.size() * 2 > before, "{} of {before}", window.size());
    }
}

#[test]
fn in_a_pause_what_is_far_too_much_is_taken_back_but_for_what_a_reader_waits_for() {
    let (mut window, mut now) = (RequestWindow::default(), Timestamp::ZERO);
    let geometry = Geometry::new(1 << 30, 1 << 20).unwrap();
    let [first, second] = [0, 1].map(|piece| geometry.piece(piece).unwrap());
    for block in geometry.blocks(first).take(20) {
        window.sent(block, now);
        now = now + FAR;
        assert!(window.arrived(block, now));
    }
    let rest: Vec<_> = geometry.blocks(first).skip(20).collect();
    let asked: Vec<_> = rest.into_iter().chain(geometry.blocks(second)).collect();
    asked.iter().for_each(|block| window.sent(*block, now));
    now = now + 10 * FAR;
    let waited = BTreeSet::from([second]);
    let kept = 2 * window.size();
    let taken = window.clone().take_overdue(&waited, now);
    assert!(!taken.is_empty() && taken.iter().all(|block| block.piece == first), "{taken:?}");
    let taken = window.take_overdue(&BTreeSet::new(), now);
    assert!(taken.len() >= asked.len() - kept, "{} of {}", taken.len(), asked.len());
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
    let mut blocks = geometry.blocks(geometry.piece(0).unwrap());
    for block in blocks.by_ref().take(32) {
        window.sent(block, now);
        now = now + FAR + Duration::from_millis(2);
        assert!(window.arrived(block, now));
        now = now + Duration::from_millis(30);
    }
    assert!(window.rate() == before, "{before}: {}", window.rate());
    // Nor if one of them is sent again after a while.
    let late = blocks.next().unwrap();
    window.sent(late, now);
    now = now + 8 * FAR;
    assert!(window.take_overdue(&BTreeSet::new(), now).is_empty());
    assert!(window.arrived(late, now));
    assert!(window.rate() > 0.7 * before, "{before}: {}", window.rate());
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

/// A peer that sends, at the speed of the line, what has gathered in its bucket.
struct Bucket {
    /// Bytes a second.
    rate: f64,
    every: Duration,
    rtt: Duration,
}

impl Bucket {
    /// What was delivered in `time`, and the longest window and the highest rate after the first cycles.
    fn serve(&self, window: &mut RequestWindow, time: Duration) -> (u64, usize, f64) {
        const STEP: Duration = Duration::from_micros(100);
        const LOOK: Duration = Duration::from_millis(100);
        let geometry = Geometry::new(1 << 34, u64::from(BLOCK_LEN)).unwrap();
        let (mut blocks, mut longest, mut highest) = (0, 0, 0.0f64);
        let (mut tokens, mut fill, mut look) = (0.0, Duration::ZERO, Duration::ZERO);
        let mut asked = VecDeque::new();
        let mut passed = Duration::ZERO;
        while passed < time {
            let now = Timestamp::ZERO + passed;
            if fill <= passed {
                tokens = self.rate * self.every.as_secs_f64();
                fill += self.every;
            }
            while let Some((block, _)) =
                asked.pop_front_if(|(_, at)| tokens > 0.0 && *at + self.rtt <= now)
            {
                tokens -= f64::from(BLOCK_LEN);
                assert!(window.arrived(block, now));
            }
            while window.room(now) > 0 {
                let block = geometry.block_at(blocks, 0, BLOCK_LEN).unwrap();
                blocks += 1;
                window.sent(block, now);
                asked.push_back((block, now));
            }
            if look <= passed {
                look += LOOK;
                assert!(!window.check_stall(now));
                for block in window.take_overdue(&BTreeSet::new(), now) {
                    asked.retain(|(other, _)| *other != block);
                }
            }
            if passed > 3 * self.every {
                longest = longest.max(window.len());
                highest = highest.max(window.rate());
            }
            passed += STEP;
        }
        (window.delivered, longest, highest)
    }
}

#[test]
fn what_comes_in_bursts_is_no_faster_than_it_is_on_average() {
    let cases = [(0.75, 500, 0), (1.5, 1000, 0), (6.0, 500, 0), (1.5, 1000, 50), (0.75, 500, 50)];
    for (mbyte, every, rtt) in cases {
        let (rate, rtt) = (mbyte * 1e6, Duration::from_millis(rtt));
        let every = Duration::from_millis(every);
        let bucket = Bucket { rate, every, rtt };
        let time = Duration::from_secs(20);
        let (arrived, longest, highest) = bucket.serve(&mut RequestWindow::default(), time);
        let share = arrived as f64 / (rate * time.as_secs_f64());
        assert!(share > 0.95, "{mbyte} MB/s: {share}");
        assert!(highest < 2.1 * rate, "{mbyte} MB/s: {highest}");
        // It owes no more than comes in a part of a second.
        let owed = longest as f64 * f64::from(BLOCK_LEN) / rate;
        assert!(owed < 0.2 + 5.0 * rtt.as_secs_f64(), "{mbyte} MB/s: {owed} s");
    }
}

#[test]
fn the_answer_to_what_was_taken_back_is_no_round_trip() {
    let geometry = Geometry::new(1 << 30, 1 << 20).unwrap();
    let mut window = RequestWindow::default();
    let mut now = Timestamp::ZERO;
    let mut blocks = geometry.blocks(geometry.piece(0).unwrap());
    let (early, late) = (blocks.next().unwrap(), blocks.next().unwrap());
    for block in [early, late] {
        window.sent(block, now);
    }
    now = now + FAR;
    assert!(window.arrived(early, now));
    for taken_back in [RequestWindow::withdrawn, |w: &mut RequestWindow, _| !w.clear().is_empty()] {
        assert!(taken_back(&mut window, late));
        window.sent(late, now);
        now = now + Duration::from_millis(1);
        assert!(window.arrived(late, now));
        assert_eq!(window.rtt(), Some(FAR));
        window.sent(late, now);
    }
}

#[test]
fn a_pause_is_usual_when_it_comes_again_and_again_not_twice_a_day() {
    let geometry = Geometry::new(1 << 34, u64::from(BLOCK_LEN)).unwrap();
    let (mut window, mut now, mut next) = (RequestWindow::default(), Timestamp::ZERO, 0);
    let mut answer = |window: &mut RequestWindow, now: &mut Timestamp, after: Duration| {
        let block = geometry.block_at(next, 0, BLOCK_LEN).unwrap();
        next += 1;
        window.sent(block, *now);
        *now = *now + after;
        assert!(window.arrived(block, *now));
    };
    for after in [20, 2_000, 20, 2_000] {
        answer(&mut window, &mut now, Duration::from_millis(after));
    }
    assert_eq!(window.usual_pause(now), LONGEST_USUAL);
    for _ in 0..2_000 {
        answer(&mut window, &mut now, Duration::from_millis(20));
    }
    assert_eq!(window.usual_pause(now), Duration::ZERO);
}

#[test]
fn who_has_not_said_how_much_it_queues_is_asked_for_no_more_than_all_queue() {
    let mut link = Link::new(1, 1000.0, FAR);
    link.windows[0] = RequestWindow::default();
    link.run(Duration::from_secs(3));
    assert_eq!(link.windows[0].size(), UNTOLD);
}
