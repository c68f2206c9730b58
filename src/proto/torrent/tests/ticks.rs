//! Seeders that limit their uploads as libtorrent does: what may be sent is dealt out twice a second.

use std::collections::VecDeque;

use super::*;

const TICK: Duration = Duration::from_millis(500);

/// What a node that limits its uploads has not sent yet.
pub(super) struct Ticks {
    rate: f64,
    left: f64,
    stopped: bool,
    busy: Timestamp,
    pub queue: VecDeque<(PeerKey, RawBlock)>,
}

impl Ticks {
    /// What is sent next now.
    fn deal(&mut self) -> Option<(PeerKey, RawBlock)> {
        let (key, raw) = self.queue.front().copied()?;
        if self.stopped || self.left < f64::from(raw.length) {
            return None;
        }
        self.left -= f64::from(raw.length);
        self.queue.pop_front();
        Some((key, raw))
    }
}

impl World {
    /// Has `node` send so many bytes a second, dealt out from `phase` on.
    fn limit(&mut self, node: usize, rate: f64, phase: Duration) {
        let queue = VecDeque::new();
        self.nodes[node].ticks =
            Some(Ticks { rate, left: 0.0, stopped: false, busy: Timestamp::ZERO, queue });
        self.later(phase, node, PeerKey(0), Happens::Tick);
    }

    /// Deals out what may be sent in one tick; nothing is left over from the last.
    pub(super) fn tick(&mut self, node: usize) {
        self.later(TICK, node, PeerKey(0), Happens::Tick);
        if let Some(ticks) = &mut self.nodes[node].ticks
            && !ticks.queue.is_empty()
            && ticks.left < f64::from(BLOCK_LEN)
        {
            ticks.left += ticks.rate * TICK.as_secs_f64();
        }
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
fn read_while_one_stops(phases: [u64; 4], latency: Duration, wire: Duration) -> Seen {
    let mut world = World::new(400, 16 * BLOCK_LEN);
    (world.latency, world.wire) = (latency, wire);
    let limits = [6e6, 3e6, 1.5e6, 0.75e6].into_iter().zip(phases);
    let seeds: Vec<_> = limits
        .map(|(rate, phase)| {
            let seed = world.seed();
            world.limit(seed, rate, Duration::from_millis(phase));
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

#[test]
fn whoever_stops_among_seeders_that_pause_by_themselves_holds_a_reader_up_for_a_second_at_most() {
    let lines = [(MS / 20, MS / 33), (25 * MS, Duration::from_micros(1_310))];
    for (latency, wire) in lines {
        for round in 0..6 {
            let phases = [1, 2, 3, 4].map(|seed| (seed * 131 + round * seed * 73) % 500);
            let seen = read_while_one_stops(phases, latency, wire);
            let Seen { longest_before, longest_after, duplicates } = seen;
            assert!(longest_before < 850 * MS, "{phases:?}: {longest_before:?}");
            assert!(longest_after < 850 * MS, "{phases:?}: {longest_after:?}");
            assert!(duplicates < 0.02, "{phases:?}: {duplicates}");
        }
    }
}
