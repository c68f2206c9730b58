//! Hybrid torrents (BEP 52): whether the v2 half describes the same files as the v1 half.
//!
//! Only the names and lengths of the v2 half are read here; its hashes are not used yet.

use super::info::{FileEntry, InfoError};
use crate::proto::bencode::{Dict, Entries, Value};

/// One file of a `file tree`.
struct TreeFile<'a> {
    path: &'a [&'a [u8]],
    length: u64,
}

/// Checks that `tree` lists the files of `files` that are not padding, in the same order, and that
/// each begins with a piece of its own.
pub(super) fn check(
    tree: Value<'_>,
    files: &[FileEntry],
    piece_length: u32,
) -> Result<(), InfoError> {
    let tree = tree.as_dict().ok_or(InfoError::Invalid("file tree"))?;
    let aligned = |f: &FileEntry| f.length == 0 || f.offset.is_multiple_of(piece_length.into());
    let mut v1 = files.iter().filter(|f| !f.pad);
    walk(tree, |v2| {
        v1.next().is_some_and(|f| f.length == v2.length && aligned(f) && f.path == v2.path)
    })?;
    if v1.next().is_some() { Err(InfoError::Inconsistent) } else { Ok(()) }
}

/// Calls `same` with each file of a tree, in order, until one is not. The depth is that of the
/// bencode, which is bounded.
fn walk<'a>(tree: Dict<'a>, mut same: impl FnMut(TreeFile<'_>) -> bool) -> Result<(), InfoError> {
    let bad = InfoError::Invalid("file tree");
    let mut open: Vec<Entries<'a>> = vec![tree.iter()];
    // The names of the open folders, and of the file being looked at.
    let mut path: Vec<&[u8]> = Vec::new();
    while let Some(entries) = open.last_mut() {
        let Some((name, value)) = entries.next() else {
            open.pop();
            path.pop();
            continue;
        };
        let dict = value.as_dict().ok_or(bad.clone())?;
        if !name.is_empty() {
            path.push(name);
            open.push(dict.iter());
            continue;
        }
        let length = dict.int(b"length").and_then(|n| u64::try_from(n).ok()).ok_or(bad.clone())?;
        if path.is_empty() || !same(TreeFile { path: &path, length }) {
            return Err(InfoError::Inconsistent);
        }
    }
    Ok(())
}
