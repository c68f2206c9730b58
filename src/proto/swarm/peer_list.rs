//! The peers we know of: whom to connect to next, and whom never again.
//!
//! Addresses are hearsay until we have connected, so whoever tells of them gets a bounded share of
//! the list, and what trackers say goes before what peers say.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::external::site;
use super::priority::Ourselves;
use crate::proto::crc32c::crc32c;
use crate::proto::time::Timestamp;
use crate::proto::wire::pex::PexFlags;

/// Peers remembered of one torrent; beyond it the worst that is not in use makes room, if it is no
/// better than the new one, and else a banned one.
const MAX_KNOWN: usize = 2_000;

/// Of these, addresses that one peer may have told us of: a liar must not fill the list.
const MAX_PER_INFORMANT: usize = 100;

/// Proven liars of one site before the whole site is banned: several honest peers can stand behind
/// one NAT.
const LIARS_PER_SITE: u32 = 3;

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

/// One choice out of this many is made by lot and not by priority. A checksum is linear, so those
/// whose priority is high for one node are much the same for its neighbours: by priority alone a
/// thousand nodes of fifty connections are four hops apart, with this three, as in a random graph.
pub(super) const BY_LOT: usize = 5;

/// Who told us of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerSource {
    /// The user, or the magnet's `x.pe`.
    Manual,
    /// The peer itself, on the local network (BEP 14).
    Lsd,
    /// A tracker.
    Tracker,
    /// The DHT (BEP 5).
    Dht,
    /// The peer at this address, which is connected to it (BEP 11).
    Pex(IpAddr),
    /// The peer connected to us.
    Incoming,
}

impl PeerSource {
    /// How much its word counts, least first.
    const fn rank(self) -> u8 {
        match self {
            Self::Manual => 0,
            Self::Lsd => 1,
            Self::Tracker => 2,
            Self::Dht => 3,
            Self::Pex(_) => 4,
            Self::Incoming => 5,
        }
    }

