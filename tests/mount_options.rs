//! What the options of `mount` and the commands around it do.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::*;
use nix::sys::signal::Signal;

/// An album with its seeder.
fn album(scratch: &Scratch) -> (Content, Torrent, Libtorrent) {
    let content = Content::album();
    let torrent = Torrent::new(scratch, &content);
    let seeder = Libtorrent::seed(scratch, &torrent);
    (content, torrent, seeder)
}

#[test]
fn mount_returns_before_the_data_is_here() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(std::fs::metadata(mount.path("01 first.flac")).unwrap().len(), 1_500_000);
    assert_eq!(mount.status().number("verified"), 0);
}

#[test]
fn a_mount_in_the_foreground_unmounts_on_sigint_and_sigterm() {
    let scratch = Scratch::new();
    let (content, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let options = ["--peer", &seeder.address.to_string()];
        let (mut process, mount) = p2pfs.mount_foreground(torrent.magnet(), &options);
        assert_eq!(mount.tree(), content.tree());
        process.signal(signal);
        assert!(process.wait(PATIENCE).expect("p2pfs ends").success(), "{}", process.stderr());
        assert!(!mount.is_mounted());
    }
}

#[test]
fn until_done_unmounts_by_itself_in_the_foreground_with_exit_code_0() {
    let scratch = Scratch::new();
    let (_, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let options = ["--foreground", "--until-done", "--peer", &seeder.address.to_string()];
    p2pfs.try_mount(torrent.magnet(), &dir, &options).success();
    assert_eq!(mounts_below(&dir), Vec::<std::path::PathBuf>::new());
}

#[test]
fn until_done_unmounts_by_itself_in_the_background() {
    let scratch = Scratch::new();
    let (_, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let options = ["--until-done", "--peer", &seeder.address.to_string()];
    p2pfs.try_mount(torrent.magnet(), &dir, &options).success();
    wait_until("it is unmounted", PATIENCE, || mounts_below(&dir).is_empty());
}

#[test]
fn keep_leaves_the_finished_files_behind() {
    let scratch = Scratch::new();
    let (content, torrent, seeder) = album(&scratch);
    let kept = scratch.dir("kept");
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let peer = seeder.address.to_string();
    let keep = kept.to_str().unwrap();
    let options = ["--foreground", "--until-done", "--keep", keep, "--peer", &peer];
    p2pfs.try_mount(torrent.magnet(), &dir, &options).success();
    assert_eq!(Tree::read(&kept), content.tree());
}

#[test]
fn wait_returns_when_everything_is_verified() {
    let scratch = Scratch::new();
    let (_, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    mount.wait();
    assert_eq!(mount.status().number("verified"), torrent.length);
}

#[test]
fn select_fetches_what_matches_and_shows_the_rest() {
    let scratch = Scratch::new();
    let content = Content::folder("album").file("one.flac", 3 * MIB).file("two.jpg", 3 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--select", "*.jpg", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    let verified = mount.status().number("verified");
    assert!(verified >= 3 * MIB as u64, "{verified} bytes verified");
    assert!(verified < 4 * MIB as u64, "{verified} bytes verified of a selection of 3 MiB");
    // Read all the same, then.
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn prefetch_fetches_a_file_of_a_mount_on_demand() {
    let scratch = Scratch::new();
    let content = Content::folder("album").file("one.flac", 3 * MIB).file("two.jpg", 3 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    p2pfs.run("prefetch", &[mount.path("two.jpg").to_str().unwrap()]).success();
    wait_until("the file is here", PATIENCE, || {
        mount.status().number("verified") >= 3 * MIB as u64
    });
    drop(seeder);
    assert_eq!(std::fs::read(mount.path("two.jpg")).unwrap(), content.bytes_of("two.jpg"));
}

#[test]
fn a_download_limit_holds() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 4 * MIB));
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let begin = Instant::now();
    let options = ["--download-limit", "1M", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    // 4 s at the limit; less only by what a full token bucket lets through at first.
    assert!(begin.elapsed() > Duration::from_millis(2500), "{:?}", begin.elapsed());
}

#[test]
fn an_upload_limit_holds() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 4 * MIB));
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &["--upload-limit", "1M"]);
    let begin = Instant::now();
    let magnet = torrent.magnet_with_peers(&[p2pfs.address]);
    Libtorrent::start(&scratch, &magnet, &scratch.dir("save"), &[]).wait_until_complete();
    assert!(begin.elapsed() > Duration::from_millis(2500), "{:?}", begin.elapsed());
}

