//! `p2pfs verify`: it finds what is wrong, and where, in torrents of every version.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
    command.current_dir(dir).args(arguments).output().unwrap()
}

/// A folder, and a torrent of it of each version.
fn lab() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    let long: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    std::fs::write(data.join("sub/long"), long).unwrap();
    std::fs::write(data.join("short"), b"short").unwrap();
    std::fs::write(data.join("empty"), b"").unwrap();
    for version in ["v1", "v2", "hybrid"] {
        let (flag, torrent) = (format!("--{version}"), format!("{version}.torrent"));
        let made =
            run(dir.path(), &["create", &flag, "--piece-length", "32K", "data", "-o", &torrent]);
        assert!(made.status.success(), "{made:?}");
    }
    dir
}

fn verify(dir: &Path, version: &str) -> (Option<i32>, String) {
    let found = run(dir, &["verify", &format!("{version}.torrent"), "data"]);
    (found.status.code(), String::from_utf8(found.stdout).unwrap())
}

#[test]
fn good_files_are_good_and_a_flipped_byte_is_found_where_it_is() {
    let lab = lab();
    let long = lab.path().join("data/sub/long");
    for version in ["v1", "v2", "hybrid"] {
        assert_eq!(verify(lab.path(), version), (Some(0), String::new()), "{version}");
    }
    let file = std::fs::File::options().write(true).open(&long).unwrap();
    file.write_at(&[0xff, 0, 0xff, 0], 100_000).unwrap();
    for version in ["v2", "hybrid"] {
        let bad = "sub/long: bytes 98304 to 131071 are bad\n";
        assert_eq!(verify(lab.path(), version), (Some(1), bad.to_owned()), "{version}");
    }
    let (code, bad) = verify(lab.path(), "v1");
    assert_eq!(code, Some(1));
    assert!(bad.starts_with("sub/long: bytes ") && bad.lines().count() == 1, "{bad}");
}

#[test]
fn what_is_missing_or_has_another_length_is_named() {
    let lab = lab();
    std::fs::remove_file(lab.path().join("data/short")).unwrap();
    let long = std::fs::File::options().write(true).open(lab.path().join("data/sub/long")).unwrap();
    long.set_len(150_000).unwrap();
    for version in ["v1", "v2", "hybrid"] {
        let (code, bad) = verify(lab.path(), version);
        assert_eq!(code, Some(1), "{version}");
        assert!(bad.lines().any(|line| line.starts_with("short: ")), "{version}: {bad}");
        assert!(bad.contains("sub/long: 150000 bytes instead of 200000\n"), "{version}: {bad}");
    }
}

#[test]
fn a_link_says_too_little_to_verify_by() {
    let lab = lab();
    let link = format!("magnet:?xt=urn:btih:{}", "01".repeat(20));
    let refused = run(lab.path(), &["verify", &link, "data"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.lines().count() == 1 && said.contains("needs its .torrent file"), "{said}");
}
