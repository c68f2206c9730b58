//! What is left after the daemon was killed.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

#[test]
fn after_kill_9_everything_verified_is_there_without_a_swarm() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let first = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    first.wait();
    drop(seeder);
    p2pfs.kill_daemon();
    let second = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(second.tree(), content.tree());
}

#[test]
fn after_kill_9_in_the_middle_only_the_rest_is_fetched() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 12 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "4000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let p2pfs = P2pfs::new(&scratch);
    let first = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let mut verified = 0;
    wait_until("half of it is verified", PATIENCE, || {
        verified = first.status().number("verified");
        verified > torrent.length / 2
    });
    p2pfs.kill_daemon();
    drop(seeder);
    let fresh = Libtorrent::seed(&scratch, &torrent);
    let second = p2pfs.mount(torrent.magnet(), &["--peer", &fresh.address.to_string()]);
    second.wait();
    assert_eq!(second.tree(), content.tree());
    // What the index had not yet noted, and blocks asked for twice at the end.
    let slack = 2 * MIB as u64;
    let missing = torrent.length - verified;
    wait_until("libtorrent has counted", PATIENCE, || fresh.uploaded() > 0);
    assert!(
        fresh.uploaded() <= missing + slack,
        "{missing} bytes were missing, {} were fetched",
        fresh.uploaded()
    );
}

#[test]
fn a_mount_whose_daemon_was_killed_can_be_unmounted() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    p2pfs.kill_daemon();
    mount.umount();
}

#[test]
fn a_mount_whose_daemon_was_killed_can_be_mounted_over() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &["--peer", &seeder.address.to_string()]);
    mount.wait();
    p2pfs.kill_daemon();
    p2pfs.try_mount(&torrent.file, mount.dir(), &[]).success();
    assert_eq!(mount.tree(), content.tree());
    assert_eq!(mounts_below(mount.dir()).len(), 1);
    mount.umount();
}

#[test]
fn a_second_mount_after_a_clean_end_fetches_nothing() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let first = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    first.wait();
    drop(seeder);
    first.umount();
    let second = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(second.tree(), content.tree());
}

#[test]
fn a_second_mount_has_the_times_of_the_first() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    let p2pfs = P2pfs::new(&scratch);
    let changed = |mount: &Mount| {
        let file = mount.dir().join("film.bin").metadata().unwrap();
        (mount.dir().metadata().unwrap().modified().unwrap(), file.modified().unwrap())
    };
    let first = p2pfs.mount(&torrent.file, &[]);
    let times = changed(&first);
    p2pfs.kill_daemon();
    first.umount();
    assert_eq!(changed(&p2pfs.mount(&torrent.file, &[])), times);
}

#[test]
fn a_corrupted_cache_is_noticed() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 2 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let first = p2pfs.mount(torrent.magnet(), &["--peer", &peer]);
    first.wait();
    p2pfs.kill_daemon();
    corrupt_large_files(&p2pfs.data_dir);
    let second = p2pfs.mount(torrent.magnet(), &["--peer", &peer]);
    assert_eq!(second.tree(), content.tree());
}

/// Changes a byte in the middle of every file of a megabyte or more.
fn corrupt_large_files(dir: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let mut found = 0;
    let tree = Tree::read(dir);
    for path in tree.paths().map(|path| dir.join(path)) {
        let length = std::fs::metadata(&path).unwrap().len();
        if length >= MIB as u64 {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, length / 2).unwrap();
            file.write_all_at(&[!byte[0]], length / 2).unwrap();
            found += 1;
        }
    }
    assert!(found > 0, "no large file in the cache: {tree:?}");
}
