//! What `p2pfs create` makes has the info hashes of what libtorrent's `create_torrent` makes of the
//! same files, and each verifies the other's.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use p2pfs::proto::metainfo::Metainfo;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const KINDS: [&str; 3] = ["v1", "v2", "hybrid"];

fn p2pfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2pfs")).args(arguments).output().unwrap()
}

/// Writes `length` bytes that follow from `length` to a file.
fn write(path: &Path, length: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// The hashes that libtorrent gives each path as each kind, with pieces of `length` (0: as it likes);
/// its torrents are left in `out`.
fn theirs(out: &Path, paths: &[PathBuf], length: u32) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/lt_create.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(out);
    for path in paths {
        for kind in KINDS {
            command.arg(path).arg(kind).arg(length.to_string());
        }
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap()
}

/// Compares hashes of `paths`, and has each of libtorrent's torrents verified against the files.
fn compare(dir: &Path, paths: &[PathBuf], length: u32) {
    let expected = theirs(dir, paths, length);
    let cases = paths.iter().flat_map(|path| KINDS.map(|kind| (path, kind)));
    for (number, ((path, kind), expected)) in cases.zip(expected).enumerate() {
        let (path, out) = (path.to_str().unwrap(), dir.join(format!("{number}.ours")));
        let (flag, out, bytes) = (format!("--{kind}"), out.to_str().unwrap(), length.to_string());
        let mut arguments = vec!["create", path, &flag, "-o", out];
        if length > 0 {
            arguments.extend(["--piece-length", &bytes]);
        }
        let made = p2pfs(&arguments);
        assert!(made.status.success(), "{made:?}");
        let ours = Metainfo::parse(&std::fs::read(out).unwrap()).unwrap();
        let found = json!({
            "v1": ours.info.info_hash_v1().map(|hash| hash.to_string()),
            "v2": ours.info.info_hash_v2().map(|hash| hash.to_string()),
        });
        assert_eq!(found, expected, "{path} {kind}");
        let torrent = dir.join(format!("{number}.torrent"));
        let read = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
        assert_eq!(read.piece_layers, ours.piece_layers, "{path} {kind}");
        let verified = p2pfs(&["verify", torrent.to_str().unwrap(), path]);
        assert!(verified.status.success(), "{path} {kind}: {verified:?}");
        std::fs::remove_file(out).unwrap();
    }
}

#[test]
fn single_files_of_all_lengths_around_blocks_and_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = [1, 16_383, 16_384, 16_385, 32_768, 32_769, 65_536, 65_537, 131_072, 200_000];
    let paths = lengths.map(|length| dir.path().join(format!("file{length}")));
    for (path, length) in paths.iter().zip(lengths) {
        write(path, length);
    }
    for piece in [0, 16_384, 32_768, 65_536] {
        compare(dir.path(), &paths, piece);
    }
}

#[test]
fn folders_with_empty_files_full_pieces_and_names_in_odd_orders() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, files: &[(&str, usize)]| {
        let root = dir.path().join(name);
        files.iter().for_each(|(name, length)| write(&root.join(name), *length));
        root
    };
    let alone = folder("alone", &[("only", 40_000)]);
    let last_is_empty = folder("last", &[("a", 5), ("b", 0)]);
    let first_is_empty = folder("first", &[("a", 0), ("b", 0), ("c", 16_384), ("d", 1)]);
    let exact = folder("exact", &[("a", 32_768), ("b", 65_536), ("sub/c", 32_768)]);
    // As whole strings these would have another order than part by part.
    let order = folder("order", &[("a/x", 3), ("a-b", 4), ("a.c", 50_000), ("a/b/c", 0), ("B", 9)]);
    let deep = folder("deep", &[(&["d"; 60].join("/"), 70_000), ("z", 1)]);
    let utf8 = folder("ümläut", &[("é", 10), ("日本/語", 20)]);
    let run = exact.join("b");
    std::fs::set_permissions(run, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let all = [alone, last_is_empty, first_is_empty, exact, order, deep, utf8];
    for piece in [0, 16_384, 32_768] {
        compare(dir.path(), &all, piece);
    }
}

#[test]
fn ten_thousand_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("many");
    for i in 0..10_000usize {
        let path = root.join(format!("{}/{}/{i}", i % 7, i % 31));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![i as u8; i % 50]).unwrap();
    }
    compare(dir.path(), &[root], 16_384);
}
