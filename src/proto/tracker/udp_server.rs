//! The UDP tracker protocol from the tracker's side: requests in, answers out (BEP 15).
//!
//! Whoever sends a datagram can claim any source address. A client therefore asks for a connection
//! id first, which it gets to see only at the address that it claims, and shows it with every other
//! request. [`ConnectionIds`] makes and checks them without remembering any. A request whose id is
//! not accepted is best left unanswered: whoever is at that address may not have asked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sha1::{Digest, Sha1};

use super::udp::{ANNOUNCE, CONNECT, ERROR, MAX_SCRAPE, PROTOCOL_ID, Response, SCRAPE};
use super::{AnnounceAnswer, AnnounceRequest, Event, MAX_TEXT_LEN, ScrapeEntry};
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::time::Timestamp;

/// The most peers in an answer: with IPv6 these are 900 bytes, which pass every link in one packet.
pub const MAX_ANSWERED_PEERS: usize = 50;

/// Connection ids change this often.
const PERIOD: Duration = Duration::from_secs(60);

/// Periods in which a connection id is accepted, that of its issue included. A tracker accepts one
/// for two minutes at least (BEP 15), and it may have been issued at the end of its period.
const ACCEPTED_PERIODS: u64 = 3;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A connection id.
    Connect,
    /// To be counted among the peers, and peers. `numwant` is `u32::MAX` when the client leaves the
    /// number to the tracker; `left` is always there and `tracker_id` never. The address that a
    /// client may name for itself is not read: it would turn peers against anybody.
    Announce {
        /// Shows that the client is where it says.
        connection: u64,
        /// What it says of itself.
        announce: AnnounceRequest,
    },
    /// How many peers torrents have, at most [`MAX_SCRAPE`] of them.
    Scrape {
        /// Shows that the client is where it says.
        connection: u64,
        /// The torrents.
        torrents: Vec<InfoHash>,
    },
}

/// Reads a datagram of a client: its transaction id and what it wants. `None` for anything that is
/// not a whole request. Options after an announce (BEP 41) are left aside.
pub fn parse_request(datagram: &[u8]) -> Option<(u32, Request)> {
    let mut rest = datagram;
    let connection = u64::from_be_bytes(take(&mut rest)?);
    let action = u32::from_be_bytes(take(&mut rest)?);
    let transaction = u32::from_be_bytes(take(&mut rest)?);
    let request = match action {
        CONNECT if connection == PROTOCOL_ID => Request::Connect,
        ANNOUNCE => Request::Announce { connection, announce: parse_announce(rest)? },
        SCRAPE => {
            let (hashes, _) = rest.as_chunks::<20>();
            let torrents = hashes.iter().take(MAX_SCRAPE).map(|hash| InfoHash::new(*hash));
            Request::Scrape { connection, torrents: torrents.collect() }
        }
        _ => return None,
    };
    Some((transaction, request))
}

