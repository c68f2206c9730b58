//! `--keep`: a torrent's finished files for the user. Where the file system can, they share their blocks with
//! the cache; else they are moved out of it and served from where they are then; else they are copied. Copies
//! are made under a temporary name and then renamed: what is there under its own name is whole.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use p2pfs::engine::{ReadHandle, Torrent};
use p2pfs::proto::metainfo::layout::{Entry, EntryKind};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;
/// How long a piece that was lost may take to come again: whoever unmounts waits for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a folder is tried to be locked that others remove.
const TRIES: usize = 100;
/// The handle of our reads; those of the filesystem count from 1.
const HANDLE: ReadHandle = ReadHandle(u64::MAX);

/// The right to keep a torrent's files in a folder, until it is dropped. It is a folder in there, locked, which
/// takes what is not whole.
pub struct Place {
    dir: PathBuf,
    part: PathBuf,
    _lock: File,
}

impl Place {
    /// Refuses a folder in which a copy would overwrite something, or another mount of the torrent keeps
    /// its files; creates it if it is missing.
    pub fn hold(torrent: &Torrent, dir: &Path) -> Result<Self> {
        let failed = || format!("{}: cannot keep files there", dir.display());
        fs::create_dir_all(dir).with_context(failed)?;
        check(torrent, dir)?;
        let part = dir.join(format!(".p2pfs-{}.part", torrent.info().info_hash));
        for _ in 0..TRIES {
            fs::create_dir_all(&part).with_context(failed)?;
            let lock = File::open(&part).with_context(failed)?;
            // Not every file system can lock a folder.
            if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                bail!(
                    "{}: another mount keeps the files of this torrent there; keep them in another folder",
                    dir.display()
                );
            }
            let inode = |m: fs::Metadata| (m.dev(), m.ino());
            let locked = inode(lock.metadata().with_context(failed)?);
            // Whoever had it before may have removed it meanwhile.
            if fs::symlink_metadata(&part).is_ok_and(|there| inode(there) == locked) {
                return Ok(Self { dir: dir.to_owned(), part, _lock: lock });
            }
        }
        bail!("{}: cannot be locked, so no files can be kept there", part.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.part);
    }
}

/// Refuses a folder in which a copy would overwrite something.
fn check(torrent: &Torrent, dir: &Path) -> Result<()> {
    for name in top_names(&torrent.layout().entries) {
        let target = dir.join(name);
        if target.symlink_metadata().is_ok() {
            bail!("{}: is there already; keep the files in another folder", target.display());
        }
    }
    Ok(())
}

/// Leaves the files that are whole in a folder, named as in the mount. Calls `tell` with how many bytes are
/// there, and of how many.
pub fn keep(torrent: &Torrent, place: Place, tell: impl Fn(u64, u64)) -> Result<()> {
    // Somebody else may have left something in there.
    let part = place.part.join("files");
    if part.symlink_metadata().is_ok() {
        fs::remove_dir_all(&part).with_context(|| format!("{}: is in the way", part.display()))?;
    }
    fs::create_dir_all(&part).with_context(|| format!("{}: cannot be made", part.display()))?;
    Keeping::new(torrent, &place.dir, &part, &tell).all()
}

/// How the files of one torrent are kept.
struct Keeping<'a> {
    torrent: &'a Torrent,
    dir: &'a Path,
    part: &'a Path,
    tell: &'a dyn Fn(u64, u64),
    done: Cell<u64>,
    of: u64,
    /// Until the file system has said that it cannot.
    shares: Cell<bool>,
    moves: bool,
}