    /// The peer whose word it is that there is a peer at `addr`.
    fn informant(self, addr: SocketAddr) -> Option<IpAddr> {
        match self {
            Self::Pex(from) => Some(site(from)),
            Self::Incoming => Some(site(addr.ip())),
            Self::Manual | Self::Lsd | Self::Tracker | Self::Dht => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Known {
    source: PeerSource,
    /// What is known of it beside its address; [`PexFlags::UPLOAD_ONLY`] for who has everything.
    flags: PexFlags,
    failures: u32,
    next_try: Timestamp,
    state: State,
    /// Data or metadata came through it once.
    proven: bool,
}

impl Known {
    /// Who is tried first, and kept when room is needed, among those that may be; least first.
    const fn standing(&self) -> (u32, u8) {
        (self.failures, self.source.rank())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is under way; there may be a connection.
    Idle,
    /// We are connecting to it.
    Connecting,
    /// It sent bad data.
    Banned,
    /// It is we.
    Ourselves,
}

/// What a torrent looks for when it looks for peers.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Our addresses, for priorities.
    pub ours: Ourselves,
    /// Where the peers listen that are connected.
    pub connected: BTreeSet<SocketAddr>,
    /// We have everything: no need for others that have.
    pub seeding: bool,
    /// Attempts under way at once: most known addresses are dead, and each of those takes ten
    /// seconds to show it.
    pub attempts: usize,
}

/// The peer list of one torrent.
#[derive(Clone, Debug)]
pub struct PeerList {
    known: BTreeMap<SocketAddr, Known>,
    liars: BTreeMap<IpAddr, u32>,
    salt: u64,
    /// How often somebody was chosen to connect to.
    chosen: usize,
}

impl PeerList {
    /// An empty list. `salt` decides between peers that are otherwise alike, so that not all of a
    /// swarm choose the same.
    pub fn new(salt: u64) -> Self {
        Self { known: BTreeMap::new(), liars: BTreeMap::new(), salt, chosen: 0 }
    }

    /// Adds an address, with what was said of it; returns whether it is new and usable. `connected`
    /// are never dropped for it. One that is known already is believed as the better of its sources.
    pub fn add(
        &mut self,
        addr: SocketAddr,
        source: PeerSource,
        flags: PexFlags,
        connected: &BTreeSet<SocketAddr>,
    ) -> bool {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if let Some(known) = self.known.get_mut(&addr) {
            if source.rank() < known.source.rank() {
                known.source = source;
            }
            return false;
        }
        let welcome = is_usable(addr, source)
            && !self.is_banned(addr)
            && !self.has_said_enough(source.informant(addr))
            && (self.known.len() < MAX_KNOWN || self.make_room(source.rank(), connected));
        if welcome {
            self.known.insert(addr, Known::new(source, flags));
        }
        welcome
    }

    fn has_said_enough(&self, informant: Option<IpAddr>) -> bool {
        let said = |from| {
            self.known.iter().filter(|(addr, k)| k.source.informant(**addr) == Some(from)).count()
        };
        informant.is_some_and(|from| said(from) >= MAX_PER_INFORMANT)
    }

    /// Forgets the worst peer that is not in use, if it is no better than a new one of `rank`; if
    /// there is none, a banned one.
    fn make_room(&mut self, rank: u8, connected: &BTreeSet<SocketAddr>) -> bool {
        let unused = |addr: &SocketAddr, known: &Known| {
            known.source != PeerSource::Manual
                && !connected.contains(addr)
                && (known.state == State::Banned
                    || known.state == State::Idle && known.standing() >= (0, rank))
        };
        let worst = self
            .known
            .iter()
            .filter(|(addr, known)| unused(addr, known))
            .max_by_key(|(_, k)| (k.state == State::Idle, k.standing()))
            .map(|(addr, _)| *addr);
        worst.is_some_and(|addr| self.known.remove(&addr).is_some())
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
        self.liars.get(&site(addr.ip())).is_some_and(|&n| n >= LIARS_PER_SITE)
            || self.known.get(&addr).is_some_and(|k| k.state == State::Banned)
    }

    /// Whether a person named this peer.
    pub fn is_manual(&self, addr: SocketAddr) -> bool {
        self.known.get(&addr).is_some_and(|k| k.source == PeerSource::Manual)
    }

    /// The next address to connect to, which then counts as an attempt until
    /// [`Self::attempt_ended`]. The best are those that failed least, of these those of the best
    /// source, and of these those of the highest priority (BEP 40), or now and then any.
    pub fn next_to_connect(&mut self, search: &Search, now: Timestamp) -> Option<SocketAddr> {
        if self.attempts() >= search.attempts {
            return None;
        }
        let (salt, by_lot) = (self.salt, self.chosen % BY_LOT == BY_LOT - 1);
        let best = self.candidates(search, now).min_by(|(a, left), (b, right)| {
            let standing = left.standing().cmp(&right.standing());
            let priority = || match by_lot {
                true => Ordering::Equal,
                false => search.ours.priority(**b).cmp(&search.ours.priority(**a)),
            };
            standing.then_with(priority).then_with(|| lot(salt, **a).cmp(&lot(salt, **b)))
        });
        let addr = *best?.0;
        self.known.get_mut(&addr)?.state = State::Connecting;
        self.chosen = self.chosen.wrapping_add(1);
        Some(addr)
    }

    /// Whether there is anybody to connect to now.
    pub fn has_candidate(&self, search: &Search, now: Timestamp) -> bool {
        self.candidates(search, now).next().is_some()
    }

    fn candidates<'a>(
        &'a self,
        search: &'a Search,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a SocketAddr, &'a Known)> {
        self.known
            .iter()
            .filter(move |(_, k)| k.state == State::Idle && k.next_try <= now)
            .filter(|(_, k)| !(search.seeding && k.flags.has(PexFlags::UPLOAD_ONLY)))
            .filter(|(addr, _)| !search.connected.contains(addr) && !self.is_banned(**addr))
    }

    /// Attempts under way.
    fn attempts(&self) -> usize {
        self.known.values().filter(|k| k.state == State::Connecting).count()
    }

    /// An attempt to connect has ended, one way or the other.
    pub fn attempt_ended(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr).filter(|k| k.state == State::Connecting) {
            known.state = State::Idle;
        }
    }

    /// `addr` has everything.
    pub fn is_seed(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr) {
            known.flags = known.flags.with(PexFlags::UPLOAD_ONLY);
        }
    }

