//! The machine against trackers that exist only here, in virtual time.

use super::*;
use proptest::prelude::*;

/// What a tracker does with every announce.
#[derive(Clone, Debug)]
enum Does {
    Answers {
        after: Duration,
        interval: u64,
        min: Option<u64>,
        peers: u8,
    },
    Refuses,
    /// Unreachable after this many seconds.
    Fails(u64),
}

const FAST: Does =
    Does::Answers { after: Duration::from_millis(100), interval: 1800, min: None, peers: 2 };

/// An announce that was seen: milliseconds, url, event.
type Seen = (u64, String, Event);

struct World {
    client: TrackerClient,
    does: Vec<(&'static str, Does)>,
    now: Timestamp,
    pending: Vec<(Timestamp, TrackerId, Result<AnnounceAnswer, TrackerError>)>,
    seen: Vec<Seen>,
    peers: usize,
    first_peers: Option<u64>,
    failed: usize,
}

fn stats() -> AnnounceStats {
    AnnounceStats { left: Some(1), wants_peers: true, ..AnnounceStats::default() }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl World {
    fn new(tiers: &[&[(&'static str, Does)]], stats: AnnounceStats) -> Self {
        let identity = Identity {
            info_hash: InfoHash::new([1; 20]),
            peer_id: PeerId::new([2; 20]),
            port: 6881,
            key: 3,
        };
        let urls: Vec<Vec<String>> =
            tiers.iter().map(|t| t.iter().map(|(u, _)| u.to_string()).collect()).collect();
        Self {
            client: TrackerClient::new(&urls, identity, stats, 5, Timestamp::ZERO),
            does: tiers.iter().flat_map(|t| t.iter().cloned()).collect(),
            now: Timestamp::ZERO,
            pending: Vec::new(),
            seen: Vec::new(),
            peers: 0,
            first_peers: None,
            failed: 0,
        }
    }

    fn millis(&self) -> u64 {
        self.now.as_nanos() / 1_000_000
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Announce { tracker, url, request } => {
                    self.seen.push((self.millis(), url.to_string(), request.event));
                    let does = &self.does.iter().find(|(u, _)| **u == *url).unwrap().1;
                    let (after, result) = outcome(does);
                    self.pending.push((self.now + after, tracker, result));
                }
                Output::Peers(peers) => {
                    self.peers += peers.len();
                    self.first_peers.get_or_insert(self.now.as_nanos() / 1_000_000);
                }
                Output::Failed { .. } => self.failed += 1,
            }
        }
    }

    /// Jumps from wake-up to wake-up until `span` has passed.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.client.handle_timeout(self.now);
            self.drain();
            let answer = self.pending.iter().map(|p| p.0).min();
            let timer = self.client.poll_timeout();
            assert!(timer.is_none_or(|at| at > self.now), "a timer in the past");
            let Some(next) = answer.into_iter().chain(timer).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = next;
            let due = self.pending.iter().position(|p| p.0 <= next);
            if let Some((_, tracker, result)) = due.map(|at| self.pending.remove(at)) {
                self.client.handle_answer(tracker, result, self.now);
                self.drain();
            }
        }
        self.now = end;
    }

    fn set(&mut self, change: impl FnOnce(&mut AnnounceStats)) {
        let mut stats = self.client.stats;
        change(&mut stats);
        self.client.handle_stats(stats, self.now);
        self.drain();
    }

    fn stop(&mut self) {
        self.pending.clear();
        self.client.stop();
        self.drain();
    }

    fn events_of(&self, url: &str) -> Vec<Event> {
        self.seen.iter().filter(|s| s.1 == url).map(|s| s.2).collect()
    }
}

fn outcome(does: &Does) -> (Duration, Result<AnnounceAnswer, TrackerError>) {
    match does {
        Does::Answers { after, interval, min, peers } => {
            let answer = AnnounceAnswer {
                interval: Some(secs(*interval)),
                min_interval: min.map(secs),
                peers: (1..=*peers).map(|n| SocketAddr::from(([192, 0, 2, n], 6881))).collect(),
                seeders: Some(4),
                ..AnnounceAnswer::default()
            };
            (*after, Ok(answer))
        }
        Does::Refuses => (secs(0), Err(TrackerError::Refused("not registered".into()))),
        Does::Fails(after) => (secs(*after), Err(TrackerError::Silent)),
    }
}

#[test]
fn a_dead_first_tier_costs_no_time() {
    let mut world =
        World::new(&[&[("http://a/announce", Does::Fails(15))], &[("udp://b:1/", FAST)]], stats());
    world.run(secs(1));
    assert_eq!(world.first_peers, Some(100));
}

#[test]
fn silent_trackers_of_one_tier_are_overtaken_in_five_seconds() {
    let dead = Does::Fails(15);
    let tier = [
        ("http://a/announce", dead.clone()),
        ("http://b/announce", dead.clone()),
        ("http://c/announce", dead),
        ("http://d/announce", FAST),
    ];
    let mut world = World::new(&[&tier], stats());
    world.run(secs(5));
    assert!(world.first_peers.unwrap() <= 3_100);
}

#[test]
fn a_failing_tracker_is_followed_by_the_next_at_once() {
    let tier = [("http://a/announce", Does::Fails(0)), ("http://b/announce", FAST)];
    let mut world = World::new(&[&tier], stats());
    world.run(secs(1));
    assert_eq!(world.first_peers, Some(100));
}

#[test]
fn the_working_tracker_stays_in_front() {
    let tier = [("http://a/announce", Does::Fails(0)), ("http://b/announce", FAST)];
    let mut world = World::new(&[&tier], AnnounceStats { wants_peers: false, ..stats() });
    world.run(secs(4_000));
    assert!(world.events_of("http://a/announce").len() <= 1);
    assert_eq!(
        world.events_of("http://b/announce"),
        [Event::Started, Event::Regular, Event::Regular]
    );
}

#[test]
fn without_need_of_peers_the_interval_is_kept() {
    let mut world = World::new(
        &[&[("http://a/announce", FAST)]],
        AnnounceStats { wants_peers: false, ..stats() },
    );
    world.run(secs(4_000));
    let times: Vec<u64> = world.seen.iter().map(|s| s.0 / 1_000).collect();
    assert_eq!(times, [0, 1_800, 3_600]);
}

#[test]
fn short_of_peers_it_asks_early_but_ever_less_often() {
    let mut world = World::new(&[&[("http://a/announce", FAST)]], stats());
    world.run(secs(4_000));
    let times: Vec<u64> = world.seen.iter().map(|s| s.0 / 1_000).collect();
    assert_eq!(times, [0, 60, 180, 420, 900, 1_860, 3_660]);
}

#[test]
fn the_minimum_interval_binds_even_when_short_of_peers() {
    let does = Does::Answers { after: secs(0), interval: 1800, min: Some(900), peers: 0 };
    let mut world = World::new(&[&[("http://a/announce", does)]], stats());
    world.run(secs(2_000));
    let times: Vec<u64> = world.seen.iter().map(|s| s.0 / 1_000).collect();
    assert_eq!(times, [0, 900]);
}

#[test]
fn absurd_intervals_are_bounded() {
    for (interval, expected) in [(0, 60), (u64::MAX, 86_400)] {
        let does = Does::Answers { after: secs(0), interval, min: None, peers: 0 };
        let mut world = World::new(
            &[&[("http://a/announce", does)]],
            AnnounceStats { wants_peers: false, ..stats() },
        );
        world.run(secs(1));
        assert_eq!(world.client.poll_timeout(), Some(Timestamp::ZERO + secs(expected)));
    }
}

#[test]
fn failures_are_retried_with_back_off() {
    let mut world = World::new(&[&[("http://a/announce", Does::Fails(0))]], stats());
    world.run(secs(4 * 3600));
    let times: Vec<u64> = world.seen.iter().map(|s| s.0).collect();
    let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!((12_000..=18_000).contains(&gaps[0]), "{gaps:?}");
    assert!((24_000..=36_000).contains(&gaps[1]), "{gaps:?}");
    assert!(gaps.iter().skip(7).all(|g| (1_440_000..=2_160_000).contains(g)), "{gaps:?}");
    assert_eq!(world.failed, 1);
    assert!(world.seen.iter().all(|s| s.2 == Event::Started));
}

#[test]
fn a_refusal_is_reported_once_and_shown() {
    let mut world = World::new(&[&[("http://a/announce", Does::Refuses)]], stats());
    world.run(secs(600));
    assert_eq!(world.failed, 1);
    assert!(world.seen.len() <= 5);
    let status = world.client.status(world.now);
    assert_eq!(status[0].error.as_deref(), Some("refused: not registered"));
    assert!(status[0].next_announce.is_some());
}

#[test]
fn completed_is_told_once_to_those_that_know_us() {
    let does = Does::Answers { after: secs(0), interval: 1800, min: Some(1800), peers: 0 };
    let mut world = World::new(
        &[&[("http://a/announce", does)], &[("http://b/announce", Does::Fails(0))]],
        stats(),
    );
    world.run(secs(10));
    world.set(|s| (s.complete, s.left, s.downloaded) = (true, Some(0), 1));
    world.run(secs(3_000));
    assert_eq!(
        world.events_of("http://a/announce"),
        [Event::Started, Event::Completed, Event::Regular]
    );
    assert!(world.events_of("http://b/announce").iter().all(|e| *e == Event::Started));
    // Something was let go for want of room, and came again.
    world.set(|s| (s.complete, s.left) = (false, Some(1)));
    world.run(secs(10));
    world.set(|s| (s.complete, s.left, s.downloaded) = (true, Some(0), 2));
    world.run(secs(100));
    assert_eq!(world.events_of("http://a/announce").len(), 3);
}

#[test]
fn completed_waits_for_the_announce_under_way() {
    let does = Does::Answers { after: secs(2), interval: 1800, min: None, peers: 0 };
    let mut world = World::new(&[&[("http://a/announce", does)]], stats());
    world.run(secs(1));
    world.set(|s| (s.complete, s.wants_peers, s.downloaded) = (true, false, 1));
    world.run(secs(60));
    assert_eq!(world.events_of("http://a/announce"), [Event::Started, Event::Completed]);
}

#[test]
fn what_was_here_from_the_start_is_not_told_as_completed() {
    let mut world = World::new(&[&[("http://a/announce", FAST)]], AnnounceStats::default());
    world.run(secs(10));
    world.set(|s| (s.complete, s.left) = (true, Some(0)));
    world.run(secs(60));
    assert_eq!(world.events_of("http://a/announce"), [Event::Started]);
}

#[test]
fn leaving_tells_only_those_that_know_us() {
    let mut world = World::new(
        &[&[("http://a/announce", FAST)], &[("http://b/announce", Does::Fails(15))]],
        stats(),
    );
    world.run(secs(2));
    world.stop();
    assert!(!world.client.is_finished());
    assert_eq!(world.events_of("http://a/announce"), [Event::Started, Event::Stopped]);
    assert_eq!(world.events_of("http://b/announce"), [Event::Started]);
    world.run(secs(1));
    assert!(world.client.is_finished());
    assert_eq!(world.client.poll_timeout(), None);
}

#[test]
fn leaving_unknown_is_over_at_once() {
    let mut world = World::new(&[&[("http://a/announce", Does::Fails(15))]], stats());
    world.run(secs(2));
    world.stop();
    assert!(world.client.is_finished());
}

#[test]
fn unsupported_trackers_are_shown_and_skipped() {
    let tier = [("wss://a/announce", FAST), ("nonsense", FAST), ("udp://b:6969", FAST)];
    let mut world = World::new(&[&tier], stats());
    world.run(secs(1));
    assert_eq!(world.seen.len(), 1);
    let status = world.client.status(world.now);
    assert!(status[0].error.is_some() && status[1].error.is_some());
    assert_eq!(status[2].error, None);
    assert_eq!((status[2].peers, status[2].seeders), (Some(2), Some(4)));
}

#[test]
fn no_trackers_means_nothing_to_do() {
    let mut world = World::new(&[], stats());
    world.run(secs(100));
    assert_eq!(world.client.poll_timeout(), None);
    world.stop();
    assert!(world.client.is_finished());
}

#[test]
fn the_number_of_trackers_is_bounded() {
    let urls: Vec<String> = (0..1_000).map(|n| format!("http://t{n}/announce")).collect();
    let identity = World::new(&[], stats()).client.identity;
    let client = TrackerClient::new(&[urls], identity, stats(), 0, Timestamp::ZERO);
    assert_eq!(client.status(Timestamp::ZERO).len(), MAX_TRACKERS);
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        (0u64..20_000, any::<u32>(), proptest::option::of(any::<u32>()), 0u8..3).prop_map(
            |(after, interval, min, peers)| Does::Answers {
                after: Duration::from_millis(after),
                interval: interval.into(),
                min: min.map(u64::from),
                peers,
            }
        ),
        Just(Does::Refuses),
        (0u64..20).prop_map(Does::Fails),
    ]
}

