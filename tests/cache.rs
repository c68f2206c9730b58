//! A cache with a limit: torrents that are larger than it are read all the same, and it never takes more.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::*;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Bytes allocated for what is at `path` and below, as `du` counts them.
fn du(path: &Path) -> u64 {
    let Ok(m) = fs::symlink_metadata(path) else { return 0 };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    m.blocks() * 512 + entries.map(|e| du(&e.path())).sum::<u64>()
}

/// Bytes allocated on a disk, at one moment.
fn taken_of_disk(disk: &Path) -> u64 {
    let s = nix::sys::statvfs::statvfs(disk).unwrap();
    (s.blocks() - s.blocks_free()) * s.fragment_size()
}

/// Runs `work` while another thread looks at how much is taken; the most that it saw.
fn most_taken(taken: impl Fn() -> u64 + Send, work: impl FnOnce()) -> u64 {
    let (finished, most) = (AtomicBool::new(false), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        let running = &finished;
        scope.spawn(move || {
            while !running.load(Ordering::Acquire) {
                most.fetch_max(taken(), Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        finished.store(true, Ordering::Release);
        worked.unwrap();
    });
    most.load(Ordering::Acquire)
}

/// Reads past what the kernel has kept of the file.
fn read(file: &File, offset: usize, length: usize) -> Vec<u8> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset as u64).unwrap();
    bytes
}

/// Numbers that look random.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn torrents_five_times_the_cache_are_read_at_random_and_the_limit_holds() {
    const LIMIT: usize = 8 * MIB;
    let scratch = Scratch::new();
    let seeder = P2pfs::named(&scratch, "seeder");
    let peer = seeder.address.to_string();
    let contents = [
        Content::single("film.bin", 20 * MIB).piece_length(256 * KIB),
        // Files that share pieces, and blocks of the disk, with others.
        Content::folder("songs").file("a", 7 * MIB + 77).file("b", 3000).file("c", 5 * MIB - 9),
        Content::single("book.bin", 9 * MIB).piece_length(32 * KIB),
    ];
    let mut files = Vec::new();
    let disk = small_disk(&scratch, "64m");
    let p2pfs = P2pfs::new(&scratch).with_data_dir(&disk.join("cache"));
    let exact = taken_of_disk(&disk);
    let looked = || {
        assert!(du(&p2pfs.data_dir) <= LIMIT as u64, "{} taken", du(&p2pfs.data_dir));
        taken_of_disk(&disk) - exact
    };
    let most = most_taken(looked, || {
        for (content, on_demand) in contents.iter().zip([false, true, false]) {
            let torrent = Torrent::new(&scratch, content);
            seeder.seed(&torrent, &[]);
            let options = ["--peer", &peer, "--cache-size", "8M", "--on-demand"];
            let mount = p2pfs.mount(&torrent.file, &options[..4 + usize::from(on_demand)]);
            for item in &content.items {
                let name = String::from_utf8(item.path.last().unwrap().clone()).unwrap();
                let bytes = content.bytes_of(&name);
                files.push((File::open(mount.path(&name)).unwrap(), bytes));
            }
        }
        let end = Instant::now() + Duration::from_secs(6);
        std::thread::scope(|scope| {
            for reader in 0..4u64 {
                let files = &files;
                scope.spawn(move || {
                    let (mut state, mut reads) = (reader + 1, 0);
                    while Instant::now() < end {
                        let (file, bytes) = &files[next(&mut state) % files.len()];
                        let offset = next(&mut state) % bytes.len();
                        let length = (1 + next(&mut state) % 200_000).min(bytes.len() - offset);
                        let began = Instant::now();
                        let same = read(file, offset, length) == bytes[offset..offset + length];
                        assert!(same, "wrong bytes at {offset}");
                        assert!(began.elapsed() < Duration::from_secs(10));
                        reads += 1;
                    }
                    assert!(reads > 10, "{reads} reads in 6 s");
                    eprintln!("reader {reader}: {reads} reads");
                });
            }
        });
    });
    eprintln!("the most that was taken: {most} of {LIMIT}");
    assert!(most <= LIMIT as u64, "{most} taken");
    assert!(most > LIMIT as u64 * 3 / 4, "{most} taken: the room is used");
}