#[test]
fn uid_gid_and_umask_show_in_the_tree() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--uid", "1234", "--gid", "2345", "--umask", "077"];
    let mount = p2pfs.mount(&torrent.file, &options);
    let meta = std::fs::metadata(mount.path("notes.txt")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (1234, 2345, 0o400));
}

#[test]
fn ls_lists_a_torrents_files_without_a_mount() {
    let scratch = Scratch::new();
    let (_, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let mut command = p2pfs.starting_command("ls");
    command.arg("--peer").arg(seeder.address.to_string()).arg(torrent.magnet());
    let said = run(&scratch, &mut command, PATIENCE).success().stdout();
    for name in ["01 first.flac", "art/cover.jpg", "art/empty", "notes.txt"] {
        assert!(said.contains(name), "no {name} in {said}");
    }
    assert_eq!(mounts_below(scratch.root()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn status_names_the_mount_and_its_torrent() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let status = mount.status();
    assert_eq!(status.text("kind"), "mount");
    assert_eq!(status.text("path"), mount.dir().to_str().unwrap());
    assert_eq!(status.text("info_hash"), torrent.info_hash);
    let shown = p2pfs.run("status", &[]).success().stdout();
    assert!(shown.contains(mount.dir().to_str().unwrap()), "{shown}");
}

#[test]
fn the_mount_is_called_p2pfs_in_the_systems_table() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let mut findmnt = Command::new("findmnt");
    findmnt.args(["--noheadings", "--output", "FSTYPE"]).arg(mount.dir());
    assert_eq!(run(&scratch, &mut findmnt, PATIENCE).success().stdout().trim(), "fuse.p2pfs");
}

#[test]
fn a_mount_is_ended_by_the_systems_umount() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    run(&scratch, Command::new("fusermount3").arg("-u").arg(mount.dir()), PATIENCE).success();
    wait_until("status forgets it", PATIENCE, || p2pfs.status().is_empty());
}

#[test]
fn umount_when_done_waits_and_tells_the_share_ratio() {
    let scratch = Scratch::new();
    let (_, torrent, seeder) = album(&scratch);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let ended = mount.run("umount", &["--when-done"]).success();
    assert!(!mount.is_mounted());
    assert!(ended.stderr.contains("share ratio 0.0"), "{}", ended.stderr);
    drop(seeder);
    let again = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(again.status().number("verified"), torrent.length);
}

/// As systemd's automount units have it: what looks into the directory waits for the mount, but for the
/// process group that is to make it. The daemon is in another one.
#[test]
fn an_automount_is_mounted_on_by_its_own_process_group() {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    if !nix::unistd::geteuid().is_root() || !known.contains("\tautofs\n") {
        eprintln!("left out: it takes root, and a kernel with autofs");
        return;
    }
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mut mount = p2pfs.starting_command("mount");
    mount.args(["--peer", &seeder.address.to_string()]).arg(&torrent.file).arg(&dir);
    let words: Vec<_> = std::iter::once(mount.get_program()).chain(mount.get_args()).collect();
    let script = "set -e; dir=$1; shift; mkfifo \"$0\"; exec 9<>\"$0\"
        mount -t autofs -o fd=9,pgrp=$$,minproto=5,maxproto=5,direct automount \"$dir\"
        exec \"$@\" 9>&-";
    let mut group = Command::new("setsid");
    group.args(["--wait", "sh", "-c", script]).arg(scratch.path("requests")).arg(&dir).args(words);
    run(&scratch, &mut group, PATIENCE).success();
    assert_eq!(Tree::read(&dir), content.tree());
    p2pfs.run("umount", &[dir.to_str().unwrap()]).success();
    let left: Vec<_> = mounts_below(&dir);
    assert_eq!(left, [dir], "the automount is left");
}
