//! Finding the files of a torrent among the files of somebody else.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{ffi::OsStr, io};

use super::StoreError;
use super::files::{Found, Stamp, open_foreign};
use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::{EntryKind, Layout};

/// What other clients add to the name of a file that is not whole: Transmission, qBittorrent, µTorrent,
/// BitComet. (aria2 keeps the name and puts a file `NAME.aria2` beside it.)
const UNFINISHED: [&str; 4] = [".part", ".!qB", ".!ut", ".bc!"];

/// Times of files are no finer than this: what is written so soon after the time that was noted may
/// leave it as it is.
const TICK: Duration = Duration::from_millis(20);

/// All files of `info`, whole. `path` is the file itself (for a torrent of a single file) or a directory.
pub(super) fn locate(info: &Info, layout: &Layout, path: &Path) -> Result<Found, StoreError> {
    let path = canonical(path)?;
    let root = root(layout, &path, &info.name);
    let mut found = HashMap::new();
    for (file, parts) in files(layout) {
        let Some(f) = info.files.get(file) else { continue };
        let path = match info.single_file && path.is_file() {
            true => path.clone(),
            false => join(&root, parts),
        };
        found.insert(file, look_at(path, f.length)?);
    }
    wait_a_tick(&found);
    Ok(found)
}

/// The files of `info` that are there, whole or not, perhaps under the name of an unfinished one.
pub(super) fn search(info: &Info, layout: &Layout, path: &Path) -> Result<Found, StoreError> {
    let path = canonical(path)?;
    let found = if path.is_file() {
        let file = files(layout).next().filter(|_| info.single_file);
        let length = |file: usize| info.files.get(file).map(|f| f.length);
        let it = file.and_then(|(file, _)| Some((file, length(file)?)));
        let mut found = HashMap::new();
        if let Some((file, length)) = it
            && let Some(one) = look_for(&path, length)?
        {
            found.insert(file, one);
        }
        found
    } else {
        let direct = search_below(info, layout, &path)?;
        let nested = match nested(&path, &info.name) {
            Some(root) => search_below(info, layout, &root)?,
            None => HashMap::new(),
        };
        if nested.len() > direct.len() { nested } else { direct }
    };
    if found.is_empty() {
        let name = String::from_utf8_lossy(&info.name).into_owned();
        return Err(StoreError::NothingFits { path, name });
    }
    wait_a_tick(&found);
    Ok(found)
}

fn search_below(info: &Info, layout: &Layout, root: &Path) -> Result<Found, StoreError> {
    let mut found = HashMap::new();
    for (file, parts) in files(layout) {
        let Some(f) = info.files.get(file).filter(|f| f.length > 0) else { continue };
        let path = join(root, parts);
        if let Some(one) = look_for(&path, f.length)? {
            found.insert(file, one);
            continue;
        }
        for suffix in UNFINISHED {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            if let Some(one) = look_for(Path::new(&name), f.length)? {
                found.insert(file, one);
                break;
            }
        }
    }
    Ok(found)
}

/// A file that can be the torrent's: it is not longer than that.
fn look_for(path: &Path, length: u64) -> Result<Option<(PathBuf, Stamp)>, StoreError> {
    let is_it = |m: &fs::Metadata| m.is_file() && m.len() <= length;
    if !fs::metadata(path).is_ok_and(|m| is_it(&m)) {
        return Ok(None);
    }
    let open = open_foreign(path).and_then(|file| file.metadata());
    let m = open.map_err(|source| StoreError::Data { path: path.to_owned(), source })?;
    Ok(is_it(&m).then(|| (path.to_owned(), Stamp::of(&m))))
}

/// Until whatever is written to these files from now on changes their times.
fn wait_a_tick(found: &Found) {
    let newest = found.values().filter_map(|(_, stamp)| stamp.modified()).max();
    let ago = newest.and_then(|newest| SystemTime::now().duration_since(newest).ok());
    if let Some(rest) = ago.and_then(|ago| TICK.checked_sub(ago)) {
        std::thread::sleep(rest);
    }
}

fn canonical(path: &Path) -> Result<PathBuf, StoreError> {
    fs::canonicalize(path).map_err(|source| StoreError::Data { path: path.to_owned(), source })
}

fn files(layout: &Layout) -> impl Iterator<Item = (usize, &Vec<Vec<u8>>)> {
    layout.entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::File(file) => Some((file, &entry.path)),
        EntryKind::Symlink(_) => None,
    })
}

/// The directory that the layout's paths begin at: `path`, or what of the torrent's name lies in it.
fn root(layout: &Layout, path: &Path, name: &[u8]) -> PathBuf {
    let first = files(layout).next();
    let has = |root: &Path| first.is_some_and(|(_, parts)| join(root, parts).is_file());
    let nested = nested(path, name).filter(|nested| !has(path) && has(nested));
    nested.unwrap_or_else(|| path.to_owned())
}

/// The directory with the torrent's name in `path`.
fn nested(path: &Path, name: &[u8]) -> Option<PathBuf> {
    let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
    plain.then(|| path.join(OsStr::from_bytes(name)))
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