#[test]
fn a_torrent_larger_than_the_cache_is_read_whole_and_the_background_does_not_eat_itself() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 40 * MIB).piece_length(256 * KIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--peer", &seeder.address.to_string(), "--cache-size", "8M"];
    let most = most_taken(
        || du(&p2pfs.data_dir),
        || {
            let mount = p2pfs.mount(torrent.magnet(), &options);
            wait_until("the background rests", PATIENCE, || {
                mount.status().text("state") == "cache full"
            });
            let before = mount.status().number("downloaded");
            assert!(before <= 8 * MIB as u64, "{before} bytes fetched in the background");
            let shown = mount.run("status", &[]).success().stdout();
            assert!(shown.contains("the cache is full"), "{shown}");
            let read = fs::read(mount.path("film.bin")).unwrap();
            assert!(read == content.stream());
            let after = mount.status().number("downloaded");
            // All of it once, and what the background has fetched perhaps again.
            assert!(after <= 50 * MIB as u64, "{after} bytes fetched for {} MiB", 40);
            let again = fs::read(mount.path("film.bin")).unwrap();
            assert!(again == content.stream());
            mount.umount();
        },
    );
    assert!(most <= 8 * MIB as u64, "{most} taken");
}

#[test]
fn what_is_read_again_is_here_still_and_what_nobody_has_mounted_goes_first() {
    let scratch = Scratch::new();
    let contents =
        ["one.bin", "two.bin", "three.bin"].map(|name| Content::single(name, 4 * MIB + name.len()));
    let torrents = contents.each_ref().map(|content| Torrent::new(&scratch, content));
    let seeder = P2pfs::named(&scratch, "seeder");
    torrents.iter().for_each(|torrent| seeder.seed(torrent, &[]));
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--peer", &seeder.address.to_string(), "--cache-size", "10M"];
    let one = p2pfs.mount(torrents[0].magnet(), &options);
    one.wait();
    let two = p2pfs.mount(torrents[1].magnet(), &options);
    two.wait();
    one.umount();
    let three = p2pfs.mount(torrents[2].magnet(), &options);
    three.wait();
    assert_eq!(two.tree(), contents[1].tree());
    let whole = contents[1].stream().len() as u64;
    assert_eq!(two.status().number("verified"), whole, "nothing of what is mounted was let go");
    let one = p2pfs.mount(torrents[0].magnet(), &options);
    assert!(one.status().number("verified") < whole / 2, "the first had to go");
    assert_eq!(one.tree(), contents[0].tree());
    assert!(du(&p2pfs.data_dir) <= 10 * MIB as u64);
}

#[test]
fn what_is_to_stay_free_on_the_disk_stays_free() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 24 * MIB).piece_length(128 * KIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let disk = small_disk(&scratch, "12m");
    let p2pfs = P2pfs::new(&scratch).with_data_dir(&disk.join("cache"));
    let options = ["--peer", &seeder.address.to_string(), "--cache-free", "4M"];
    let most = most_taken(
        || taken_of_disk(&disk),
        || {
            let mount = p2pfs.mount(torrent.magnet(), &options);
            assert!(fs::read(mount.path("film.bin")).unwrap() == content.stream());
            // Somebody else needs some of it: the cache gives it up.
            fs::write(disk.join("ballast"), vec![1; 2 * MIB]).unwrap();
            wait_until("there is room again", PATIENCE, || taken_of_disk(&disk) <= 8 * MIB as u64);
            assert!(fs::read(mount.path("film.bin")).unwrap() == content.stream());
            fs::remove_file(disk.join("ballast")).unwrap();
            mount.umount();
        },
    );
    assert!(most <= 10 * MIB as u64, "{most} taken, of which 2 MiB were not the cache's");
}

