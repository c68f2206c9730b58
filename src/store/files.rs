//! The bytes of one torrent on disk: one sparse file per file of the torrent, made when it is first
//! written; or, for a seed, the files of somebody else, which are only read.
//!
//! Only inodes that the cache made and alone owns are written: what turns up in their place before
//! the first use (a link, a device, a second name of a file) is removed, never opened for writing;
//! what turns up later is an error.
//!
//! Padding (BEP 47) is zeros and has no file. A torrent may all the same have padding with other
//! content, and its hash says so; then, and only then, it is kept like any file.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::lock;
use super::pool::{FilePool, OpenFile};
use crate::proto::metainfo::Info;

/// Bytes that are written at once. The kernel takes memory for its page cache in pieces as large as what is
/// written. In a virtual machine large ones are slow to come by, because they were given back to the host:
/// those of 32 KiB take 0.7 times the processor time for all of a download that those of 128 KiB do, and
/// smaller ones save nothing more.
const PART: u64 = 32 << 10;

/// Part of a range of the torrent that lies in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The index in `Info::files`.
    pub(super) file: usize,
    /// Where it begins in the file, in bytes.
    pub(super) offset: u64,
    /// Where it lies in the range, in bytes.
    pub(super) at: Range<usize>,
}

/// The parts of the files that `range` of the torrent covers, in order.
pub(super) fn spans(info: &Info, range: Range<u64>) -> impl Iterator<Item = Span> {
    let first = info.files.partition_point(|f| f.offset + f.length <= range.start);
    let files = info.files.iter().enumerate().skip(first);
    files.take_while(move |(_, f)| f.offset < range.end).filter_map(move |(file, f)| {
        let (start, end) = (range.start.max(f.offset), range.end.min(f.offset + f.length));
        (start < end).then(|| Span {
            file,
            offset: start - f.offset,
            at: (start - range.start) as usize..(end - range.start) as usize,
        })
    })
}

/// What tells that a file of somebody else is still the one that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(super) fn of(m: &Metadata) -> Self {
        Self { inode: (m.dev(), m.ino()), length: m.len(), modified: (m.mtime(), m.mtime_nsec()) }
    }

    pub(super) fn device(&self) -> u64 {
        self.inode.0
    }

    /// When it was last changed; `None` for a time that makes no sense.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        let (seconds, nanos) = self.modified;
        let since = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since)
    }
}

/// Where the files are.
pub(super) enum Place {
    /// In our cache, in this directory; with the inode of each file that was opened (0: not yet).
    Cache(PathBuf, Mutex<Vec<u64>>),
    /// Somebody else's, as far as they are there.
    Elsewhere(Mutex<Found>),
}

/// Files of somebody else by their number, each with its stamp; no padding.
pub(super) type Found = HashMap<usize, (PathBuf, Stamp)>;

/// An error at one file of a torrent.
pub(super) struct FileError {
    pub(super) file: usize,
    /// Whether it is a file of somebody else.
    pub(super) elsewhere: bool,
    pub(super) error: io::Error,
}

/// The files of one torrent.
pub(super) struct Files {
    info: Arc<Info>,
    place: Place,
    pool: Arc<FilePool>,
    number: u64,
}

impl Files {
    /// `number` is unique to this torrent among those that share `pool`.
    pub(super) fn new(info: Arc<Info>, place: Place, pool: Arc<FilePool>, number: u64) -> Self {
        Self { info, place, pool, number }
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.pool.len()
    }

    /// Whether the files are ours, so that they may be written and mapped.
    pub(super) fn in_cache(&self) -> bool {
        matches!(self.place, Place::Cache(..))
    }

    /// Fills `out` with the torrent's bytes from `start` as they are on disk, verified or not.
    pub(super) fn read(&self, start: u64, out: &mut [u8]) -> Result<(), FileError> {
        let range = start..start + out.len() as u64;
        for Span { file, offset, at } in spans(&self.info, range) {
            self.read_span(file, offset, &mut out[at]).map_err(|e| self.failed(file, e))?;
        }
        Ok(())
    }