impl<'a> Keeping<'a> {
    fn new(
        torrent: &'a Torrent,
        dir: &'a Path,
        part: &'a Path,
        tell: &'a dyn Fn(u64, u64),
    ) -> Self {
        let files = torrent.layout().entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::File(file) if is_whole(torrent, file) => torrent.info().files.get(file),
            _ => None,
        });
        let of = files.map(|file| file.length).sum();
        let (done, shares, moves) = (Cell::new(0), Cell::new(true), torrent.can_give_to(part));
        Self { torrent, dir, part, tell, done, of, shares, moves }
    }

    fn all(&self) -> Result<()> {
        let mut to_move = Vec::new();
        for entry in &self.torrent.layout().entries {
            let target = self.part.join(relative(entry));
            let made = match &entry.kind {
                EntryKind::File(file) if !is_whole(self.torrent, *file) => continue,
                EntryKind::File(file) => match self.share_or_copy(*file, &target) {
                    Ok(true) => Ok(()),
                    Ok(false) => {
                        to_move.push((*file, relative(entry)));
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                EntryKind::Symlink(to) => parent(&target).and_then(|()| {
                    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(to), &target)
                }),
            };
            made.with_context(|| format!("cannot keep {}", relative(entry).display()))?;
        }
        publish(self.torrent, self.part, self.dir)?;
        self.move_all(&to_move)?;
        File::open(self.dir).and_then(|dir| dir.sync_all()).context("cannot write the folder")
    }

    /// Makes a file; `false` if it is to be moved.
    fn share_or_copy(&self, file: usize, target: &Path) -> io::Result<bool> {
        parent(target)?;
        fetch_all(self.torrent, file)?;
        let movable = self.moves && !self.torrent.is_pinned(file) && self.length(file) > 0;
        if self.shares.get() || !movable {
            let out = OpenOptions::new().write(true).create_new(true).open(target)?;
            if self.shares.get() && self.torrent.share_file(file, &out).is_ok() {
                self.told(self.length(file));
                finish(self.torrent, file, &out)?;
                return Ok(true);
            }
            self.shares.set(false);
            if !movable {
                self.copy(file, &out)?;
                return Ok(true);
            }
            fs::remove_file(target)?;
        }
        Ok(false)
    }

    /// Moves files to their places, or copies those that are being read.
    fn move_all(&self, files: &[(usize, PathBuf)]) -> Result<()> {
        let failed = || format!("cannot keep files in {}", self.dir.display());
        let mode = mode_of_new_files(self.part).with_context(failed)?;
        let moves: Vec<_> = files.iter().map(|(file, path)| (*file, self.dir.join(path))).collect();
        moves.iter().try_for_each(|(_, to)| parent(to)).with_context(failed)?;
        if moves.is_empty() || self.torrent.give_away(&moves).is_ok() {
            for (file, to) in &moves {
                let moved = File::open(to).and_then(|moved| {
                    moved.set_permissions(Permissions::from_mode(mode))?;
                    finish(self.torrent, *file, &moved)
                });
                moved.with_context(failed)?;
                self.told(self.length(*file));
            }
            return Ok(());
        }
        for (file, to) in &moves {
            let copied = self.part.join("copy");
            let copy = || {
                // It was moved before something went wrong.
                if self.torrent.is_given_to(*file, to) && to.symlink_metadata().is_ok() {
                    return Ok(());
                }
                let out = OpenOptions::new().write(true).create_new(true).open(&copied)?;
                self.copy(*file, &out)?;
                give_name(&copied, to)
            };
            copy().with_context(|| format!("cannot keep {}", to.display()))?;
        }
        Ok(())
    }

    fn copy(&self, file: usize, mut out: &File) -> io::Result<()> {
        let (torrent, mut offset) = (self.torrent, 0);
        while offset < self.length(file) {
            let length = CHUNK.min(self.length(file) - offset);
            match torrent.read_anywhere(file, offset, length as usize, |b| out.write_all(b)) {
                Some(written) => written?,
                None => {
                    fetch(torrent, file, offset, length as usize)?;
                    continue;
                }
            }
            offset += length;
            self.told(length);
        }
        finish(torrent, file, out)
    }

    fn length(&self, file: usize) -> u64 {
        self.torrent.info().files.get(file).map_or(0, |entry| entry.length)
    }

    fn told(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        (self.tell)(self.done.get(), self.of);
    }
}

/// Gives the copies their names.
fn publish(torrent: &Torrent, part: &Path, dir: &Path) -> Result<()> {
    check(torrent, dir)?;
    for name in top_names(&torrent.layout().entries) {
        let copy = part.join(&name);
        if copy.symlink_metadata().is_ok() {
            let target = dir.join(&name);
            let renamed = give_name(&copy, &target);
            renamed.with_context(|| format!("cannot keep {}", target.display()))?;
        }
    }
    Ok(())
}

/// Renames, but never onto something that is there.
fn give_name(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can promise it.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        done => Ok(done?),
    }
}

/// Makes a file executable that is to be, for whoever may read it, and has it outlast a power cut.
fn finish(torrent: &Torrent, file: usize, out: &File) -> io::Result<()> {
    if torrent.info().files.get(file).is_some_and(|entry| entry.executable) {
        let mode = out.metadata()?.permissions().mode();
        out.set_permissions(Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    out.sync_all()
}

/// The permissions that a new file in `dir` gets.
fn mode_of_new_files(dir: &Path) -> io::Result<u32> {
    let path = dir.join("new");
    let mode = File::create_new(&path)?.metadata()?.permissions().mode();
    fs::remove_file(path)?;
    Ok(mode)
}

/// Has all of a file verified in this life of the daemon.
fn fetch_all(torrent: &Torrent, file: usize) -> io::Result<()> {
    let length = torrent.info().files.get(file).map_or(0, |entry| entry.length);
    let step = u64::from(torrent.info().geometry.piece_length());
    let mut offset = 0;
    while offset < length {
        let step = step.min(length - offset);
        while torrent.read_anywhere(file, offset, step as usize, |_| ()).is_none() {
            fetch(torrent, file, offset, step as usize)?;
        }
        offset += step;
    }
    Ok(())
}

/// Waits for bytes that are not verified, or that the cache had to drop.
fn fetch(torrent: &Torrent, file: usize, offset: u64, length: usize) -> io::Result<()> {
    let (told, done) = mpsc::channel();
    let waiter = Box::new(move |read| {
        let _ = told.send(read);
    });
    torrent.read_later(HANDLE, file, offset, length, Some(FETCH_TIMEOUT), waiter);
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
