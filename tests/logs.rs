//! What the daemon logs: nothing while all is well, and on request which torrent, peer and read it is about.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::*;
use nix::sys::signal::{Signal, kill};

/// The log of the daemon called `p2pfs`, which a client started.
fn log(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.path("p2pfs-home/socket.log")).unwrap()
}

#[test]
fn a_download_without_problems_is_not_worth_a_line() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
    mount.wait();
    drop(seeder);
    wait_until("it is alone", PATIENCE, || mount.status().number("peers") == 0);
    mount.umount();
    assert_eq!(log(&scratch), "");
}

#[test]
fn each_line_says_which_torrent_peer_and_read_it_is_about_and_names_cannot_break_out() {
    let scratch = Scratch::new();
    let content = Content::single("a\nb\x1b[2Jc", MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let options = ["--on-demand", "--log", "p2pfs=debug", "--peer", &peer];
    let mount = p2pfs.mount(&torrent.file, &options);
    mount.tree();
    seeder.kill_daemon();
    wait_until("it is alone", PATIENCE, || mount.status().number("peers") == 0);
    let log = log(&scratch);
    assert!(!log.contains('\x1b'), "{log}");
    let of_torrent = format!("torrent{{hash={} name=\"a\\nb", torrent.info_hash);
    for said in [format!("connected peer={peer}"), format!("ing peer=Some({peer}) reason=")] {
        let line = log.lines().find(|line| line.contains(&said)).expect(&said);
        assert!(line.contains(&of_torrent), "{line}");
    }
    let waited = |what: &str| {
        let line = log.lines().find(|line| line.contains(what)).expect(what);
        assert!(line.contains(&of_torrent), "{line}");
        line.split_once("read=").unwrap().1.split(' ').next().unwrap().to_owned()
    };
    let read = waited("a read waits");
    assert!(log.contains(&format!("a read has waited read={read} end=Ready")), "{log}");
    // An event is a line, and a line an event.
    assert!(log.lines().all(|line| line.starts_with("20") && line.contains(" p2pfs")), "{log}");
}

#[test]
fn sighup_has_what_is_logged_read_anew() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let file = scratch.file("p2pfs.toml", b"log = \"warn\"\n");
    let mount = p2pfs.mount(&torrent.file, &["--config", file.to_str().unwrap()]);
    assert_eq!(log(&scratch), "");
    std::fs::write(&file, "log = \"info\"\n").unwrap();
    kill(p2pfs.daemon(), Signal::SIGHUP).unwrap();
    wait_until("more is logged", PATIENCE, || log(&scratch).contains("read anew"));
    let refused = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["--log", "trace"]);
    assert!(refused.failure().stderr.contains("daemon's log is"), "another log for all mounts");
    drop(mount);
}
