//! `p2pfs create` beside libtorrent's `create_torrent`: the same info hashes for the same files.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn json(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Both make a torrent of each version of `root`.
fn compare(root: &Path, piece_length: u32) {
    let program = env!("CARGO_BIN_EXE_p2pfs");
    for version in ["v1", "v2", "hybrid"] {
        let dir = tempfile::tempdir().unwrap();
        let torrent = dir.path().join("x.torrent");
        let length = piece_length.to_string();
        let made = Command::new(program)
            .args(["create", &format!("--{version}"), "--piece-length", &length, "-o"])
            .args([&torrent, root])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let ours = json(Command::new(program).args(["show", "--json"]).arg(&torrent));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/lt_create.py");
        let mut python = Command::new("/usr/bin/python3");
        let theirs = json(python.arg(script).arg(root).args([&length, version]));
        let ours = [&ours["info_hash_v1"], &ours["info_hash_v2"]];
        assert_eq!(ours, [&theirs["v1"], &theirs["v2"]], "{} {version}", root.display());
    }
}

fn write(path: &Path, length: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let seed = length as u32 + 1;
    let bytes: Vec<u8> = (0..length as u32).map(|n| (n.wrapping_mul(seed) >> 9) as u8).collect();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn single_files_have_the_hashes_that_libtorrent_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    for length in [1, 16_384, 16_385, 65_536, 131_072, 1_000_003] {
        let path = dir.path().join(format!("file{length}"));
        write(&path, length);
        compare(&path, 65_536);
    }
    compare(&dir.path().join("file1000003"), 16_384);
}

#[test]
fn folders_have_the_hashes_that_libtorrent_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let many = dir.path().join("many");
    for n in 0..200 {
        let length = [0, 1, 16_383, 16_384, 16_385, 65_536, 70_000][n % 7];
        write(&many.join(format!("{}/file{n}", n % 5)), length);
    }
    write(&many.join("1-before-a-slash"), 5);
    compare(&many, 65_536);
    let deep = dir.path().join("deep");
    let folders: Vec<_> = (0..30).map(|n| format!("d{n}")).collect();
    write(&deep.join(folders.join("/")).join("file"), 70_000);
    write(&deep.join("a"), 65_536);
    compare(&deep, 32_768);
}
