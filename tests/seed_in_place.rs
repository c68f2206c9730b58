//! Creating and seeding: data is checked, served where it is, and never changed.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::PathBuf;
use std::process::Command;

use harness::*;

#[test]
fn wrong_data_is_refused_with_one_line() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 2 * MIB));
    let wrong = torrent.corrupted(&scratch, 16 * KIB).join("film.bin");
    let finished = P2pfs::new(&scratch).try_seed(&torrent.file, &wrong, &[]).failure();
    let last = finished.stderr.lines().last().unwrap_or("");
    assert!(last.contains("film.bin"), "{}", finished.stderr);
}

#[test]
fn data_that_is_not_there_is_refused() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 2 * MIB));
    let nowhere = scratch.path("nowhere");
    let finished = P2pfs::new(&scratch).try_seed(&torrent.file, &nowhere, &[]).failure();
    assert!(finished.stderr.contains("nowhere"), "{}", finished.stderr);
}

#[test]
fn data_in_a_read_only_place_is_seeded_and_left_alone() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let before = times(&torrent.data);
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &[]);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[p2pfs.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&torrent.data), content.tree());
    assert_eq!(times(&torrent.data), before);
}

/// Modification and change times of a folder and its files.
fn times(dir: &std::path::Path) -> Vec<(PathBuf, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let tree = Tree::read(dir);
    let mut paths: Vec<PathBuf> = tree.paths().map(|path| dir.join(path)).collect();
    paths.push(dir.to_path_buf());
    let times = |path: PathBuf| {
        let meta = std::fs::metadata(&path).unwrap();
        (path, meta.mtime_nsec(), meta.ctime_nsec())
    };
    paths.into_iter().map(times).collect()
}

#[test]
fn data_that_changed_later_is_not_served() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 2 * MIB));
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&torrent, &[]);
    std::fs::write(&torrent.data, vec![7; 2 * MIB]).unwrap();
    let source = torrent.file.to_str().unwrap();
    let mut leecher = Libtorrent::start(&scratch, source, &scratch.dir("save"), &[]);
    leecher.connect(p2pfs.address);
    let bound = std::time::Duration::from_secs(3);
    let got = wait_for(bound, || (leecher.wasted() > 0).then_some(()));
    assert!(got.is_none(), "{} wrong bytes were sent", leecher.wasted());
}

#[test]
fn what_p2pfs_creates_every_client_takes() {
    let scratch = Scratch::new();
    let content = Content::album();
    let p2pfs = P2pfs::new(&scratch);
    let create = |version: &[&str], name: &str| {
        let mut torrent = Torrent::new(&scratch, &content);
        torrent.file = scratch.path(name);
        let file = torrent.file.to_str().unwrap();
        let arguments = [version, &["-o", file, torrent.data.to_str().unwrap()]].concat();
        let said = run(&scratch, p2pfs.command_alone("create").args(arguments), PATIENCE).success();
        let said = said.stdout();
        let magnet = said.lines().find(|line| line.starts_with("magnet:")).expect("a magnet link");
        (torrent, magnet.to_owned())
    };
    // Transmission 3 refuses hybrid torrents, whoever made them, and aria2 takes padding for files.
    let (torrent, _) = create(&["--v1"], "v1.torrent");
    let _transmission = Transmission::seed(&scratch, &torrent);
    let _aria2 = Aria2::seed(&scratch, &torrent);
    let (torrent, magnet) = create(&[], "hybrid.torrent");
    let libtorrent = Libtorrent::seed(&scratch, &torrent);
    let mount = p2pfs.mount(&magnet, &["--peer", &libtorrent.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn the_odd_tree_survives_create_seed_and_mount() {
    let scratch = Scratch::new();
    let content = Content::odd();
    let data = content.write_to(&scratch.dir("origin"));
    let seeder = P2pfs::named(&scratch, "seeder");
    let file = scratch.path("odd.torrent");
    let mut create = seeder.command_alone("create");
    run(&scratch, create.arg("-o").arg(&file).arg(&data), PATIENCE).success();
    seeder.try_seed(&file, &data, &[]).success();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&file, &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn creating_twice_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let data = Content::album().write_to(&scratch.dir("origin"));
    let p2pfs = P2pfs::new(&scratch);
    let made = ["one.torrent", "two.torrent"].map(|name| {
        let file = scratch.path(name);
        let mut create = p2pfs.command_alone("create");
        run(&scratch, create.arg("-o").arg(&file).arg(&data), PATIENCE).success();
        std::fs::read(file).unwrap()
    });
    assert_eq!(made[0], made[1]);
}

#[test]
fn the_magnet_of_a_private_torrent_has_its_tracker_in_it() {
    let scratch = Scratch::new();
    let data = Content::album().write_to(&scratch.dir("origin"));
    let p2pfs = P2pfs::new(&scratch);
    let mut create: Command = p2pfs.command_alone("create");
    create.args(["--tracker", "http://tracker.example/announce", "--private", "-o"]);
    create.arg(scratch.path("private.torrent")).arg(&data);
    let said = run(&scratch, &mut create, PATIENCE).success().stdout();
    assert!(said.contains("magnet:?xt=urn:btih:"), "{said}");
    assert!(said.contains("tracker.example"), "{said}");
}
