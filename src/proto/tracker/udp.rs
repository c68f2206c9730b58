//! The UDP tracker protocol from the client's side: requests out, answers in (BEP 15, URL data of
//! BEP 41).

use std::time::Duration;

use super::{
    AnnounceAnswer, AnnounceRequest, Event, LEFT_UNKNOWN, MAX_ANSWER_PEERS, ScrapeEntry,
    clean_text, compact_peers,
};
use crate::proto::ids::InfoHash;

/// The most torrents that one scrape asks about: the answer then fits one datagram (BEP 15).
pub const MAX_SCRAPE: usize = 74;

/// Says that a connect request is one.
pub(super) const PROTOCOL_ID: u64 = 0x417_2710_1980;

pub(super) const CONNECT: u32 = 0;
pub(super) const ANNOUNCE: u32 = 1;
pub(super) const SCRAPE: u32 = 2;
pub(super) const ERROR: u32 = 3;

/// The option that carries a part of the URL (BEP 41).
const OPTION_URL_DATA: u8 = 2;

/// The most bytes of path and query that are sent along (BEP 41 knows no limit; a datagram does).
const MAX_URL_DATA: usize = 1_024;

/// Asks for a connection id.
pub fn connect_request(transaction: u32) -> Vec<u8> {
    header(PROTOCOL_ID, CONNECT, transaction)
}

/// An announce. `url_data` is the path and query of the tracker's URL, sent as BEP 41 says.
pub fn announce_request(
    connection: u64,
    transaction: u32,
    request: &AnnounceRequest,
    url_data: &[u8],
) -> Vec<u8> {
    let event: u32 = match request.event {
        Event::Regular => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    };
    let mut out = header(connection, ANNOUNCE, transaction);
    out.extend_from_slice(request.info_hash.as_bytes());
    out.extend_from_slice(request.peer_id.as_bytes());
    out.extend_from_slice(&request.downloaded.to_be_bytes());
    out.extend_from_slice(&request.left.unwrap_or(LEFT_UNKNOWN).to_be_bytes());
    out.extend_from_slice(&request.uploaded.to_be_bytes());
    out.extend_from_slice(&event.to_be_bytes());
    out.extend_from_slice(&[0; 4]); // our address: the one the tracker sees
    out.extend_from_slice(&request.key.to_be_bytes());
    out.extend_from_slice(&request.numwant.to_be_bytes());
    out.extend_from_slice(&request.port.to_be_bytes());
    for part in url_data.get(..MAX_URL_DATA).unwrap_or(url_data).chunks(255) {
        out.extend_from_slice(&[OPTION_URL_DATA, part.len() as u8]);
        out.extend_from_slice(part);
    }
    out
}

/// Asks how many peers up to [`MAX_SCRAPE`] torrents have; more are left out.
pub fn scrape_request(connection: u64, transaction: u32, torrents: &[InfoHash]) -> Vec<u8> {
    let mut out = header(connection, SCRAPE, transaction);
    for hash in torrents.iter().take(MAX_SCRAPE) {
        out.extend_from_slice(hash.as_bytes());
    }
    out
}

fn header(connection: u64, action: u32, transaction: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&connection.to_be_bytes());
    out.extend_from_slice(&action.to_be_bytes());
    out.extend_from_slice(&transaction.to_be_bytes());
    out
}

/// A datagram from a tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The connection id to use for the next minute.
    Connected(u64),
    /// The answer to an announce.
    Announced(AnnounceAnswer),
    /// The answer to a scrape, in the order of the request.
    Scraped(Vec<ScrapeEntry>),
    /// The tracker's reason for not serving us, cleaned for display.
    Refused(String),
}

/// Reads a datagram: its transaction id and what it says. `v6` is the address family of the socket
/// that it came through, which decides how long a peer's address is. `None` for anything that is
/// not a whole response.
pub fn parse_response(datagram: &[u8], v6: bool) -> Option<(u32, Response)> {
    let mut rest = datagram;
    let action = take_u32(&mut rest)?;
    let transaction = take_u32(&mut rest)?;
    let response = match action {
        CONNECT => Response::Connected(u64::from_be_bytes(*rest.first_chunk()?)),
        ANNOUNCE => Response::Announced(parse_announced(rest, v6)?),
        SCRAPE => Response::Scraped(rest.chunks_exact(12).filter_map(parse_scraped).collect()),
        ERROR => Response::Refused(clean_text(rest)),
        _ => return None,
    };
    Some((transaction, response))
}