    pub(super) fn failed(&self, file: usize, error: io::Error) -> FileError {
        FileError { file, elsewhere: !self.in_cache(), error }
    }

    fn read_span(&self, file: usize, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let open = match self.open(file, false) {
            Err(e) if self.is_pad(file) && e.kind() == io::ErrorKind::NotFound => {
                out.fill(0);
                return Ok(());
            }
            open => open?,
        };
        open.file.read_exact_at(out, offset)?;
        // After the bytes: a change that they could show is one that the stamp shows as well.
        self.check_stamp(file, &open.file)
    }

    /// Writes verified bytes at `start` of the torrent.
    pub(super) fn write(&self, start: u64, data: &[u8]) -> io::Result<()> {
        for Span { file, offset, at } in spans(&self.info, start..start + data.len() as u64) {
            let data = &data[at];
            let zero_pad = self.is_pad(file) && data.iter().all(|&b| b == 0);
            let open = match self.open(file, !zero_pad) {
                Err(e) if zero_pad && e.kind() == io::ErrorKind::NotFound => continue,
                open => open?,
            };
            if open.file.metadata()?.nlink() != 1 {
                return Err(self.tampered(file));
            }
            write_in_parts(&open.file, data, offset)?;
        }
        Ok(())
    }

    /// The open file, when it may be mapped.
    pub(super) fn to_map(&self, file: usize) -> io::Result<Option<Arc<OpenFile>>> {
        let mappable = self.in_cache() && !self.is_pad(file);
        if mappable { self.open(file, false).map(Some) } else { Ok(None) }
    }

    /// Frees what is allocated for `length` bytes of a file of ours from `offset`; both are whole blocks
    /// of the file system, or the rest of the file.
    pub(super) fn punch(&self, file: usize, offset: u64, length: u64) -> io::Result<()> {
        if !self.in_cache() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let open = match self.open(file, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            open => open?,
        };
        if open.file.metadata()?.nlink() != 1 {
            return Err(self.tampered(file));
        }
        punch(&open.file, offset, length)
    }

