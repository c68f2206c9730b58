//! No wrong byte is ever read.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::process::Command;
use std::time::Duration;

use harness::*;

#[test]
fn beside_an_honest_seeder_a_lying_one_is_banned_and_nothing_wrong_is_read() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 16 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    // Slow, so that the liar is asked as well.
    let limit = ["--upload-limit", "6000000"];
    let honest = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let liar = Libtorrent::lie(&scratch, &torrent, &limit);
    let p2pfs = P2pfs::new(&scratch);
    let (one, two) = (liar.address.to_string(), honest.address.to_string());
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &one, "--peer", &two]);
    // Which also shows that it is the honest one who was not banned.
    assert_eq!(mount.tree(), content.tree());
    wait_until("the liar is banned", PATIENCE, || mount.status().number("banned") == 1);
    let sent = || liar.uploaded();
    wait_until("libtorrent has counted what the liar sent", PATIENCE, || sent() > 0);
    // Half a torrent from a liar would mean that it was believed again and again.
    assert!(sent() < 8 * MIB as u64, "the liar was asked for {} bytes", sent());
}

#[test]
fn with_a_lying_seeder_alone_a_read_waits_and_yields_nothing() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 2 * MIB));
    let liar = Libtorrent::lie(&scratch, &torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &liar.address.to_string()]);
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    wait_until("the liar has been heard", PATIENCE, || liar.uploaded() > 0);
    cat.wait_until_blocked_in_read();
    assert_eq!(cat.stdout(), b"");
    cat.dies_of(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(2));
}

#[test]
fn what_a_liar_sent_is_not_passed_on() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 2 * MIB));
    let liar = Libtorrent::lie(&scratch, &torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let _mount = p2pfs.mount(torrent.magnet(), &["--peer", &liar.address.to_string()]);
    wait_until("the liar has been heard", PATIENCE, || liar.uploaded() > 0);
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(&scratch, source, &scratch.dir("save"), &[]);
    leecher.connect(p2pfs.address);
    wait_until("the leecher is connected", PATIENCE, || leecher.peers() > 0);
    let got = wait_for(Duration::from_secs(2), || (leecher.wasted() > 0).then_some(()));
    assert!(got.is_none(), "p2pfs passed on {} wrong bytes", leecher.wasted());
}
