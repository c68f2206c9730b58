//! The choker: who may download from us (BEP 3's tit-for-tat).
//!
//! One for the whole session: peers of all torrents compete for the same upload slots. Every ten
//! seconds the peers that give us most are unchoked. A torrent that is complete gives its slots in
//! turns to those who pass on what they get: the fastest taker may be one who gives nothing, and
//! whoever falls behind holds up a swarm that waits for the last. One slot is optimistic, rotated
//! every thirty seconds with newcomers favoured, so that a better peer can be found and a new one
//! can begin.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::swarm::PeerKey;
use super::time::Timestamp;

/// Time between two rounds.
pub const CHOKE_INTERVAL: Duration = Duration::from_secs(10);

/// Rounds that an optimistic unchoke lasts.
const OPTIMISTIC_ROUNDS: u32 = 3;

/// Slots for the best peers.
const REGULAR_SLOTS: usize = 3;

/// More slots that may open while upload capacity is idle.
const MAX_EXTRA_SLOTS: usize = 20;

/// A peer that sent nothing for this long although asked is snubbing us and earns no regular slot.
pub const SNUB_AFTER: Duration = Duration::from_secs(60);

/// Bytes that a peer may take from a seeder before those who had less have their turn. Turns much
/// shorter would leave a begun piece behind each time.
const TURN: u64 = 8 << 20;

/// A peer connected for less than this is a newcomer.
const NEWCOMER: Duration = Duration::from_secs(60);

/// A newcomer's weight in the optimistic draw, against 1.
const NEWCOMER_WEIGHT: u32 = 3;

/// Which peer of which torrent.
pub type Who = (u64, PeerKey);

/// What the choker knows of a peer that is interested in us.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which peer.
    pub who: Who,
    /// Bytes a second it gives us.
    pub gives: f64,
    /// Bytes a second it takes from us.
    pub takes: f64,
    /// Bytes it ever took from us.
    pub taken: u64,
    /// It keeps to itself what only we could give it: others do not get it from there.
    pub keeps: bool,
    /// Our torrent is complete, so it can give us nothing.
    pub seeding: bool,
    /// We wait for it and nothing comes ([`SNUB_AFTER`]).
    pub snubbed: bool,
    /// When it connected.
    pub since: Timestamp,
}

impl Candidate {
    /// What ranks it, least first: those who give us something by how much, then those whose turn
    /// it is at a complete torrent, then those who give nothing or keep what they get.
    fn rank(&self) -> (Group, u64, u64) {
        let slower = |rate: f64| u64::MAX - rate.max(0.0) as u64;
        match self {
            Self { seeding: true, keeps: true, .. } => (Group::Takes, 1, slower(self.takes)),
            Self { seeding: true, .. } => (Group::Turn, self.taken / TURN, slower(self.takes)),
            Self { snubbed: false, gives, .. } if *gives > 0.0 => (Group::Gives, slower(*gives), 0),
            _ => (Group::Takes, 0, 0),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Gives,
    Turn,
    Takes,
}

/// The choker of a session.
#[derive(Clone, Debug)]
pub struct Choker {
    rng: ChaCha8Rng,
    regular: Vec<Who>,
    optimistic: Option<Who>,
    rounds_left: u32,
    extra: usize,
}

impl Choker {
    /// A choker with its own random numbers.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            regular: Vec::new(),
            optimistic: None,
            rounds_left: 0,
            extra: 0,
        }
    }

    /// A round, every [`CHOKE_INTERVAL`]: who is unchoked from now on, out of the `candidates`
    /// (interested peers). `idle` says that upload capacity was left over in the last round.
    pub fn round(&mut self, candidates: &[Candidate], idle: bool, now: Timestamp) -> Vec<Who> {
        self.extra = if idle { (self.extra + 1).min(MAX_EXTRA_SLOTS) } else { self.extra / 2 };
        self.rounds_left = self.rounds_left.saturating_sub(1);
        if self.rounds_left == 0 {
            self.optimistic = None;
        }
        self.regular.clear();
        self.fill(candidates, now)
    }

    /// Between rounds: a peer became interested or left. Free slots are given out at once, and
    /// nobody loses one.
    pub fn fill(&mut self, candidates: &[Candidate], now: Timestamp) -> Vec<Who> {
        self.regular.retain(|who| candidates.iter().any(|c| c.who == *who));
        let mut ranked: Vec<_> = candidates
            .iter()
            .filter(|c| !c.snubbed || c.seeding)
            .filter(|c| !self.regular.contains(&c.who) && self.optimistic != Some(c.who))
            .collect();
        ranked.sort_by_key(|c| (c.rank(), c.who));
        let free = (REGULAR_SLOTS + self.extra).saturating_sub(self.regular.len());
        self.regular.extend(ranked.iter().take(free).map(|c| c.who));
        let rest: Vec<_> = candidates.iter().filter(|c| !self.regular.contains(&c.who)).collect();
        if !rest.iter().any(|c| Some(c.who) == self.optimistic) {
            self.optimistic = self.draw(&rest, now);
            self.rounds_left = OPTIMISTIC_ROUNDS;
        }
        self.regular.iter().copied().chain(self.optimistic).collect()
    }

