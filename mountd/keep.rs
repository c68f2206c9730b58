//! `--keep`: copies of a torrent's finished files, made under a temporary name and then renamed, so
//! that what is there under its own name is whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use p2pfs::engine::{ReadHandle, Torrent};
use p2pfs::proto::metainfo::layout::{Entry, EntryKind};

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;
/// The handle of our reads; those of the filesystem count from 1.
const HANDLE: ReadHandle = ReadHandle(u64::MAX);

/// Refuses a folder in which a copy would overwrite something; creates it if it is missing.
pub fn check(torrent: &Torrent, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)
        .with_context(|| format!("{}: cannot keep files there", dir.display()))?;
    for name in top_names(&torrent.layout().entries) {
        let target = dir.join(name);
        if target.symlink_metadata().is_ok() {
            bail!("{}: is there already; keep the files in another folder", target.display());
        }
    }
    Ok(())
}

/// Copies the files that are whole to `dir`, named as in the mount.
pub fn copy(torrent: &Torrent, dir: &Path) -> Result<()> {
    let part = dir.join(format!(".p2pfs-{}.part", torrent.info().info_hash));
    if part.symlink_metadata().is_ok() {
        fs::remove_dir_all(&part).with_context(|| format!("{}: is in the way", part.display()))?;
    }
    let copied = copy_all(torrent, &part).and_then(|()| publish(torrent, &part, dir));
    if part.symlink_metadata().is_ok() {
        let _ = fs::remove_dir_all(&part);
    }
    copied
}

fn copy_all(torrent: &Torrent, part: &Path) -> Result<()> {
    fs::create_dir(part).with_context(|| format!("{}: cannot be made", part.display()))?;
    for entry in &torrent.layout().entries {
        let target = part.join(relative(entry));
        let copied = match &entry.kind {
            EntryKind::File(file) if !is_whole(torrent, *file) => continue,
            EntryKind::File(file) => {
                parent(&target).and_then(|()| copy_file(torrent, *file, &target))
            }
            EntryKind::Symlink(to) => parent(&target).and_then(|()| {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(to), &target)
            }),
        };
        copied.with_context(|| format!("cannot keep {}", relative(entry).display()))?;
    }
    Ok(())
}

/// Gives the copies their names.
fn publish(torrent: &Torrent, part: &Path, dir: &Path) -> Result<()> {
    check(torrent, dir)?;
    for name in top_names(&torrent.layout().entries) {
        let copy = part.join(&name);
        if copy.symlink_metadata().is_ok() {
            let target = dir.join(&name);
            let renamed = fs::rename(copy, &target);
            renamed.with_context(|| format!("cannot keep {}", target.display()))?;
        }
    }
    File::open(dir).and_then(|dir| dir.sync_all()).context("cannot write the folder")?;
    Ok(())
}

fn copy_file(torrent: &Torrent, file: usize, target: &Path) -> io::Result<()> {
    let Some(entry) = torrent.info().files.get(file) else {
        return Ok(());
    };
    let mut out = OpenOptions::new().write(true).create_new(true).open(target)?;
    let mut offset = 0;
    while offset < entry.length {
        let length = CHUNK.min(entry.length - offset);
        match torrent.read_now(file, offset, length as usize, |bytes| out.write_all(bytes)) {
            Some(written) => written?,
            None => {
                fetch(torrent, file, offset, length as usize)?;
                continue;
            }
        }
        offset += length;
    }
    if entry.executable {
        let mode = out.metadata()?.permissions().mode();
        // Who may read may execute.
        out.set_permissions(Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    out.sync_all()
}

/// Waits for bytes that the cache had to drop.
fn fetch(torrent: &Torrent, file: usize, offset: u64, length: usize) -> io::Result<()> {
    let (told, done) = mpsc::channel();
    let waiter = Box::new(move |read| {
        let _ = told.send(read);
    });
    torrent.read_later(HANDLE, file, offset, length, None, waiter);
    done.recv().map_err(io::Error::other)?.map_err(io::Error::other)
}

fn is_whole(torrent: &Torrent, file: usize) -> bool {
    let length = torrent.info().files.get(file).map(|entry| entry.length);
    length.is_some_and(|length| torrent.verified_bytes(Some(file)) >= length)
}

fn parent(target: &Path) -> io::Result<()> {
    target.parent().map_or(Ok(()), fs::create_dir_all)
}

fn relative(entry: &Entry) -> PathBuf {
    entry.path.iter().map(|part| std::ffi::OsStr::from_bytes(part)).collect()
}

/// The names directly below the root.
fn top_names(entries: &[Entry]) -> Vec<PathBuf> {
    let first = |entry: &Entry| relative(entry).iter().next().map(PathBuf::from);
    let mut names: Vec<_> = entries.iter().filter_map(first).collect();
    names.sort();
    names.dedup();
    names
}
