//! The DHT with transmission, in networks of their own (root only): each finds what the other has by
//! the DHT alone.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use harness::*;

/// transmission waits between the nodes that it begins with, and again until it announces.
const SLOW: Duration = Duration::from_secs(240);

/// What it needs to hold a network for one.
const NODES: u8 = 24;

/// Where the two clients are.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 101, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 77, 102, 1);

/// Nodes at 10.77.1.1, 10.77.2.1 and so on, and addresses for the clients.
fn nodes(network: &Network) -> DhtNodes {
    let addresses: Vec<_> = (1..=NODES).map(|k| Ipv4Addr::new(10, 77, k, 1)).collect();
    for address in addresses.iter().chain([&OURS, &THEIRS]) {
        network.first().also_at(*address);
    }
    DhtNodes::start(addresses.into_iter().map(IpAddr::from))
}

#[test]
fn p2pfs_finds_a_file_that_transmission_seeds() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = Content::album();
        let torrent = Torrent::new(&scratch, &content);
        let nodes = nodes(network);
        let seeder =
            Transmission::start_at(&scratch, &torrent.save_path, THEIRS, &nodes.addresses());
        seeder.add(torrent.file.to_str().unwrap());
        let p2pfs =
            P2pfs::new(&scratch).listening_on(OURS.into()).with_dht(&nodes.addresses()[..1]);
        let bootstrap = nodes.bootstrap();
        wait_until("transmission has announced itself", SLOW, || {
            let mut command = p2pfs.command_alone("dht");
            command.args(["get-peers", &torrent.info_hash, "--dht-bootstrap", &bootstrap]);
            run(&scratch, &mut command, PATIENCE).status.success()
        });
        let mount = p2pfs.mount(&torrent.info_hash, &[]);
        assert_eq!(mount.tree(), content.tree());
    });
}

#[test]
fn transmission_finds_what_p2pfs_seeds() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = Content::album();
        let torrent = Torrent::new(&scratch, &content);
        let nodes = nodes(network);
        let p2pfs =
            P2pfs::new(&scratch).listening_on(OURS.into()).with_dht(&nodes.addresses()[..1]);
        p2pfs.seed(&torrent, &[]);
        let save = scratch.dir("save");
        let leecher = Transmission::start_at(&scratch, &save, THEIRS, &nodes.addresses());
        leecher.add(&torrent.magnet());
        leecher.wait_until_complete_within(SLOW);
        assert_eq!(Tree::read(&save.join("album")), content.tree());
    });
}
