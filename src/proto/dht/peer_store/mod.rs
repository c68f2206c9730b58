//! Who announced to us that it has which torrent (BEP 5; BEP 33, "Changed announce accounting").
//!
//! One entry for each address, port and torrent, kept for [`LIFETIME`]: many peers may be behind one
//! NAT. Beyond [`MAX_PORTS`] of one address the oldest goes: it may be the same peer at another port.
//! When a torrent is full, a newcomer takes the place of anyone; when the store is full, torrents that
//! are new to it are refused. One site can take only its share, so that filling the store takes many
//! addresses, each of which has shown by its token that it is its own.

mod bloom;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::proto::ids::InfoHash;
use crate::proto::swarm::site;
use crate::proto::time::Timestamp;

pub use bloom::{BLOOM_LEN, Bloom};

/// How long an announce counts. Clients announce again after 15 to 30 minutes.
pub const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Torrents kept.
pub const MAX_TORRENTS: usize = 10_000;

/// Peers kept for a torrent: well below the 6,000 that a Bloom filter can count (BEP 33), and far
/// more than fit in an answer.
pub const MAX_PEERS: usize = 2_000;

/// Peers kept for all torrents: some 10 MB.
pub const MAX_ALL_PEERS: usize = 65_536;

/// Entries of one site (an IPv4 address or IPv6 /64): a hundredth of the torrents.
pub const MAX_OF_SITE: u32 = 100;

/// Ports of one address at which a torrent has peers.
pub const MAX_PORTS: usize = 8;

/// Why an announce was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFull {
    /// No place for another torrent or peer.
    #[error("no room for more torrents")]
    Store,
    /// This site has announced enough.
    #[error("too many announces of one address")]
    Site,
}

/// Families and seeds are kept apart: an answer has only one family, and perhaps no seeds.
const GROUPS: usize = 4;

const fn group(ip: IpAddr, seed: bool) -> usize {
    2 * ip.is_ipv6() as usize + seed as usize
}

/// Where an address is among the peers of its torrent.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: usize,
    index: usize,
    announced: Timestamp,
}

#[derive(Clone, Debug, Default)]
struct Torrent {
    peers: [Vec<SocketAddr>; GROUPS],
    places: BTreeMap<SocketAddr, Place>,
    /// Seeds and others, as long as nobody has left.
    blooms: Option<Box<(Bloom, Bloom)>>,
}

impl Torrent {
    fn insert(&mut self, addr: SocketAddr, seed: bool, announced: Timestamp) {
        let group = group(addr.ip(), seed);
        if let Some(peers) = self.peers.get_mut(group) {
            self.places.insert(addr, Place { group, index: peers.len(), announced });
            peers.push(addr);
        }
        if let Some(blooms) = &mut self.blooms {
            let bloom = if seed { &mut blooms.0 } else { &mut blooms.1 };
            bloom.insert(addr.ip());
        }
    }

    /// Takes an address out and says when it had announced itself.
    fn remove(&mut self, peer: &SocketAddr) -> Option<Timestamp> {
        let Place { group, index, announced } = self.places.remove(peer)?;
        let peers = self.peers.get_mut(group)?;
        if index < peers.len() {
            peers.swap_remove(index);
        }
        if let Some(place) = peers.get(index).and_then(|moved| self.places.get_mut(moved)) {
            place.index = index;
        }
        self.blooms = None;
        Some(announced)
    }

    /// Whose place a newcomer at this address takes, when it has too many.
    fn oldest_of(&self, ip: IpAddr) -> Option<SocketAddr> {
        let all = SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX);
        let of_ip = || self.places.range(all.clone());
        let full = of_ip().count() >= MAX_PORTS;
        of_ip().min_by_key(|(_, place)| place.announced).filter(|_| full).map(|(peer, _)| *peer)
    }

    /// Seeds and others.
    fn blooms(&mut self) -> &(Bloom, Bloom) {
        let peers = &self.peers;
        self.blooms.get_or_insert_with(|| {
            let mut blooms = Box::new((Bloom::EMPTY, Bloom::EMPTY));
            for (group, peers) in peers.iter().enumerate() {
                let bloom = if group % 2 == 1 { &mut blooms.0 } else { &mut blooms.1 };
                peers.iter().for_each(|peer| bloom.insert(peer.ip()));
            }
            blooms
        })
    }

    /// Up to `n` peers of a group, beginning anywhere and in a circle: all have the same chance.
    fn some(&self, group: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<SocketAddr> {
        let peers = self.peers.get(group).map_or(&[][..], Vec::as_slice);
        if peers.is_empty() {
            return Vec::new();
        }
        let start = rng.random_range(0..peers.len());
        peers.iter().cycle().skip(start).take(n.min(peers.len())).copied().collect()
    }
}

/// The announces of others.
#[derive(Clone, Debug, Default)]
pub struct PeerStore {
    torrents: BTreeMap<InfoHash, Torrent>,
    /// All entries, by the time of their announce.
    by_age: BTreeSet<(Timestamp, InfoHash, SocketAddr)>,
    /// How many entries a site has.
    sites: BTreeMap<IpAddr, u32>,
}

