//! `p2pfs create`: what it makes, and that it always makes the same.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use p2pfs::proto::metainfo::Metainfo;

fn create(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2pfs"))
        .current_dir(dir)
        .arg("create")
        .args(arguments)
        .output()
        .unwrap()
}

/// A folder with a file over several pieces, an executable, an empty file and links.
fn tree(root: &Path) {
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/long"), vec![7; 100_000]).unwrap();
    std::fs::write(root.join("run"), b"#!/bin/sh\n").unwrap();
    std::fs::set_permissions(root.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    symlink("sub/long", root.join("link")).unwrap();
    symlink("/etc/passwd", root.join("out")).unwrap();
}

#[test]
fn the_same_files_make_the_same_torrent() {
    let dir = tempfile::tempdir().unwrap();
    let mut torrents = Vec::new();
    for place in ["a", "b"] {
        tree(&dir.path().join(place).join("data"));
        let (path, torrent) = (format!("{place}/data"), format!("{place}.torrent"));
        for kind in ["--v1", "--v2", "--hybrid", "--private"] {
            let _ = std::fs::remove_file(dir.path().join(&torrent));
            let made = create(dir.path(), &[&path, "-o", &torrent, "--piece-length", "16K", kind]);
            assert!(made.status.success(), "{made:?}");
            torrents.push(std::fs::read(dir.path().join(&torrent)).unwrap());
        }
    }
    let (a, b) = torrents.split_at(4);
    assert_eq!(a, b);
    assert!((0..4).all(|i| !a[i + 1..].contains(&a[i])));
}

#[test]
fn it_has_the_files_their_bits_and_links_and_prints_the_magnet() {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("data"));
    let tracker = "http://127.0.0.1:1/announce";
    let made = create(
        dir.path(),
        &[
            "data",
            "--tracker",
            tracker,
            "--private",
            "--comment",
            "hello",
            "--piece-length",
            "32K",
            "--web-seed",
            "http://w.example/",
        ],
    );
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(said.contains("out: left out"), "{said}");

    let torrent = std::fs::read(dir.path().join("data.torrent")).unwrap();
    let metainfo = Metainfo::parse(&torrent).unwrap();
    let info = &metainfo.info;
    let files: Vec<_> = info.files.iter().filter(|file| !file.pad).collect();
    let paths = files.iter().map(|file| String::from_utf8(file.path.join(&b'/')).unwrap());
    assert_eq!(paths.collect::<Vec<_>>(), ["empty", "link", "run", "sub/long"]);
    let executable: Vec<_> = files.iter().map(|file| file.executable).collect();
    assert_eq!(executable, [false, false, true, false]);
    let target = vec![b"sub".to_vec(), b"long".to_vec()];
    assert_eq!(files[1].symlink, Some(target));
    assert_eq!(info.geometry.piece_length(), 32 << 10);
    assert!(info.private);
    assert_eq!(metainfo.comment.as_deref(), Some("hello"));
    assert_eq!(metainfo.trackers, [[tracker.to_string()]]);
    let magnet = String::from_utf8(made.stdout).unwrap();
    assert_eq!(magnet, format!("{}\n", metainfo.magnet()));
}

#[test]
fn what_is_excluded_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("data"));
    let made = create(dir.path(), &["data", "--exclude", "sub", "--exclude", "*nk"]);
    assert!(made.status.success(), "{made:?}");
    let torrent = std::fs::read(dir.path().join("data.torrent")).unwrap();
    let info = Metainfo::parse(&torrent).unwrap().info;
    let paths: Vec<_> = info.files.iter().filter(|f| !f.pad).map(|f| f.path.concat()).collect();
    assert_eq!(paths, [&b"empty"[..], b"run"]);
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), b"data").unwrap();
    std::fs::write(dir.path().join("data.torrent"), b"precious").unwrap();
    let made = create(dir.path(), &["data"]);
    assert_eq!(made.status.code(), Some(1));
    assert_eq!(String::from_utf8(made.stderr).unwrap().lines().count(), 1);
    assert_eq!(std::fs::read(dir.path().join("data.torrent")).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("hollow")).unwrap();
    for path in ["missing", "hollow"] {
        let made = create(dir.path(), &[path]);
        let said = String::from_utf8(made.stderr).unwrap();
        assert_eq!(made.status.code(), Some(1), "{said}");
        assert!(said.contains(path) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn ls_lists_the_files_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("data"));
    assert!(create(dir.path(), &["data"]).status.success());
    let listed = Command::new(env!("CARGO_BIN_EXE_p2pfs"))
        .args(["ls", "data.torrent"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let lines: Vec<Vec<_>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines, [["0", "empty"], ["10", "run"], ["100000", "sub/long"]]);
}

#[test]
fn what_is_excluded_is_left_out_and_web_seeds_are_named() {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("data"));
    let seed = "https://files.example/data/";
    let options = ["data", "--exclude", "sub", "--exclude", "*.tmp", "--web-seed", seed];
    assert!(create(dir.path(), &options).status.success());
    let torrent = std::fs::read(dir.path().join("data.torrent")).unwrap();
    let metainfo = Metainfo::parse(&torrent).unwrap();
    assert!(metainfo.info.files.iter().all(|file| !file.path.contains(&b"long".to_vec())));
    assert_eq!(metainfo.web_seeds, [seed]);
    let refused = create(dir.path(), &["data", "-o", "x", "--web-seed", "not a URL"]);
    assert!(!refused.status.success() && !dir.path().join("x").exists());
}
