//! The peers we know of: whom to connect to next, and whom never again.
//!
//! Addresses are hearsay until we have connected, so whoever tells of them gets a bounded share of
//! the list, and what trackers say goes before what peers say.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::external::site;
use super::informants::Informants;
use super::priority::Ourselves;
use crate::proto::crc32c::crc32c;
use crate::proto::time::Timestamp;
use crate::proto::wire::pex::PexFlags;

/// Peers remembered of one torrent; beyond it the worst that is not in use makes room, if it is no
/// better than the new one, and else a banned one.
const MAX_KNOWN: usize = 2_000;

/// Addresses that may come from the local network, where anybody can speak in the name of any other:
/// a liar must not fill the list.
const MAX_FROM_LSD: usize = 200;

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
    /// What it is called where people see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "named",
            Self::Lsd => "local",
            Self::Tracker => "tracker",
            Self::Dht => "dht",
            Self::Pex(_) => "pex",
            Self::Incoming => "incoming",
        }
    }

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
    /// What decides between it and peers of the same priority, differently on each node.
    lot: u32,
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

/// Whom to connect to first: by standing, by priority (BEP 40), and then by lot.
type Rank = ((u32, u8), Reverse<u32>, u32);

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
    informants: Informants,
    liars: BTreeMap<IpAddr, u32>,
    salt: u64,
    /// Attempts under way.
    attempts: usize,
    /// How often somebody was chosen to connect to.
    chosen: usize,
}

impl PeerList {
    /// An empty list. `salt` decides between peers that are otherwise alike, so that not all of a
    /// swarm choose the same.
    pub fn new(salt: u64) -> Self {
        let (known, liars) = (BTreeMap::new(), BTreeMap::new());
        Self { known, informants: Informants::default(), liars, salt, attempts: 0, chosen: 0 }
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
        let addr = canonical(addr);
        if let Some(known) = self.known.get_mut(&addr) {
            if source.rank() < known.source.rank() {
                let before = std::mem::replace(&mut known.source, source).informant(addr);
                before.into_iter().for_each(|from| self.informants.unlisted(from));
                source.informant(addr).into_iter().for_each(|from| self.informants.listed(from));
            }
            return false;
        }
        let heard = source.informant(addr).is_none_or(|from| self.informants.is_heard(from));
        let welcome = heard
            && is_usable(addr, source)
            && !self.is_banned(addr)
            && !(source == PeerSource::Lsd && self.are_local() >= MAX_FROM_LSD)
            && (self.known.len() < MAX_KNOWN || self.make_room(source.rank(), connected));
        if welcome {
            self.remember(addr, Known::new(source, flags, lot(self.salt, addr)));
        }
        welcome
    }

    /// How many were heard of on the local network.
    fn are_local(&self) -> usize {
        self.known.values().filter(|known| known.source == PeerSource::Lsd).count()
    }

    fn remember(&mut self, addr: SocketAddr, known: Known) {
        known.source.informant(addr).into_iter().for_each(|from| self.informants.listed(from));
        self.known.insert(addr, known);
    }

    fn forget(&mut self, addr: SocketAddr) -> bool {
        let Some(known) = self.known.remove(&addr) else { return false };
        self.attempts -= usize::from(known.state == State::Connecting);
        known.source.informant(addr).into_iter().for_each(|from| self.informants.unlisted(from));
        true
    }

    /// Forgets those that other peers or the local network told us of, but for those that are in
    /// use: what is private has no other source than trackers (BEP 27).
    pub fn forget_hearsay(&mut self, connected: &BTreeSet<SocketAddr>) {
        let hearsay = |(addr, known): (&SocketAddr, &Known)| {
            let idle = known.state == State::Idle && !connected.contains(addr);
            let hearsay =
                matches!(known.source, PeerSource::Pex(_) | PeerSource::Lsd | PeerSource::Dht);
            (idle && hearsay).then_some(*addr)
        };
        let addrs: Vec<_> = self.known.iter().filter_map(hearsay).collect();
        for addr in addrs {
            self.forget(addr);
        }
    }

