//! Trees of files, compared by what a reader sees.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// SHA-256 as hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything below a directory, by relative path; folders only as what the paths imply.
#[derive(Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

/// What is at a path of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File { length: usize, sha256: String, executable: bool },
    Symlink(PathBuf),
}

impl Node {
    pub fn file(bytes: &[u8], executable: bool) -> Self {
        Self::File { length: bytes.len(), sha256: sha256(bytes), executable }
    }
}

impl Tree {
    /// Reads all of it.
    #[track_caller]
    pub fn read(root: &Path) -> Self {
        let mut tree = Self::default();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
            for entry in entries {
                let path = entry.unwrap().path();
                match node(&path) {
                    Some(node) => tree.insert(path.strip_prefix(root).unwrap(), node),
                    None => folders.push(path),
                }
            }
        }
        tree
    }

    pub fn insert(&mut self, path: &Path, node: Node) {
        let before = self.nodes.insert(path.to_path_buf(), node);
        assert!(before.is_none(), "twice in one tree: {path:?}");
    }

    /// The same without files of 0 bytes, which transmission does not create.
    pub fn without_empty_files(mut self) -> Self {
        self.nodes.retain(|_, node| !matches!(node, Node::File { length: 0, .. }));
        self
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.nodes.keys().map(PathBuf::as_path)
    }
}

/// What is at `path`; `None` for a folder.
fn node(path: &Path) -> Option<Node> {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    if meta.is_dir() {
        return None;
    }
    if meta.is_symlink() {
        return Some(Node::Symlink(fs::read_link(path).unwrap()));
    }
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_eq!(bytes.len() as u64, meta.len(), "size of {path:?}");
    Some(Node::file(&bytes, meta.permissions().mode() & 0o111 != 0))
}

impl fmt::Debug for Tree {
    /// One line a node, so that a failed `assert_eq!` can be read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for (path, node) in &self.nodes {
            writeln!(f, "  {path:?}: {node:?}")?;
        }
        Ok(())
    }
}