fn parse_announce(mut rest: &[u8]) -> Option<AnnounceRequest> {
    let rest = &mut rest;
    let info_hash = InfoHash::new(take(rest)?);
    let peer_id = PeerId::new(take(rest)?);
    let downloaded = u64::from_be_bytes(take(rest)?);
    let left = u64::from_be_bytes(take(rest)?);
    let uploaded = u64::from_be_bytes(take(rest)?);
    let event = match u32::from_be_bytes(take(rest)?) {
        0 => Event::Regular,
        1 => Event::Completed,
        2 => Event::Started,
        3 => Event::Stopped,
        _ => return None,
    };
    let _claimed_address: [u8; 4] = take(rest)?;
    let key = u32::from_be_bytes(take(rest)?);
    let numwant = u32::from_be_bytes(take(rest)?);
    let port = u16::from_be_bytes(take(rest)?);
    Some(AnnounceRequest {
        info_hash,
        peer_id,
        port,
        uploaded,
        downloaded,
        left: Some(left),
        event,
        numwant,
        key,
        tracker_id: None,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// The datagram that answers `transaction`. `v6` is the address family of the socket, and peers of
/// the other one are left out; so is what is beyond [`MAX_ANSWERED_PEERS`], [`MAX_SCRAPE`] and
/// [`MAX_TEXT_LEN`]. An interval that is missing is sent as 0.
pub fn encode_response(transaction: u32, response: &Response, v6: bool) -> Vec<u8> {
    match response {
        Response::Connected(connection) => {
            let mut out = header(CONNECT, transaction);
            out.extend_from_slice(&connection.to_be_bytes());
            out
        }
        Response::Announced(answer) => announced(transaction, answer, v6),
        Response::Scraped(entries) => scraped(transaction, entries),
        Response::Refused(reason) => {
            let mut out = header(ERROR, transaction);
            out.extend(reason.chars().take(MAX_TEXT_LEN).collect::<String>().into_bytes());
            out
        }
    }
}

fn announced(transaction: u32, answer: &AnnounceAnswer, v6: bool) -> Vec<u8> {
    let interval = answer.interval.unwrap_or_default().as_secs();
    let mut out = header(ANNOUNCE, transaction);
    out.extend_from_slice(&u32::try_from(interval).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&answer.leechers.unwrap_or_default().to_be_bytes());
    out.extend_from_slice(&answer.seeders.unwrap_or_default().to_be_bytes());
    let reached = answer.peers.iter().filter(|peer| peer.is_ipv6() == v6);
    for peer in reached.take(MAX_ANSWERED_PEERS) {
        match peer {
            SocketAddr::V4(peer) => out.extend_from_slice(&peer.ip().octets()),
            SocketAddr::V6(peer) => out.extend_from_slice(&peer.ip().octets()),
        }
        out.extend_from_slice(&peer.port().to_be_bytes());
    }
    out
}

fn scraped(transaction: u32, entries: &[ScrapeEntry]) -> Vec<u8> {
    let mut out = header(SCRAPE, transaction);
    for entry in entries.iter().take(MAX_SCRAPE) {
        out.extend_from_slice(&entry.seeders.to_be_bytes());
        out.extend_from_slice(&entry.completed.to_be_bytes());
        out.extend_from_slice(&entry.leechers.to_be_bytes());
    }
    out
}

fn header(action: u32, transaction: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    out.extend_from_slice(&action.to_be_bytes());
    out.extend_from_slice(&transaction.to_be_bytes());
    out
}

/// Makes connection ids that nobody else can: a keyed digest of the client's address and the time.
/// They take no memory, however many clients ask.
#[derive(Clone)]
pub struct ConnectionIds {
    secret: [u8; 16],
}

impl ConnectionIds {
    /// Ids that only who knows `secret` can make; it must be unpredictable.
    pub const fn new(secret: [u8; 16]) -> Self {
        Self { secret }
    }

    /// An id for a client at this address, good for two minutes.
    pub fn issue(&self, client: IpAddr, now: Timestamp) -> u64 {
        self.id(client, period(now))
    }

    /// Whether `id` was issued to this address two minutes ago or later. It may be good for another
    /// minute.
    pub fn accepts(&self, id: u64, client: IpAddr, now: Timestamp) -> bool {
        let now = period(now);
        (0..ACCEPTED_PERIODS.min(now + 1)).any(|ago| self.id(client, now - ago) == id)
    }

    /// All that is hashed has a fixed length and fits one block of SHA-1, so that nothing can be
    /// appended and checking takes a tenth of a microsecond.
    fn id(&self, client: IpAddr, period: u64) -> u64 {
        let address = match client {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let digest = Sha1::new()
            .chain_update(self.secret)
            .chain_update(period.to_be_bytes())
            .chain_update(address)
            .finalize();
        digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
    }
}

fn period(now: Timestamp) -> u64 {
    now.since(Timestamp::ZERO).as_secs() / PERIOD.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tracker::udp::{
        announce_request, connect_request, parse_response, scrape_request,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Regular),
            Just(Event::Started),
            Just(Event::Completed),
            Just(Event::Stopped)
        ]
    }

    prop_compose! {
        fn announce()(
            info_hash: [u8; 20], peer_id: [u8; 20], port: u16, uploaded: u64, downloaded: u64,
            left: u64, event in event(), numwant: u32, key: u32,
        ) -> AnnounceRequest {
            AnnounceRequest {
                info_hash: InfoHash::new(info_hash),
                peer_id: PeerId::new(peer_id),
                port,
                uploaded,
                downloaded,
                left: Some(left),
                event,
                numwant,
                key,
                tracker_id: None,
            }
        }
    }

    prop_compose! {
        fn peer(v6: bool)(ip in 1u32..=0xdfff_ffff, port in 1u16..) -> SocketAddr {
            let v4 = std::net::Ipv4Addr::from(ip);
            let ip: IpAddr = if v6 { v4.to_ipv6_compatible().into() } else { v4.into() };
            SocketAddr::new(ip, port)
        }
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_connect_request_needs_the_protocols_number() {
        let mut datagram = connect_request(7);
        assert_eq!(parse_request(&datagram), Some((7, Request::Connect)));
        datagram[0] ^= 1;
        assert_eq!(parse_request(&datagram), None);
    }

    #[test]
    fn an_unknown_event_is_no_announce() {
        let mut datagram = vec![0; 98];
        datagram[11] = 1;
        assert!(parse_request(&datagram).is_some());
        datagram[83] = 4;
        assert_eq!(parse_request(&datagram), None);
    }

    #[test]
    fn an_answer_holds_50_peers_of_the_family_that_was_asked() {
        let v4 = (1..=60).map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        let v6 = (1..=60).map(|port| SocketAddr::from(([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1], port)));
        let peers: Vec<_> = v4.chain(v6).collect();
        let answer = Response::Announced(AnnounceAnswer { peers, ..AnnounceAnswer::default() });
        assert_eq!(encode_response(1, &answer, false).len(), 20 + 6 * 50);
        assert_eq!(encode_response(1, &answer, true).len(), 20 + 18 * 50);
    }

    #[test]
    fn a_connection_id_is_good_for_two_minutes_and_not_for_ever() {
        let ids = ConnectionIds::new([5; 16]);
        let client = IpAddr::from([192, 0, 2, 1]);
        for issued in [0, 1, 59, 60, 119, 120, 1_000] {
            let id = ids.issue(client, at(issued));
            for later in [0, 1, 60, 120] {
                assert!(ids.accepts(id, client, at(issued + later)), "{issued} + {later}");
            }
            assert!(!ids.accepts(id, client, at(issued + 180)));
        }
    }

    #[test]
    fn a_connection_id_is_good_for_one_address_and_one_tracker() {
        let ids = ConnectionIds::new([5; 16]);
        let id = ids.issue(IpAddr::from([192, 0, 2, 1]), at(0));
        assert!(!ids.accepts(id, IpAddr::from([192, 0, 2, 2]), at(0)));
        assert!(!ConnectionIds::new([6; 16]).accepts(id, IpAddr::from([192, 0, 2, 1]), at(0)));
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let (ids, v4) = (ConnectionIds::new([5; 16]), std::net::Ipv4Addr::new(192, 0, 2, 1));
        assert!(ids.accepts(ids.issue(v4.into(), at(0)), v4.to_ipv6_mapped().into(), at(0)));
    }

    proptest! {
        #[test]
        fn what_a_client_says_is_what_the_tracker_reads(
            connection: u64, transaction: u32, announce in announce(), url in vec(any::<u8>(), 0..600),
            hashes in vec(any::<[u8; 20]>(), 0..100),
        ) {
            let datagram = announce_request(connection, transaction, &announce, &url);
            let read = Request::Announce { connection, announce };
            prop_assert_eq!(parse_request(&datagram), Some((transaction, read)));
            let mut torrents: Vec<_> = hashes.into_iter().map(InfoHash::new).collect();
            let datagram = scrape_request(connection, transaction, &torrents);
            torrents.truncate(MAX_SCRAPE);
            let read = Request::Scrape { connection, torrents };
            prop_assert_eq!(parse_request(&datagram), Some((transaction, read)));
        }

        #[test]
        fn what_the_tracker_says_is_what_a_client_reads(
            transaction: u32, connection: u64, interval: u32, counts: (u32, u32),
            v4 in vec(peer(false), 0..=50), v6 in vec(peer(true), 0..=50), text in "[ -~]{0,200}",
            entries in vec(any::<(u32, u32, u32)>(), 0..=MAX_SCRAPE),
        ) {
            let announced = |peers| Response::Announced(AnnounceAnswer {
                interval: Some(Duration::from_secs(interval.into())),
                seeders: Some(counts.0),
                leechers: Some(counts.1),
                peers,
                ..AnnounceAnswer::default()
            });
            let entry = |(seeders, completed, leechers)| ScrapeEntry { seeders, completed, leechers };
            let scraped = Response::Scraped(entries.into_iter().map(entry).collect());
            for (response, v6) in [
                (Response::Connected(connection), false),
                (announced(v4), false),
                (announced(v6), true),
                (scraped, false),
                (Response::Refused(text), true),
            ] {
                let datagram = encode_response(transaction, &response, v6);
                prop_assert!(datagram.len() <= 20 + 18 * MAX_ANSWERED_PEERS);
                prop_assert_eq!(parse_response(&datagram, v6), Some((transaction, response)));
            }
        }

        #[test]
        fn any_datagram_is_read_within_bounds(
            mut datagram in vec(any::<u8>(), 0..3_000), action in 0u8..5,
        ) {
            if let Some(first) = datagram.get_mut(8..12) {
                first.copy_from_slice(&[0, 0, 0, action]);
            }
            match parse_request(&datagram) {
                Some((_, Request::Scrape { torrents, .. })) => {
                    prop_assert!(torrents.len() <= MAX_SCRAPE);
                    prop_assert_eq!(torrents.len(), ((datagram.len() - 16) / 20).min(MAX_SCRAPE));
                }
                Some((_, Request::Announce { .. })) => prop_assert!(datagram.len() >= 98),
                Some((_, Request::Connect)) => prop_assert_eq!(action, 0),
                None => {}
            }
        }
    }
}