    /// Removes a file of ours, of which nothing is needed any more.
    pub(super) fn remove(&self, file: usize) -> io::Result<()> {
        let Place::Cache(dir, inodes) = &self.place else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        let mut inodes = lock(inodes);
        self.pool.close(|key| key == (self.number, file));
        if let Some(known) = inodes.get_mut(file) {
            *known = 0;
        }
        match fs::remove_file(Self::cache_path(dir, file)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Has `take` move a file of ours away; what it may leave at `rest` takes its place.
    pub(super) fn replace(
        &self,
        file: usize,
        rest: Option<&Path>,
        take: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let Place::Cache(dir, inodes) = &self.place else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        // Held, so that nobody opens it meanwhile.
        let mut inodes = lock(inodes);
        let path = Self::cache_path(dir, file);
        take(&path)?;
        self.pool.close(|key| key == (self.number, file));
        if let Some(known) = inodes.get_mut(file) {
            *known = 0;
        }
        rest.map_or(Ok(()), |rest| fs::rename(rest, &path))
    }

    /// Has `take` move a file of somebody else to another path.
    pub(super) fn relocate(
        &self,
        file: usize,
        to: &Path,
        take: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let Place::Elsewhere(files) = &self.place else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        // Held, so that nobody opens it meanwhile.
        let mut files = lock(files);
        let (path, _) = files.get_mut(&file).ok_or_else(not_found)?;
        take()?;
        *path = to.to_owned();
        Ok(())
    }

    /// Has the system forget what it keeps in memory of a file, so that it is read from the disk again.
    pub(super) fn uncache(&self, file: usize) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        if let Ok(open) = self.open(file, false) {
            let _ = open.file.sync_data();
            let _ = posix_fadvise(&open.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }

    /// The directory of our files.
    pub(super) fn dir(&self) -> Option<&Path> {
        match &self.place {
            Place::Cache(dir, _) => Some(dir),
            Place::Elsewhere(_) => None,
        }
    }

    /// Where a file of ours is, or would be.
    pub(super) fn path(&self, file: usize) -> Option<PathBuf> {
        match &self.place {
            Place::Cache(dir, _) => Some(Self::cache_path(dir, file)),
            Place::Elsewhere(_) => None,
        }
    }

    /// The path of a file of the cache, which need not exist.
    fn cache_path(dir: &Path, file: usize) -> PathBuf {
        dir.join(file.to_string())
    }

    fn is_pad(&self, file: usize) -> bool {
        self.info.files.get(file).is_some_and(|f| f.pad)
    }

    fn open(&self, file: usize, create: bool) -> io::Result<Arc<OpenFile>> {
        let key = (self.number, file);
        if let Some(open) = self.pool.get(key) {
            return Ok(open);
        }
        match self.open_anew(file, create) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.pool.close(|_| true);
                self.open_anew(file, create)
            }
            // It has been moved meanwhile.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => self.open_anew(file, create),
            opened => opened,
        }
    }

    /// Whoever calls it holds what keeps the file from being moved: else one that was moved could be put
    /// among the open ones after that.
    fn pooled(&self, file: usize, opened: File) -> Arc<OpenFile> {
        let open = Arc::new(OpenFile::new(opened));
        self.pool.insert((self.number, file), open.clone());
        open
    }

    /// Where a file of somebody else is.
    pub(super) fn elsewhere(&self, file: usize) -> Option<PathBuf> {
        match &self.place {
            Place::Elsewhere(files) => lock(files).get(&file).map(|(path, _)| path.clone()),
            Place::Cache(..) => None,
        }
    }

    fn open_anew(&self, file: usize, create: bool) -> io::Result<Arc<OpenFile>> {
        match &self.place {
            Place::Elsewhere(files) => {
                let known = |files: &Found| files.get(&file).cloned().ok_or_else(not_found);
                let (path, stamp) = known(&lock(files))?;
                // Nothing is held meanwhile: it may take long.
                let open = open_foreign(&path)?;
                compare(&path, &stamp, &open)?;
                let files = lock(files);
                match known(&files)? == (path, stamp) {
                    true => Ok(self.pooled(file, open)),
                    false => Err(io::ErrorKind::Interrupted.into()),
                }
            }
            Place::Cache(dir, inodes) => {
                let length = self.info.files.get(file).ok_or_else(not_found)?.length;
                // Held while opening, so that two threads do not both make the file.
                let mut inodes = lock(inodes);
                let known = inodes.get_mut(file).ok_or_else(not_found)?;
                let path = Self::cache_path(dir, file);
                let open = match open_existing(&path)? {
                    Some(f) if *known == 0 || f.metadata()?.ino() == *known => f,
                    _ if *known != 0 => return Err(self.tampered(file)),
                    _ if create => create_own(&path)?,
                    _ => return Err(not_found()),
                };
                if *known == 0 {
                    let found = open.metadata()?;
                    if found.len() != length {
                        open.set_len(length)?;
                    }
                    *known = found.ino();
                }
                Ok(self.pooled(file, open))
            }
        }
    }

    fn check_stamp(&self, file: usize, open: &File) -> io::Result<()> {
        let Place::Elsewhere(files) = &self.place else { return Ok(()) };
        let known = lock(files).get(&file).cloned();
        let (path, stamp) = known.ok_or_else(not_found)?;
        compare(&path, &stamp, open)
    }

    /// Adds files of somebody else. One that is known already is replaced if `may` says so of it.
    pub(super) fn add(&self, found: &Found, may: impl Fn(usize) -> bool) {
        let Place::Elsewhere(files) = &self.place else { return };
        let mut files = lock(files);
        for (file, place) in found {
            if !files.contains_key(file) || may(*file) {
                self.pool.close(|key| key == (self.number, *file));
                files.insert(*file, place.clone());
            }
        }
    }

    /// Forgets the files of somebody else that `which` names.
    pub(super) fn remove_known(&self, which: impl Fn(usize) -> bool) {
        let Place::Elsewhere(files) = &self.place else { return };
        lock(files).retain(|file, _| !which(*file));
        self.pool.close(|(number, file)| number == self.number && which(file));
    }

    /// Whether files of somebody else are below `dir`.
    pub(super) fn is_any_below(&self, dir: &Path) -> bool {
        let Place::Elsewhere(files) = &self.place else { return false };
        lock(files).values().any(|(path, _)| path.starts_with(dir))
    }

    fn tampered(&self, file: usize) -> io::Error {
        let Place::Cache(dir, _) = &self.place else { return not_found() };
        let path = Self::cache_path(dir, file);
        io::Error::other(format!(
            "{} was removed, replaced or linked while in use; mount the torrent again",
            path.display()
        ))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.pool.close(|(number, _)| number == self.number);
    }
}

/// Writes `data` at `offset` in parts of at most `PART` that end where such parts of the file end.
pub(super) fn write_in_parts(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    parts(data, offset).try_for_each(|(part, at)| file.write_all_at(part, at))
}

/// The parts, and where each of them is written.
fn parts(mut data: &[u8], mut offset: u64) -> impl Iterator<Item = (&[u8], u64)> {
    std::iter::from_fn(move || {
        let room = PART - offset % PART;
        let (part, rest) = data.split_at(data.len().min(room as usize));
        let at = offset;
        (data, offset) = (rest, offset + part.len() as u64);
        (!part.is_empty()).then_some((part, at))
    })
}

/// Frees what is allocated for whole blocks of a file.
pub(super) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
    Ok(fallocate(file, flags, signed(offset)?, signed(length)?)?)
}

