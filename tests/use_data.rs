//! Downloads of other clients, finished and half finished, are used where they are and never changed.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use harness::*;
use nix::sys::signal::Signal;

/// What is read of the first file before the other client is stopped.
const PART: usize = 2 * MIB;

fn content() -> Content {
    Content::folder("show")
        .file("one.bin", 4 * MIB)
        .file("sub/two.bin", 3 * MIB + 5)
        .file("x.txt", 9)
}

/// Somebody who has only the beginning of the first file.
fn partial<'a>(scratch: &'a Scratch, torrent: &Torrent, others: &[String]) -> P2pfs<'a> {
    let seeder = P2pfs::named(scratch, "whole");
    seeder.seed(torrent, &[]);
    let p2pfs = P2pfs::named(scratch, "partial");
    let mut options = vec!["--on-demand", "--peer"];
    let peer = seeder.address.to_string();
    options.push(&peer);
    let mount = p2pfs.mount(&torrent.file, &options);
    let mut read = vec![0; PART];
    File::open(mount.path("one.bin")).unwrap().read_exact(&mut read).unwrap();
    // Without the one who has all of it.
    mount.umount();
    drop(seeder);
    let mut options = vec!["--on-demand"];
    others.iter().for_each(|other| options.extend(["--peer", other]));
    p2pfs.mount(&torrent.file, &options);
    p2pfs
}

/// Names, contents and times of all files below a directory.
fn state(dir: &Path) -> (Tree, Vec<(PathBuf, u64, i64, i64)>) {
    let tree = Tree::read(dir);
    let stat = |path: &Path| {
        let m = fs::symlink_metadata(dir.join(path)).unwrap();
        (path.to_owned(), m.blocks(), m.mtime_nsec(), m.ctime_nsec())
    };
    let stats = tree.paths().map(stat).collect();
    (tree, stats)
}

/// Mounts with what a client has left at `data`, reads everything, and looks whether the data is as it was.
fn use_it(scratch: &Scratch, torrent: &Torrent, data: &Path, at_least: usize) {
    let before = state(data);
    let seeder = P2pfs::named(scratch, "seeder");
    seeder.seed(torrent, &[]);
    let p2pfs = P2pfs::new(scratch);
    let peer = seeder.address.to_string();
    let options = ["--use-data", data.to_str().unwrap(), "--peer", &peer];
    let mount = p2pfs.mount(&torrent.file, &options);
    let lent = mount.status().number("lent");
    assert!(lent >= at_least as u64, "{lent} bytes are used, {at_least} are there");
    assert_eq!(mount.tree(), content().tree());
    mount.wait();
    let status = mount.status();
    assert_eq!(status.number("lent"), lent, "all of it stays where it is");
    assert_eq!(status.number("verified"), torrent.length);
    let fetched = status.number("downloaded");
    assert!(
        fetched <= torrent.length - lent + 64 * KIB as u64,
        "{fetched} fetched, {lent} were there"
    );
    assert_eq!(state(data), before);
}

#[test]
fn a_half_finished_download_of_libtorrent_is_used() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &content());
    let save = scratch.dir("lt");
    let client = Libtorrent::start(&scratch, torrent.file.to_str().unwrap(), &save, &[]);
    let _partial = partial(&scratch, &torrent, &[client.address.to_string()]);
    let pieces = (PART / (64 * KIB)) as u64;
    wait_until("libtorrent has what there is", PATIENCE, || client.pieces() >= pieces);
    // Told to end, it writes what it has.
    drop(client);
    use_it(&scratch, &torrent, &save, PART / 2);
}

#[test]
fn a_half_finished_download_of_transmission_is_used_under_the_name_it_has_meanwhile() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &content());
    let save = scratch.dir("tr");
    let client = Transmission::start_naming_parts(&scratch, &save);
    client.add(torrent.file.to_str().unwrap());
    let _partial = partial(&scratch, &torrent, &[client.address.to_string()]);
    let part = (PART as f64) / (torrent.length as f64);
    wait_until("transmission has what there is", PATIENCE, || client.progress() >= part * 0.99);
    client.stop();
    assert!(save.join("show/one.bin.part").exists());
    use_it(&scratch, &torrent, &save.join("show"), PART / 2);
}

#[test]
fn a_half_finished_download_of_aria2_is_used_with_its_preallocated_zeros() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &content());
    let save = scratch.dir("aria2");
    let source = torrent.file.to_str().unwrap();
    let mut client = Aria2::start(&scratch, source, &save, &["--file-allocation=prealloc"]);
    let _partial = partial(&scratch, &torrent, &[client.address.to_string()]);
    wait_until("aria2 has what there is", PATIENCE, || client.completed() >= PART as u64);
    client.stop();
    assert!(save.join("show.aria2").exists());
    assert_eq!(fs::metadata(save.join("show/sub/two.bin")).unwrap().len(), (3 * MIB + 5) as u64);
    use_it(&scratch, &torrent, &save, PART / 2);
}