fn parse_announced(mut rest: &[u8], v6: bool) -> Option<AnnounceAnswer> {
    let interval = take_u32(&mut rest)?;
    let leechers = take_u32(&mut rest)?;
    let seeders = take_u32(&mut rest)?;
    Some(AnnounceAnswer {
        interval: Some(Duration::from_secs(interval.into())),
        seeders: Some(seeders),
        leechers: Some(leechers),
        peers: compact_peers(rest, v6, MAX_ANSWER_PEERS).collect(),
        ..AnnounceAnswer::default()
    })
}

fn parse_scraped(mut entry: &[u8]) -> Option<ScrapeEntry> {
    Some(ScrapeEntry {
        seeders: take_u32(&mut entry)?,
        completed: take_u32(&mut entry)?,
        leechers: take_u32(&mut entry)?,
    })
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ids::PeerId;
    use proptest::prelude::*;

    fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new([1; 20]),
            peer_id: PeerId::new([2; 20]),
            port: 6881,
            uploaded: 3,
            downloaded: 4,
            left: Some(5),
            event: Event::Started,
            numwant: 50,
            key: 6,
            tracker_id: None,
        }
    }

    #[test]
    fn an_announce_is_laid_out_as_bep_15_says() {
        let out = announce_request(0x0102_0304_0506_0708, 9, &request(), b"");
        let mut expected = vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 9];
        expected.extend([1; 20]);
        expected.extend([2; 20]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 3]);
        expected.extend([0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 50, 0x1a, 0xe1]);
        assert_eq!(out, expected);
    }

    #[test]
    fn an_unknown_size_does_not_look_like_a_seeder() {
        let out = announce_request(0, 0, &AnnounceRequest { left: None, ..request() }, b"");
        assert_ne!(out[64..72], [0; 8]);
    }

    #[test]
    fn long_urls_are_sent_in_parts_of_255_bytes() {
        let out = announce_request(0, 0, &request(), &[b'a'; 300]);
        assert_eq!(out[98..100], [2, 255]);
        assert_eq!(out[355..357], [2, 45]);
        assert_eq!(out.len(), 98 + 2 + 255 + 2 + 45);
    }

    #[test]
    fn peers_are_as_long_as_the_family_says() {
        let mut datagram = vec![0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 7, 8, 0, 0, 0, 2, 0, 0, 0, 3];
        datagram.extend([192, 0, 2, 1, 0x1a, 0xe1, 192, 0, 2, 2, 0x1a, 0xe1]);
        let (transaction, Response::Announced(v4)) = parse_response(&datagram, false).unwrap()
        else {
            panic!("not an announce");
        };
        assert_eq!(transaction, 7);
        assert_eq!(v4.interval, Some(Duration::from_secs(1800)));
        assert_eq!((v4.leechers, v4.seeders), (Some(2), Some(3)));
        assert_eq!(v4.peers.len(), 2);
        datagram.extend([0; 5]);
        datagram.push(9);
        let (_, Response::Announced(v6)) = parse_response(&datagram, true).unwrap() else {
            panic!("not an announce");
        };
        assert_eq!(v6.peers.len(), 1);
        assert!(v6.peers[0].is_ipv6());
    }

    #[test]
    fn an_error_is_a_refusal() {
        let parsed = parse_response(b"\0\0\0\x03\0\0\0\x01no such\x07 torrent", false);
        assert_eq!(parsed, Some((1, Response::Refused("no such torrent".into()))));
    }

    #[test]
    fn a_scrape_is_read_in_order() {
        let out = scrape_request(1, 2, &vec![InfoHash::new([0; 20]); 100]);
        assert_eq!(out.len(), 16 + 20 * MAX_SCRAPE);
        let mut datagram = vec![0, 0, 0, 2, 0, 0, 0, 2];
        datagram.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        let entry = ScrapeEntry { seeders: 1, completed: 2, leechers: 3 };
        let parsed = parse_response(&datagram, false);
        assert_eq!(parsed, Some((2, Response::Scraped(vec![entry]))));
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_within_bounds(
            mut datagram in proptest::collection::vec(any::<u8>(), 0..2_000),
            action in 0u8..4,
            v6: bool,
        ) {
            if let Some(first) = datagram.first_chunk_mut::<4>() {
                *first = [0, 0, 0, action];
            }
            let short = datagram.len() < match action { 0 => 16, 1 => 20, _ => 8 };
            let parsed = parse_response(&datagram, v6);
            prop_assert_eq!(parsed.is_none(), short);
            if let Some((_, Response::Announced(answer))) = parsed {
                prop_assert!(answer.peers.iter().all(super::super::usable_peer));
                prop_assert!(answer.peers.len() <= datagram.len() / 6);
            }
        }
    }
}
