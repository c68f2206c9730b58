//! Peer exchange (BEP 11) with libtorrent and among daemons: one peer leads to the others.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::time::Duration;

use harness::*;

/// A mount with this fetches nothing by itself, but looks for peers.
const ON_DEMAND: &str = "--on-demand";

#[test]
fn two_mounts_that_know_only_libtorrent_find_each_other() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let peer = seeder.address.to_string();
    let (one, two) = (P2pfs::named(&scratch, "one"), P2pfs::named(&scratch, "two"));
    let first = one.mount(torrent.magnet(), &[ON_DEMAND, "--peer", &peer]);
    wait_until("the first is connected", PATIENCE, || first.status().number("peers") == 1);
    let second = two.mount(torrent.magnet(), &[ON_DEMAND, "--peer", &peer]);
    wait_until("they know each other", PATIENCE, || {
        [&first, &second].iter().all(|mount| mount.status().number("peers") == 2)
    });
    let by_pex = first.status().peers_from("pex") + second.status().peers_from("pex");
    assert_eq!(by_pex, 1, "whichever heard of the other");
    assert_eq!(first.tree(), content.tree());
    drop(seeder);
    assert_eq!(second.tree(), content.tree());
}

#[test]
fn libtorrent_finds_a_seed_through_a_mount_that_has_nothing() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let (seeder, between) = (P2pfs::named(&scratch, "seeder"), P2pfs::named(&scratch, "between"));
    seeder.seed(&torrent, &[]);
    let mount = between.mount(&torrent.file, &[ON_DEMAND, "--peer", &seeder.address.to_string()]);
    wait_until("the mount is connected", PATIENCE, || mount.status().number("peers") == 1);
    let save = scratch.dir("save");
    let mut leecher = Libtorrent::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    leecher.connect(between.address);
    leecher.wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
    assert_eq!(mount.status().number("downloaded"), 0, "what stood between gave nothing");
}

#[test]
fn when_the_tracker_has_died_one_peer_leads_to_the_others() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&bare.info_hash]);
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.http()]);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let first = P2pfs::named(&scratch, "first");
    let mount = first.mount(&torrent.file, &[ON_DEMAND]);
    wait_until("the mount found the seed", PATIENCE, || mount.status().number("seeders") == 1);
    drop(tracker);
    let late = P2pfs::named(&scratch, "late");
    let late = late.mount(&torrent.file, &["--peer", &first.address.to_string()]);
    assert_eq!(late.tree(), content.tree());
    assert_eq!(mount.status().number("downloaded"), 0, "the first gave nothing");
}

#[test]
fn with_no_pex_one_peer_leads_to_nobody() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let (seeder, between) = (P2pfs::named(&scratch, "seeder"), P2pfs::named(&scratch, "between"));
    seeder.seed(&torrent, &[]);
    let options = [ON_DEMAND, "--no-pex", "--peer", &seeder.address.to_string()];
    let mount = between.mount(&torrent.file, &options);
    wait_until("the mount is connected", PATIENCE, || mount.status().number("peers") == 1);
    let late = P2pfs::named(&scratch, "late");
    let late = late.mount(&torrent.file, &["--peer", &between.address.to_string()]);
    wait_until("the late one is connected", PATIENCE, || late.status().number("peers") == 1);
    let found =
        wait_for(Duration::from_secs(4), || (late.status().number("peers") > 1).then_some(()));
    assert!(found.is_none(), "{}", late.status().json());
}

#[test]
fn a_daemon_that_exchanges_refuses_a_mount_that_does_not_want_it() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &[]);
    let refused = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["-o", "no_pex"]).failure();
    assert!(refused.stderr.contains("peer exchange is on, not off"), "{}", refused.stderr);
}

#[test]
fn with_no_first_peer_nobody_is_found_and_status_says_why() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let shown = mount.run("status", &[]).success().stdout();
    assert!(shown.contains("PEX needs a first peer; give a tracker"), "{shown}");
    assert!(mount.status().text("nobody").contains("PEX needs a first peer"));
}

#[test]
fn with_no_first_peer_a_magnet_link_is_refused_in_time_and_it_is_said_why() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let (dir, options) = (p2pfs.mount_point(), ["--timeout", "1"]);
    let failed = p2pfs.try_mount(torrent.magnet(), &dir, &options).failure();
    let last = failed.stderr.lines().last().unwrap_or("");
    assert!(last.contains("PEX needs a first peer; give a tracker"), "{last}");
}