#[test]
fn pieces_that_the_cache_cannot_hold_are_read_from_memory() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 24 * MIB).piece_length(4 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--peer", &seeder.address.to_string(), "--cache-size", "2M"];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    let began = Instant::now();
    assert!(fs::read(mount.path("film.bin")).unwrap() == content.stream());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    eprintln!("24 MiB in pieces of 4 MiB through a cache of 2 MiB: {:?}", began.elapsed());
    eprintln!("{} bytes were fetched for that", mount.status().number("downloaded"));
    assert!(du(&p2pfs.data_dir) <= 2 * MIB as u64);
}

#[test]
fn a_daemon_that_is_killed_while_it_makes_room_leaves_no_wrong_byte() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 16 * MIB).piece_length(128 * KIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let options = ["--peer", &peer, "--cache-size", "4M"];
    let right = content.stream();
    for round in 1..4 {
        let mount = p2pfs.mount(torrent.magnet(), &options);
        let daemon = p2pfs.daemon();
        let cat =
            Process::spawn(&scratch, std::process::Command::new("cat").arg(mount.path("film.bin")));
        wait_until("much has come and gone", PATIENCE, || cat.stdout().len() > round * 4 * MIB);
        nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
        wait_until("the daemon is gone", PATIENCE, || !scratch.processes().contains(&daemon));
        assert!(right.starts_with(&cat.stdout()));
        assert!(du(&p2pfs.data_dir) <= 4 * MIB as u64);
    }
    let mount = p2pfs.mount(torrent.magnet(), &options);
    assert!(mount.status().number("verified") > 2 * MIB as u64, "most of what was there is there");
    assert!(fs::read(mount.path("film.bin")).unwrap() == right);
    assert!(du(&p2pfs.data_dir) <= 4 * MIB as u64);
}

#[test]
fn the_files_to_keep_stay_and_more_than_fits_is_refused() {
    let scratch = Scratch::new();
    let contents = ["keep.bin", "other.bin"].map(|name| Content::single(name, 6 * MIB));
    let torrents = contents.each_ref().map(|content| Torrent::new(&scratch, content));
    let seeder = P2pfs::named(&scratch, "seeder");
    torrents.iter().for_each(|torrent| seeder.seed(torrent, &[]));
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let (dir, kept) = (p2pfs.mount_point(), scratch.dir("kept"));
    let keep = ["--seed-until", "time=1h", "--keep", kept.to_str().unwrap(), "--peer", &peer];
    let refused =
        p2pfs.try_mount(torrents[0].magnet(), &dir, &[&keep[..], &["--cache-size", "4M"]].concat());
    assert!(refused.failure().stderr.contains("--cache-size"));
    let own = P2pfs::named(&scratch, "second");
    let first = own.mount(torrents[0].magnet(), &[&keep[..], &["--cache-size", "9M"]].concat());
    let second = own.mount(torrents[1].magnet(), &["--peer", &peer, "--on-demand"]);
    assert_eq!(second.tree(), contents[1].tree());
    first.wait();
    wait_until("the file is kept", PATIENCE, || kept.join("keep.bin").exists());
    assert_eq!(second.tree(), contents[1].tree());
    assert_eq!(first.status().number("verified"), 6 * MIB as u64);
    assert!(du(&own.data_dir) <= 9 * MIB as u64);
}

#[test]
fn the_cache_of_a_running_daemon_has_the_size_that_it_has() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::new(&scratch);
    let _mount = p2pfs.mount(&torrent.file, &["-o", "cache_size=10%", "--cache-free", "1M"]);
    let dir = p2pfs.mount_point();
    p2pfs.try_mount(&torrent.file, &dir, &["--cache-size", "10%"]).success();
    for (options, said) in [
        (["--cache-size", "5M"], "cache size is 10%, not 5.00 MiB"),
        (["--cache-free", "3M"], "space to leave free is 1.00 MiB, not 3.00 MiB"),
    ] {
        let refused = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &options);
        let said_so = refused.failure().stderr;
        assert!(said_so.contains(said), "{said_so}");
    }
    let wrong = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["--cache-size", "0%"]);
    assert!(wrong.failure().stderr.contains("not a share"));
}
