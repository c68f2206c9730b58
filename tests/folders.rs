//! Several torrents in one directory, a folder each, which come and go while it is mounted.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::*;

/// Nobody has it, and nobody can be asked.
const DEAD: &str = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=dead";

/// How long a command may take that waits for nobody.
const SOON: Duration = Duration::from_secs(10);

/// Mounts several sources on a new directory.
#[track_caller]
fn mount(scratch: &Scratch, p2pfs: &P2pfs, sources: &[&str], options: &[&str]) -> PathBuf {
    let dir = p2pfs.mount_point();
    let mut command = p2pfs.starting_command("mount");
    command.args(options).args(sources).arg(&dir);
    run(scratch, &mut command, PATIENCE).success();
    dir
}

fn state(folder: &Path) -> Option<String> {
    let value = xattr::get(folder, "user.p2pfs.state").ok().flatten()?;
    Some(String::from_utf8(value).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn each_source_has_a_folder_and_a_dead_one_delays_nobody() {
    let scratch = Scratch::new();
    let (album, film) = (Content::album(), Content::single("film.bin", MIB));
    let torrents = [Torrent::new(&scratch, &album), Torrent::new(&scratch, &film)];
    let seeders = torrents.each_ref().map(|torrent| Libtorrent::seed(&scratch, torrent));
    let magnets =
        [0, 1].map(|i| torrents[i].magnet_with_peers(&[seeders[i].address]) + "&dn=named");
    let p2pfs = P2pfs::new(&scratch);
    let begin = Instant::now();
    let sources = [DEAD, text(&torrents[0].file), &magnets[1]];
    let peer = seeders[0].address.to_string();
    let dir = mount(&scratch, &p2pfs, &sources, &["--peer", &peer]);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let name = String::from_utf8(album.name.clone()).unwrap();
    assert_eq!(Tree::read(&dir.join(&name)), album.tree());
    assert_eq!(Tree::read(&dir.join("named")), film.tree());
    assert_eq!(std::fs::read_dir(dir.join("dead")).unwrap().count(), 0);
    assert_eq!(state(&dir.join("dead")).map(|state| state.is_empty()), Some(false));
    assert_eq!(state(&dir.join("named")), None);
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [name.as_str(), "dead", "named"]);
    // Each inode is one of a kind, however many torrents have the same numbers.
    let find = run(&scratch, Command::new("find").arg(&dir).args(["-printf", "%i\\n"]), PATIENCE);
    let found = find.success().stdout();
    let all: Vec<_> = found.lines().collect();
    let one_of_a_kind: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), one_of_a_kind.len(), "{found}");
    // A folder is waited for, described and counted like a mount of its own.
    p2pfs.run("wait", &[text(&dir.join("named"))]).success();
    let status = p2pfs.run("status", &[text(&dir)]).success().stdout();
    assert!(status.contains(text(&dir.join("named"))), "{status}");
    assert!(status.contains("dead  no metadata yet\n"), "{status}");
    let part = p2pfs.run("status", &[text(&dir.join("named/film.bin"))]).success().stdout();
    assert!(part.contains("1.00 MiB of 1.00 MiB verified"), "{part}");
    let refused = p2pfs.run("wait", &[text(&dir)]).failure();
    assert!(refused.stderr.contains("several torrents"), "{}", refused.stderr);
    p2pfs.run("umount", &[text(&dir)]).success();
    assert_eq!(mounts_below(&dir), Vec::<PathBuf>::new());
    // Another mount namespace, begun by somebody meanwhile, has a copy of it until that ends.
    assert!(p2pfs.status().iter().all(Status::is_detached));
}

#[test]
fn a_mount_is_known_before_its_folders_have_anything() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mut command = p2pfs.starting_command("mount");
    command.args(["--folders", DEAD]).arg(&dir);
    let mut mounting = Process::spawn(&scratch, &mut command);
    // The command waits for what the folder is to show.
    wait_until("it is listed", PATIENCE, || !p2pfs.status().is_empty());
    assert!(!mounting.has_ended(), "{}", mounting.stderr());
    assert_eq!(mounts_below(&dir), std::slice::from_ref(&dir));
    let status = p2pfs.run("status", &[text(&dir)]).success().stdout();
    assert!(status.contains(text(&dir.join("dead"))), "{status}");
    p2pfs.stop_daemon();
    assert_eq!(mounts_below(&dir), Vec::<PathBuf>::new());
    assert_eq!(mounting.wait(SOON).expect("it ends").code(), Some(1));
    assert_eq!(mounting.stderr().lines().count(), 1, "{}", mounting.stderr());
}

