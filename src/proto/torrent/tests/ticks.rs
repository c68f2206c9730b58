//! Seeders that limit their uploads as libtorrent does: what may be sent is dealt out twice a second.

use std::collections::VecDeque;
use std::ops::Range;

use super::*;

const TICK: Duration = Duration::from_millis(500);

/// What such a node reads from its disk at most before it may send it, in bytes.
const BUFFERED: f64 = 500_000.0;

/// What is dealt out to a node that limits its uploads.
pub(super) struct Ticks {
    /// Bytes a second.
    rate: f64,
    /// It asks for as much as it sent in a second lately, and sends nothing until it has all of that; else for half
    /// a second's worth.
    in_lumps: bool,
    /// What has not been dealt out.
    quota: f64,
    /// What was asked for, and how much of it is there.
    wanted: Option<(f64, f64)>,
    /// What may be sent.
    left: f64,
    /// Sent since the last even tick, and a second on average.
    sent: f64,
    average: f64,
    ticks: u32,
    stopped: bool,
    busy: Timestamp,
    pub queue: VecDeque<(PeerKey, RawBlock)>,
}

impl Ticks {
    fn new(rate: f64, in_lumps: bool) -> Self {
        Self {
            rate,
            in_lumps,
            quota: 0.0,
            wanted: None,
            left: 0.0,
            sent: 0.0,
            average: 0.0,
            ticks: 0,
            stopped: false,
            busy: Timestamp::ZERO,
            queue: VecDeque::new(),
        }
    }

    /// What is sent next now.
    fn deal(&mut self) -> Option<(PeerKey, RawBlock)> {
        let (key, raw) = self.queue.front().copied()?;
        if self.left <= 0.0 && self.wanted.is_none() {
            self.ask();
        }
        if self.stopped || self.left <= 0.0 {
            return None;
        }
        self.left -= f64::from(raw.length);
        self.sent += f64::from(raw.length);
        self.queue.pop_front();
        Some((key, raw))
    }

    fn ask(&mut self) {
        let buffered = (self.queue.len() as f64 * f64::from(BLOCK_LEN)).min(BUFFERED);
        let wanted = if self.in_lumps { buffered.max(self.average) } else { self.rate / 2.0 };
        self.wanted = Some((wanted, 0.0));
        self.grant();
    }

    /// Gives what was asked for, if there is enough.
    fn grant(&mut self) {
        let Some((wanted, assigned)) = &mut self.wanted else { return };
        let more = self.quota.min(*wanted - *assigned);
        *assigned += more;
        self.quota -= more;
        if *assigned >= *wanted {
            self.left += *wanted;
            self.wanted = None;
        }
    }

    /// Nothing is left over for those who ask for nothing.
    fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(2) {
            self.average = self.average * 0.8 + self.sent * 0.2;
            self.sent = 0.0;
        }
        if self.wanted.is_some() {
            self.quota += self.rate * TICK.as_secs_f64();
            self.grant();
        }
    }
}

impl World {
    /// Has `node` send so many bytes a second, dealt out from `phase` on.
    fn limit(&mut self, node: usize, limits: Ticks, phase: Duration) {
        self.nodes[node].ticks = Some(limits);
        self.later(phase, node, PeerKey(0), Happens::Tick);
    }

    /// Deals out what may be sent in one tick.
    pub(super) fn tick(&mut self, node: usize) {
        self.later(TICK, node, PeerKey(0), Happens::Tick);
        self.nodes[node].ticks.as_mut().unwrap().tick();
        self.pump(node);
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, node: usize) {
        let now = self.now;
        while let Some((key, raw)) = self.nodes[node].ticks.as_mut().and_then(Ticks::deal) {
            let ticks = self.nodes[node].ticks.as_mut().unwrap();
            ticks.busy = ticks.busy.max(now) + self.wire;
            let takes = ticks.busy.since(now) + self.latency;
            if let Some((to, at)) = self.nodes[node].links.get(&key).copied() {
                self.later(takes, to, at, Happens::Block { raw, good: true });
            }
            self.nodes[node].machine.uploaded(key, raw, true, now);
            self.settle(node);
        }
    }
}

/// What a sequential read sees of four seeders, the fastest of which stops after a quarter.
struct Seen {
    longest_before: Duration,
    longest_after: Duration,
    /// Of the whole.
    duplicates: f64,
}

/// `phases` say when the ticks of each begin.
fn read_while_one_stops(in_lumps: bool, phases: [u64; 4], line: (Duration, Duration)) -> Seen {
    let mut world = World::new(400, 16 * BLOCK_LEN);
    (world.latency, world.wire) = line;
    let limits = [6e6, 3e6, 1.5e6, 0.75e6].into_iter().zip(phases);
    let seeds: Vec<_> = limits
        .map(|(rate, phase)| {
            let seed = world.seed();
            world.limit(seed, Ticks::new(rate, in_lumps), Duration::from_millis(phase));
            seed
        })
        .collect();
    let reader = world.leech();
    world.nodes[reader].machine.set_buffer_budget(32 << 20);
    seeds.iter().for_each(|seed| world.know(reader, *seed));
    world.run(LONG, |w| w.nodes[reader].links.len() == 4);
    let (mut last, mut before, mut after) = (world.now, Duration::ZERO, Duration::ZERO);
    world.read_all(reader, |w, piece| {
        let stopped = piece > 100;
        if let Some(ticks) = &mut w.nodes[seeds[0]].ticks {
            ticks.stopped = stopped;
        }
        let longest = if stopped { &mut after } else { &mut before };
        *longest = w.now.since(last).max(*longest);
        last = w.now;
    });
    let wasted = world.nodes[reader].machine.totals.wasted as f64;
    let duplicates = wasted / world.info.geometry.total() as f64;
    Seen { longest_before: before, longest_after: after, duplicates }
}

/// Of reads from seeders with different phases none waits longer than `most` says, or has more sent twice.
fn nobody_waits_longer(in_lumps: bool, rounds: Range<u64>, most: &Seen) {
    let lines = [(MS / 20, MS / 33), (25 * MS, Duration::from_micros(1_310))];
    for line in lines {
        for round in rounds.clone() {
            let phases = [1, 2, 3, 4].map(|seed| (seed * 131 + round * seed * 73) % 500);
            let seen = read_while_one_stops(in_lumps, phases, line);
            let Seen { longest_before, longest_after, duplicates } = seen;
            assert!(longest_before < most.longest_before, "{phases:?}: {longest_before:?}");
            assert!(longest_after < most.longest_after, "{phases:?}: {longest_after:?}");
            assert!(duplicates < most.duplicates, "{phases:?}: {duplicates}");
        }
    }
}

#[test]
fn whoever_stops_among_seeders_that_pause_by_themselves_holds_a_reader_up_for_a_second_at_most() {
    let most = Seen { longest_before: 850 * MS, longest_after: 850 * MS, duplicates: 0.02 };
    nobody_waits_longer(false, 0..6, &most);
}

#[test]
fn nor_does_it_among_seeders_whose_pauses_grow_to_nearly_a_second() {
    let most = Seen { longest_before: 700 * MS, longest_after: 1_010 * MS, duplicates: 0.05 };
    nobody_waits_longer(true, 0..12, &most);
}