impl PeerStore {
    /// `peer` has announced itself, as a seed or not. Its earlier announce of this torrent is void.
    ///
    /// # Errors
    /// [`StoreFull`]; an earlier announce stays then.
    pub fn announce(
        &mut self,
        info_hash: InfoHash,
        peer: SocketAddr,
        seed: bool,
        rng: &mut ChaCha8Rng,
        now: Timestamp,
    ) -> Result<(), StoreFull> {
        self.expire(now);
        if !self.contains(info_hash, &peer) {
            self.make_room(info_hash, peer.ip(), rng)?;
        }
        self.remove(info_hash, &peer);
        self.torrents.entry(info_hash).or_default().insert(peer, seed, now);
        self.by_age.insert((now, info_hash, peer));
        *self.sites.entry(site(peer.ip())).or_default() += 1;
        Ok(())
    }

    /// Up to `max` peers of a torrent, reached by IPv4 or IPv6, chosen by lot; without seeds when
    /// they are of no use.
    pub fn peers(
        &mut self,
        info_hash: InfoHash,
        v6: bool,
        no_seed: bool,
        max: usize,
        rng: &mut ChaCha8Rng,
        now: Timestamp,
    ) -> Vec<SocketAddr> {
        self.expire(now);
        let Some(torrent) = self.torrents.get(&info_hash) else { return Vec::new() };
        let first = 2 * usize::from(v6);
        let mut chosen = torrent.some(first, max, rng);
        if !no_seed {
            // Half of the room is for seeds, and what the others leave.
            let seeds = torrent.some(first + 1, max, rng);
            chosen.truncate((max / 2).max(max - seeds.len().min(max)));
            let room = max - chosen.len();
            chosen.extend(seeds.into_iter().take(room));
        }
        chosen
    }

    /// Seeds and others of a torrent that is kept, to be counted (BEP 33).
    pub fn blooms(&mut self, info_hash: InfoHash, now: Timestamp) -> Option<(Bloom, Bloom)> {
        self.expire(now);
        self.torrents.get_mut(&info_hash).map(|torrent| torrent.blooms().clone())
    }

    /// Up to `max` torrents, chosen by lot, and how many there are (BEP 51).
    pub fn sample(
        &mut self,
        max: usize,
        rng: &mut ChaCha8Rng,
        now: Timestamp,
    ) -> (Vec<InfoHash>, usize) {
        self.expire(now);
        let start = InfoHash::new(rng.random());
        let (after, before) = (self.torrents.range(start..), self.torrents.range(..start));
        (after.chain(before).take(max).map(|(hash, _)| *hash).collect(), self.torrents.len())
    }

    /// Torrents and peers that are kept.
    pub fn counts(&self) -> (usize, usize) {
        (self.torrents.len(), self.by_age.len())
    }

    fn contains(&self, info_hash: InfoHash, peer: &SocketAddr) -> bool {
        self.torrents.get(&info_hash).is_some_and(|torrent| torrent.places.contains_key(peer))
    }

    /// Lets one more in, or says why not.
    fn make_room(
        &mut self,
        info_hash: InfoHash,
        ip: IpAddr,
        rng: &mut ChaCha8Rng,
    ) -> Result<(), StoreFull> {
        let torrent = self.torrents.get(&info_hash);
        if let Some(oldest) = torrent.and_then(|torrent| torrent.oldest_of(ip)) {
            self.remove(info_hash, &oldest);
            return Ok(());
        }
        let local = super::id::is_local(ip);
        if !local && self.sites.get(&site(ip)).is_some_and(|entries| *entries >= MAX_OF_SITE) {
            return Err(StoreFull::Site);
        }
        match self.torrents.get(&info_hash) {
            None if self.torrents.len() >= MAX_TORRENTS => Err(StoreFull::Store),
            Some(torrent) if torrent.places.len() >= MAX_PEERS => {
                self.drop_anyone(info_hash, rng);
                Ok(())
            }
            _ if self.by_age.len() >= MAX_ALL_PEERS => Err(StoreFull::Store),
            _ => Ok(()),
        }
    }

    /// Drops a peer of a full torrent by lot.
    fn drop_anyone(&mut self, info_hash: InfoHash, rng: &mut ChaCha8Rng) {
        let Some(torrent) = self.torrents.get(&info_hash) else { return };
        let nth = rng.random_range(0..torrent.places.len().max(1));
        let mut left = nth;
        let victim = torrent.peers.iter().find_map(|peers| match peers.get(left) {
            Some(peer) => Some(*peer),
            None => {
                left -= peers.len();
                None
            }
        });
        if let Some(peer) = victim {
            self.remove(info_hash, &peer);
        }
    }

    fn remove(&mut self, info_hash: InfoHash, peer: &SocketAddr) {
        let Some(torrent) = self.torrents.get_mut(&info_hash) else { return };
        let Some(announced) = torrent.remove(peer) else { return };
        if torrent.places.is_empty() {
            self.torrents.remove(&info_hash);
        }
        self.by_age.remove(&(announced, info_hash, *peer));
        let site = site(peer.ip());
        if let Some(entries) = self.sites.get_mut(&site) {
            *entries -= 1;
            if *entries == 0 {
                self.sites.remove(&site);
            }
        }
    }

    /// Forgets what is too old.
    fn expire(&mut self, now: Timestamp) {
        while let Some((announced, info_hash, peer)) = self.by_age.first().copied() {
            if now.since(announced) < LIFETIME {
                break;
            }
            self.remove(info_hash, &peer);
        }
    }
}
