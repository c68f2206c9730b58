//! The DHT (BEP 5) with libtorrent and aria2: nobody names a peer or a tracker.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use harness::*;
use p2pfs::engine::dht::{Event, Node, NodeConfig};
use p2pfs::proto::dht::GetPeers;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::metainfo::Metainfo;

/// Nodes of the network that tests make: as many as a lookup ends on.
const NODES: usize = 8;

fn film() -> Content {
    Content::single("film.bin", 2 * MIB)
}

/// Reads all of it and compares.
#[track_caller]
fn has_all_of(mount: &Mount, content: &Content) {
    assert_eq!(sha256(&std::fs::read(mount.path("film.bin")).unwrap()), sha256(&content.stream()));
}

/// Waits until the daemon of a seed has announced it to somebody.
#[track_caller]
fn seeds(p2pfs: &P2pfs, torrent: &Torrent) {
    p2pfs.seed(torrent, &[]);
    wait_until("nodes are known", PATIENCE, || p2pfs.status()[0].dht_nodes() > 3);
}

/// A libtorrent that takes part in a DHT.
fn libtorrent(scratch: &Scratch, dht: &LibtorrentDht, torrent: &Torrent, at: &Path) -> Libtorrent {
    let options = dht.options();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    Libtorrent::start(scratch, torrent.file.to_str().unwrap(), at, &options)
}

/// An aria2 that takes part in a DHT.
fn aria2(scratch: &Scratch, dht: &LibtorrentDht, torrent: &Torrent, at: &Path) -> Aria2 {
    let options = [
        "--enable-dht=true".to_owned(),
        "--check-integrity=true".to_owned(),
        format!("--dht-entry-point={}", dht.nodes[0]),
        format!("--dht-listen-port={}", free_port()),
        format!("--dht-file-path={}", scratch.path("aria2-dht.dat").display()),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    Aria2::start(scratch, torrent.file.to_str().unwrap(), at, &options)
}

#[test]
fn a_bare_hash_is_mounted_from_libtorrent_with_the_dht_alone() {
    let scratch = Scratch::new();
    let content = film();
    let torrent = Torrent::new(&scratch, &content);
    let dht = LibtorrentDht::start(&scratch, NODES);
    let _seeder = libtorrent(&scratch, &dht, &torrent, &torrent.save_path);
    DhtAsker::new(dht.nodes[0]).wait_for_peers_of(&torrent.info_hash);
    let p2pfs = P2pfs::new(&scratch).with_dht(&dht.nodes[..1]);
    let mount = p2pfs.mount_by_dht(&torrent.info_hash);
    let status = mount.status();
    // libtorrent may have found us first.
    assert_eq!(status.peers_from("dht") + status.peers_from("incoming"), 1, "{}", status.json());
    let shown = mount.run("status", &[]).success().stdout();
    assert!(shown.contains("  DHT: "), "{shown}");
    has_all_of(&mount, &content);
}

#[test]
fn libtorrent_finds_what_p2pfs_seeds() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &film());
    let dht = LibtorrentDht::start(&scratch, NODES);
    let p2pfs = P2pfs::new(&scratch).with_dht(&dht.nodes[..1]);
    seeds(&p2pfs, &torrent);
    let leecher = libtorrent(&scratch, &dht, &torrent, &scratch.dir("leecher"));
    leecher.wait_until_complete();
}

#[test]
fn a_bare_hash_is_mounted_from_aria2_with_the_dht_alone() {
    let scratch = Scratch::new();
    let content = film();
    let torrent = Torrent::new(&scratch, &content);
    let dht = LibtorrentDht::start(&scratch, NODES);
    let mut seeder = aria2(&scratch, &dht, &torrent, &torrent.save_path);
    seeder.wait_until_complete();
    DhtAsker::new(dht.nodes[0]).wait_for_peers_of(&torrent.info_hash);
    let p2pfs = P2pfs::new(&scratch).with_dht(&dht.nodes[..1]);
    let mount = p2pfs.mount_by_dht(&torrent.info_hash);
    has_all_of(&mount, &content);
}

#[test]
fn aria2_finds_what_p2pfs_seeds() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &film());
    let dht = LibtorrentDht::start(&scratch, NODES);
    let p2pfs = P2pfs::new(&scratch).with_dht(&dht.nodes[..1]);
    seeds(&p2pfs, &torrent);
    let mut leecher = aria2(&scratch, &dht, &torrent, &scratch.dir("leecher"));
    leecher.wait_until_complete();
}

#[test]
fn a_daemon_that_knew_the_network_needs_nobody_to_begin_with() {
    let scratch = Scratch::new();
    let content = film();
    let torrent = Torrent::new(&scratch, &content);
    let other = Torrent::new(&scratch, &Content::album());
    let dht = LibtorrentDht::start(&scratch, NODES);
    let first_life = P2pfs::new(&scratch).with_dht(&dht.nodes[..1]);
    seeds(&first_life, &other);
    first_life.stop_daemon();
    let _seeder = libtorrent(&scratch, &dht, &torrent, &torrent.save_path);
    DhtAsker::new(dht.nodes[0]).wait_for_peers_of(&torrent.info_hash);
    let second_life = P2pfs::named(&scratch, "again").with_data_dir(&first_life.data_dir);
    let second_life = second_life.with_dht(&[]);
    let mount = second_life.mount_by_dht(&torrent.info_hash);
    has_all_of(&mount, &content);
}

