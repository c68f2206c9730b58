//! The DHT with transmission, in a network of their own (root only): each finds what the other has by
//! the DHT alone. transmission takes half a minute to join, so both directions go on at once.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use harness::*;

/// How long transmission may take from its start to the end of a small download.
const SLOW: Duration = Duration::from_secs(120);

/// What it needs to hold a network for one.
const NODES: u8 = 24;

/// Where the clients are: two of ours, two of theirs.
const CLIENTS: [Ipv4Addr; 4] = [at(101), at(102), at(103), at(104)];

const fn at(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, k, 1)
}

/// Nodes at 10.77.1.1, 10.77.2.1 and so on, and addresses for the clients.
fn nodes(network: &Network) -> DhtNodes {
    let addresses: Vec<_> = (1..=NODES).map(at).collect();
    for address in addresses.iter().chain(&CLIENTS) {
        network.first().also_at(*address);
    }
    DhtNodes::start(addresses.into_iter().map(IpAddr::from))
}

#[test]
fn p2pfs_and_transmission_find_each_other_with_the_dht_alone() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let nodes = nodes(network);
        let all = nodes.addresses();
        let ours = |name: &str, ip: Ipv4Addr| {
            P2pfs::named(&scratch, name).listening_on(ip.into()).with_dht(&all[..1])
        };

        // What p2pfs seeds, transmission finds.
        let song = Content::single("song.bin", 2 * MIB);
        let torrent = Torrent::new(&scratch, &song);
        let seeder = ours("seeder", CLIENTS[0]);
        seeder.seed(&torrent, &[]);
        let save = scratch.dir("save");
        let leecher = Transmission::start_at(&scratch, &save, CLIENTS[2], &all);
        leecher.add(&torrent.magnet());

        // What transmission seeds, p2pfs finds.
        let film = Content::single("film.bin", 2 * MIB);
        let theirs = Torrent::new(&scratch, &film);
        let other = Transmission::start_at(&scratch, &theirs.save_path, CLIENTS[3], &all);
        other.add(theirs.file.to_str().unwrap());
        let reader = ours("reader", CLIENTS[1]);
        wait_until("transmission has announced itself", SLOW, || {
            nodes.know_peers_of(&theirs.info_hash)
        });
        let mount = reader.mount_by_dht(&theirs.info_hash);
        let read = std::fs::read(mount.path("film.bin")).unwrap();
        assert_eq!(sha256(&read), sha256(&film.stream()));

        leecher.wait_until_complete_within(SLOW);
        let saved = std::fs::read(save.join("song.bin")).unwrap();
        assert_eq!(sha256(&saved), sha256(&song.stream()));
    });
}
