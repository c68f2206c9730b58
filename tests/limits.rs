//! Rate limits that change while a daemon runs, and the file of settings that they may come from.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::time::{Duration, Instant};

use harness::*;
use nix::sys::signal::{Signal, kill};

fn limits(p2pfs: &P2pfs, arguments: &[&str]) -> String {
    p2pfs.run("limit", arguments).success().stdout().trim().to_owned()
}

#[test]
fn a_limit_that_would_take_minutes_is_lifted() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 8 * MIB));
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--download-limit", "50K", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(&torrent.file, &options);
    assert_eq!(limits(&p2pfs, &[]), "up none, down 50.0 KiB/s");
    wait_until("something came", PATIENCE, || mount.status().number("downloaded") > 0);
    let begin = Instant::now();
    assert_eq!(limits(&p2pfs, &["--down", "none", "--up", "1M"]), "up 1.00 MiB/s, down none");
    mount.wait();
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[test]
fn a_limit_of_one_torrent_leaves_the_others_alone() {
    let scratch = Scratch::new();
    let torrents = ["slow.bin", "fast.bin"]
        .map(|name| Torrent::new(&scratch, &Content::single(name, 2 * MIB)));
    let seeders = torrents.each_ref().map(|torrent| Libtorrent::seed(&scratch, torrent));
    let peers = seeders.each_ref().map(|seeder| seeder.address.to_string());
    let p2pfs = P2pfs::new(&scratch);
    let slow = p2pfs.mount(&torrents[0].file, &["--on-demand", "--peer", &peers[0]]);
    let dir = slow.dir().to_str().unwrap();
    assert_eq!(limits(&p2pfs, &["--down", "200K", dir]), "up none, down 200 KiB/s");
    assert_eq!(limits(&p2pfs, &[]), "up none, down none");
    let fast = p2pfs.mount(&torrents[1].file, &["--peer", &peers[1]]);
    let begin = Instant::now();
    std::fs::read(slow.path("slow.bin")).unwrap();
    // 10 s at the limit; less only by what a full token bucket lets through at first.
    assert!(begin.elapsed() > Duration::from_secs(6), "{:?}", begin.elapsed());
    assert_eq!(fast.status().number("verified"), torrents[1].length);
}

#[test]
fn what_the_file_turns_on_a_flag_turns_off() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let file = scratch.file("p2pfs.toml", b"on-demand = true\nno-pex = true\n");
    let config = file.to_str().unwrap();
    let by_file = p2pfs.mount(&torrent.file, &["--config", config, "--no-pex=false"]);
    assert_eq!(by_file.status().number("wanted"), 0);
    // The daemon has what the flag said when it was started.
    let refused = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["-o", "no_pex"]).failure();
    assert!(refused.stderr.contains("peer exchange is on, not off"), "{}", refused.stderr);
    by_file.umount();
    for all in [&["--on-demand=false"][..], &["-o", "on_demand=false"]] {
        let mount = p2pfs.mount(&torrent.file, &[&["--config", config], all].concat());
        assert_eq!(mount.status().number("wanted"), torrent.length);
        mount.umount();
    }
}

#[test]
fn sighup_has_the_limits_of_the_file_read_anew() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let file = scratch.file("p2pfs.toml", b"download-limit = \"3M\"\nread-timeout = 1\n");
    let config = file.to_str().unwrap();
    let mount = p2pfs.mount(&torrent.file, &["--config", config, "--upload-limit", "1M"]);
    assert_eq!(limits(&p2pfs, &[]), "up 1.00 MiB/s, down 3.00 MiB/s");
    // Nobody has it, and the file says how long to wait.
    assert!(std::fs::read(mount.path("notes.txt")).is_err());
    std::fs::write(&file, "download-limit = 4096\nupload-limit = 1\n").unwrap();
    kill(p2pfs.daemon(), Signal::SIGHUP).unwrap();
    wait_until("the limit is read anew, and the flag holds", PATIENCE, || {
        limits(&p2pfs, &[]) == "up 1.00 MiB/s, down 4.00 KiB/s"
    });
    std::fs::write(&file, "download-limit = 0\n").unwrap();
    kill(p2pfs.daemon(), Signal::SIGHUP).unwrap();
    std::fs::write(&file, "").unwrap();
    assert!(limits(&p2pfs, &[]).contains("up 1.00 MiB/s"));
    kill(p2pfs.daemon(), Signal::SIGHUP).unwrap();
    wait_until("a file without limits has none", PATIENCE, || {
        limits(&p2pfs, &[]) == "up 1.00 MiB/s, down none"
    });
}
