//! Finished files are left where the user wants them: shared with the cache, moved out of it, or copied.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::*;

fn content() -> Content {
    Content::folder("show")
        .file("one.bin", 3 * MIB)
        .executable("run.sh", b"#!/bin/sh\n")
        .file("sub/two.bin", 2 * MIB + 5)
        .file("sub/empty", 0)
}

/// Bytes allocated below a directory.
fn taken(dir: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(dir).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.split_whitespace().next().unwrap().parse().unwrap()
}

/// The inodes of the files below a directory.
fn inodes(dir: &Path) -> Vec<u64> {
    Tree::read(dir).paths().map(|path| fs::metadata(dir.join(path)).unwrap().ino()).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A file system of its own on a loop device; only root can make one.
fn disk(scratch: &Scratch, kind: &str, size: u64) -> Option<PathBuf> {
    if !nix::unistd::Uid::effective().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("not tried: there are no loop devices, or they are not ours");
        return None;
    }
    let (image, dir) = (scratch.path("disk.img"), scratch.dir("disk"));
    File::create(&image).unwrap().set_len(size).unwrap();
    run(scratch, Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image), PATIENCE).success();
    run(scratch, Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir), PATIENCE)
        .success();
    Some(dir)
}

#[test]
fn on_the_same_disk_files_are_moved_out_of_the_cache_and_served_where_they_are() {
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let (peer, kept) = (seeder.address.to_string(), scratch.dir("kept"));
    let keep = kept.to_str().unwrap();
    let options =
        ["--keep", keep, "--seed-until", "time=1h", "--peer", &peer, "--cache-size", "9M"];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    let tree = content.tree();
    assert_eq!(Tree::read(&kept), tree);
    assert_eq!(mode(&kept.join("one.bin")), mode(&scratch.file("new", b"")));
    assert!(fs::metadata(kept.join("one.bin")).unwrap().nlink() == 1);
    let (total, in_cache) = (torrent.length, taken(&p2pfs.data_dir));
    assert!(in_cache < total / 4, "{in_cache} of {total} are in the cache still");
    let status = mount.status();
    assert_eq!((status.number("lent"), status.number("verified")), (total, total));
    assert_eq!(mount.tree(), tree);
    // Others get it from there.
    drop(seeder);
    let other = P2pfs::named(&scratch, "other");
    let elsewhere = other.mount(&torrent.file, &["--peer", &p2pfs.address.to_string()]);
    elsewhere.wait();
    assert_eq!(elsewhere.tree(), tree);
    // It is the user's: what he changes is fetched again.
    let own = kept.join("one.bin");
    File::options().write(true).open(&own).unwrap().write_all_at(b"mine", 5).unwrap();
    let again = p2pfs.mount(&torrent.file, &["--peer", &other.address.to_string()]);
    assert_eq!(again.tree(), tree);
    let mut mine = [0; 4];
    File::open(&own).unwrap().read_exact_at(&mut mine, 5).unwrap();
    assert_eq!(&mine, b"mine");
}

#[test]
fn on_another_disk_files_are_copied_and_unmounting_waits_for_that() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 24 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let (peer, kept) = (seeder.address.to_string(), small_disk(&scratch, "40m"));
    let keep = ["--keep", kept.to_str().unwrap(), "--seed-until", "time=1h", "--peer", &peer];
    let mount = p2pfs.mount(torrent.magnet(), &keep);
    wait_until("it is complete", PATIENCE, || mount.status().text("state") == "complete");
    mount.umount();
    assert_eq!(fs::read(kept.join("film.bin")).unwrap(), content.stream());
    assert!(taken(&p2pfs.data_dir) >= torrent.length, "the cache has it, too");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "nothing else is left");
    let second = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(second.tree(), content.tree());
}

#[test]
fn where_the_file_system_can_the_kept_files_share_their_blocks_with_the_cache() {
    let scratch = Scratch::new();
    let Some(disk) = disk(&scratch, "xfs", 400 << 20) else { return };
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch).with_data_dir(&disk.join("cache"));
    let (peer, kept) = (seeder.address.to_string(), disk.join("kept"));
    let options = ["--keep", kept.to_str().unwrap(), "--seed-until", "time=1h", "--peer", &peer];
    let mount = p2pfs.mount(torrent.magnet(), &options);
    mount.wait();
    assert_eq!(Tree::read(&kept), content.tree());
    let status = mount.status();
    assert_eq!((status.number("lent"), status.number("verified")), (0, torrent.length));
    let extents = Command::new("filefrag").arg("-v").arg(kept.join("one.bin")).output().unwrap();
    let extents = String::from_utf8(extents.stdout).unwrap();
    assert!(extents.contains("shared"), "{extents}");
    let in_cache = inodes(&disk.join("cache").join(&torrent.info_hash).join("files"));
    assert!(inodes(&kept).iter().all(|inode| !in_cache.contains(inode)), "never a hard link");
    mount.umount();
    assert_eq!(p2pfs.mount(&torrent.file, &[]).tree(), content.tree());
}

#[test]
fn who_waits_for_more_than_the_cache_may_have_is_told_so() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let peer = seeder.address.to_string();
    let options = ["--peer", &peer, "--cache-size", "6M"];
    let dir = p2pfs.mount_point();
    let until_done = [&options[..], &["--until-done"]].concat();
    let said = p2pfs.try_mount(&torrent.file, &dir, &until_done).failure().stderr;
    assert!(
        said.contains("8.00 MiB are never here at once") && said.lines().count() == 1,
        "{said}"
    );
    let mount = p2pfs.mount(&torrent.file, &options);
    let said = mount.run("wait", &[]).failure().stderr;
    assert!(said.contains("--cache-size"), "{said}");
    let said = mount.run("umount", &["--when-done"]).failure().stderr;
    assert!(said.contains("--cache-size") && mount.is_mounted(), "{said}");
}

#[test]
fn two_mounts_of_a_torrent_do_not_keep_its_files_in_one_folder() {
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    let p2pfs = P2pfs::new(&scratch);
    let (peer, kept) = (seeder.address.to_string(), scratch.dir("kept"));
    let keep = ["--keep", kept.to_str().unwrap(), "--until-done"];
    let options = [&keep[..], &["--peer", &peer]].concat();
    let mount = p2pfs.mount(&torrent.file, &options);
    let refused = |by: &P2pfs<'_>| {
        let dir = by.mount_point();
        let said = by.try_mount(&torrent.file, &dir, &keep).failure().stderr;
        assert!(said.contains("another mount keeps the files of this torrent there"), "{said}");
        assert!(said.lines().count() == 1 && !is_mounted(&dir), "{said}");
    };
    refused(&p2pfs);
    let other = P2pfs::named(&scratch, "other");
    refused(&other);
    // Another torrent may, and this one when the first mount has ended.
    let film = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    p2pfs.mount(&film.file, &keep).umount();
    mount.umount();
    let is_empty = || fs::read_dir(&kept).unwrap().count() == 0;
    wait_until("nothing is left", PATIENCE, is_empty);
    seeder.seed(&torrent, &[]);
    let again = p2pfs.mount(&torrent.file, &options);
    again.wait_until_unmounted();
    assert_eq!(Tree::read(&kept), content.tree());
}
