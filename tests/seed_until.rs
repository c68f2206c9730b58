//! Seeding that ends by itself: at a share ratio, or after a time.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

/// A libtorrent leecher that knows only `p2pfs`; `options` are those of lt.py.
fn leecher(scratch: &Scratch, torrent: &Torrent, p2pfs: &P2pfs, options: &[&str]) -> Libtorrent {
    let save = scratch.dir("save");
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(scratch, source, &save, options);
    leecher.connect(p2pfs.address);
    leecher
}

#[test]
fn a_seed_stops_when_one_copy_has_gone_out() {
    let scratch = Scratch::new();
    let content = Content::album();
    let server = HttpServer::serving(b"d8:intervali1800e5:peers0:e".to_vec());
    let torrent = Torrent::with_trackers(&scratch, &content, &[&server.url("/announce")]);
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &["--seed-until", "ratio=1.0"]);
    let leecher = leecher(&scratch, &torrent, &p2pfs, &[]);
    wait_until("the seed stops by itself", PATIENCE, || p2pfs.status().is_empty());
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&scratch.path("save/album")), content.tree());
    wait_until("the tracker is told", PATIENCE, || {
        // The leecher announces to the same tracker, perhaps later.
        let uploaded = format!("&uploaded={}&", torrent.length);
        server.requests().iter().any(|r| r.contains("event=stopped") && r.contains(&uploaded))
    });
}

#[test]
fn a_seed_in_the_foreground_ends_with_exit_code_0_and_what_it_sent_arrives() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::new(&scratch);
    let mut command = p2pfs.starting_command("seed");
    command.arg("--foreground").arg(&torrent.file).arg(&torrent.data).arg("--seed-until");
    let mut seed = Process::spawn(&scratch, &mut command);
    // Much of it is in the system's buffers when the last byte counts as sent.
    let leecher = leecher(&scratch, &torrent, &p2pfs, &["--download-limit", "2000000"]);
    let status = seed.wait(PATIENCE).expect("the seed ends by itself");
    assert!(status.success(), "{}", seed.stderr());
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&scratch.path("save")), content.tree());
}

#[test]
fn a_mount_stays_until_it_has_given_a_copy() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let (p2pfs, kept) = (P2pfs::new(&scratch), scratch.dir("kept"));
    let keep = kept.to_str().unwrap();
    let peer = seeder.address.to_string();
    let options = ["--until-done", "--keep", keep, "--peer", &peer, "--seed-until", "ratio=1"];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    drop(seeder);
    wait_until("the files are kept", PATIENCE, || {
        kept.join("album").exists() || kept.join("notes.txt").exists()
    });
    assert_eq!(mount.status().text("seed_until"), "ratio=1.0");
    let leecher = leecher(&scratch, &torrent, &p2pfs, &[]);
    mount.wait_until_unmounted();
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&kept), content.tree());
}

#[test]
fn a_mount_in_the_foreground_ends_after_a_time_with_exit_code_0() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let peer = seeder.address.to_string();
    let options = ["--foreground", "-o", "seed_until=time=1s", "--peer", &peer];
    p2pfs.try_mount(torrent.magnet(), &dir, &options).success();
    assert_eq!(mounts_below(&dir), Vec::<std::path::PathBuf>::new());
}

#[test]
fn status_tells_the_share_ratio() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &["--seed-until", "ratio=1.5"]);
    assert_eq!(p2pfs.status()[0].fraction("share_ratio"), 0.0);
    leecher(&scratch, &torrent, &p2pfs, &[]).wait_until_complete();
    wait_until("one copy is counted", PATIENCE, || {
        p2pfs.status()[0].fraction("share_ratio") >= 1.0
    });
    let data = torrent.data.to_str().unwrap();
    let shown = p2pfs.run("status", &[data]).success().stdout();
    assert!(shown.contains("share ratio 1.0"), "{shown}");
    assert!(shown.contains("seeded until ratio=1.5"), "{shown}");
}