    /// Who told us of `addr`, if we know of it.
    pub fn source(&self, addr: SocketAddr) -> Option<PeerSource> {
        self.known.get(&addr).map(|known| known.source)
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
        worst.is_some_and(|addr| self.forget(addr))
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
        if self.attempts >= search.attempts {
            return None;
        }
        let by_lot = self.chosen % BY_LOT == BY_LOT - 1;
        let mut best: Option<(Rank, SocketAddr)> = None;
        for (addr, known) in self.untried(search, now) {
            let standing = known.standing();
            // Most are told from the best by that alone, and the rest takes longer to find out.
            let worse = best.is_some_and(|((least, ..), _)| standing > least);
            if worse || !self.is_free(*addr, search) {
                continue;
            }
            let priority = if by_lot { 0 } else { search.ours.priority(*addr) };
            let rank = (standing, Reverse(priority), known.lot);
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, *addr));
            }
        }
        let (_, addr) = best?;
        self.set_state(addr, State::Connecting);
        self.chosen = self.chosen.wrapping_add(1);
        Some(addr)
    }

    /// Whether there is anybody to connect to now.
    pub fn has_candidate(&self, search: &Search, now: Timestamp) -> bool {
        self.untried(search, now).any(|(addr, _)| self.is_free(*addr, search))
    }

    /// Forgets how often peers could not be reached.
    pub fn try_all_again(&mut self) {
        for known in self.known.values_mut().filter(|k| k.state == State::Idle) {
            (known.failures, known.next_try) = (0, Timestamp::ZERO);
        }
    }

    /// When the next of those who are not connected may be tried.
    pub fn next_try(&self, seeding: bool) -> Option<Timestamp> {
        let idle = self.known.values().filter(|k| k.state == State::Idle);
        let useful = idle.filter(|k| !(seeding && k.flags.has(PexFlags::UPLOAD_ONLY)));
        useful.map(|k| k.next_try).min()
    }

    /// Those who may be tried, if they are free.
    fn untried<'a>(
        &'a self,
        search: &'a Search,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a SocketAddr, &'a Known)> {
        self.known
            .iter()
            .filter(move |(_, k)| k.state == State::Idle && k.next_try <= now)
            .filter(|(_, k)| !(search.seeding && k.flags.has(PexFlags::UPLOAD_ONLY)))
    }

    /// Whether `addr` is neither connected nor banned.
    fn is_free(&self, addr: SocketAddr, search: &Search) -> bool {
        !search.connected.contains(&addr) && (self.liars.is_empty() || !self.is_banned(addr))
    }

    fn set_state(&mut self, addr: SocketAddr, state: State) {
        if let Some(known) = self.known.get_mut(&addr) {
            self.attempts -= usize::from(known.state == State::Connecting);
            self.attempts += usize::from(state == State::Connecting);
            known.state = state;
        }
    }

    /// An attempt to connect has ended, one way or the other.
    pub fn attempt_ended(&mut self, addr: SocketAddr) {
        if self.known.get(&addr).is_some_and(|k| k.state == State::Connecting) {
            self.set_state(addr, State::Idle);
        }
    }

    /// We connected to `addr`.
    pub fn reached(&mut self, addr: SocketAddr) {
        self.attempt_ended(addr);
        let informant = self.known.get(&addr).and_then(|known| known.source.informant(addr));
        informant.into_iter().for_each(|from| self.informants.helped(from));
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
        if known.failures == 1 && !known.proven && matches!(known.source, PeerSource::Pex(_)) {
            let informant = known.source.informant(addr);
            informant.into_iter().for_each(|from| self.informants.misled(from));
        }
        let manual = known.source == PeerSource::Manual;
        let hopeless = known.failures > MAX_FAILURES && !manual && !known.proven;
        if hopeless && known.state == State::Idle {
            self.forget(addr);
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
        if !self.known.contains_key(&addr) {
            if self.known.len() >= MAX_KNOWN && !self.make_room(0, connected) {
                return;
            }
            let lot = lot(self.salt, addr);
            self.remember(addr, Known::new(PeerSource::Incoming, PexFlags::default(), lot));
        }
        self.set_state(addr, State::Banned);
    }

    /// `addr` is ourselves: never again, but no liar.
    pub fn is_ourselves(&mut self, addr: SocketAddr) {
        self.set_state(addr, State::Ourselves);
    }
}

impl Known {
    fn new(source: PeerSource, flags: PexFlags, lot: u32) -> Self {
        Self {
            source,
            lot,
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

/// One text for each address; that of an IPv6 link is of use only with its interface.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => addr,
        _ => SocketAddr::new(addr.ip().to_canonical(), addr.port()),
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
        PeerSource::Pex(from) => can_be_meant_for(ip, from),
        _ => true,
    };
    reachable && heard
}

/// Whether somebody at `to` can be told of `ip`: an address of this machine or network means
/// something else elsewhere, or nothing.
pub fn can_be_meant_for(ip: IpAddr, to: IpAddr) -> bool {
    Scope::of(to) <= Scope::of(ip)
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
