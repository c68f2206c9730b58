//! What people and scripts are told about mounts, seeds and files.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;
use serde_json::Value;

#[test]
fn a_tracker_that_is_named_at_the_mount_finds_its_peers() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&torrent.info_hash]);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &["--tracker", &tracker.udp()]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["-o", &format!("tracker={}", tracker.http())]);
    assert_eq!(mount.tree(), content.tree());
    assert!(mount.status().json().contains(&tracker.http()));
}

#[test]
fn status_of_a_file_says_what_of_it_is_here() {
    let scratch = Scratch::new();
    let content = Content::folder("album").file("cd/one.flac", 3 * MIB).file("two.jpg", MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(&torrent.file, &options);
    let two = mount.path("two.jpg");
    std::fs::read(&two).unwrap();
    let part = |path: &std::path::Path| {
        let said = p2pfs.run("status", &["--json", path.to_str().unwrap()]).success().stdout();
        serde_json::from_str::<Value>(&said).unwrap()[0].clone()
    };
    wait_until("all of it is here", PATIENCE, || part(&two)["verified"] == MIB as u64);
    let said = part(&two);
    assert_eq!((&said["files"], &said["total"]), (&1.into(), &(MIB as u64).into()));
    assert_eq!(said["pieces"], said["pieces_verified"]);
    assert_eq!(said["mount"], mount.dir().to_str().unwrap());
    let folder = part(&mount.path("cd"));
    assert_eq!((&folder["files"], &folder["total"]), (&1.into(), &(3 * MIB as u64).into()));
    assert!(folder["verified"].as_u64().unwrap() < MIB as u64, "{folder}");
    let shown = p2pfs.run("status", &[two.to_str().unwrap()]).success().stdout();
    assert!(shown.contains("1.00 MiB of 1.00 MiB verified (100 %)"), "{shown}");
    let missing = p2pfs.run("status", &[mount.path("three").to_str().unwrap()]).failure();
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
}

#[test]
fn status_of_all_is_a_table_with_what_is_wrong_below() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let film = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&film, &[]);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let shown = p2pfs.run("status", &[]).success().stdout();
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["PATH", "KIND", "STATE", "HERE"], "{shown}");
    let dir = mount.dir().to_str().unwrap();
    assert_eq!(lines[1][..3], [dir, "mount", "downloading"], "{shown}");
    assert_eq!(lines[2][..2], [film.data.to_str().unwrap(), "seed"], "{shown}");
    assert!(lines[3].join(" ").starts_with(&format!("{dir}: no peers: ")), "{shown}");
}
