//! Real programs on a tree of odd names, empty files, executables and links.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::process::Command;

use harness::*;

/// A mount of the odd tree with its seeder, for one test.
fn with_odd_tree(test: impl FnOnce(&Scratch, &Mount, &Content)) {
    let scratch = Scratch::new();
    let content = Content::odd();
    let torrent = Torrent::new(&scratch, &content);
    let flat = scratch.dir("flat");
    content.write_flat(&flat);
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &flat, &["--flat"]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    test(&scratch, &mount, &content);
    mount.umount();
}

#[test]
fn the_tree_shows_every_name_byte_for_byte() {
    with_odd_tree(|_, mount, content| assert_eq!(mount.tree(), content.tree()));
}

#[test]
fn cp_r_copies_it() {
    with_odd_tree(|scratch, mount, content| {
        let copy = scratch.path("copy");
        run(scratch, Command::new("cp").arg("-r").arg(mount.dir()).arg(&copy), PATIENCE).success();
        assert_eq!(Tree::read(&copy), content.tree());
    });
}

#[test]
fn rsync_a_copies_it() {
    with_odd_tree(|scratch, mount, content| {
        let copy = scratch.path("copy");
        let mut rsync = Command::new("rsync");
        rsync.arg("-a").arg(mount.path("")).arg(&copy);
        run(scratch, &mut rsync, PATIENCE).success();
        assert_eq!(Tree::read(&copy), content.tree());
    });
}

#[test]
fn tar_packs_it() {
    with_odd_tree(|scratch, mount, content| {
        let (archive, copy) = (scratch.path("odd.tar"), scratch.dir("copy"));
        let mut pack = Command::new("tar");
        pack.arg("-cf").arg(&archive).arg("-C").arg(mount.dir()).arg(".");
        run(scratch, &mut pack, PATIENCE).success();
        let mut unpack = Command::new("tar");
        run(scratch, unpack.arg("-xf").arg(&archive).arg("-C").arg(&copy), PATIENCE).success();
        assert_eq!(Tree::read(&copy), content.tree());
    });
}

#[test]
fn tar_s_does_not_take_missing_data_for_holes() {
    with_odd_tree(|scratch, mount, content| {
        let (archive, copy) = (scratch.path("odd.tar"), scratch.dir("copy"));
        let mut pack = Command::new("tar");
        pack.arg("-S").arg("-cf").arg(&archive).arg("-C").arg(mount.dir()).arg(".");
        run(scratch, &mut pack, PATIENCE).success();
        let mut unpack = Command::new("tar");
        run(scratch, unpack.arg("-xf").arg(&archive).arg("-C").arg(&copy), PATIENCE).success();
        assert_eq!(Tree::read(&copy), content.tree());
    });
}

#[test]
fn a_mapping_shows_the_bytes_and_zeros_after_the_end() {
    const SCRIPT: &str = "
import hashlib, mmap, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
    print(hashlib.sha256(data).hexdigest())
";
    with_odd_tree(|scratch, mount, content| {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", SCRIPT]).arg(mount.path("last"));
        let said = run(scratch, &mut python, PATIENCE).success().stdout();
        assert_eq!(said.trim(), sha256(&content.bytes_of("last")));
    });
}

#[test]
fn an_executable_runs_from_the_mount_and_through_links() {
    with_odd_tree(|scratch, mount, _| {
        for name in ["bin/run.sh", "link", "links/inner"] {
            let said = run(scratch, &mut Command::new(mount.path(name)), PATIENCE).success();
            assert_eq!(said.stdout(), "ran from the mount\n", "{name}");
        }
    });
}

#[test]
fn find_sees_the_same_inodes_as_stat() {
    with_odd_tree(|_, mount, _| {
        let mut folders = vec![mount.dir().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let meta = std::fs::symlink_metadata(entry.path()).unwrap();
                assert_eq!(entry.ino(), meta.ino(), "{:?}", entry.path());
                if meta.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
    });
}

#[test]
fn sizes_and_blocks_are_full_before_the_data_is_here() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 5 * MIB + 1));
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let meta = std::fs::metadata(mount.path("film.bin")).unwrap();
    assert_eq!(meta.len(), 5 * MIB as u64 + 1);
    assert!(meta.blocks() * 512 >= meta.len(), "{} blocks", meta.blocks());
}

#[test]
fn the_mount_cannot_be_written_to() {
    with_odd_tree(|scratch, mount, _| {
        let inside = |name: &str| mount.path(name).into_os_string();
        let commands: [(&str, Vec<std::ffi::OsString>); 6] = [
            ("touch", vec![inside("new")]),
            ("mkdir", vec![inside("new")]),
            ("rm", vec!["-f".into(), inside("last")]),
            ("mv", vec![inside("last"), inside("first")]),
            ("chmod", vec!["600".into(), inside("last")]),
            ("truncate", vec!["-s0".into(), inside("last")]),
        ];
        for (program, arguments) in commands {
            let finished = run(scratch, Command::new(program).args(arguments), PATIENCE).failure();
            assert!(finished.stderr.contains("Read-only file system"), "{}", finished.stderr);
        }
    });
}

#[test]
fn an_attribute_names_the_info_hash() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let value = xattr::get(mount.dir(), "user.p2pfs.infohash").unwrap();
    assert_eq!(value, Some(torrent.info_hash.into_bytes()));
}

#[test]
fn an_attribute_tells_a_files_progress() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mut seeder = Libtorrent::seed(&scratch, &torrent);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let progress = || {
        let value = xattr::get(mount.path("01 first.flac"), "user.p2pfs.progress").unwrap();
        String::from_utf8(value.expect("a value")).unwrap()
    };
    let before = progress();
    seeder.connect(p2pfs.address);
    mount.wait();
    assert_ne!(progress(), before);
}

#[test]
fn several_readers_of_one_file_get_the_same_bytes() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 8 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let limit = ["--upload-limit", "8000000"];
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &torrent.save_path, &limit);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let cat = || Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    let mut readers: Vec<_> = (0..8).map(|_| cat()).collect();
    let right = sha256(&content.stream());
    for reader in &mut readers {
        assert!(reader.wait(PATIENCE).expect("cat ends").success());
        assert_eq!(sha256(&reader.stdout()), right);
    }
}
