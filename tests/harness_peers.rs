//! The peers of the harness against each other: when these fail, the harness is wrong or a program
//! is missing, not p2pfs.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

#[test]
fn libtorrent_seeds_to_libtorrent_by_torrent() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let mut leecher = Libtorrent::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    leecher.connect(seeder.address);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
    wait_until("all of it was sent", PATIENCE, || seeder.uploaded() >= torrent.length);
}

#[test]
fn libtorrent_seeds_to_libtorrent_by_magnet_with_a_peer() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[seeder.address]);
    let leecher = Libtorrent::start(&scratch, &magnet, &save, &[]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn libtorrent_seeds_odd_names_from_flat_files() {
    let scratch = Scratch::new();
    let content = Content::odd();
    let torrent = Torrent::new(&scratch, &content);
    let flat = scratch.dir("flat");
    content.write_flat(&flat);
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &flat, &["--flat"]);
    let save = scratch.dir("save");
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(&scratch, source, &save, &["--flat"]);
    leecher.connect(seeder.address);
    leecher.wait_until_complete();
    let index = content.items.len() - 1;
    let (last, expected) = (save.join(format!("{index:06}")), content.bytes_of("last"));
    // libtorrent may say that it has all of it before all of it is written.
    wait_until("the last file is as it should be", PATIENCE, || {
        std::fs::read(&last).is_ok_and(|bytes| bytes == expected)
    });
}

#[test]
fn an_upload_limit_holds_on_loopback() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("slow.bin", 3 * MIB));
    let limit = ["--upload-limit", "1000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let begin = std::time::Instant::now();
    let magnet = torrent.magnet_with_peers(&[seeder.address]);
    let leecher = Libtorrent::start(&scratch, &magnet, &scratch.dir("save"), &[]);
    leecher.wait_until_complete();
    assert!(begin.elapsed().as_secs_f64() > 1.5, "3 MiB at 1 MB/s took {:?}", begin.elapsed());
}

#[test]
fn a_lying_seeder_gives_nothing_right() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("lie.bin", 2 * MIB));
    let liar = Libtorrent::lie(&scratch, &torrent, &[]);
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(&scratch, source, &scratch.dir("save"), &[]);
    leecher.connect(liar.address);
    wait_until("the lie is found out", PATIENCE, || leecher.wasted() > 0);
    assert_eq!(leecher.pieces(), 0);
}

#[test]
fn aria2_seeds_to_libtorrent() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Aria2::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[seeder.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn libtorrent_seeds_to_aria2_over_an_http_tracker() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.http()]);
    let _seeder = Libtorrent::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let mut leecher = Aria2::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn transmission_seeds_to_libtorrent() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Transmission::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[seeder.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn libtorrent_finds_libtorrent_over_a_udp_tracker() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.udp()]);
    let _seeder = Libtorrent::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_trackers(&[&tracker.udp()]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn transmission_takes_metadata_and_data_from_a_peer_that_connects() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let mut seeder = Libtorrent::seed(&scratch, &torrent);
    let save = scratch.dir("save");
    let leecher = Transmission::start(&scratch, &save);
    leecher.add(&torrent.magnet());
    seeder.connect(leecher.address);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree().without_empty_files());
}

#[test]
fn a_seeder_connects_to_transmission_and_to_aria2() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let mut seeder = Libtorrent::seed(&scratch, &torrent);
    let (one, two) = (scratch.dir("one"), scratch.dir("two"));
    let transmission = Transmission::start(&scratch, &one);
    transmission.add(torrent.file.to_str().unwrap());
    seeder.connect(transmission.address);
    transmission.wait_until_complete();
    let mut aria2 = Aria2::start(&scratch, torrent.file.to_str().unwrap(), &two, &[]);
    seeder.connect(aria2.address);
    aria2.wait_until_complete();
    assert_eq!(Tree::read(&one.join("album")), content.tree().without_empty_files());
    assert_eq!(Tree::read(&two.join("album")), content.tree());
}

#[test]
fn scratch_ends_what_a_test_leaves_behind() {
    let scratch = Scratch::new();
    let root = scratch.root().to_path_buf();
    let marker = root.join("marker");
    // Leaves its group and its parent, as a daemon does.
    let script = "setsid sleep 1000 >/dev/null 2>&1 &";
    let mut command = std::process::Command::new("sh");
    run(&scratch, command.args(["-c", script]).env("MARKER", marker), PATIENCE).success();
    // While it becomes another program it is nobody's.
    wait_until("what was left is seen", PATIENCE, || scratch.processes().len() == 1);
    drop(scratch);
    assert!(!root.exists());
}
