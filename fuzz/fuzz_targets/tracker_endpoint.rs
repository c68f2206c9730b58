#![no_main]
//! Announce URLs, which come out of torrents.

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::tracker::{Endpoint, endpoint};

fuzz_target!(|text: &str| {
    if let Ok(Endpoint::Udp { host, port, .. }) = endpoint(text) {
        assert!(!host.is_empty() && port != 0);
    }
});