    fn draw(&mut self, rest: &[&Candidate], now: Timestamp) -> Option<Who> {
        let keeps = |c: &Candidate| c.seeding && c.keeps;
        let all_keep = rest.iter().all(|c| keeps(c));
        let weight = |c: &Candidate| match now.since(c.since) {
            // What it gets here nobody else will get from it.
            _ if keeps(c) && !all_keep => 0,
            age if age < NEWCOMER => NEWCOMER_WEIGHT,
            _ => 1,
        };
        let total: u32 = rest.iter().map(|c| weight(c)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.rng.random_range(0..total);
        rest.iter()
            .find(|c| {
                let here = at < weight(c);
                at = at.saturating_sub(weight(c));
                here
            })
            .map(|c| c.who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn candidate(n: u64, gives: f64, takes: f64, seeding: bool) -> Candidate {
        let who = (1, PeerKey(n));
        Candidate {
            who,
            gives,
            takes,
            taken: 0,
            keeps: false,
            seeding,
            snubbed: false,
            since: Timestamp::ZERO,
        }
    }

    fn late() -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(1_000)
    }

    #[test]
    fn the_three_best_givers_and_one_other_are_unchoked() {
        let peers: Vec<_> = (0..10).map(|n| candidate(n, (n * 100) as f64, 0.0, false)).collect();
        let mut choker = Choker::new(1);
        let unchoked = choker.round(&peers, false, late());
        assert_eq!(unchoked.len(), 4);
        assert_eq!(unchoked[..3], [(1, PeerKey(9)), (1, PeerKey(8)), (1, PeerKey(7))]);
        assert!(unchoked[3].1.0 < 7);
    }

    #[test]
    fn the_optimistic_slot_rotates_after_three_rounds_and_reaches_everyone() {
        let peers: Vec<_> = (0..8).map(|n| candidate(n, (n * 100) as f64, 0.0, false)).collect();
        let mut choker = Choker::new(2);
        let mut seen: BTreeMap<Who, u32> = BTreeMap::new();
        for _ in 0..300 {
            *seen.entry(choker.round(&peers, false, late())[3]).or_default() += 1;
        }
        assert_eq!(seen.len(), 5);
        assert!(seen.values().all(|n| n % 3 == 0), "{seen:?}");
    }

    #[test]
    fn a_snubbing_peer_gets_no_regular_slot() {
        let mut peers: Vec<_> = (0..5).map(|n| candidate(n, 100.0, 0.0, false)).collect();
        peers[0].gives = 1e9;
        peers[0].snubbed = true;
        let unchoked = Choker::new(3).round(&peers, false, late());
        assert!(!unchoked[..3].contains(&peers[0].who));
    }

    #[test]
    fn a_seeder_prefers_who_takes_fastest_among_those_who_had_as_little() {
        let mut peers: Vec<_> = (0..6).map(|n| candidate(n, 0.0, (n * 10) as f64, true)).collect();
        peers[5].taken = TURN;
        let unchoked = Choker::new(4).round(&peers, false, late());
        assert_eq!(unchoked[..3], [(1, PeerKey(4)), (1, PeerKey(3)), (1, PeerKey(2))]);
    }

    #[test]
    fn who_keeps_what_it_gets_from_a_seeder_comes_last() {
        let mut peers: Vec<_> = (0..4).map(|n| candidate(n, 0.0, 0.0, true)).collect();
        peers[0].keeps = true;
        peers[0].takes = 1e6;
        let unchoked = Choker::new(4).round(&peers, false, late());
        assert_eq!(unchoked[..3], [(1, PeerKey(1)), (1, PeerKey(2)), (1, PeerKey(3))]);
        assert_eq!(unchoked.len(), 4);
    }

    #[test]
    fn who_keeps_what_it_gets_is_not_drawn_while_there_are_others() {
        let mut peers: Vec<_> = (0..6).map(|n| candidate(n, 0.0, 0.0, true)).collect();
        peers[0].keeps = true;
        let mut choker = Choker::new(4);
        for _ in 0..50 {
            assert!(!choker.round(&peers, false, late()).contains(&peers[0].who));
        }
    }

    #[test]
    fn who_gives_comes_before_who_only_takes() {
        let mut peers: Vec<_> = (0..4).map(|n| candidate(n, 0.0, 1e6, true)).collect();
        peers.push(candidate(9, 1.0, 0.0, false));
        assert_eq!(Choker::new(4).round(&peers, false, late())[0], (1, PeerKey(9)));
    }

    #[test]
    fn a_newcomer_takes_a_free_slot_and_nobodys_slot() {
        let mut choker = Choker::new(6);
        let mut peers = vec![candidate(1, 0.0, 0.0, false), candidate(2, 0.0, 0.0, false)];
        let before = choker.round(&peers, false, late());
        assert_eq!(before.len(), 2);
        peers.push(candidate(3, 0.0, 0.0, false));
        assert_eq!(choker.fill(&peers, late()).len(), 3);
        peers.extend((4..20).map(|n| candidate(n, 1e6, 0.0, false)));
        let after = choker.fill(&peers, late());
        assert_eq!(after.len(), 4);
        assert!(before.iter().all(|who| after.contains(who)));
    }

    #[test]
    fn idle_capacity_opens_slots_and_load_closes_them() {
        let peers: Vec<_> = (0..30).map(|n| candidate(n, 0.0, 1.0, true)).collect();
        let mut choker = Choker::new(5);
        for _ in 0..10 {
            choker.round(&peers, true, late());
        }
        assert_eq!(choker.fill(&peers, late()).len(), 14);
        choker.round(&peers, false, late());
        assert_eq!(choker.fill(&peers, late()).len(), 9);
    }
}
