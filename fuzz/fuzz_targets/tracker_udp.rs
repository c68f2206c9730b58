#![no_main]
//! Datagrams of UDP trackers. The first byte chooses the address family.

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::tracker::udp::{Response, parse_response};
use p2pfs::proto::tracker::{MAX_ANSWER_PEERS, usable_peer};

fuzz_target!(|data: &[u8]| {
    let Some((family, datagram)) = data.split_first() else { return };
    if let Some((_, Response::Announced(answer))) = parse_response(datagram, family & 1 == 1) {
        assert!(answer.peers.len() <= MAX_ANSWER_PEERS);
        assert!(answer.peers.iter().all(usable_peer));
    }
});
