//! Trackers: what is asked of them, how they answer, and when.
//!
//! [`http`] and [`udp`] turn an [`AnnounceRequest`] into bytes and bytes into an
//! [`AnnounceAnswer`]; [`exchange`] carries one UDP announce or scrape through its two round trips;
//! [`client`] decides which trackers of a torrent are asked at what time (BEP 12). [`udp_server`] is
//! the tracker's own side of the UDP protocol.
//! Everything a tracker sends is hostile: answers, peers and texts are bounded here.

pub mod client;
mod endpoint;
pub mod exchange;
pub mod http;
pub mod udp;
pub mod udp_server;

pub use endpoint::{Endpoint, EndpointError, endpoint};

use std::net::SocketAddr;
use std::time::Duration;

use super::ids::{InfoHash, PeerId};

/// The longest answer accepted, in bytes. 2,000 IPv6 peers take 36 KB; the rest is room for the
/// dictionary form.
pub const MAX_ANSWER_LEN: usize = 1024 * 1024;

/// The most peers taken from one answer: as many as a torrent remembers.
pub const MAX_ANSWER_PEERS: usize = 2_000;

/// The longest text of a tracker that is shown, in characters.
pub const MAX_TEXT_LEN: usize = 200;

/// The longest tracker id taken, in bytes: it comes back in every announce.
const MAX_TRACKER_ID_LEN: usize = 256;

/// What `left` says while the metadata is unknown. Anything but 0, which would make us a seeder.
const LEFT_UNKNOWN: u64 = 16 * 1024;

/// Why an announce is made (BEP 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The interval has passed, or more peers are wanted.
    Regular,
    /// The tracker hears of us for the first time.
    Started,
    /// The last missing piece has been downloaded.
    Completed,
    /// We are leaving.
    Stopped,
}

/// One announce, for either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// The torrent.
    pub info_hash: InfoHash,
    /// We.
    pub peer_id: PeerId,
    /// The TCP port we listen on.
    pub port: u16,
    /// Payload bytes sent since `started`.
    pub uploaded: u64,
    /// Payload bytes received since `started`.
    pub downloaded: u64,
    /// Bytes still missing; `None` while the metadata is unknown.
    pub left: Option<u64>,
    /// Why.
    pub event: Event,
    /// How many peers are wanted.
    pub numwant: u32,
    /// Tells the tracker that we are the same client after our address has changed.
    pub key: u32,
    /// What the tracker's last answer gave as `tracker id`.
    pub tracker_id: Option<Vec<u8>>,
}

/// A tracker's answer to an announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnounceAnswer {
    /// The time to the next regular announce, as sent; `None` when it was missing.
    pub interval: Option<Duration>,
    /// The least time between two announces, as sent.
    pub min_interval: Option<Duration>,
    /// Peers that have everything.
    pub seeders: Option<u32>,
    /// Peers that lack something.
    pub leechers: Option<u32>,
    /// To be sent back with the next announce.
    pub tracker_id: Option<Vec<u8>>,
    /// A text for the user; the announce was accepted all the same.
    pub warning: Option<String>,
    /// Peers, at most [`MAX_ANSWER_PEERS`], all of them [`usable_peer`]s.
    pub peers: Vec<SocketAddr>,
}

/// What a scrape says of one torrent (BEP 48).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrapeEntry {
    /// Peers that have everything.
    pub seeders: u32,
    /// Downloads that were ever completed.
    pub completed: u32,
    /// Peers that lack something.
    pub leechers: u32,
}

impl ScrapeEntry {
    /// Whether these can be numbers of peers: as trackers write them, none is negative.
    pub const fn is_plausible(&self) -> bool {
        const MOST: u32 = i32::MAX as u32;
        self.seeders <= MOST && self.completed <= MOST && self.leechers <= MOST
    }
}

