//! Who is connected: whom we connect to, who may come in, and who has to make room.
//!
//! Connections are worth most when they are spread over the swarm like those of a random graph, so
//! peers are preferred by their canonical priority (BEP 40), which both ends compute alike. A
//! connection gives way only while it is of no use, and only now and then: those that carry data
//! are what a torrent lives on, and a swarm that keeps changing its connections trades nothing.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Output, Torrent};
use crate::proto::peer::{Disconnect, PeerSession};
use crate::proto::swarm::{Ourselves, PeerKey, PeerSource, Search, site};
use crate::proto::time::Timestamp;
use crate::proto::wire::pex::PexFlags;

/// Connections of one torrent.
pub const MAX_PEERS: usize = 50;

/// What a torrent wants beyond the peers it has or knows, so that others can come.
const ROOM_TO_GROW: usize = 5;

/// One out of this many connections is kept for peers that we choose, so that those who come to us
/// cannot have them all.
const CHOSEN_SHARE: usize = 5;

/// Out of ten connections that there may be, those with which we look for no more. What is left is
/// for those who come: when everybody is connected to as many as it may, newcomers find no place, and
/// in a crowd everybody is connected to those who came just before it, so that pieces take many
/// steps through it.
const ENOUGH_OF_TEN: usize = 6;

/// Whoever knows of fewer peers than this many out of ten connections connects to all of them: where
/// there are so few, all have room for all.
const FEW_OF_TEN: usize = 9;

/// Connections that the peers of one site (an IPv4 address or IPv6 /64) may keep while others wait:
/// several honest ones can stand behind one NAT.
const MAX_PER_SITE: usize = 4;

/// A connection through which nothing came or went for this long may have to make room for a peer
/// of a higher priority that comes to us, ...
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// ... one connection each time that this has passed.
const REPLACEMENT: Duration = Duration::from_secs(10);

/// A connection through which nothing came or went for this long may have to make room for any
/// other peer, ...
const USELESS_AFTER: Duration = Duration::from_secs(120);

/// ... one connection each time that this has passed.
const TURNOVER: Duration = Duration::from_secs(30);

/// While readers wait and nobody has sent a block for this long, a connection through which nothing came
/// or went for as long may have to make room, ...
const STARVED_AFTER: Duration = Duration::from_secs(30);

/// ... one connection each time that this has passed: a crowd of peers that only take up places must
/// not keep us from the one that gives.
const STARVED_TURNOVER: Duration = Duration::from_secs(2);

/// Without the metadata the same goes for whoever has been connected for this long while none came: nobody is
/// choked there, ...
const IGNORANT_AFTER: Duration = Duration::from_secs(10);

/// ... one connection each time that this has passed.
const IGNORANT_TURNOVER: Duration = Duration::from_secs(1);

/// Attempts to connect that are made in a second, after ...
const ATTEMPTS_PER_SECOND: f64 = 30.0;

/// ... this many at once.
pub(super) const ATTEMPTS_AT_ONCE: f64 = MAX_PEERS as f64;

/// The same of a complete torrent, which needs nobody: when a crowd becomes complete, nearly all that
/// its members know of are complete too, and everybody would find that out about everybody.
const OFFERS_PER_SECOND: f64 = 1.0;
const OFFERS_AT_ONCE: f64 = 10.0;

/// Two connections between the same peers that are opened from both ends within this time have
/// crossed.
const CROSSING: Duration = Duration::from_secs(10);

/// What becomes of a second connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// It replaces the first.
    Replaces,
    /// It is closed.
    Refused,
    /// It is closed if the first proves to be alive, and replaces it if not.
    Waits,
}

impl Torrent {
    // ---- who is known

    /// Addresses were learnt.
    pub fn peers_found(&mut self, addrs: &[SocketAddr], source: PeerSource) {
        let connected = self.search().connected;
        for addr in addrs {
            self.list.add(*addr, source, PexFlags::default(), &connected);
        }
        self.look_for_peers = true;
    }

    /// What we look for now.
    pub(super) fn search(&self) -> Search {
        Search {
            ours: self.ourselves(),
            connected: self.peers.values().map(PeerSession::known_addr).collect(),
            seeding: !self.wants_peers(),
            attempts: self.limit,
        }
    }

    /// Our addresses as others see them.
    fn ourselves(&self) -> Ourselves {
        self.external.ourselves(self.options.port)
    }

    // ---- who may come in

    /// How many connections there may be from now on, at most [`MAX_PEERS`]; if there are more, the
    /// least useful ones are closed.
    pub fn set_connection_limit(&mut self, limit: usize, now: Timestamp) {
        if self.given_up {
            return;
        }
        self.limit = limit.clamp(1, MAX_PEERS);
        while self.peers.len() > self.limit {
            let named = |peer: &PeerSession| self.list.is_manual(peer.known_addr());
            let all_named = self.peers.values().all(named);
            let Some(key) = self.least_useful(all_named, |_| true, now) else { return };
            self.disconnect(key, Disconnect::TooMany, now);
        }
        self.look_for_peers = true;
    }

