//! The tracker: a machine that answers the datagrams of BEP 15 and keeps one swarm.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;
use crate::proto::tracker::udp::Response;
use crate::proto::tracker::udp_server::{
    ConnectionIds, MAX_ANSWERED_PEERS, Request, encode_response, parse_request,
};
use crate::proto::tracker::{AnnounceAnswer, AnnounceRequest, Event, ScrapeEntry};

/// Where the tracker is; no node has this address.
pub(super) const TRACKER: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 255, 255, 254)), 6969);

/// Its announce URL.
pub(super) const URL: &str = "udp://127.255.255.254:6969/announce";

/// How often peers are to announce.
const INTERVAL: Duration = Duration::from_secs(1_800);

/// A peer that has not announced for this long is gone: it may be late once.
const FORGET: Duration = Duration::from_secs(2 * 1_800);

/// The tracker.
pub(super) struct Tracker {
    torrent: InfoHash,
    ids: ConnectionIds,
    swarm: Swarm,
    rng: ChaCha8Rng,
    /// Announces that it answered.
    pub announces: u64,
}

impl Tracker {
    /// A tracker that knows one torrent.
    pub fn new(torrent: InfoHash, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            torrent,
            ids: ConnectionIds::new(rng.random()),
            swarm: Swarm::default(),
            rng,
            announces: 0,
        }
    }

    /// The answer to a datagram; `None` for what is no request, or is not from where it says.
    pub fn answer(&mut self, from: SocketAddr, datagram: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let (transaction, request) = parse_request(datagram)?;
        let response = match request {
            Request::Connect => Response::Connected(self.ids.issue(from.ip(), now)),
            Request::Announce { connection, announce } => {
                self.ids.accepts(connection, from.ip(), now).then_some(())?;
                self.announced(from, &announce, now)
            }
            Request::Scrape { connection, torrents } => {
                self.ids.accepts(connection, from.ip(), now).then_some(())?;
                let entry = |torrent: InfoHash| match torrent == self.torrent {
                    true => self.swarm.scrape(),
                    false => ScrapeEntry::default(),
                };
                Response::Scraped(torrents.into_iter().map(entry).collect())
            }
        };
        Some(encode_response(transaction, &response, false))
    }

    fn announced(
        &mut self,
        from: SocketAddr,
        announce: &AnnounceRequest,
        now: Timestamp,
    ) -> Response {
        if announce.info_hash != self.torrent {
            return Response::Refused("no such torrent".to_owned());
        }
        self.announces += 1;
        let peer = SocketAddr::new(from.ip(), announce.port);
        let peers = self.swarm.announce(peer, announce, now, &mut self.rng);
        let ScrapeEntry { seeders, leechers, .. } = self.swarm.scrape();
        Response::Announced(AnnounceAnswer {
            interval: Some(INTERVAL),
            seeders: Some(seeders),
            leechers: Some(leechers),
            peers,
            ..AnnounceAnswer::default()
        })
    }
}

/// A peer's place: among the seeders or the leechers, which one, and when it last announced.
struct Place {
    seeder: bool,
    at: usize,
    heard: Timestamp,
}

/// The peers of the torrent. No announce looks at all of them.
#[derive(Default)]
struct Swarm {
    seeders: Vec<SocketAddr>,
    leechers: Vec<SocketAddr>,
    places: BTreeMap<SocketAddr, Place>,
    /// Announces by time: who has been silent for long is among the first.
    heard: VecDeque<(Timestamp, SocketAddr)>,
    completed: u32,
}

impl Swarm {
    /// Takes an announce; the peers to answer with, each once, the asking one not among them. A
    /// seeder is given no seeders.
    fn announce(
        &mut self,
        peer: SocketAddr,
        announce: &AnnounceRequest,
        now: Timestamp,
        rng: &mut ChaCha8Rng,
    ) -> Vec<SocketAddr> {
        self.forget_the_silent(now);
        self.remove(peer);
        self.completed += u32::from(announce.event == Event::Completed);
        if announce.event == Event::Stopped {
            return Vec::new();
        }
        let seeder = announce.left == Some(0);
        let others = self.leechers.len() + if seeder { 0 } else { self.seeders.len() };
        let wanted = (announce.numwant as usize).min(MAX_ANSWERED_PEERS);
        let drawn = draw(wanted, others, rng);
        let peers = drawn.into_iter().filter_map(|at| {
            self.leechers.get(at).or_else(|| self.seeders.get(at - self.leechers.len())).copied()
        });
        let peers = peers.collect();
        self.insert(peer, seeder, now);
        peers
    }

    fn scrape(&self) -> ScrapeEntry {
        ScrapeEntry {
            seeders: self.seeders.len() as u32,
            completed: self.completed,
            leechers: self.leechers.len() as u32,
        }
    }

    fn list(&mut self, seeder: bool) -> &mut Vec<SocketAddr> {
        if seeder { &mut self.seeders } else { &mut self.leechers }
    }

    fn insert(&mut self, peer: SocketAddr, seeder: bool, heard: Timestamp) {
        let list = self.list(seeder);
        list.push(peer);
        let at = list.len() - 1;
        self.places.insert(peer, Place { seeder, at, heard });
        self.heard.push_back((heard, peer));
    }