/// Opens a file that is not ours to read it; a pipe or a device does not hold us up.
pub(super) fn open_foreign(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn compare(path: &Path, stamp: &Stamp, open: &File) -> io::Result<()> {
    if Stamp::of(&open.metadata()?) == *stamp {
        return Ok(());
    }
    let changed = format!("{} has changed since it was checked", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, changed))
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// Makes a directory that is nobody else's business, if it is not there.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a file of ours to read and write; one that is not ours alone is replaced by an empty one.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    match open_existing(path)? {
        Some(file) => Ok(file),
        None => create_own(path),
    }
}

/// Opens what is at `path` if it is a file of ours alone: a regular file with one name.
fn open_existing(path: &Path) -> io::Result<Option<File>> {
    // A FIFO or a device is never opened: opening alone can have effects.
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_file() => {}
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let m = file.metadata()?;
    let ours = m.is_file() && m.nlink() == 1 && m.uid() == nix::unistd::geteuid().as_raw();
    Ok(ours.then_some(file))
}

/// Makes a new file at `path`, after removing what is there.
pub(super) fn create_own(path: &Path) -> io::Result<File> {
    let removed = match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = libc::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_parts_of_the_file_end_and_nothing_is_left_out() {
        let data: Vec<u8> = (0..3 * PART + 5).map(|at| (at % 251) as u8).collect();
        for offset in [0, 1, PART - 1, PART, 5 * PART + 7] {
            let file = tempfile::tempfile().unwrap();
            write_in_parts(&file, &data, offset).unwrap();
            let mut found = vec![0; data.len()];
            file.read_exact_at(&mut found, offset).unwrap();
            assert!(found == data, "at {offset}");
            let ends: Vec<_> =
                parts(&data, offset).map(|(part, at)| at + part.len() as u64).collect();
            let (last, others) = ends.split_last().unwrap();
            assert_eq!(*last, offset + data.len() as u64);
            assert!(others.len() >= 3 && others.iter().all(|end| end % PART == 0), "{ends:?}");
            assert_eq!(file.metadata().unwrap().len(), offset + data.len() as u64);
        }
    }
}
