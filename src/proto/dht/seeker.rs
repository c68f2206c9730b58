//! When a torrent looks for peers in the DHT, and with that announces itself.

use std::time::Duration;

use super::K;
use crate::proto::time::Timestamp;

/// How often a torrent is announced that has what it wants: nodes forget announces after half an
/// hour.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// How long a torrent that lacks peers waits after its first search. It doubles with each that does
/// not help.
const LACKING: Duration = Duration::from_secs(60);

/// The same after searches in which so few nodes answered that the network is not known yet, or is
/// tiny: then looking costs next to nothing, and whoever is there finds us only if all know of us.
const LONELY: Duration = Duration::from_secs(5);

/// Decides when to look. While it is being looked, nothing is due.
#[derive(Clone, Debug)]
pub struct Seeker {
    looking: bool,
    begun: Timestamp,
    ended: Timestamp,
    /// Few nodes answered the last search.
    lonely: bool,
    /// Searches since the torrent had what it wanted.
    in_vain: u32,
}

impl Seeker {
    /// The first search is due at once.
    pub fn new(now: Timestamp) -> Self {
        let (looking, lonely, in_vain) = (false, true, 0);
        Self { looking, begun: now, ended: now, lonely, in_vain }
    }

    /// When to look next, for a torrent that lacks peers or does not; `None` while it is looked.
    pub fn due(&self, lacks: bool) -> Option<Timestamp> {
        if self.looking {
            return None;
        }
        let Some(doublings) = self.in_vain.checked_sub(1) else { return Some(self.ended) };
        let first = if self.lonely { LONELY } else { LACKING };
        let pause = first.saturating_mul(1 << doublings.min(10)).min(ANNOUNCE_INTERVAL);
        match lacks || self.lonely {
            true => Some(self.ended + pause),
            false => Some(self.begun + ANNOUNCE_INTERVAL),
        }
    }

    /// A search has begun.
    pub fn begin(&mut self, now: Timestamp) {
        (self.looking, self.begun) = (true, now);
    }

    /// A search has ended: `nodes` answered, and the torrent lacks peers still or does not.
    pub fn end(&mut self, nodes: usize, lacks: bool, now: Timestamp) {
        let lonely = nodes < K;
        let changed = lonely != self.lonely;
        self.in_vain = if changed || !lacks && !lonely { 1 } else { self.in_vain + 1 };
        (self.looking, self.ended, self.lonely) = (false, now, lonely);
    }

    /// The torrent begins to lack peers that had what it wanted.
    pub fn lacks_again(&mut self) {
        self.in_vain = self.in_vain.min(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The pauses after searches that take no time.
    fn pauses(count: usize, nodes: usize, lacks: bool) -> Vec<u64> {
        let mut now = Timestamp::ZERO;
        let mut seeker = Seeker::new(now);
        assert_eq!(seeker.due(lacks), Some(now), "the first is due at once");
        let mut search = || {
            seeker.begin(now);
            assert_eq!(seeker.due(true), None);
            seeker.end(nodes, lacks, now);
            let due = seeker.due(lacks).unwrap();
            let pause = due.since(now).as_secs();
            now = due;
            pause
        };
        (0..count).map(|_| search()).collect()
    }

    #[test]
    fn who_lacks_peers_looks_again_and_again_but_ever_more_rarely() {
        assert_eq!(pauses(6, K, true), [60, 120, 240, 480, 900, 900]);
    }

    #[test]
    fn who_has_what_it_wants_announces_every_quarter_of_an_hour() {
        assert_eq!(pauses(3, K, false), [900, 900, 900]);
    }

    #[test]
    fn among_few_nodes_everyone_looks_soon_again() {
        for lacks in [true, false] {
            assert_eq!(pauses(9, K - 1, lacks)[..4], [5, 10, 20, 40]);
            assert_eq!(pauses(9, K - 1, lacks)[7..], [640, 900]);
        }
    }

    #[test]
    fn whoever_lacks_peers_again_does_not_wait_as_long_as_before() {
        let now = Timestamp::ZERO;
        let mut seeker = Seeker::new(now);
        for _ in 0..4 {
            seeker.begin(now);
            seeker.end(K, true, now);
        }
        assert_eq!(seeker.due(true), Some(now + 8 * MINUTE));
        seeker.lacks_again();
        assert_eq!(seeker.due(true), Some(now + MINUTE));
    }

    #[test]
    fn a_node_that_comes_to_know_the_network_begins_anew() {
        let now = Timestamp::ZERO;
        let mut seeker = Seeker::new(now);
        for nodes in [1, 2, 3, K] {
            seeker.begin(now);
            seeker.end(nodes, true, now);
        }
        assert_eq!(seeker.due(true), Some(now + MINUTE));
    }
}