#[test]
fn a_finished_download_needs_no_cache_and_no_peer_until_it_changes() {
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let save = scratch.dir("done");
    let data = content.write_to(&save);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let options = ["--use-data", data.to_str().unwrap(), "--cache-size", "1M"];
    let said = p2pfs.try_mount(&torrent.file, &dir, &options).success().stderr;
    assert!(said.contains("are used where they are"), "{said}");
    assert_eq!(Tree::read(&dir), content.tree());
    let status = &p2pfs.status()[0];
    assert_eq!((status.number("lent"), status.text("state")), (torrent.length, "complete"));
    // Peers get it too.
    let other = P2pfs::named(&scratch, "other");
    let peer = p2pfs.address.to_string();
    let elsewhere = other.mount(&torrent.file, &["--peer", &peer]);
    elsewhere.wait();
    // Somebody writes to a file: what is not known any more is fetched, and nothing wrong is read.
    let file = File::options().write(true).open(data.join("one.bin")).unwrap();
    file.write_all_at(&[9; 100], 700_000).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(9)).unwrap();
    let uncached = File::open(dir.join("one.bin")).unwrap();
    nix::fcntl::posix_fadvise(&uncached, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .unwrap();
    assert_eq!(fs::read(dir.join("one.bin")).unwrap(), content.bytes_of("one.bin"));
    assert!(p2pfs.status()[0].number("lent") < torrent.length);
    let mut changed = [0; 100];
    File::open(data.join("one.bin")).unwrap().read_exact_at(&mut changed, 700_000).unwrap();
    assert_eq!(changed, [9; 100], "what somebody wrote is left alone");
}

#[test]
fn torrents_of_a_folder_find_theirs_in_a_folder_of_downloads() {
    let scratch = Scratch::new();
    let (show, film) = (content(), Content::single("film.bin", MIB));
    let torrents = [Torrent::new(&scratch, &show), Torrent::new(&scratch, &film)];
    let other = Torrent::new(&scratch, &Content::single("other.bin", MIB));
    let downloads = scratch.dir("downloads");
    show.write_to(&downloads);
    film.write_to(&downloads);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mut command = p2pfs.starting_command("mount");
    command.arg("--use-data").arg(&downloads).args(torrents.each_ref().map(|t| &t.file));
    run(&scratch, command.arg(&other.file).arg(&dir), PATIENCE).success();
    assert_eq!(Tree::read(&dir.join("show")), show.tree());
    assert_eq!(fs::read(dir.join("film.bin/film.bin")).unwrap(), film.bytes_of("film.bin"));
    let lent: Vec<_> = p2pfs.status().iter().map(|status| status.number("lent")).collect();
    assert_eq!(lent, [torrents[0].length, torrents[1].length, 0], "of the third nothing is there");
    run(&scratch, p2pfs.command("rm").arg("film.bin").arg(&dir), PATIENCE).success();
    let mut add = p2pfs.command("add");
    add.arg(&torrents[1].file).arg(&dir).arg("--use-data").arg(downloads.join("film.bin"));
    run(&scratch, &mut add, PATIENCE).success();
    assert_eq!(fs::read(dir.join("film.bin/film.bin")).unwrap(), film.bytes_of("film.bin"));
}

