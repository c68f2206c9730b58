#![no_main]
//! Datagrams of local discovery. The first byte chooses whose address they come from.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::lsd::{Group, Lsd, MAX_RECEIVED, MAX_SENT, Message, is_local};
use p2pfs::proto::time::Timestamp;

fuzz_target!(|data: &[u8]| {
    let Some((host, datagram)) = data.split_first() else { return };
    let message = Message::parse(datagram);
    if let Some(message) = &message {
        assert!(datagram.len() <= MAX_RECEIVED && message.port != 0 && !message.torrents.is_empty());
        assert!(message.encode(Group::V6).len() <= MAX_SENT + 64);
    }
    let torrents: BTreeSet<_> = message.iter().flat_map(|m| m.torrents.iter().copied()).collect();
    let mut machine = Lsd::new(6881, 1);
    machine.set_torrents(&BTreeSet::from([InfoHash::new([0; 20])]), Timestamp::ZERO);
    machine.set_torrents(&torrents, Timestamp::ZERO);
    let own = machine.poll_transmit(Timestamp::ZERO).and_then(|own| own.cookie);
    if message.is_some_and(|message| message.cookie == own) {
        return;
    }
    let from = SocketAddr::from((Ipv4Addr::new(10, 77, 0, *host), 6771));
    let found = machine.handle_datagram(datagram, from, Timestamp::ZERO);
    assert_eq!(found.len(), torrents.len());
    for (hash, peer) in found {
        assert!(torrents.contains(&hash) && is_local(peer.ip()) && peer.port() != 0);
    }
    assert!(machine.handle_datagram(datagram, from, Timestamp::ZERO).is_empty());
});
