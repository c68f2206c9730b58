//! The peers we know of: whom to connect to next, and whom never again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::time::Timestamp;

/// Peers remembered of one torrent; beyond it the worst idle one makes room, and when all others
/// are in use a banned one.
const MAX_KNOWN: usize = 2_000;

/// Connection attempts under way at once: most known addresses are dead, and each of those takes
/// ten seconds to show it.
const MAX_CONNECTING: usize = 50;

/// Proven liars of one address before the whole address is banned: several honest peers can stand
/// behind one NAT.
const LIARS_PER_ADDRESS: u32 = 3;

/// Wait before the second attempt; doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The same for a peer that a person named, and the wait for one that was useful: it may only have
/// been restarted, and a reader may wait for it.
const FIRST_RETRY_SOON: Duration = Duration::from_secs(1);

/// The longest wait between attempts.
const LAST_RETRY: Duration = Duration::from_secs(15 * 60);

/// The longest wait for a peer that a person named.
const LAST_RETRY_MANUAL: Duration = Duration::from_secs(5);

/// The longest wait for a peer that gave us something before: it may be the only one that has it
/// all, and restart.
const LAST_RETRY_PROVEN: Duration = Duration::from_secs(60);

/// Attempts after which a peer that nobody named and that gave nothing is forgotten.
const MAX_FAILURES: u32 = 6;

/// Who told us of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerSource {
    /// The user, or the magnet's `x.pe`.
    Manual,
    /// A tracker.
    Tracker,
    /// The peer connected to us.
    Incoming,
}

#[derive(Clone, Debug)]
struct Known {
    source: PeerSource,
    failures: u32,
    next_try: Timestamp,
    state: State,
    /// Was last seen to have everything.
    seed: bool,
    /// Data or metadata came through it once.
    proven: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Connecting,
    Connected,
    Banned,
}

/// The peer list of one torrent.
#[derive(Clone, Debug, Default)]
pub struct PeerList {
    known: BTreeMap<SocketAddr, Known>,
    liars: BTreeMap<IpAddr, u32>,
    connecting: usize,
}

