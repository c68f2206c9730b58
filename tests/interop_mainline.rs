//! The DHT with `mainline`, which is written by others: each finds what the other announced.
#![cfg(feature = "full")]
// Its blocking calls are the simpler ones in a test.
#![allow(clippy::unwrap_used, clippy::expect_used, deprecated)]

mod harness;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use harness::*;
use mainline::{Id, Testnet};
use serde_json::Value;

/// Enough that not everybody is among the closest to everything.
const NODES: usize = 24;

fn network() -> Testnet {
    Testnet::builder(NODES).build().expect("a network of mainline nodes")
}

fn id(torrent: &Torrent) -> Id {
    torrent.info_hash.parse().expect("an id")
}

/// Where one of its nodes is.
fn node(network: &Testnet, at: usize) -> SocketAddr {
    network.bootstrap[at].parse().unwrap()
}

/// A peer on loopback.
fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

#[test]
fn a_bare_info_hash_is_mounted_from_a_peer_that_mainline_announced() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let network = network();
    let seeder = Libtorrent::seed(&scratch, &torrent);
    network.nodes[3].announce_peer(id(&torrent), Some(seeder.address.port())).unwrap();
    let p2pfs = P2pfs::new(&scratch).with_dht(&[node(&network, 7)]);
    // Whoever has it all lets go of other seeds: it is asked before.
    let mount = p2pfs.mount_by_dht(&torrent.info_hash);
    assert_eq!(mount.status().peers_from("dht"), 1, "{}", mount.status().json());
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn mainline_finds_what_p2pfs_seeds() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let network = network();
    let p2pfs = P2pfs::new(&scratch).with_dht(&[node(&network, 0)]);
    p2pfs.seed(&torrent, &[]);
    let ours = local(p2pfs.address.port());
    wait_until("mainline finds it", PATIENCE, || {
        network.nodes[5].get_peers(id(&torrent)).flatten().any(|peer| peer == ours)
    });
}

#[test]
fn p2pfs_dht_finds_what_mainline_announced_and_the_other_way_round() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let network = network();
    network.nodes[9].announce_peer(id(&torrent), Some(7_001)).unwrap();
    let p2pfs = P2pfs::new(&scratch);
    let dht = |arguments: &[&str]| {
        let mut command = p2pfs.command_alone("dht");
        run(&scratch, command.args(arguments), PATIENCE).success().stdout()
    };
    let bootstrap = ["--dht-bootstrap", &network.bootstrap[2]];
    let get = ["get-peers", &torrent.info_hash, "--announce", "7002"];
    assert_eq!(dht(&[&get[..], &bootstrap[..]].concat()), "127.0.0.1:7001\n");
    let found: Vec<_> = network.nodes[4].get_peers(id(&torrent)).flatten().collect();
    assert!(found.contains(&local(7_002)), "{found:?}");
    let pong = dht(&["ping", &network.bootstrap[1], "--json"]);
    let pong: Value = serde_json::from_str(&pong).unwrap();
    assert_eq!(pong["id"], network.nodes[1].info().id().to_string(), "{pong}");
}
