//! Torrents with a v2 half (BEP 52), with libtorrent on the other side and between ourselves.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::{Path, PathBuf};

use harness::*;
use p2pfs::proto::metainfo::{Magnet, Metainfo};

/// What `p2pfs create` makes of `content` with `flag`, and where the data is.
fn created(scratch: &Scratch, content: &Content, flag: &str) -> (PathBuf, PathBuf) {
    let data = content.write_to(&scratch.dir("origin"));
    let torrent = scratch.path(&format!("made{flag}.torrent"));
    let mut command = P2pfs::new(scratch).command_alone("create");
    command.arg(&data).arg(flag).arg("-o").arg(&torrent);
    run(scratch, &mut command, PATIENCE).success();
    (torrent, data)
}

fn metainfo(torrent: &Path) -> Metainfo {
    Metainfo::parse(&std::fs::read(torrent).unwrap()).unwrap()
}

/// The link with all hashes that the torrent has.
fn magnet(torrent: &Path) -> String {
    metainfo(torrent).magnet().to_string()
}

/// The link that names the v2 half alone.
fn v2_magnet(torrent: &Path) -> String {
    Magnet::from(metainfo(torrent).info.info_hash_v2().unwrap()).to_string()
}

/// Files of less than a block, of a piece, of several; links have nothing to seed.
fn content() -> Content {
    Content::album().file("one block", 16_384).file("one piece", 32_768).file("z/long", 5_000_001)
}

fn libtorrent_seeds(flag: &str) {
    let scratch = Scratch::new();
    let content = content();
    let (torrent, data) = created(&scratch, &content, flag);
    let save = data.parent().unwrap();
    let seeder = Libtorrent::start(&scratch, torrent.to_str().unwrap(), save, &[]);
    let peer = seeder.address.to_string();
    let sources = [torrent.to_str().unwrap().to_owned(), magnet(&torrent), v2_magnet(&torrent)];
    for (number, source) in sources.iter().enumerate() {
        let p2pfs = P2pfs::named(&scratch, &format!("reader {number}"));
        let mount = p2pfs.mount(source, &["--peer", &peer]);
        assert_eq!(mount.tree(), content.tree(), "{source}");
    }
}

#[test]
fn what_libtorrent_seeds_as_v2_is_mounted() {
    libtorrent_seeds("--v2");
}

#[test]
fn what_libtorrent_seeds_as_hybrid_is_mounted() {
    libtorrent_seeds("--hybrid");
}

fn p2pfs_seeds(flag: &str) {
    let scratch = Scratch::new();
    let content = content();
    let (torrent, data) = created(&scratch, &content, flag);
    let seeder = P2pfs::new(&scratch);
    seeder.try_seed(&torrent, &data, &[]).success();
    let sources = [torrent.to_str().unwrap().to_owned(), magnet(&torrent), v2_magnet(&torrent)];
    for (number, source) in sources.iter().enumerate() {
        let save = scratch.dir(&format!("save {number}"));
        let mut leecher = Libtorrent::start(&scratch, source, &save, &[]);
        leecher.connect(seeder.address);
        leecher.wait_until_complete();
        assert_eq!(Tree::read(&save.join("album")), content.tree(), "{source}");
        let mounting = P2pfs::named(&scratch, &format!("reader {number}"));
        let mount = mounting.mount(source, &["--peer", &seeder.address.to_string()]);
        mount.wait();
        assert_eq!(mount.tree(), content.tree(), "{source}");
    }
}

#[test]
fn what_p2pfs_seeds_as_v2_is_downloaded_by_libtorrent_and_mounted() {
    p2pfs_seeds("--v2");
}

#[test]
fn what_p2pfs_seeds_as_hybrid_is_downloaded_by_libtorrent_and_mounted() {
    p2pfs_seeds("--hybrid");
}