#[test]
fn data_that_cannot_be_used_is_refused_with_one_line() {
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let refused = |data: &Path, dir: &Path| {
        let options = ["--use-data", data.to_str().unwrap(), "-o", "nonempty"];
        let said = p2pfs.try_mount(&torrent.file, dir, &options).failure().stderr;
        said.lines().last().unwrap_or_default().to_owned()
    };
    let said = refused(&scratch.path("nowhere"), &dir);
    assert!(said.contains("nowhere: No such file"), "{said}");
    let said = refused(&scratch.dir("empty"), &dir);
    assert!(said.contains("empty: has no file of show"), "{said}");
    let said = refused(&torrent.save_path, &torrent.data);
    assert!(said.contains("would hide the data"), "{said}");
    let mount = p2pfs.mount(&torrent.file, &[]);
    let said = refused(mount.dir(), &dir);
    assert!(said.contains("lies in a mounted torrent"), "{said}");
    let said = refused(&torrent.data, &dir);
    assert!(said.contains("mounted already without this data"), "{said}");
    assert!(!is_mounted(&dir));
    mount.umount();
    let user = P2pfs::as_ordinary_user(&scratch);
    let locked = scratch.dir("locked");
    content.write_to(&locked);
    let one = locked.join("show/one.bin");
    fs::set_permissions(&one, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let options = ["--use-data", locked.to_str().unwrap()];
    let said = user.try_mount(&torrent.file, &user.mount_point(), &options).failure().stderr;
    assert!(said.contains("one.bin") && said.contains("Permission denied"), "{said}");
}

#[test]
fn data_on_a_disk_that_does_not_answer_holds_up_only_those_who_read_it() {
    const READERS: usize = 12;
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let film = Content::single("film.bin", MIB);
    let other = Torrent::new(&scratch, &film);
    // The first file is behind a link, on a disk of its own.
    let data = content.write_to(&scratch.dir("downloads"));
    let away = scratch.dir("away");
    let one = content.bytes_of("one.bin");
    let disk = StallingDisk::mount(&away, "one.bin", one.clone());
    fs::remove_file(data.join("one.bin")).unwrap();
    std::os::unix::fs::symlink(away.join("one.bin"), data.join("one.bin")).unwrap();

    let p2pfs = P2pfs::new(&scratch);
    let options = ["--use-data", data.to_str().unwrap(), "--read-timeout", "8"];
    let mount = p2pfs.mount(&torrent.file, &options);
    assert_eq!(mount.status().number("lent"), torrent.length);
    let options = ["--use-data", other.data.to_str().unwrap()];
    let second = p2pfs.mount(&other.file, &options);
    let leecher = P2pfs::named(&scratch, "leecher");

    disk.stall();
    let program = |name: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new("timeout");
        command.args(["60", name]).args(arguments);
        command
    };
    let path = mount.path("one.bin").to_str().unwrap().to_owned();
    // Each reads its own part past the page cache; one reads as everybody does.
    let readers: Vec<_> = (0..READERS)
        .map(|i| {
            let input = format!("if={path}");
            let skip = format!("skip={i}");
            let dd = ["iflag=direct", "bs=4k", "count=1", "of=/dev/null", &input, &skip];
            Process::spawn(&scratch, &mut program("dd", &dd))
        })
        .collect();
    let mut cat = Process::spawn(&scratch, &mut program("cat", &[&path]));
    // And a peer asks for all of it.
    let peer = p2pfs.address.to_string();
    let taken = leecher.mount(&torrent.file, &["--peer", &peer]);
    wait_until("the disk is read", PATIENCE, || disk.held() >= 2);

    // Others go on: another file there, another mount, the daemon.
    let same = |path: &Path, bytes: &[u8]| {
        let read = run(&scratch, &mut program("cat", &[path.to_str().unwrap()]), PATIENCE);
        assert!(read.success().stdout == bytes, "{}", path.display());
    };
    same(&mount.path("sub/two.bin"), &content.bytes_of("sub/two.bin"));
    same(&second.path("film.bin"), &film.bytes_of("film.bin"));
    same(&taken.path("x.txt"), &content.bytes_of("x.txt"));
    p2pfs.status();
    assert!(disk.held() <= 8, "{} threads wait for the disk", disk.held());
    // A reader that is told to end does so, and one whose time is over gets an error.
    let mut third = Process::spawn(&scratch, std::process::Command::new("cat").arg(&path));
    third.wait_until_blocked_in_read();
    third.dies_of(Signal::SIGTERM, PATIENCE);
    let ended = cat.wait(PATIENCE).expect("the time of a read comes to its end");
    assert!(!ended.success() && cat.stderr().contains("Input/output error"), "{}", cat.stderr());

    disk.go_on();
    drop(readers);
    // What has failed stays so for a moment.
    wait_until("it is read as ever", PATIENCE, || {
        run(&scratch, &mut program("cat", &[&path]), PATIENCE).stdout == one
    });
    taken.wait();
    assert_eq!(mount.status().number("lent"), torrent.length);
}

#[test]
fn links_in_data_do_not_lead_into_a_mounted_torrent() {
    let scratch = Scratch::new();
    let content = content();
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::new(&scratch);
    let mut options = vec!["--use-data", torrent.data.to_str().unwrap()];
    let mount = p2pfs.mount(&torrent.file, &options);
    let links = scratch.dir("links");
    std::os::unix::fs::symlink(mount.path("one.bin"), links.join("one.bin")).unwrap();
    let another = P2pfs::named(&scratch, "another");
    options[1] = links.to_str().unwrap();
    let dir = another.mount_point();
    let said = another.try_mount(&torrent.file, &dir, &options).failure().stderr;
    let said = said.lines().last().unwrap_or_default();
    assert!(said.contains("links/one.bin: lies in a mounted torrent"), "{said}");
    assert!(!is_mounted(&dir));
}
