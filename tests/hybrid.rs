//! Hybrid torrents (BEP 52) through their v1 half, and what is said of those that have none.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::PathBuf;

use harness::*;
use p2pfs::proto::metainfo::Metainfo;

/// What `p2pfs create` makes of `content` with `flag`.
fn created(scratch: &Scratch, content: &Content, flag: &str) -> (PathBuf, PathBuf) {
    let data = content.write_to(&scratch.dir("origin"));
    let torrent = scratch.path(&format!("made{flag}.torrent"));
    let mut command = P2pfs::new(scratch).command_alone("create");
    command.arg(&data).arg(flag).arg("-o").arg(&torrent);
    run(scratch, &mut command, PATIENCE).success();
    (torrent, data)
}

#[test]
fn a_hybrid_that_libtorrent_seeds_is_mounted() {
    let scratch = Scratch::new();
    let content = Content::album();
    let (torrent, data) = created(&scratch, &content, "--hybrid");
    let save = data.parent().unwrap();
    let seeder = Libtorrent::start(&scratch, torrent.to_str().unwrap(), save, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let mount = p2pfs.mount(&torrent, &["--peer", &peer]);
    assert_eq!(mount.tree(), content.tree());
    // By a link with both hashes, into a cache that has nothing.
    let magnet = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap().magnet().to_string();
    let other = P2pfs::named(&scratch, "other");
    assert_eq!(other.mount(&magnet, &["--peer", &peer]).tree(), content.tree());
}

#[test]
fn a_hybrid_is_seeded_to_libtorrent_and_to_a_mount() {
    let scratch = Scratch::new();
    let content = Content::album();
    let (torrent, data) = created(&scratch, &content, "--hybrid");
    let seeder = P2pfs::new(&scratch);
    seeder.try_seed(&torrent, &data, &[]).success();
    let save = scratch.dir("save");
    let mut leecher = Libtorrent::start(&scratch, torrent.to_str().unwrap(), &save, &[]);
    leecher.connect(seeder.address);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
    let mounting = P2pfs::named(&scratch, "mounting");
    let mount = mounting.mount(&torrent, &["--peer", &seeder.address.to_string()]);
    mount.wait();
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_v2_only_torrent_is_refused_by_mount_and_seed_in_one_line() {
    let scratch = Scratch::new();
    let (torrent, data) = created(&scratch, &Content::album(), "--v2");
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let magnet = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap().magnet().to_string();
    for refused in [
        p2pfs.try_mount(&torrent, &dir, &[]),
        p2pfs.try_mount(&magnet, &dir, &[]),
        p2pfs.try_seed(&torrent, &data, &[]),
    ] {
        let said = refused.failure().stderr;
        assert!(said.lines().count() == 1 && said.contains("BitTorrent v2 only"), "{said}");
    }
}
