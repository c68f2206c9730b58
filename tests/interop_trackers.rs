//! Finding peers through a real tracker, and being told no by one.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

/// A bencoded refusal.
fn refusal(reason: &str) -> Vec<u8> {
    format!("d14:failure reason{}:{reason}e", reason.len()).into_bytes()
}

#[test]
fn a_magnet_with_an_http_tracker_is_mounted() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.http()]);
    let _seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet_with_trackers(&[&tracker.http()]), &[]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_magnet_with_a_udp_tracker_is_mounted() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.udp()]);
    let _seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet_with_trackers(&[&tracker.udp()]), &[]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_torrent_file_with_a_dead_and_a_live_tracker_is_mounted() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let dead = format!("http://127.0.0.1:{}/announce", free_port());
    let trackers = [dead.as_str(), &tracker.http()];
    let torrent = Torrent::with_trackers(&scratch, &content, &trackers);
    let _seeder = Libtorrent::seed(&scratch, &torrent);
    let mount = P2pfs::new(&scratch);
    let mount = mount.mount(&torrent.file, &[]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_seed_is_found_through_its_tracker() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.udp()]);
    let seeder = P2pfs::new(&scratch);
    seeder.seed(&torrent, &[]);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_trackers(&[&tracker.udp()]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}

#[test]
fn the_announce_carries_what_bep_3_asks_for() {
    let scratch = Scratch::new();
    let content = Content::album();
    let server = HttpServer::serving(b"d8:intervali1800e5:peers0:e".to_vec());
    let torrent = Torrent::with_trackers(&scratch, &content, &[&server.url("/announce")]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &["--on-demand"]);
    wait_until("an announce came", PATIENCE, || !server.requests().is_empty());
    let first = server.requests().remove(0);
    for part in [
        format!("port={}", p2pfs.address.port()),
        format!("left={}", torrent.length),
        "event=started".into(),
        "compact=1".into(),
        "info_hash=".into(),
        "peer_id=".into(),
        "uploaded=0".into(),
        "downloaded=0".into(),
    ] {
        assert!(first.contains(&part), "no {part} in {first}");
    }
    mount.umount();
    wait_until("the last announce says stopped", PATIENCE, || {
        server.requests().last().is_some_and(|last| last.contains("event=stopped"))
    });
}

#[test]
fn status_shows_why_a_tracker_refuses() {
    let scratch = Scratch::new();
    let server = HttpServer::serving(refusal("torrent not registered here"));
    let url = server.url("/announce");
    let torrent = Torrent::with_trackers(&scratch, &Content::album(), &[&url]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    wait_until("status --json names the refusal", PATIENCE, || {
        mount.status().json().contains("torrent not registered here")
    });
    let shown = mount.run("status", &[]).success().stdout();
    assert!(shown.contains("torrent not registered here"), "{shown}");
}

#[test]
fn without_metadata_the_refusal_is_part_of_the_error() {
    let scratch = Scratch::new();
    let server = HttpServer::serving(refusal("torrent not registered here"));
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let magnet = torrent.magnet_with_trackers(&[&server.url("/announce")]);
    let finished = p2pfs.try_mount(magnet, &dir, &["--timeout", "3"]).failure();
    let last = finished.stderr.lines().last().unwrap_or("");
    assert!(last.contains("torrent not registered here"), "{last}");
    assert_eq!(mounts_below(scratch.root()), Vec::<std::path::PathBuf>::new());
}
