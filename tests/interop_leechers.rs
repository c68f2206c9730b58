//! p2pfs as the only seeder of each client, by .torrent file and by magnet link; and a mount as one.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

#[test]
fn libtorrent_downloads_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::new(&scratch);
    seeder.seed(&torrent, &[]);
    let save = scratch.dir("save");
    let mut leecher = Libtorrent::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    leecher.connect(seeder.address);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn libtorrent_downloads_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::new(&scratch);
    seeder.seed(&torrent, &[]);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[seeder.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn transmission_downloads_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let save = scratch.dir("save");
    let leecher = Transmission::start(&scratch, &save);
    leecher.add(torrent.file.to_str().unwrap());
    P2pfs::new(&scratch).seed(&torrent, &["--peer", &leecher.address.to_string()]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree().without_empty_files());
}

#[test]
fn transmission_downloads_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let save = scratch.dir("save");
    let leecher = Transmission::start(&scratch, &save);
    leecher.add(&torrent.magnet());
    P2pfs::new(&scratch).seed(&torrent, &["--peer", &leecher.address.to_string()]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree().without_empty_files());
}

#[test]
fn aria2_downloads_by_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let save = scratch.dir("save");
    let mut leecher = Aria2::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    P2pfs::new(&scratch).seed(&torrent, &["--peer", &leecher.address.to_string()]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn aria2_downloads_by_magnet() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let save = scratch.dir("save");
    let mut leecher = Aria2::start(&scratch, &torrent.magnet(), &save, &[]);
    P2pfs::new(&scratch).seed(&torrent, &["--peer", &leecher.address.to_string()]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn a_mount_passes_on_what_it_has_after_its_seeder_has_gone() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    mount.wait();
    drop(seeder);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[p2pfs.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn a_mount_that_does_not_seed_gives_nothing() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--no-seed", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    drop(seeder);
    let save = scratch.dir("save");
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(&scratch, source, &save, &[]);
    leecher.connect(p2pfs.address);
    let got = wait_for(std::time::Duration::from_secs(3), || (leecher.pieces() > 0).then_some(()));
    assert!(got.is_none(), "a mount with --no-seed sent {} pieces", leecher.pieces());
}

#[test]
fn two_mounts_and_one_seeder_finish() {
    let scratch = Scratch::new();
    let content = Content::single("shared.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "4000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let (one, two) = (P2pfs::named(&scratch, "one"), P2pfs::named(&scratch, "two"));
    let first = one.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let peers = ["--peer", &seeder.address.to_string(), "--peer", &one.address.to_string()];
    let second = two.mount(torrent.magnet(), &peers);
    first.wait();
    second.wait();
    assert_eq!(first.tree(), content.tree());
    assert_eq!(second.tree(), content.tree());
}