/// Why an announce or a scrape brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrackerError {
    /// The tracker answered with a reason for not serving us, cleaned for display.
    #[error("refused: {0}")]
    Refused(String),
    /// Its bytes were not an answer.
    #[error("the answer makes no sense ({0})")]
    Malformed(&'static str),
    /// Nothing came within the time allowed.
    #[error("no answer")]
    Silent,
    /// The network, the name or the HTTP status failed; a text for the user.
    #[error("{0}")]
    Unreachable(String),
}

/// Whether an address that a tracker handed out can be a peer's: not port 0, not the unspecified,
/// a multicast or the broadcast address.
pub fn usable_peer(addr: &SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let broadcast = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// A tracker's text made fit to be shown: no control characters or direction marks, at most
/// [`MAX_TEXT_LEN`] characters.
pub fn clean_text(bytes: &[u8]) -> String {
    let head = bytes.get(..4 * MAX_TEXT_LEN).unwrap_or(bytes);
    let shown = |c: &char| !c.is_control() && !is_direction_mark(*c);
    String::from_utf8_lossy(head).chars().filter(shown).take(MAX_TEXT_LEN).collect()
}

/// Invisible characters that reorder the text around them on a terminal.
pub(crate) fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The addresses of a compact list of `6` (BEP 23) or `18` (BEP 7) bytes a peer; a rest that is
/// no whole entry is left out. At most `max` usable ones.
fn compact_peers(bytes: &[u8], v6: bool, max: usize) -> impl Iterator<Item = SocketAddr> + '_ {
    let decode = move |entry: &[u8]| {
        let (port, ip) = entry.split_last_chunk::<2>().map(|(ip, port)| (port, ip))?;
        let port = u16::from_be_bytes(*port);
        if v6 {
            Some(SocketAddr::from((<[u8; 16]>::try_from(ip).ok()?, port)))
        } else {
            Some(SocketAddr::from((<[u8; 4]>::try_from(ip).ok()?, port)))
        }
    };
    bytes.chunks_exact(if v6 { 18 } else { 6 }).filter_map(decode).filter(usable_peer).take(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_that_cannot_be_peers_are_known() {
        for bad in [
            "192.0.2.1:0",
            "0.0.0.0:6881",
            "224.0.0.1:6881",
            "255.255.255.255:6881",
            "[::]:6881",
            "[ff02::1]:6881",
            "[::ffff:0.0.0.0]:6881",
        ] {
            assert!(!usable_peer(&bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.0.2.1:6881", "127.0.0.1:1", "[2001:db8::1]:6881"] {
            assert!(usable_peer(&good.parse().unwrap()), "{good}");
        }
    }

    #[test]
    fn a_text_loses_what_a_terminal_would_obey() {
        assert_eq!(
            clean_text(b"\x1b[31mno\r\n\xff such \xe2\x80\xaetorrent"),
            "[31mno\u{fffd} such torrent"
        );
    }

    proptest! {
        #[test]
        fn a_text_is_short_and_clean(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let text = clean_text(&bytes);
            prop_assert!(text.chars().count() <= MAX_TEXT_LEN);
            prop_assert!(!text.chars().any(char::is_control));
        }

        #[test]
        fn compact_lists_give_what_was_put_in(
            peers in proptest::collection::vec((1u8..=223, any::<[u8; 3]>(), 1u16..), 0..50),
            rest in 0usize..6,
        ) {
            let addr = |(a, b, port): &(u8, [u8; 3], u16)| {
                SocketAddr::from(([*a, b[0], b[1], b[2]], *port))
            };
            let mut bytes = Vec::new();
            for (a, b, port) in &peers {
                bytes.push(*a);
                bytes.extend_from_slice(b);
                bytes.extend_from_slice(&port.to_be_bytes());
            }
            bytes.resize(bytes.len() + rest, 7);
            let found: Vec<_> = compact_peers(&bytes, false, 40).collect();
            prop_assert_eq!(found, peers.iter().map(addr).take(40).collect::<Vec<_>>());
        }
    }
}