proptest! {
    /// Whatever trackers do, none is asked twice within 12 s, `completed` and the end aside, and
    /// none hears a regular announce before it has answered `started`.
    #[test]
    fn no_tracker_is_pestered(a in does(), b in does(), c in does(), wants: bool, done in 0u64..600) {
        let (x, y, z) = ("http://a/announce", "udp://b:1/announce", "http://c/announce");
        let mut world = World::new(
            &[&[(x, a), (y, b)], &[(z, c)]],
            AnnounceStats { wants_peers: wants, ..stats() },
        );
        world.run(secs(done));
        world.set(|s| (s.complete, s.downloaded) = (true, 1));
        world.run(secs(7_200));
        for url in [x, y, z] {
            let seen: Vec<_> = world.seen.iter().filter(|s| s.1 == url).collect();
            if let Some(first) = seen.first() {
                prop_assert_eq!(first.2, Event::Started);
            }
            for pair in seen.windows(2) {
                let near = pair[1].0 - pair[0].0 < 12_000;
                prop_assert!(!near || pair[1].2 == Event::Completed, "{:?}", pair);
            }
            let told = seen.iter().filter(|s| s.2 == Event::Completed).count();
            let failing = seen.len() > 1 && told > 1;
            prop_assert!(!failing, "completed told {} times", told);
        }
        world.stop();
        prop_assert!(world.client.is_finished() || world.seen.iter().any(|s| s.2 == Event::Stopped));
    }
}