    /// An attempt failed, or a connection ended; `useful` when data or metadata came through it. It
    /// is tried again after a while that doubles with each failure in a row.
    pub fn failed(&mut self, addr: SocketAddr, useful: bool, now: Timestamp) {
        let Some(known) = self.known.get_mut(&addr) else { return };
        known.failures = if useful { 0 } else { known.failures + 1 };
        known.proven |= useful;
        let manual = known.source == PeerSource::Manual;
        let hopeless = known.failures > MAX_FAILURES && !manual && !known.proven;
        if hopeless && known.state == State::Idle {
            self.known.remove(&addr);
            return;
        }
        known.next_try = now + known.wait(useful);
    }

    /// A peer at `addr` had no room for us, or we had none any more. It is tried again after a while,
    /// as after a failure, but not forgotten: there may be room some day.
    pub fn turned_away(&mut self, addr: SocketAddr, now: Timestamp) {
        let Some(known) = self.known.get_mut(&addr) else { return };
        known.failures = known.failures.saturating_add(1);
        known.next_try = now + known.wait(false);
    }

    /// `addr` is proven to have sent bad data.
    pub fn ban(&mut self, addr: SocketAddr, connected: &BTreeSet<SocketAddr>) {
        if self.known.get(&addr).is_some_and(|k| k.state == State::Banned) {
            return;
        }
        let site = site(addr.ip());
        if self.liars.len() >= MAX_KNOWN && !self.liars.contains_key(&site) {
            self.liars.pop_first();
        }
        *self.liars.entry(site).or_default() += 1;
        let new = !self.known.contains_key(&addr);
        if new && self.known.len() >= MAX_KNOWN && !self.make_room(0, connected) {
            return;
        }
        let fresh = Known::new(PeerSource::Incoming, PexFlags::default());
        self.known.entry(addr).or_insert(fresh).state = State::Banned;
    }

    /// `addr` is ourselves: never again, but no liar.
    pub fn is_ourselves(&mut self, addr: SocketAddr) {
        if let Some(known) = self.known.get_mut(&addr) {
            known.state = State::Ourselves;
        }
    }
}

impl Known {
    fn new(source: PeerSource, flags: PexFlags) -> Self {
        Self {
            source,
            flags,
            failures: 0,
            next_try: Timestamp::ZERO,
            state: State::Idle,
            proven: false,
        }
    }

    /// How long it is not tried after as many failures; `useful` when data or metadata came through
    /// the connection that ended.
    fn wait(&self, useful: bool) -> Duration {
        let manual = self.source == PeerSource::Manual;
        let last = match (manual, self.proven) {
            (true, _) => LAST_RETRY_MANUAL,
            (false, true) => LAST_RETRY_PROVEN,
            (false, false) => LAST_RETRY,
        };
        let first = if manual || useful { FIRST_RETRY_SOON } else { FIRST_RETRY };
        (first * 2u32.saturating_pow(self.failures.saturating_sub(1).min(16))).min(last)
    }
}

/// Whether there can be a peer at `addr` that `source` could reach. A peer elsewhere knows nothing
/// of this machine or network: what it says of them can only be meant to have us knock there.
fn is_usable(addr: SocketAddr, source: PeerSource) -> bool {
    let ip = addr.ip();
    let reachable = addr.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && ip != IpAddr::from([255; 4]);
    let heard = match source {
        PeerSource::Pex(from) => Scope::of(from) <= Scope::of(ip),
        _ => true,
    };
    reachable && heard
}

/// How far an address reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Machine,
    Network,
    World,
}

impl Scope {
    fn of(ip: IpAddr) -> Self {
        let local = match ip {
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
        };
        match ip {
            ip if ip.is_loopback() => Self::Machine,
            _ if local => Self::Network,
            _ => Self::World,
        }
    }
}

/// What decides between peers of the same priority, differently on each node.
fn lot(salt: u64, addr: SocketAddr) -> u32 {
    let mut bytes = salt.to_be_bytes().to_vec();
    match addr.ip() {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
    bytes.extend(addr.port().to_be_bytes());
    crc32c(&bytes)
}