    /// How many connections the torrent could make use of.
    pub fn wanted_connections(&self) -> usize {
        let known = if self.wants_peers() { self.list.len() } else { 0 };
        (self.peers.len().max(known) + ROOM_TO_GROW).min(MAX_PEERS)
    }

    /// Whether there may be one more connection: attempts under way are not counted beforehand.
    pub fn has_room(&self) -> bool {
        self.peers.len() < self.limit
    }

    fn has_room_for_incoming(&self) -> bool {
        self.peers.len() < self.limit - self.limit / CHOSEN_SHARE
    }

    /// Whether a connection from `addr` is welcome. One that is takes the place of another, which is
    /// closed for it, when all places are taken.
    pub fn accepts(&mut self, addr: SocketAddr, now: Timestamp) -> bool {
        if self.list.is_banned(addr) {
            return false;
        }
        if self.has_room_for_incoming() {
            return true;
        }
        let other = self.crowded(addr.ip(), now).or_else(|| self.outranked(addr, now));
        match other {
            Some(key) => self.disconnect(key, Disconnect::TooMany, now),
            None => self.refused = true,
        }
        other.is_some()
    }

    /// A connection to a site that has more of them than it may keep while others wait, and more
    /// than the site of `newcomer` would have. They are evened out so and not shifted to and fro.
    fn crowded(&mut self, newcomer: IpAddr, now: Timestamp) -> Option<PeerKey> {
        let at = |ip: IpAddr| {
            let site_of = site(ip);
            self.peers.values().filter(|p| site(p.addr.ip()) == site_of).count()
        };
        let allowed = MAX_PER_SITE.max(at(newcomer) + 1);
        let sites = self.peers.values().map(|p| p.addr.ip());
        let (count, ip) = sites.map(|ip| (at(ip), site(ip))).max()?;
        if count <= allowed {
            return None;
        }
        self.least_useful(false, |peer| site(peer.addr.ip()) == ip, now)
    }

    /// The connection of the lowest priority, if it is of no use and its priority is lower than that
    /// of `newcomer`.
    fn outranked(&mut self, newcomer: SocketAddr, now: Timestamp) -> Option<PeerKey> {
        if now.since(self.last_replacement) < REPLACEMENT {
            return None;
        }
        let ours = self.ourselves();
        let bar = ours.priority(newcomer);
        let idle = self.idle_for(IDLE_AFTER, false, now);
        let lower = idle.into_iter().filter_map(|key| {
            let priority = ours.priority(self.peers.get(&key)?.known_addr());
            (priority < bar).then_some((priority, key))
        });
        let lowest = lower.min()?.1;
        self.last_replacement = now;
        (!self.is_only_holder(lowest)).then_some(lowest)
    }

    /// What to do with a second connection to the peer of `first`, `outgoing` if we opened it. Of
    /// two that crossed, both sides keep the one that the greater peer id opened; otherwise the
    /// first stays if it lives. A peer that came back must not be shut out by what is left of it,
    /// and nobody else can end a connection by saying that peer's id.
    pub fn second_connection(
        &self,
        first: PeerKey,
        outgoing: bool,
        ours_is_greater: bool,
        now: Timestamp,
    ) -> Second {
        let Some(first) = self.peers.get(&first) else { return Second::Replaces };
        let crossed = first.outgoing != outgoing && now.since(first.since) < CROSSING;
        match crossed {
            true if outgoing == ours_is_greater => Second::Replaces,
            true => Second::Refused,
            false => Second::Waits,
        }
    }

    // ---- connections come and go

    /// An attempt to connect failed; `ourselves` when the handshake showed our own peer id.
    pub fn connect_failed(&mut self, addr: SocketAddr, ourselves: bool, now: Timestamp) {
        self.list.attempt_ended(addr);
        if ourselves {
            self.list.is_ourselves(addr);
        } else {
            self.list.failed(addr, false, now);
        }
        self.look_for_peers = true;
    }

    /// An attempt to connect to `addr` found a peer there, and no room: at the peer's, or at ours
    /// meanwhile.
    pub fn found_no_room(&mut self, addr: SocketAddr, now: Timestamp) {
        self.list.attempt_ended(addr);
        self.list.turned_away(addr, now);
        self.look_for_peers = true;
    }

    /// An attempt to connect to `addr` reached a peer that is connected already.
    pub fn connected_already(&mut self, addr: SocketAddr, key: PeerKey, now: Timestamp) {
        match self.peers.get_mut(&key).filter(|peer| peer.listen_addr.is_none()) {
            Some(peer) => {
                peer.listen_addr = Some(addr);
                self.list.attempt_ended(addr);
                self.note_neighbour(key);
            }
            None => self.connect_failed(addr, false, now),
        }
    }