#[test]
fn a_folder_is_added_while_others_look_for_its_name() {
    let scratch = Scratch::new();
    let film = Content::single("film.bin", 300_000);
    let torrent = Torrent::new(&scratch, &film);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let dir = mount(&scratch, &p2pfs, &[DEAD], &["--folders"]);
    // The kernel must not remember that.
    assert!(!dir.join("film.bin").exists());
    p2pfs
        .run("add", &[text(&torrent.file), text(&dir), "--peer", &seeder.address.to_string()])
        .success();
    assert_eq!(std::fs::read(dir.join("film.bin/film.bin")).unwrap(), film.bytes_of("film.bin"));
    // The same again has a name of its own.
    p2pfs.run("add", &[text(&torrent.file), text(&dir)]).success();
    assert_eq!(Tree::read(&dir.join("film.bin.2")), film.tree());
    let refused = p2pfs.run("add", &["missing.torrent", text(&dir)]).failure();
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
}

#[test]
fn an_empty_folder_fills_when_somebody_comes_who_has_it() {
    let scratch = Scratch::new();
    let film = Content::single("film.bin", 300_000);
    let torrent = Torrent::new(&scratch, &film);
    let later = P2pfs::named(&scratch, "later");
    let p2pfs = P2pfs::new(&scratch);
    let magnet = torrent.magnet_with_peers(&[later.address]) + "&dn=film";
    let dir = mount(&scratch, &p2pfs, &[&magnet, DEAD], &[]);
    let folder = dir.join("film");
    assert!(folder.is_dir() && !folder.join("film.bin").exists());
    later.seed(&torrent, &["--peer", &p2pfs.address.to_string()]);
    wait_until("its file is there", PATIENCE, || folder.join("film.bin").exists());
    assert_eq!(Tree::read(&folder), film.tree());
    assert_eq!(state(&folder), None);
}

#[test]
fn a_folder_is_taken_away_while_the_others_stay() {
    let scratch = Scratch::new();
    let (album, film) = (Content::album(), Content::single("film.bin", 4 * MIB));
    let torrents = [Torrent::new(&scratch, &album), Torrent::new(&scratch, &film)];
    let seeder = Libtorrent::seed(&scratch, &torrents[0]);
    let p2pfs = P2pfs::new(&scratch);
    let sources = [text(&torrents[0].file), text(&torrents[1].file)];
    let dir = mount(&scratch, &p2pfs, &sources, &["--peer", &seeder.address.to_string()]);
    let file = dir.join("film.bin/film.bin");
    // Nobody has it, so its reader waits.
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(&file));
    cat.wait_until_blocked_in_read();
    let refused = p2pfs.run("rm", &["film.bin", text(&dir)]).failure();
    assert!(refused.stderr.contains("1 file open"), "{}", refused.stderr);
    let mut open = std::fs::File::open(&file).unwrap();
    p2pfs.run("rm", &["--force", "film.bin", text(&dir)]).success();
    assert_eq!(cat.wait(SOON).expect("cat ends").code(), Some(1), "{}", cat.stderr());
    assert!(open.read(&mut [0; 10]).is_err());
    drop(open);
    wait_until("the kernel has forgotten it", PATIENCE, || !dir.join("film.bin").exists());
    assert!(!file.exists());
    let name = String::from_utf8(album.name.clone()).unwrap();
    assert_eq!(Tree::read(&dir.join(&name)), album.tree());
    let missing = p2pfs.run("rm", &["film.bin", text(&dir)]).failure();
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
    // And comes again under the same name.
    p2pfs.run("add", &[sources[1], text(&dir)]).success();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 4 * MIB as u64);
    p2pfs.run("rm", &[&name, text(&dir)]).success();
    wait_until("its torrent is gone too", PATIENCE, || p2pfs.status().len() == 1);
}

#[test]
fn one_torrent_without_folders_takes_no_others() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let refused = p2pfs.run("add", &[text(&torrent.file), text(mount.dir())]).failure();
    assert!(refused.stderr.contains("--folders"), "{}", refused.stderr);
    let dir = p2pfs.mount_point();
    let both = p2pfs.try_mount(&torrent.file, &dir, &["--folders", "--until-done"]).failure();
    assert_eq!((both.status.code(), both.stderr.lines().count()), (Some(2), 1), "{}", both.stderr);
}
