//! A cache on a disk that is too small.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::Path;
use std::process::Command;

use harness::*;

#[test]
fn on_a_full_disk_reads_end_nothing_wrong_is_read_and_status_says_why() {
    let scratch = Scratch::new();
    // Far more than what may wait in memory for the disk.
    let content = Content::single("film.bin", 80 * MIB).piece_length(256 * KIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let disk = small_disk(&scratch, "4m");
    let p2pfs = P2pfs::new(&scratch).with_data_dir(&disk.join("cache"));
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    let status = cat.wait(PATIENCE).expect("cat ends");
    let (read, right) = (cat.stdout(), content.stream());
    assert!(right.starts_with(&read), "wrong bytes among the first {}", read.len());
    assert_eq!(status.success(), read.len() == right.len(), "cat: {status}");
    wait_until("status names the cause", PATIENCE, || {
        let shown = mount.run("status", &[]).success().stdout().to_lowercase();
        shown.contains("space") || shown.contains("full")
    });
    assert_eq!(std::fs::read_dir(mount.dir()).unwrap().count(), 1);
    mount.umount();
}

#[test]
fn after_a_full_disk_got_room_a_new_mount_works() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 6 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let disk = small_disk(&scratch, "8m");
    let ballast = fill(&disk, 6 * MIB);
    let p2pfs = P2pfs::new(&scratch).with_data_dir(&disk.join("cache"));
    let options = ["--peer", &seeder.address.to_string()];
    let first = p2pfs.mount(torrent.magnet(), &options);
    // It may fail or not: what came is given to readers before the disk has it.
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(first.path("film.bin")));
    cat.wait(PATIENCE).expect("cat ends");
    first.umount();
    std::fs::remove_file(ballast).unwrap();
    let second = p2pfs.mount(torrent.magnet(), &options);
    second.wait();
    assert_eq!(second.tree(), content.tree());
}

fn fill(disk: &Path, length: usize) -> std::path::PathBuf {
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; length]).unwrap();
    ballast
}
