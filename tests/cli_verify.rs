//! `p2pfs verify`: which files and ranges are bad, for v1, v2 and hybrid torrents.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const KINDS: [&str; 3] = ["--v1", "--v2", "--hybrid"];

fn p2pfs(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2pfs")).current_dir(dir).args(arguments).output().unwrap()
}

/// A folder `data` with a long file, a short one and an empty one, and a torrent of it for each kind.
fn torrents(dir: &Path) -> [String; 3] {
    std::fs::create_dir_all(dir.join("data/sub")).unwrap();
    let long: Vec<u8> = (0..100_000u32).map(|i| (i / 5) as u8).collect();
    std::fs::write(dir.join("data/long"), long).unwrap();
    std::fs::write(dir.join("data/sub/short"), b"short").unwrap();
    std::fs::write(dir.join("data/empty"), b"").unwrap();
    KINDS.map(|kind| {
        let name = format!("{kind}.torrent");
        let made = p2pfs(
            dir,
            &["create", "data", kind, "--piece-length", "16K", "-o", &format!("./{name}")],
        );
        assert!(made.status.success(), "{made:?}");
        format!("./{name}")
    })
}

/// The lines of a verification that must find something.
fn faults(dir: &Path, torrent: &str, path: &str) -> Vec<String> {
    let verified = p2pfs(dir, &["verify", torrent, path]);
    let said = String::from_utf8(verified.stderr).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("not as the torrent says"), "{said}");
    String::from_utf8(verified.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn good_data_is_good_wherever_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for torrent in torrents(dir.path()) {
        for path in ["data", "."] {
            let verified = p2pfs(dir.path(), &["verify", &torrent, path]);
            assert!(verified.status.success() && verified.stdout.is_empty(), "{verified:?}");
            let said = String::from_utf8(verified.stderr).unwrap();
            assert_eq!(said, "p2pfs: data: 3 files, all good\n");
        }
    }
}

#[test]
fn a_single_file_is_found_by_its_own_name_or_another() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("one"), vec![7; 40_000]).unwrap();
    for kind in KINDS {
        let torrent = format!("./{kind}.torrent");
        assert!(p2pfs(dir.path(), &["create", "one", kind, "-o", &torrent]).status.success());
        std::fs::copy(dir.path().join("one"), dir.path().join("other")).unwrap();
        for path in ["one", "other", "."] {
            let verified = p2pfs(dir.path(), &["verify", &torrent, path]);
            assert!(verified.status.success(), "{verified:?}");
        }
        std::fs::write(dir.path().join("other"), vec![8; 40_000]).unwrap();
        assert_eq!(faults(dir.path(), &torrent, "other"), ["one: bytes 0 to 39999 are bad"]);
    }
}

#[test]
fn bad_bytes_are_named_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let torrents = torrents(dir.path());
    let path = dir.path().join("data/long");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20_000] ^= 1;
    bytes[40_000] ^= 1;
    bytes[99_999] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let [v1, v2, hybrid] = torrents.map(|torrent| faults(dir.path(), &torrent, "data"));
    let long = ["long: bytes 16384 to 49151 are bad", "long: bytes 98304 to 99999 are bad"];
    assert_eq!((&v2[..], &hybrid[..]), (&long.map(String::from)[..], &long.map(String::from)[..]));
    // The last piece of a v1 torrent is of both files.
    assert_eq!(v1[..2], long);
    assert_eq!(v1[2..], ["sub/short: bytes 0 to 4 are bad"]);
}

#[test]
fn what_is_missing_or_of_another_length_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let torrents = torrents(dir.path());
    let data = dir.path().join("data");
    std::fs::remove_file(data.join("sub/short")).unwrap();
    std::fs::create_dir(data.join("sub/short")).unwrap();
    std::fs::remove_file(data.join("empty")).unwrap();
    let mut bytes = std::fs::read(data.join("long")).unwrap();
    bytes.truncate(98_304);
    std::fs::write(data.join("long"), &bytes).unwrap();
    for torrent in torrents {
        let expected = [
            "empty: missing",
            "long: 98304 bytes instead of 100000",
            "long: bytes 98304 to 99999 are bad",
            "sub/short: not a file",
        ];
        assert_eq!(faults(dir.path(), &torrent, "data"), expected, "{torrent}");
    }
}

/// Without piece layers a long file is bad as a whole.
#[test]
fn without_piece_layers_files_are_checked_by_their_roots() {
    let dir = tempfile::tempdir().unwrap();
    let [_, torrent, _] = torrents(dir.path());
    let path = dir.path().join(&torrent);
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(15).position(|w| w == b"12:piece layers").unwrap();
    std::fs::write(&path, [&bytes[..at], b"e"].concat()).unwrap();
    assert!(p2pfs(dir.path(), &["verify", &torrent, "data"]).status.success());
    let long = dir.path().join("data/long");
    let mut bytes = std::fs::read(&long).unwrap();
    bytes[99_999] ^= 1;
    std::fs::write(&long, &bytes).unwrap();
    let [fault] = &faults(dir.path(), &torrent, "data")[..] else { panic!("one fault") };
    assert!(fault.starts_with("long: bad (the torrent has no piece layers"), "{fault}");
}
