#![no_main]
//! Datagrams of clients of a UDP tracker.

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::tracker::udp::{MAX_SCRAPE, announce_request, scrape_request};
use p2pfs::proto::tracker::udp_server::{Request, parse_request};

fuzz_target!(|datagram: &[u8]| match parse_request(datagram) {
    // What was read is all there is: written again it gives the same bytes, but for the address
    // that a client names for itself, and for what comes after.
    Some((transaction, Request::Announce { connection, announce })) => {
        let again = announce_request(connection, transaction, &announce, b"");
        assert_eq!(again[..84], datagram[..84]);
        assert_eq!(again[88..], datagram[88..98]);
    }
    Some((transaction, Request::Scrape { connection, torrents })) => {
        assert!(torrents.len() <= MAX_SCRAPE);
        let again = scrape_request(connection, transaction, &torrents);
        assert_eq!(again, datagram[..again.len()]);
    }
    Some((_, Request::Connect)) => assert!(datagram.len() >= 16),
    None => {}
});
