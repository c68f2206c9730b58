//! `p2pfs cache`: with a daemon and without.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use harness::*;
use serde_json::Value;
use sha1::{Digest, Sha1};

/// `p2pfs cache ARGUMENTS…` for the cache of this daemon.
fn cache(scratch: &Scratch, p2pfs: &P2pfs, arguments: &[&str]) -> Finished {
    let mut command = p2pfs.command("cache");
    command.args(arguments).arg("--data-dir").arg(&p2pfs.data_dir);
    run(scratch, &mut command, PATIENCE)
}

fn listed(scratch: &Scratch, p2pfs: &P2pfs) -> Vec<Value> {
    let said = cache(scratch, p2pfs, &["ls", "--json"]).success().stdout();
    serde_json::from_str(&said).unwrap()
}

/// The two torrents of a test, a seeder of both, and their mounts, complete.
fn films(scratch: &Scratch) -> ([Content; 2], [Torrent; 2], P2pfs<'_>) {
    let one = Content::folder("one").file("a.bin", 2 * MIB).file("b.bin", 3 * MIB);
    let contents = [one, Content::single("two.bin", 2 * MIB)];
    let torrents = contents.each_ref().map(|content| Torrent::new(scratch, content));
    let seeder = P2pfs::named(scratch, "seeder");
    torrents.iter().for_each(|torrent| seeder.seed(torrent, &[]));
    (contents, torrents, seeder)
}

fn cached_file(p2pfs: &P2pfs, hash: &str, file: &str) -> PathBuf {
    p2pfs.data_dir.join(hash).join("files").join(file)
}

#[test]
fn what_nobody_has_mounted_is_freed_but_for_what_is_pinned() {
    let scratch = Scratch::new();
    let (contents, torrents, seeder) = films(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    assert_eq!(listed(&scratch, &p2pfs), [] as [Value; 0], "no cache at all");
    let peer = seeder.address.to_string();
    let mounts = torrents.each_ref().map(|t| p2pfs.mount(t.magnet(), &["--peer", &peer]));
    mounts.iter().for_each(|mount| mount.wait());
    let hash = mounts[0].status().text("info_hash").to_owned();
    let pinned = mounts[0].path("a.bin");
    let pin = |verb: &str, what: &str| cache(&scratch, &p2pfs, &[verb, what]).success();
    pin("pin", pinned.to_str().unwrap());
    cache(&scratch, &p2pfs, &["gc"]).success();
    for (mount, content) in mounts.iter().zip(&contents) {
        assert_eq!(mount.status().number("verified"), content.stream().len() as u64);
    }
    let table = cache(&scratch, &p2pfs, &["ls"]).success().stdout();
    assert!(table.contains("100 %") && table.contains("mounted, 1 file pinned"), "{table}");
    mounts.into_iter().for_each(Mount::umount);
    // At once: what is unmounted is not in use.
    cache(&scratch, &p2pfs, &["gc"]).success();
    let left = listed(&scratch, &p2pfs);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["info_hash"], *hash);
    assert_eq!(left[0]["pinned_files"], 1);
    let here = left[0]["here"].as_u64().unwrap();
    assert!((2 * MIB as u64..3 * MIB as u64).contains(&here), "{here} bytes are here");
    // Its daemon killed, the command looks itself.
    let mount = p2pfs.mount(torrents[0].magnet(), &["--on-demand"]);
    assert_eq!(std::fs::read(mount.path("a.bin")).unwrap(), contents[0].bytes_of("a.bin"));
    p2pfs.kill_daemon();
    assert_eq!(listed(&scratch, &p2pfs)[0]["pinned_files"], 1);
    pin("unpin", &hash);
    cache(&scratch, &p2pfs, &["gc"]).success();
    assert!(listed(&scratch, &p2pfs).is_empty());
    assert!(!p2pfs.data_dir.join(&hash).exists());
    let unknown = cache(&scratch, &p2pfs, &["pin", &hash]).failure();
    assert!(unknown.stderr.contains("not in the cache"), "{}", unknown.stderr);
}