impl PeerList {
    /// Adds an address; returns whether it is new and usable.
    pub fn add(&mut self, addr: SocketAddr, source: PeerSource) -> bool {
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return false;
        }
        if self.known.contains_key(&addr) || self.is_banned(addr) {
            return false;
        }
        if self.known.len() >= MAX_KNOWN && !self.make_room() {
            return false;
        }
        let known = Known {
            source,
            failures: 0,
            next_try: Timestamp::ZERO,
            state: State::Idle,
            seed: false,
            proven: false,
        };
        self.known.insert(addr, known);
        true
    }

    fn make_room(&mut self) -> bool {
        let worst = self
            .known
            .iter()
            .filter(|(_, k)| matches!(k.state, State::Idle | State::Banned))
            .filter(|(_, k)| k.source != PeerSource::Manual)
            // What peers say of themselves goes before what trackers say.
            .max_by_key(|(_, k)| (k.state == State::Idle, k.failures, k.source))
            .map(|(a, _)| *a);
        worst.is_some_and(|a| self.known.remove(&a).is_some())
    }

    /// Attempts to connect that are under way.
    pub fn connecting(&self) -> usize {
        self.connecting
    }

    /// How many peers are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no peer is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// How many peers are banned.
    pub fn banned(&self) -> usize {
        self.known.values().filter(|k| k.state == State::Banned).count()
    }

    /// Whether this address sent bad data, or too many of its neighbours did.
    pub fn is_banned(&self, addr: SocketAddr) -> bool {
        self.liars.get(&addr.ip()).is_some_and(|&n| n >= LIARS_PER_ADDRESS)
            || self.known.get(&addr).is_some_and(|k| k.state == State::Banned)
    }

    /// The next address to connect to, which is then counted as connecting. The best are those that
    /// failed least, and of these those a person named. Who `seeding` does not look for seeds.
    pub fn next_to_connect(&mut self, seeding: bool, now: Timestamp) -> Option<SocketAddr> {
        if self.connecting >= MAX_CONNECTING {
            return None;
        }
        let (addr, known) = self
            .known
            .iter_mut()
            .filter(|(_, k)| k.state == State::Idle && k.next_try <= now)
            .filter(|(_, k)| !(seeding && k.seed))
            .min_by_key(|(_, k)| (k.failures, k.source, k.next_try))?;
        known.state = State::Connecting;
        self.connecting += 1;
        Some(*addr)
    }

    /// Whether there is anybody to connect to now.
    pub fn has_candidate(&self, now: Timestamp) -> bool {
        self.known.values().any(|k| k.state == State::Idle && k.next_try <= now)
    }

    /// A connection to or from `addr` (its listening address, where known) stands.
    pub fn connected(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr) {
            self.connecting -= usize::from(known.state == State::Connecting);
            if known.state != State::Banned {
                known.state = State::Connected;
            }
        }
    }

    /// `addr` has everything.
    pub fn is_seed(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr) {
            known.seed = true;
        }
    }

    /// An attempt failed before anything useful was said, or a connection ended; `useful` when data
    /// or metadata came through it.
    pub fn disconnected(&mut self, addr: SocketAddr, useful: bool, now: Timestamp) {
        let Some(known) = self.known.get_mut(&addr) else { return };
        self.connecting -= usize::from(known.state == State::Connecting);
        if known.state == State::Banned {
            return;
        }
        known.state = State::Idle;
        known.failures = if useful { 0 } else { known.failures + 1 };
        known.proven |= useful;
        let manual = known.source == PeerSource::Manual;
        if known.failures > MAX_FAILURES && !manual && !known.proven {
            self.known.remove(&addr);
            return;
        }
        let last = match (manual, known.proven) {
            (true, _) => LAST_RETRY_MANUAL,
            (false, true) => LAST_RETRY_PROVEN,
            (false, false) => LAST_RETRY,
        };
        let first = if manual || useful { FIRST_RETRY_SOON } else { FIRST_RETRY };
        let wait = first * 2u32.saturating_pow(known.failures.saturating_sub(1).min(16));
        known.next_try = now + wait.min(last);
    }

    /// `addr` is proven to have sent bad data.
    pub fn ban(&mut self, addr: SocketAddr) {
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&addr) {
            self.make_room();
        }
        if self.liars.len() >= MAX_KNOWN && !self.liars.contains_key(&addr.ip()) {
            self.liars.pop_first();
        }
        let known = self.known.entry(addr).or_insert(Known {
            source: PeerSource::Incoming,
            failures: 0,
            next_try: Timestamp::ZERO,
            state: State::Idle,
            seed: false,
            proven: false,
        });
        if known.state != State::Banned {
            self.connecting -= usize::from(known.state == State::Connecting);
            known.state = State::Banned;
            *self.liars.entry(addr.ip()).or_default() += 1;
        }
    }

    /// `addr` is ourselves: never again, but no liar.
    pub fn forget(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr) {
            self.connecting -= usize::from(known.state == State::Connecting);
            known.state = State::Banned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn failures_back_off_and_forget() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        let mut now = at(0);
        let mut tries = 0;
        while !list.is_empty() {
            assert_eq!(list.next_to_connect(false, now), Some(addr(1)));
            assert_eq!(list.next_to_connect(false, now), None);
            list.disconnected(addr(1), false, now);
            tries += 1;
            assert_eq!(list.next_to_connect(false, now + FIRST_RETRY / 2), None);
            now = now + LAST_RETRY;
        }
        assert_eq!(tries, MAX_FAILURES + 1);
    }

    #[test]
    fn who_was_useful_is_tried_again_soon() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        list.disconnected(addr(1), true, at(10));
        assert_eq!(list.next_to_connect(false, at(10)), None);
        assert_eq!(list.next_to_connect(false, at(11)), Some(addr(1)));
        list.disconnected(addr(1), false, at(11));
        assert_eq!(list.next_to_connect(false, at(15)), None);
    }

    #[test]
    fn who_was_named_is_tried_again_every_few_seconds() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Manual);
        let tries: Vec<_> = (0..30)
            .filter(|&second| {
                let tried = list.next_to_connect(false, at(second)).is_some();
                if tried {
                    list.disconnected(addr(1), false, at(second));
                }
                tried
            })
            .collect();
        assert_eq!(tries, [0, 1, 3, 7, 12, 17, 22, 27]);
    }

    #[test]
    fn a_liar_is_never_tried_again_but_its_neighbour_is() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        list.add(addr(2), PeerSource::Tracker);
        list.ban(addr(1));
        assert!(!list.add(addr(1), PeerSource::Tracker));
        assert_eq!(list.next_to_connect(false, at(1)), Some(addr(2)));
        list.ban(addr(3));
        list.ban(addr(4));
        assert!(list.is_banned(addr(2)));
        assert_eq!(list.banned(), 3);
    }

    #[test]
    fn a_connection_that_was_under_way_does_not_lift_a_ban() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        list.next_to_connect(false, at(1));
        list.ban(addr(1));
        list.connected(addr(1));
        assert!(list.is_banned(addr(1)));
    }

    #[test]
    fn a_peer_that_gave_something_is_tried_again_however_long_it_is_away() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        list.next_to_connect(false, at(0));
        list.connected(addr(1));
        list.disconnected(addr(1), true, at(10));
        for minute in 1..60 {
            assert_eq!(list.next_to_connect(false, at(minute * 60 + 10)), Some(addr(1)));
            list.disconnected(addr(1), false, at(minute * 60 + 10));
        }
    }

    #[test]
    fn a_seeder_does_not_look_for_seeds() {
        let mut list = PeerList::default();
        list.add(addr(1), PeerSource::Tracker);
        list.is_seed(addr(1));
        assert_eq!(list.next_to_connect(true, at(1)), None);
        assert_eq!(list.next_to_connect(false, at(1)), Some(addr(1)));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut list = PeerList::default();
        for n in 1..=5_000 {
            list.add(addr(n), PeerSource::Tracker);
        }
        assert_eq!(list.len(), MAX_KNOWN);
        assert!(!list.add(addr(0), PeerSource::Tracker));
    }

    #[test]
    fn bans_are_bounded_and_leave_room_for_others() {
        let mut list = PeerList::default();
        for n in 0..5_000u32 {
            list.ban(SocketAddr::from((std::net::Ipv6Addr::from(u128::from(n) + 1), 1)));
        }
        assert!(list.len() <= MAX_KNOWN && list.liars.len() <= MAX_KNOWN);
        assert!(list.add(addr(1), PeerSource::Tracker));
    }

    #[test]
    fn what_peers_say_of_themselves_does_not_push_out_what_trackers_say() {
        let mut list = PeerList::default();
        (9_001..=10_000).for_each(|n| assert!(list.add(addr(n), PeerSource::Tracker)));
        (1..=4_000).for_each(|n| assert!(list.add(addr(n), PeerSource::Incoming)));
        let trackers = list.known.values().filter(|k| k.source == PeerSource::Tracker);
        assert_eq!(trackers.count(), 1_000);
    }
}