    fn remove(&mut self, peer: SocketAddr) {
        let Some(place) = self.places.remove(&peer) else { return };
        let list = self.list(place.seeder);
        list.swap_remove(place.at);
        if let Some(moved) = list.get(place.at).copied()
            && let Some(other) = self.places.get_mut(&moved)
        {
            other.at = place.at;
        }
    }

    fn forget_the_silent(&mut self, now: Timestamp) {
        while let Some((heard, peer)) = self.heard.front().copied()
            && now.since(heard) > FORGET
        {
            self.heard.pop_front();
            if self.places.get(&peer).is_some_and(|place| place.heard == heard) {
                self.remove(peer);
            }
        }
    }
}

/// `wanted` different numbers below `bound`, or all of them if there are not so many: Floyd's way,
/// which looks at no others.
fn draw(wanted: usize, bound: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(wanted.min(bound));
    for last in bound.saturating_sub(wanted)..bound {
        let at = rng.random_range(0..=last);
        drawn.push(if drawn.contains(&at) { last } else { at });
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ids::PeerId;
    use proptest::prelude::*;

    fn addr(n: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n), 6881))
    }

    fn announce(left: u64, event: Event) -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new([7; 20]),
            peer_id: PeerId::new([2; 20]),
            port: 6881,
            uploaded: 0,
            downloaded: 0,
            left: Some(left),
            event,
            numwant: 200,
            key: 0,
            tracker_id: None,
        }
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    /// A swarm of leechers 0..100 and seeders 100..200.
    fn swarm(rng: &mut ChaCha8Rng) -> Swarm {
        let mut swarm = Swarm::default();
        for n in 0..200 {
            let left = u64::from(n < 100);
            swarm.announce(addr(n), &announce(left, Event::Started), at(0), rng);
        }
        swarm
    }

    #[test]
    fn an_answer_holds_50_different_peers_and_not_the_one_that_asked() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut peers =
            swarm(&mut rng).announce(addr(0), &announce(1, Event::Regular), at(1), &mut rng);
        assert!(!peers.contains(&addr(0)));
        peers.sort();
        peers.dedup();
        assert_eq!(peers.len(), 50);
    }

    #[test]
    fn a_seeder_is_given_no_seeders_and_a_leecher_both() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut swarm = swarm(&mut rng);
        let is_seeder = |peer: &SocketAddr| *peer >= addr(100);
        let given = swarm.announce(addr(150), &announce(0, Event::Regular), at(1), &mut rng);
        assert!(given.len() == 50 && !given.iter().any(is_seeder));
        let given = swarm.announce(addr(50), &announce(1, Event::Regular), at(1), &mut rng);
        let seeders = given.iter().filter(|peer| is_seeder(peer)).count();
        assert!((10..40).contains(&seeders), "{seeders}");
    }

    #[test]
    fn who_wants_fewer_gets_fewer() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut swarm = swarm(&mut rng);
        for numwant in [0, 3] {
            let few = AnnounceRequest { numwant, ..announce(1, Event::Regular) };
            let given = swarm.announce(addr(0), &few, at(1), &mut rng);
            assert_eq!(given.len(), numwant as usize);
        }
    }

    #[test]
    fn who_is_done_is_counted_as_a_seeder_and_who_stops_not_at_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut swarm = swarm(&mut rng);
        swarm.announce(addr(0), &announce(0, Event::Completed), at(1), &mut rng);
        let none = swarm.announce(addr(1), &announce(1, Event::Stopped), at(1), &mut rng);
        assert!(none.is_empty());
        assert_eq!(swarm.scrape(), ScrapeEntry { seeders: 101, completed: 1, leechers: 98 });
    }

    #[test]
    fn who_is_silent_for_two_intervals_is_forgotten() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut swarm = swarm(&mut rng);
        swarm.announce(addr(0), &announce(1, Event::Regular), at(1_800), &mut rng);
        swarm.announce(addr(1), &announce(1, Event::Regular), at(3_601), &mut rng);
        assert_eq!(swarm.scrape(), ScrapeEntry { seeders: 0, completed: 0, leechers: 2 });
    }

    #[test]
    fn without_a_connection_id_of_its_own_nobody_is_answered() {
        use crate::proto::tracker::udp::{announce_request, connect_request, parse_response};
        let mut tracker = Tracker::new(InfoHash::new([7; 20]), 1);
        let connected = tracker.answer(addr(1), &connect_request(3), at(0)).unwrap();
        let Some((3, Response::Connected(id))) = parse_response(&connected, false) else {
            panic!("no connection id");
        };
        let datagram = announce_request(id, 4, &announce(1, Event::Started), b"");
        assert_eq!(tracker.answer(addr(2), &datagram, at(0)), None);
        assert!(tracker.answer(addr(1), &datagram, at(0)).is_some());
        assert_eq!(tracker.announces, 1);
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_different_and_within_bounds(wanted in 0usize..60, bound in 0usize..200) {
            let mut rng = ChaCha8Rng::seed_from_u64((wanted * 1_000 + bound) as u64);
            let mut drawn = draw(wanted, bound, &mut rng);
            prop_assert!(drawn.iter().all(|at| *at < bound));
            drawn.sort();
            drawn.dedup();
            prop_assert_eq!(drawn.len(), wanted.min(bound));
        }
    }
}
