//! Each client as the only seeder of a mount, by .torrent file and by magnet link.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::net::SocketAddr;

use harness::*;

/// Mounts, compares every file by SHA-256, unmounts.
#[track_caller]
fn mount_shows(scratch: &Scratch, source: &str, seeder: SocketAddr, content: &Content) {
    let p2pfs = P2pfs::new(scratch);
    let mount = p2pfs.mount(source, &["--peer", &seeder.to_string()]);
    assert_eq!(mount.tree(), content.tree());
    mount.umount();
}

#[test]
fn libtorrent_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    mount_shows(&scratch, torrent.file.to_str().unwrap(), seeder.address, &content);
}

#[test]
fn libtorrent_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    mount_shows(&scratch, &torrent.magnet(), seeder.address, &content);
}

#[test]
fn transmission_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Transmission::seed(&scratch, &torrent);
    mount_shows(&scratch, torrent.file.to_str().unwrap(), seeder.address, &content);
}

#[test]
fn transmission_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Transmission::seed(&scratch, &torrent);
    mount_shows(&scratch, &torrent.magnet(), seeder.address, &content);
}

#[test]
fn aria2_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Aria2::seed(&scratch, &torrent);
    mount_shows(&scratch, torrent.file.to_str().unwrap(), seeder.address, &content);
}

#[test]
fn aria2_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Aria2::seed(&scratch, &torrent);
    mount_shows(&scratch, &torrent.magnet(), seeder.address, &content);
}

#[test]
fn p2pfs_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    mount_shows(&scratch, &torrent.magnet(), seeder.address, &content);
}

#[test]
fn large_pieces_and_a_larger_file() {
    let scratch = Scratch::new();
    let content = Content::single("large.bin", 48 * MIB + 12345).piece_length(4 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    mount_shows(&scratch, &torrent.magnet(), seeder.address, &content);
}

#[test]
fn pieces_whose_length_is_no_power_of_two() {
    let scratch = Scratch::new();
    let content = Content::album().piece_length(100_000);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    mount_shows(&scratch, torrent.file.to_str().unwrap(), seeder.address, &content);
}
