//! What torrents of tests contain: deterministic bytes under plain or odd names.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Tree;
use super::tree::Node;

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;

/// `length` bytes that look random and depend on `seed` only.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut out);
    out
}

/// One entry of a torrent, in torrent order.
pub struct Item {
    pub path: Vec<Vec<u8>>,
    pub kind: Kind,
}

/// What an [`Item`] is.
pub enum Kind {
    File {
        bytes: Vec<u8>,
        executable: bool,
    },
    /// The target's parts from the torrent's root, as BEP 47 has it.
    Symlink(Vec<Vec<u8>>),
    Pad(usize),
}

/// The files of one torrent.
pub struct Content {
    pub name: Vec<u8>,
    /// One file called `name`, not a folder of files.
    pub single: bool,
    pub items: Vec<Item>,
    pub piece_length: usize,
}

impl Content {
    /// One file.
    pub fn single(name: &str, length: usize) -> Self {
        let kind = Kind::File { bytes: bytes(length as u64, length), executable: false };
        let items = vec![Item { path: vec![name.into()], kind }];
        Self { name: name.into(), single: true, items, piece_length: 64 * KIB }
    }

    /// A folder; fill it with [`Self::file`] and its like.
    pub fn folder(name: &str) -> Self {
        Self { name: name.into(), single: false, items: Vec::new(), piece_length: 64 * KIB }
    }

    /// A small folder with the ordinary things: subfolders, an empty file, files that share a piece.
    pub fn album() -> Self {
        Self::folder("album")
            .file("01 first.flac", 1_500_000)
            .file("02 second.flac", 2_000_001)
            .file("art/cover.jpg", 70_000)
            .file("art/empty", 0)
            .file("notes.txt", 17)
    }

    /// Names and kinds of files that trip programs over.
    pub fn odd() -> Self {
        let mut deep = vec![b"deep".to_vec(); 60];
        deep.push(b"bottom".to_vec());
        let mut odd = Self::folder("odd")
            .executable("bin/run.sh", b"#!/bin/sh\necho ran from the mount\n")
            .file("case", 10)
            .file("CASE", 11)
            .file("Case/cAsE", 12)
            .file("empty", 0)
            .file("dir/also empty", 0)
            .named(vec![vec![b'n'; 255]], 300)
            .named(vec!["ü".repeat(127).into_bytes()], 301)
            .named(vec![b"back\\slash\\\\".to_vec()], 302)
            .named(vec![b"control\x01\x02\t\x1b[31m\x7f".to_vec()], 303)
            .named(vec![b"new\nline".to_vec()], 304)
            .named(vec![b" blanks ".to_vec(), b"-rf".to_vec()], 305)
            .named(vec![b"quote\"'`$(id)*?".to_vec()], 306)
            .named(vec![b"trailing dot.".to_vec(), b"...".to_vec()], 307)
            .named(deep, 100_000)
            .file("sparse looking", 0);
        odd.items.push(Item {
            path: vec![b"zeros".to_vec()],
            kind: Kind::File { bytes: vec![0; 200_000], executable: false },
        });
        let run = || vec![b"bin".to_vec(), b"run.sh".to_vec()];
        odd.items.push(Item { path: vec![b"link".to_vec()], kind: Kind::Symlink(run()) });
        let inner = vec![b"links".to_vec(), b"inner".to_vec()];
        odd.items.push(Item { path: inner, kind: Kind::Symlink(run()) });
        odd.file("last", 150_000)
    }

    pub fn piece_length(mut self, bytes: usize) -> Self {
        self.piece_length = bytes;
        self
    }

    /// Adds a file of `length` bytes at a path with `/` between its parts.
    pub fn file(self, path: &str, length: usize) -> Self {
        self.named(parts(path), length)
    }

    pub fn executable(mut self, path: &str, bytes: &[u8]) -> Self {
        let kind = Kind::File { bytes: bytes.to_vec(), executable: true };
        self.items.push(Item { path: parts(path), kind });
        self
    }

    /// Adds a file by its parts, which may be any bytes.
    pub fn named(mut self, path: Vec<Vec<u8>>, length: usize) -> Self {
        let seed = (self.items.len() as u64) << 32 | length as u64;
        let kind = Kind::File { bytes: bytes(seed, length), executable: false };
        self.items.push(Item { path, kind });
        self
    }

    /// Adds a pad file (BEP 47), which nobody must see.
    pub fn pad(mut self, length: usize) -> Self {
        let path = vec![b".pad".to_vec(), length.to_string().into_bytes()];
        self.items.push(Item { path, kind: Kind::Pad(length) });
        self
    }

    /// All bytes in torrent order.
    pub fn stream(&self) -> Vec<u8> {
        self.items.iter().flat_map(|item| item.bytes()).collect()
    }

    /// The bytes of the file at this path.
    pub fn bytes_of(&self, path: &str) -> Vec<u8> {
        let item = self.items.iter().find(|item| item.path == parts(path));
        item.unwrap_or_else(|| panic!("no {path} in the torrent")).bytes()
    }

    /// What a mount of it shows.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for item in self.items.iter().filter(|item| !matches!(item.kind, Kind::Pad(_))) {
            tree.insert(&joined(&item.path), item.node());
        }
        tree
    }

    /// Writes the files under their own names into `dir/name`; returns that path.
    pub fn write_to(&self, dir: &Path) -> PathBuf {
        let root = dir.join(std::ffi::OsStr::from_bytes(&self.name));
        for item in &self.items {
            let path = if self.single { root.clone() } else { root.join(joined(&item.path)) };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match &item.kind {
                Kind::File { bytes, executable } => {
                    fs::write(&path, bytes).unwrap();
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
                Kind::Symlink(target) => symlink(link_text(&item.path, target), &path).unwrap(),
                Kind::Pad(_) => {}
            }
        }
        root
    }

    /// Writes the files as `dir/000000`, `dir/000001` and so on, for clients that change odd names.
    pub fn write_flat(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for (index, item) in self.items.iter().enumerate() {
            if let Kind::File { bytes, .. } = &item.kind {
                fs::write(dir.join(format!("{index:06}")), bytes).unwrap();
            }
        }
    }
}

impl Item {
    fn bytes(&self) -> Vec<u8> {
        match &self.kind {
            Kind::File { bytes, .. } => bytes.clone(),
            Kind::Symlink(_) => Vec::new(),
            Kind::Pad(length) => vec![0; *length],
        }
    }

    fn node(&self) -> Node {
        match &self.kind {
            Kind::File { bytes, executable } => Node::file(bytes, *executable),
            Kind::Symlink(target) => Node::Symlink(link_text(&self.path, target)),
            Kind::Pad(_) => panic!("pad files are not shown"),
        }
    }
}

fn parts(path: &str) -> Vec<Vec<u8>> {
    path.split('/').map(|part| part.as_bytes().to_vec()).collect()
}

fn joined(path: &[Vec<u8>]) -> PathBuf {
    path.iter().map(|part| std::ffi::OsStr::from_bytes(part)).collect()
}

/// The relative link at `path` that leads to `target`, both from the torrent's root.
fn link_text(path: &[Vec<u8>], target: &[Vec<u8>]) -> PathBuf {
    let up: PathBuf = std::iter::repeat_n("..", path.len() - 1).collect();
    up.join(joined(target))
}
