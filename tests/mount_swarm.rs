//! Seeders that come and go during a read.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::process::Command;

use harness::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_read_goes_on_when_two_of_three_seeders_are_killed() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 12 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "2000000"];
    let seed = || Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let seeders = [seed(), seed(), seed()];
    let mut options = Vec::new();
    let addresses = seeders.each_ref().map(|seeder| seeder.address.to_string());
    for address in &addresses {
        options.extend(["--peer", address.as_str()]);
    }
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &options);
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    wait_until("the read is under way", PATIENCE, || cat.stdout().len() > MIB);
    let [first, second, _last] = seeders;
    drop((first, second));
    assert!(!cat.has_ended(), "the read was over before the seeders were killed");
    assert!(cat.wait(PATIENCE).expect("cat ends").success());
    assert_eq!(sha256(&cat.stdout()), sha256(&content.stream()));
}

#[test]
fn a_seeder_that_comes_back_is_used_again() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "2000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let port = seeder.address.port().to_string();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    wait_until("the read is under way", PATIENCE, || cat.stdout().len() > MIB);
    drop(seeder);
    cat.wait_until_blocked_in_read();
    let save_path = &torrent.save_path;
    let _again = Libtorrent::seed_with(&scratch, &torrent, save_path, &["--port", &port]);
    assert!(cat.wait(PATIENCE).expect("cat ends").success());
    assert_eq!(sha256(&cat.stdout()), sha256(&content.stream()));
}

#[test]
fn what_is_read_comes_before_the_rest() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 32 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "2000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    // The last of 32 MiB, which would come after 16 s if its turn had to come.
    let mut tail = Command::new("tail");
    let begin = std::time::Instant::now();
    let bound = std::time::Duration::from_secs(8);
    let finished = run(&scratch, tail.args(["-c", "1000"]).arg(mount.path("film.bin")), bound);
    let stream = content.stream();
    assert_eq!(finished.success().stdout, stream[stream.len() - 1000..]);
    println!("1000 bytes at the end after {:?}", begin.elapsed());
}

#[test]
fn on_demand_fetches_little_more_than_what_is_read() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 32 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    let mut head = Command::new("head");
    run(&scratch, head.args(["-c", "1000"]).arg(mount.path("film.bin")), PATIENCE).success();
    // Readahead included; a full download would be done before this bound.
    let much = 16 * MIB as u64;
    let bound = std::time::Duration::from_secs(3);
    let fetched = wait_for(bound, || (seeder.uploaded() > much).then_some(()));
    assert!(fetched.is_none(), "{} bytes for a read of 1000", seeder.uploaded());
}

/// As root alone: the kernel lets nobody else.
#[test]
fn a_complete_file_is_read_without_the_daemon() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    mount.wait();
    // A program of its own holds the file: a copy of the descriptor in some child of this process would
    // wait for the daemon when it is closed.
    let program = "exec 3< \"$0\" && echo open >&2 && read -r go < \"$1\" && exec cat <&3";
    let go = scratch.path("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut sh = Command::new("sh");
    sh.args(["-c", program]).arg(mount.path("film.bin")).arg(&go);
    let mut reader = Process::spawn(&scratch, &mut sh);
    wait_until("the file is open", PATIENCE, || !reader.stderr().is_empty());
    let stopped = Stopped::new(p2pfs.daemon());
    std::fs::write(&go, b"go\n").unwrap();
    wait_until("the kernel reads it", PATIENCE, || reader.stdout().len() == 8 * MIB);
    drop(stopped);
    assert!(reader.wait(PATIENCE).expect("it ends").success());
    assert_eq!(sha256(&reader.stdout()), sha256(&content.stream()));
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: Pid) -> Self {
        kill(process, Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