#[test]
fn what_was_taken_out_of_a_mount_is_freed() {
    let scratch = Scratch::new();
    let (contents, torrents, seeder) = films(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mut folders = p2pfs.starting_command("mount");
    folders.args(["--peer", &seeder.address.to_string()]);
    folders.args(torrents.each_ref().map(|torrent| &torrent.file)).arg(&dir);
    run(&scratch, &mut folders, PATIENCE).success();
    assert_eq!(std::fs::read(dir.join("one/b.bin")).unwrap(), contents[0].bytes_of("b.bin"));
    run(&scratch, p2pfs.command("rm").arg("one").arg(&dir), PATIENCE).success();
    cache(&scratch, &p2pfs, &["gc"]).success();
    let left = listed(&scratch, &p2pfs);
    assert!(left.len() == 1 && left[0]["in_use"] == true, "{left:?}");
}

/// The kernel has kept pages of what is bad, and a repair is none if readers are still given those.
#[test]
fn after_a_repair_readers_are_given_what_is_good() {
    let scratch = Scratch::new();
    let (contents, torrents, seeder) = films(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let alone = p2pfs.mount(&torrents[0].file, &["--peer", &peer]);
    alone.wait();
    let dir = p2pfs.mount_point();
    let mut folders = p2pfs.starting_command("mount");
    folders
        .args(["--peer", &peer])
        .args(torrents.each_ref().map(|torrent| &torrent.file))
        .arg(&dir);
    run(&scratch, &mut folders, PATIENCE).success();
    let hash = alone.status().text("info_hash").to_owned();
    let bytes = contents[0].bytes_of("b.bin");
    let shown = [alone.path("b.bin"), dir.join("one/b.bin")];
    let file = File::options().write(true).open(cached_file(&p2pfs, &hash, "1")).unwrap();
    file.write_all_at(b"rot", MIB as u64).unwrap();
    for path in &shown {
        assert!(std::fs::read(path).unwrap() != bytes, "the kernel has read what is bad");
    }
    cache(&scratch, &p2pfs, &["verify", "--repair"]).success();
    for path in &shown {
        wait_until("its readers are given what is good", PATIENCE, || {
            std::fs::read(path).unwrap() == bytes
        });
    }
}

#[test]
fn rot_is_found_and_mended_with_a_daemon_and_without() {
    let scratch = Scratch::new();
    let (contents, torrents, seeder) = films(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let options = ["--peer", &peer];
    let mount = p2pfs.mount(torrents[0].magnet(), &options);
    mount.wait();
    let hash = mount.status().text("info_hash").to_owned();
    let rot = || {
        let file = File::options().write(true).open(cached_file(&p2pfs, &hash, "1")).unwrap();
        file.write_all_at(b"rot", MIB as u64).unwrap();
    };
    let good = cache(&scratch, &p2pfs, &["verify"]).success();
    assert!(good.stderr.contains("all good"), "{}", good.stderr);
    rot();
    let found = cache(&scratch, &p2pfs, &["verify"]).failure();
    assert!(found.stdout().contains("1 bad, the first is"), "{}", found.stdout());
    assert!(found.stderr.contains("--repair"), "{}", found.stderr);
    // What is bad is not given to readers, and wanted in the background.
    mount.wait();
    assert_eq!(mount.tree(), contents[0].tree());
    rot();
    cache(&scratch, &p2pfs, &["verify", "--repair"]).success();
    mount.wait();
    cache(&scratch, &p2pfs, &["verify"]).success();
    p2pfs.kill_daemon();
    rot();
    cache(&scratch, &p2pfs, &["verify"]).failure();
    cache(&scratch, &p2pfs, &["verify", "--repair"]).success();
    let here = listed(&scratch, &p2pfs)[0]["here"].as_u64().unwrap();
    assert!(here < 5 * MIB as u64);
    let mount = p2pfs.mount(torrents[0].magnet(), &options);
    mount.wait();
    assert_eq!(mount.tree(), contents[0].tree());
    cache(&scratch, &p2pfs, &["verify"]).success();
}

/// A torrent of zeros that is in the cache already, so large that checking it takes a while.
fn long_check(p2pfs: &P2pfs) {
    const PIECES: usize = 64 << 10;
    let length = (PIECES * MIB) as u64;
    let hash = Sha1::digest(vec![0; MIB]);
    let mut info =
        format!("d6:lengthi{length}e4:name5:zeros12:piece lengthi{MIB}e6:pieces").into_bytes();
    info.extend_from_slice(format!("{}:", 20 * PIECES).as_bytes());
    (0..PIECES).for_each(|_| info.extend_from_slice(&hash));
    info.push(b'e');
    let id = Sha1::digest(&info);
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = p2pfs.data_dir.join(hex);
    std::fs::create_dir_all(dir.join("files")).unwrap();
    std::fs::write(dir.join("info"), &info).unwrap();
    let header = [&b"p2pfsix1"[..], &(PIECES as u32).to_be_bytes(), &id].concat();
    std::fs::write(dir.join("index"), [&header[..], &[0xff; PIECES / 8]].concat()).unwrap();
    File::create(dir.join("files/0")).unwrap().set_len(length).unwrap();
}

/// Bytes that a process has read so far, from wherever.
fn bytes_read(pid: nix::unistd::Pid) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn a_check_gives_way_to_a_daemon_and_ends_with_the_command() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::new(&scratch);
    long_check(&p2pfs);
    let mut command = p2pfs.command("cache");
    command.arg("verify").arg("--data-dir").arg(&p2pfs.data_dir);
    let mut check = Process::spawn(&scratch, &mut command);
    let lock = p2pfs.data_dir.join("lock");
    wait_until("the command has the cache", PATIENCE, || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.starts_with("command"))
    });
    let mount = p2pfs.mount(&torrent.file, &["--use-data", torrent.data.to_str().unwrap()]);
    assert_eq!(mount.tree(), content.tree());
    assert!(std::fs::read_to_string(&lock).unwrap().starts_with("process"));
    assert!(!check.has_ended(), "{}", check.stderr());
    let daemon = p2pfs.daemon();
    let before = bytes_read(daemon);
    wait_until("the daemon checks the cache", PATIENCE, || {
        bytes_read(daemon) > before + (64 * MIB) as u64
    });
    check.dies_of(nix::sys::signal::Signal::SIGKILL, PATIENCE);
    let (mut last, mut same) = (0, 0);
    wait_until("it stops when nobody wants to know", PATIENCE, || {
        let now = bytes_read(daemon);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same > 50
    });
    assert!(last < 60 << 30, "{last} bytes: it was checked to the end");
    mount.umount();
}
