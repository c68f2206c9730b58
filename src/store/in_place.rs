//! Finding the files of a torrent among the files of somebody else.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{ffi::OsStr, io};

use super::StoreError;
use super::files::Stamp;
use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::{EntryKind, Layout};

/// Path and stamp of each file of `info`, `None` for padding. `path` is the file itself (for a
/// torrent of a single file) or a directory.
pub(super) fn locate(
    info: &Info,
    layout: &Layout,
    path: &Path,
) -> Result<Vec<Option<(PathBuf, Stamp)>>, StoreError> {
    let path = fs::canonicalize(path)
        .map_err(|source| StoreError::Data { path: path.to_owned(), source })?;
    let root = root(layout, &path, &info.name);
    let mut found = vec![None; info.files.len()];
    for entry in &layout.entries {
        let EntryKind::File(file) = entry.kind else { continue };
        let (Some(slot), Some(f)) = (found.get_mut(file), info.files.get(file)) else { continue };
        let path = if info.single_file && path.is_file() {
            path.clone()
        } else {
            join(&root, &entry.path)
        };
        *slot = Some(look_at(path, f.length)?);
    }
    Ok(found)
}

/// The directory that the layout's paths begin at: `path`, or what of the torrent's name lies in it.
fn root(layout: &Layout, path: &Path, name: &[u8]) -> PathBuf {
    let first = layout.entries.iter().find(|e| matches!(e.kind, EntryKind::File(_)));
    let nested = path.join(OsStr::from_bytes(name));
    let has = |root: &Path| first.is_some_and(|e| join(root, &e.path).is_file());
    let plain_name = !name.is_empty() && !name.contains(&b'/') && name != b"..";
    if plain_name && !has(path) && has(&nested) { nested } else { path.to_owned() }
}

fn join(root: &Path, parts: &[Vec<u8>]) -> PathBuf {
    root.iter().chain(parts.iter().map(|p| OsStr::from_bytes(p))).collect()
}

fn look_at(path: PathBuf, expected: u64) -> Result<(PathBuf, Stamp), StoreError> {
    match fs::metadata(&path) {
        Ok(m) if !m.is_file() => {
            let source = io::Error::other("it is not a regular file");
            Err(StoreError::Data { path, source })
        }
        Ok(m) if m.len() != expected => {
            Err(StoreError::DataSize { path, found: m.len(), expected })
        }
        Ok(m) => Ok((path, Stamp::of(&m))),
        Err(source) => Err(StoreError::Data { path, source }),
    }
}