/// A node of ours in the test itself.
fn node(runtime: &tokio::runtime::Runtime) -> Node {
    let _inside = runtime.enter();
    let listen = vec![Ipv4Addr::LOCALHOST.into()];
    Node::start(NodeConfig { listen, ..NodeConfig::default() }).unwrap()
}

/// The peers that a node knows of a torrent.
fn known(runtime: &tokio::runtime::Runtime, node: &Node, hash: &str) -> Vec<SocketAddr> {
    let bytes: Vec<_> =
        (0..40).step_by(2).map(|at| u8::from_str_radix(&hash[at..at + 2], 16).unwrap()).collect();
    let hash = InfoHash::new(bytes.try_into().unwrap());
    runtime.block_on(async {
        let mut answers = node.get_peers(hash, GetPeers::default()).await;
        match answers.next().await {
            Some(Event::Peers { peers, .. }) => peers,
            _ => Vec::new(),
        }
    })
}

#[test]
fn what_is_seeded_is_announced_unless_it_is_private() {
    let scratch = Scratch::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = node(&runtime);
    let p2pfs = P2pfs::new(&scratch).with_dht(node.local_addrs());
    let data = scratch.file("secret", b"secret");
    let secret = scratch.path("secret.torrent");
    let mut create = p2pfs.command_alone("create");
    create.args(["--private", "--tracker", "http://127.0.0.1:1/announce", "-o"]);
    run(&scratch, create.arg(&secret).arg(&data), PATIENCE).success();
    p2pfs.try_seed(&secret, &data, &[]).success();
    wait_until("the DHT is known", PATIENCE, || p2pfs.status()[0].dht_nodes() == 1);
    let torrent = Torrent::new(&scratch, &film());
    p2pfs.seed(&torrent, &[]);
    wait_until("the other is announced", PATIENCE, || node.stats().stored.0 > 0);
    assert_eq!(known(&runtime, &node, &torrent.info_hash), [p2pfs.address]);
    assert_eq!(node.stats().stored, (1, 1), "torrents and peers");
}

#[test]
fn the_nodes_of_a_torrent_file_are_asked() {
    let scratch = Scratch::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = node(&runtime);
    let torrent = Torrent::new(&scratch, &film());
    let mut metainfo = Metainfo::parse(&std::fs::read(&torrent.file).unwrap()).unwrap();
    metainfo.nodes = vec![("127.0.0.1".into(), node.port())];
    let file = scratch.file("with-nodes.torrent", &metainfo.to_bytes());
    let p2pfs = P2pfs::new(&scratch).with_dht(&[]);
    p2pfs.try_seed(&file, &torrent.data, &[]).success();
    wait_until("it is announced", PATIENCE, || node.stats().stored.0 == 1);
}

#[test]
fn a_peer_leads_to_the_dht() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &film());
    let seeder = P2pfs::named(&scratch, "seeder").with_dht(&[]);
    seeder.seed(&torrent, &[]);
    let reader = P2pfs::named(&scratch, "reader").with_dht(&[]);
    let peer = seeder.address.to_string();
    let mount = reader.mount(&torrent.file, &["--peer", &peer]);
    wait_until("both know each other's node", PATIENCE, || {
        mount.status().dht_nodes() == 1 && seeder.status()[0].dht_nodes() == 1
    });
}

#[test]
fn without_any_node_a_magnet_link_fails_and_it_is_said_what_to_do() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &film());
    let p2pfs = P2pfs::new(&scratch).with_dht(&[]);
    let (dir, options) = (p2pfs.mount_point(), ["--timeout", "1"]);
    let failed = p2pfs.try_mount(torrent.magnet(), &dir, &options).failure();
    let last = failed.stderr.lines().last().unwrap_or("");
    assert!(last.contains("--dht-bootstrap") && last.contains("--peer"), "{last}");
}

#[test]
fn a_mount_cannot_change_the_daemons_dht() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &film());
    let on = P2pfs::named(&scratch, "on").with_dht(&[([127, 0, 0, 1], 9).into()]);
    on.seed(&torrent, &[]);
    let refused = |options: &[&str]| {
        let dir = on.mount_point();
        let mut command = on.command("mount");
        run(&scratch, command.args(options).arg(&torrent.file).arg(dir), PATIENCE).failure().stderr
    };
    let off = refused(&["-o", "no_dht"]);
    assert!(off.contains("DHT is on, not off"), "{off}");
    let other = refused(&["--dht-bootstrap", "127.0.0.1:8"]);
    assert!(other.contains("DHT bootstrap is 127.0.0.1:9, not 127.0.0.1:8"), "{other}");
}
