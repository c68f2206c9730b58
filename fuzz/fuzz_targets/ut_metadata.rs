//! `ut_metadata`: any bytes are read or refused, what was read is read again as it is written, and
//! the fetch takes it from a peer at any time.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::time::Timestamp;
use p2pfs::proto::wire::extended::MetadataMessage;
use p2pfs::proto::wire::metadata::{MetadataFetch, MetadataOutput};

fuzz_target!(|messages: Vec<(u8, u32, Vec<u8>)>| {
    let mut fetch = MetadataFetch::new(InfoHash::of(b"info"), 7);
    let mut now = Timestamp::ZERO;
    for (peer, number, bytes) in messages {
        now = Timestamp::from_nanos(now.as_nanos() + u64::from(number));
        let peer = u64::from(peer % 4);
        fetch.peer_ready(peer, number % 70_000, now);
        if let Ok(message) = MetadataMessage::parse(&Bytes::from(bytes)) {
            assert_eq!(MetadataMessage::parse(&message.encode()), Ok(message.clone()));
            fetch.on_message(peer, message, now);
        } else {
            fetch.peer_gone(peer);
        }
        while let Some(output) = fetch.poll() {
            if let MetadataOutput::Done(info) = output {
                assert_eq!(info, b"info");
            }
        }
        if let Some(at) = fetch.poll_timeout() {
            assert!(at > now);
            fetch.handle_timeout(at);
            now = at;
        }
    }
});