    /// A connection stands and handshakes were exchanged.
    pub fn peer_connected(&mut self, key: PeerKey, session: PeerSession, now: Timestamp) {
        if session.outgoing {
            self.list.reached(session.addr);
        }
        self.peers.insert(key, session);
        self.note_neighbour(key);
        self.askable = None;
        self.greet(key, now);
    }

    /// A peer that connected to us says on which port it listens.
    pub(super) fn peer_listens(&mut self, key: PeerKey, port: u16, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key).filter(|p| p.listen_addr.is_none()) else {
            return;
        };
        let addr = SocketAddr::new(peer.addr.ip(), port);
        peer.listen_addr = Some(addr);
        self.note_neighbour(key);
        if self.list.is_banned(addr) {
            self.disconnect(key, Disconnect::BadData, now);
            return;
        }
        self.peers_found(&[addr], PeerSource::Incoming);
    }

    /// A connection ended, whoever ended it.
    pub fn peer_disconnected(&mut self, key: PeerKey, now: Timestamp) {
        self.ended(key, false, now);
    }

    /// A connection ended, or `made_room` for another.
    fn ended(&mut self, key: PeerKey, made_room: bool, now: Timestamp) {
        let Some(mut peer) = self.peers.remove(&key) else { return };
        self.take_back_suggestions(key);
        if let Some(hand_out) = self.active.as_mut().and_then(|a| a.hand_out.as_mut()) {
            hand_out.peer_left();
        }
        self.askable = None;
        if let Some(addr) = peer.listen_addr {
            self.changes.note(key, addr, false);
        }
        let useful = peer.down.total() + peer.up.total() > 0;
        match made_room {
            true => self.list.turned_away(peer.known_addr(), now),
            false => self.list.failed(peer.known_addr(), useful, now),
        }
        self.look_for_peers = true;
        if let Some(fetch) = &mut self.fetch {
            fetch.peer_gone(key.0);
        }
        if let Some(active) = &mut self.active {
            if let Some(holds) = &peer.holds {
                active.picker.peer_left(holds);
            }
            for block in peer.window.clear() {
                active.release(block, key, &mut self.outputs);
            }
        }
    }

    /// Closes a connection from our side.
    pub(super) fn disconnect(&mut self, key: PeerKey, reason: Disconnect, now: Timestamp) {
        if self.peers.contains_key(&key) {
            let made_room = reason == Disconnect::TooMany;
            self.outputs.push_back(Output::Disconnect(key, reason));
            self.ended(key, made_room, now);
        }
    }

    /// Bans a peer that is proven to have sent bad data.
    pub(super) fn ban(&mut self, key: PeerKey, now: Timestamp) {
        if let Some(peer) = self.peers.get(&key) {
            self.list.ban(peer.known_addr(), &self.search().connected);
            self.disconnect(key, Disconnect::BadData, now);
        }
    }

    // ---- whom we look for

    /// We may be somewhere else: who could not be reached may be reached now.
    pub fn network_changed(&mut self) {
        self.list.try_all_again();
        self.look_for_peers = true;
    }

    /// When somebody who is known may be tried next.
    pub(super) fn next_attempt(&self) -> Timestamp {
        let seeding = !self.wants_peers();
        let next = self.list.next_try(seeding).filter(|_| self.options.upload || !seeding);
        next.unwrap_or(Timestamp::FAR_FUTURE)
    }

    /// Connects to more peers. A complete torrent does so only to serve them.
    pub(super) fn plan_connections(&mut self, now: Timestamp) {
        let complete = !self.wants_peers();
        let (per_second, at_once) = match complete {
            true => (OFFERS_PER_SECOND, OFFERS_AT_ONCE),
            false => (ATTEMPTS_PER_SECOND, ATTEMPTS_AT_ONCE),
        };
        let (attempts, most) = (self.may_open(), self.attempts.earn(per_second, at_once, now));
        if attempts == 0 || most < 1.0 || (complete && !self.options.upload) {
            return;
        }
        let search = Search { attempts, ..self.search() };
        for _ in 0..most as usize {
            let found = self.has_room().then(|| self.list.next_to_connect(&search, now)).flatten();
            let Some(addr) = found else { return };
            self.attempts.spend(1.0);
            self.outputs.push_back(Output::Connect(addr));
        }
    }

    /// How many more connections we may open now: until there are enough, and some of them chosen
    /// by us.
    fn may_open(&self) -> usize {
        let opened = self.peers.values().filter(|p| p.outgoing).count();
        let enough = match self.list.len() < self.limit * FEW_OF_TEN / 10 {
            true => self.limit,
            false => (self.limit * ENOUGH_OF_TEN).div_ceil(10),
        };
        let wanted = enough.saturating_sub(self.peers.len());
        wanted.max((self.limit / CHOSEN_SHARE).saturating_sub(opened))
    }

    /// When all connections are taken and others wait, or there are enough and more peers known, the
    /// oldest one that has been of no use for long makes room for another.
    pub(super) fn turn_over(&mut self, now: Timestamp) {
        let ignorant =
            self.fetch.as_ref().is_some_and(|fetch| now.since(fetch.gave()) > IGNORANT_AFTER);
        let starved = ignorant || self.is_starved(now);
        let (useless_after, turnover) = match () {
            () if ignorant => (IGNORANT_AFTER, IGNORANT_TURNOVER),
            () if starved => (STARVED_AFTER, STARVED_TURNOVER),
            () => (USELESS_AFTER, TURNOVER),
        };
        let passed = now.since(self.last_turnover);
        if passed < turnover {
            return;
        }
        // Whoever comes in by itself is not let in faster for our need.
        let shut_out = passed >= TURNOVER
            && std::mem::take(&mut self.refused)
            && !self.has_room_for_incoming();
        let search = Search { attempts: self.limit, ..self.search() };
        let wanted =
            !search.seeding && self.may_open() == 0 && self.list.has_candidate(&search, now);
        if shut_out || wanted {
            self.last_turnover = now;
            let mut useless = self.idle_for(useless_after, starved, now);
            if starved && !ignorant {
                let elders = self.elders();
                useless.retain(|key| !elders.contains(key));
            }
            let oldest = useless.into_iter().min_by_key(|key| self.peers.get(key).map(|p| p.since));
            if let Some(key) = oldest.filter(|key| !self.is_only_holder(*key)) {
                self.disconnect(key, Disconnect::TooMany, now);
                let other = wanted.then(|| self.list.next_to_connect(&search, now)).flatten();
                self.outputs.extend(other.map(Output::Connect));
            }
        }
    }

    /// The older half of the connections: who waits to be unchoked does not give up its turn at all peers.
    fn elders(&self) -> BTreeSet<PeerKey> {
        let mut keys: Vec<_> = self.peers.iter().map(|(key, peer)| (peer.since, *key)).collect();
        keys.sort_unstable();
        keys.truncate(keys.len() / 2);
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Whether readers wait, and none of those who are connected has given anything lately.
    fn is_starved(&self, now: Timestamp) -> bool {
        let gives = |peer: &PeerSession| {
            peer.down.total() > 0 && now.since(peer.last_block) <= STARVED_AFTER
        };
        let waits = self.active.as_ref().is_some_and(|active| active.demand.waiting() > 0);
        waits && !self.peers.values().any(gives)
    }

    /// Whether there is anything to get from more peers.
    pub fn wants_peers(&self) -> bool {
        !self.given_up && self.active.as_ref().is_none_or(|a| !a.announced.is_full())
    }

    // ---- what a connection is worth

    /// Connections through which nothing came or went for `time`, and nothing is about to; those to peers that a
    /// person named only if `named` ones are meant too.
    fn idle_for(&mut self, time: Duration, named: bool, now: Timestamp) -> Vec<PeerKey> {
        let list = &self.list;
        let idle = self.peers.iter_mut().filter_map(|(key, peer)| {
            let asked = !peer.window.is_empty() && !peer.window.is_stalled();
            let idle =
                now.since(peer.since.max(peer.last_block)) > time && peer.up.per_second(now) < 1.0;
            (idle && !asked && (named || !list.is_manual(peer.known_addr()))).then_some(*key)
        });
        idle.collect()
    }

    /// Of those among `which`, the connection that carries least, and of these the one through which
    /// nothing came for longest; one that a person named only if `named` ones are meant too.
    fn least_useful(
        &mut self,
        named: bool,
        which: impl Fn(&PeerSession) -> bool,
        now: Timestamp,
    ) -> Option<PeerKey> {
        let list = &self.list;
        let meant =
            |peer: &PeerSession| which(peer) && (named || !list.is_manual(peer.known_addr()));
        let worth = |peer: &mut PeerSession| {
            let carries = peer.down.per_second(now) + peer.up.per_second(now);
            (carries as u64, peer.last_block)
        };
        let peers = self.peers.iter_mut().filter(|(_, peer)| meant(peer));
        peers.map(|(key, peer)| (worth(peer), *key)).min().map(|(_, key)| key)
    }

    /// Whether this peer has a piece that we lack and no other connected peer has.
    fn is_only_holder(&self, key: PeerKey) -> bool {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get(&key)) else { return false };
        let lacking = active.geometry.pieces().filter(|p| !active.announced.contains(*p));
        lacking.into_iter().any(|p| peer.has(p) && active.picker.availability(p) <= 1)
    }
}