#[test]
fn who_is_somewhere_else_says_so_at_once() {
    let seeding = AnnounceStats { wants_peers: false, ..stats() };
    let mut world = World::new(&[&[("http://a/announce", FAST)]], seeding);
    world.run(secs(300));
    assert_eq!(world.seen.len(), 1);
    world.client.network_changed(world.now);
    world.drain();
    world.run(secs(300));
    let (at, _, event) = world.seen.last().unwrap();
    assert_eq!((world.seen.len(), *at, *event), (2, 300_000, Event::Regular));
}

#[test]
fn who_moves_again_and_again_says_so_now_and_then() {
    let seeding = AnnounceStats { wants_peers: false, ..stats() };
    let mut world = World::new(&[&[("http://a/announce", FAST)]], seeding);
    world.run(secs(300));
    for _ in 0..60 {
        world.client.network_changed(world.now);
        world.drain();
        world.run(secs(20));
    }
    let at: Vec<_> = world.seen.iter().map(|(at, ..)| at / 1000).collect();
    let apart = MOVES_APART.as_secs();
    let told = (300..=1500).step_by(apart as usize);
    assert_eq!(at, std::iter::once(0).chain(told).collect::<Vec<_>>(), "twenty minutes of changes");
}

#[test]
fn who_moves_while_a_tracker_answers_tells_it_after_that() {
    let seeding = AnnounceStats { wants_peers: false, ..stats() };
    let mut world = World::new(&[&[("http://a/announce", FAST)]], seeding);
    world.client.handle_timeout(world.now);
    for until in [300, 600] {
        world.drain();
        assert!(!world.pending.is_empty());
        world.client.network_changed(world.now);
        world.run(secs(until) - world.now.since(Timestamp::ZERO));
        world.client.network_changed(world.now);
    }
    let at: Vec<_> = world.seen.iter().map(|(at, ..)| *at).collect();
    assert_eq!(at, [0, 100, 300_000, 420_000]);
}
