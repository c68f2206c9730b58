#![no_main]
//! Bodies of HTTP trackers: announce and scrape.

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::tracker::http::{parse_announce, parse_scrape};
use p2pfs::proto::tracker::{MAX_ANSWER_PEERS, MAX_TEXT_LEN, TrackerError, usable_peer};

fuzz_target!(|body: &[u8]| {
    match parse_announce(body) {
        Ok(answer) => {
            assert!(answer.peers.len() <= MAX_ANSWER_PEERS);
            assert!(answer.peers.iter().all(usable_peer));
        }
        Err(TrackerError::Refused(text)) => assert!(text.chars().count() <= MAX_TEXT_LEN),
        Err(_) => {}
    }
    for (_, entry) in parse_scrape(body, &[InfoHash::new([b'k'; 20])]).into_iter().flatten() {
        assert!(entry.is_plausible());
    }
});
