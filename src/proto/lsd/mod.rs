//! Local discovery (BEP 14): clients of one network find each other by multicast, without a tracker.
//!
//! [`Lsd`] is one machine for all torrents of a client. It says when to announce which of them, and
//! reads what others announce. Anybody on the network can send such datagrams, and in any other's
//! name: what is believed is bounded for each torrent and each address, and only local addresses
//! are believed at all.

mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

pub use message::{Group, MAX_RECEIVED, MAX_SENT, MAX_TORRENTS, Message};

use crate::proto::crc32c::crc32c;
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// How often a torrent is announced, ...
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// ... and by how much sooner at most, so that not all of a network speak at once.
const JITTER_SECS: u64 = 30;

/// The least time between two announces of one torrent, even if it is removed and comes back
/// (BEP 14).
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The least time between two datagrams to a group: torrents that are added together share one.
const PACE: Duration = Duration::from_secs(1);

/// How long a peer that was told of is remembered: it is not told of again meanwhile. Shorter than
/// the time after which others announce again.
const REMEMBERED: Duration = Duration::from_secs(4 * 60);

/// Peers of one torrent that are told of within [`REMEMBERED`].
const MAX_PEERS: usize = 100;

/// Of these, peers at one address: several clients can run on one machine.
const MAX_PER_ADDRESS: usize = 8;

/// A client that has several addresses announces from each of them at once; within this time the
/// first one counts, so that there is one connection between the two.
const ECHO: Duration = Duration::from_secs(2);

/// The time that reading a datagram counts for: a thousand a second are read, ...
const READING: Duration = Duration::from_millis(1);

/// ... and so many at once, as this takes.
const BURST: Duration = Duration::from_millis(200);

/// Whether `ip` can be that of a neighbour: private, link-local or loopback. Only those are
/// believed, and only from those is announced.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// The machine. Send what [`Self::poll_transmit`] gives to both groups, feed it what comes.
pub struct Lsd {
    port: u16,
    cookie: Vec<u8>,
    rng: ChaCha8Rng,
    torrents: BTreeMap<InfoHash, Torrent>,
    /// When torrents were last announced that are gone, as far as that still matters.
    gone: BTreeMap<InfoHash, Timestamp>,
    next_send: Timestamp,
    /// Until when we are busy with what we have read, as [`READING`] counts.
    busy_until: Timestamp,
}

struct Torrent {
    announced: Option<Timestamp>,
    due: Timestamp,
    heard: BTreeMap<SocketAddr, Heard>,
}

/// A peer that was told of.
struct Heard {
    at: Timestamp,
    /// A checksum of its cookie.
    cookie: Option<u32>,
}

impl Lsd {
    /// A machine without torrents. `port` is where we listen for peers. `seed` must be
    /// unpredictable: the cookie is made of it, and who knows that can have us miss others.
    pub fn new(port: u16, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            port,
            cookie: format!("{:08x}", rng.next_u32()).into_bytes(),
            rng,
            torrents: BTreeMap::new(),
            gone: BTreeMap::new(),
            next_send: Timestamp::ZERO,
            busy_until: Timestamp::ZERO,
        }
    }

    /// Says which torrents there are; those that are new are announced at once. Private ones must
    /// not be among them (BEP 27).
    pub fn set_torrents(&mut self, hashes: &BTreeSet<InfoHash>, now: Timestamp) {
        self.gone.retain(|_, announced| now.since(*announced) < MIN_INTERVAL);
        let gone = &mut self.gone;
        self.torrents.retain(|hash, torrent| {
            let stays = hashes.contains(hash);
            gone.extend(torrent.announced.filter(|_| !stays).map(|announced| (*hash, announced)));
            stays
        });
        for hash in hashes {
            let announced = self.gone.remove(hash);
            let due = announced.map_or(now, |announced| announced + MIN_INTERVAL);
            let new = || Torrent { announced, due, heard: BTreeMap::new() };
            self.torrents.entry(*hash).or_insert_with(new);
        }
    }

    /// We have an address or an interface that we did not have: everything is announced anew as
    /// soon as it may be.
    pub fn network_changed(&mut self) {
        for torrent in self.torrents.values_mut() {
            let soonest = torrent.announced.map(|announced| announced + MIN_INTERVAL);
            torrent.due = torrent.due.min(soonest.unwrap_or(torrent.due));
        }
    }

    /// What to send to both groups now, if anything.
    pub fn poll_transmit(&mut self, now: Timestamp) -> Option<Message> {
        if now < self.next_send {
            return None;
        }
        let mut due: Vec<_> = self.torrents.iter_mut().filter(|(_, t)| t.due <= now).collect();
        due.sort_by_key(|(_, torrent)| torrent.due);
        due.truncate(MAX_TORRENTS);
        if due.is_empty() {
            return None;
        }
        let jitter = Duration::from_secs(self.rng.random_range(0..=JITTER_SECS));
        for (_, torrent) in &mut due {
            torrent.announced = Some(now);
            torrent.due = now + INTERVAL - jitter;
        }
        self.next_send = now + PACE;
        let torrents = due.into_iter().map(|(hash, _)| *hash).collect();
        Some(Message { port: self.port, torrents, cookie: Some(self.cookie.clone()) })
    }

    /// When to call [`Self::poll_transmit`] again.
    pub fn poll_timeout(&self) -> Timestamp {
        let due = self.torrents.values().map(|torrent| torrent.due).min();
        due.map_or(Timestamp::FAR_FUTURE, |due| due.max(self.next_send))
    }

    /// When to read the next datagram: whoever sends more than anybody should is not read as fast.
    pub fn receive_at(&self) -> Timestamp {
        self.busy_until - BURST
    }

    /// Takes a datagram that came from `from`; returns the peers of our torrents that it tells of.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Timestamp,
    ) -> Vec<(InfoHash, SocketAddr)> {
        self.busy_until = self.busy_until.max(now) + READING;
        let Some(message) = Message::parse(datagram).filter(|_| is_local(from.ip())) else {
            return Vec::new();
        };
        if message.cookie.as_deref() == Some(self.cookie.as_slice()) {
            return Vec::new();
        }
        let mut peer = from;
        peer.set_port(message.port);
        let cookie = message.cookie.as_deref().map(crc32c);
        let mut told = |hash: &InfoHash| {
            self.torrents.get_mut(hash).is_some_and(|torrent| torrent.hears_of(peer, cookie, now))
        };
        message.torrents.iter().filter(|hash| told(hash)).map(|hash| (*hash, peer)).collect()
    }
}

impl Torrent {
    /// Whether `peer` is new and may be told of.
    fn hears_of(&mut self, peer: SocketAddr, cookie: Option<u32>, now: Timestamp) -> bool {
        self.heard.retain(|_, heard| now.since(heard.at) < REMEMBERED);
        let there = self.heard.keys().filter(|other| other.ip() == peer.ip()).count();
        let echo = self.heard.iter().any(|(other, heard)| {
            let same = cookie.is_some() && heard.cookie == cookie;
            same && other.port() == peer.port() && now.since(heard.at) < ECHO
        });
        let known = self.heard.contains_key(&peer);
        let full = self.heard.len() >= MAX_PEERS || there >= MAX_PER_ADDRESS;
        if known || echo || full {
            return false;
        }
        self.heard.insert(peer, Heard { at: now, cookie });
        true
    }
}
