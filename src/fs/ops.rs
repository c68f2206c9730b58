//! What each operation on metadata means. Nothing here waits. Reads are in [`super::reading`].

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;

use super::content::Content;
use super::handles::Handles;
use super::reading::Failures;
use super::signals::Watch;
use super::tree::{Kind, Tree};
use super::xattr::{self, Answer, Of};
use crate::store::WholeFile;

/// The block size that `stat` and `statfs` report, in bytes.
pub const BLOCK_SIZE: u32 = 4096;

/// The longest name, in bytes.
pub const NAME_MAX: u32 = 255;

/// A handle's readahead reaches at least this far, in bytes.
const READAHEAD_MIN: u64 = 32 * 1024 * 1024;
/// And at most this far, in bytes, however long the pieces are.
const READAHEAD_MAX: u64 = 128 * 1024 * 1024;
/// Between the two, so many pieces.
const READAHEAD_PIECES: u64 = 4;

/// How a mount shows its files.
#[derive(Clone, Debug)]
pub struct View {
    /// The owner of everything.
    pub uid: u32,
    /// The group of everything.
    pub gid: u32,
    /// Permission bits taken away.
    pub umask: u32,
    /// The time of what the torrent gives no time for.
    pub time: SystemTime,
    /// How long a buffered read may wait; for ever without.
    pub read_timeout: Option<Duration>,
}

/// One mount's filesystem.
pub struct Fs {
    pub(super) content: Arc<dyn Content>,
    tree: Tree,
    pub(super) view: View,
    pub(super) handles: Handles,
    /// Where reads have failed a moment ago.
    pub(super) failures: Failures,
    /// Lets signals through to those who wait.
    pub(super) watch: Watch,
    /// Set when the mount is being ended: nothing waits any more.
    pub(super) ending: AtomicBool,
}

/// What `stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub inode: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes: all of the file, whether they are here or not.
    pub size: u64,
    /// Blocks of 512 bytes: never fewer than the size needs, or `tar -S` would take what is not
    /// here yet for a hole. A symbolic link has none.
    pub blocks: u64,
    /// Permission bits.
    pub mode: u16,
    /// Hard links; for a directory its entry, its `.` and the `..` of each directory in it.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, which serves as all times.
    pub time: SystemTime,
}

/// One line of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// What is there.
    pub attr: Attr,
    /// Its name.
    pub name: &'a [u8],
    /// Where a listing that stops after this entry goes on.
    pub next: u64,
}

/// What `statfs` says; all counts in [`BLOCK_SIZE`] blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// All of the torrent. None of it is free.
    pub blocks: u64,
    /// Inodes. None of them is free.
    pub files: u64,
}

impl Fs {
    /// The filesystem that shows `content`.
    pub fn new(content: Arc<dyn Content>, view: View) -> Self {
        let tree = Tree::new(Arc::clone(content.layout()));
        Self {
            content,
            tree,
            view,
            handles: Handles::default(),
            failures: Failures::default(),
            watch: Watch::default(),
            ending: AtomicBool::new(false),
        }
    }

    /// The entry of a directory with this name.
    pub fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Attr>, Errno> {
        if name.len() > NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        match name {
            b"." => return self.attr(directory).map(Some),
            b".." => {
                let parent = self.tree.parent(directory).ok_or(Errno::ENOENT)?;
                return self.attr(parent).map(Some);
            }
            _ => {}
        }
        match self.tree.kind(directory).ok_or(Errno::ENOENT)? {
            Kind::Directory { .. } => {}
            Kind::File(_) | Kind::Symlink => return Err(Errno::ENOTDIR),
        }
        self.tree.lookup(directory, name).map(|inode| self.attr(inode)).transpose()
    }

    /// A number that other torrents do not have; 0 has another meaning.
    pub(super) fn generation(&self) -> u32 {
        let [a, b, c, d, ..] = *self.content.info().info_hash.as_bytes();
        u32::from_be_bytes([a, b, c, d]).max(1)
    }

    /// The files that have bytes of a range of the torrent, and which bytes of them.
    pub(super) fn files_with(&self, range: &Range<u64>) -> Vec<(u64, Range<u64>)> {
        let files = &self.content.info().files;
        let inodes =
            (1..=self.tree.len() as u64).filter_map(|inode| match self.tree.kind(inode)? {
                Kind::File(file) => Some((inode, files.get(file as usize)?)),
                Kind::Directory { .. } | Kind::Symlink => None,
            });
        let parts = inodes.map(|(inode, file)| {
            let start = range.start.max(file.offset) - file.offset;
            let end = range.end.min(file.offset + file.length).saturating_sub(file.offset);
            (inode, start..end)
        });
        parts.filter(|(_, part)| !part.is_empty()).collect()
    }

    /// What `stat` says of an inode.
    pub fn attr(&self, inode: u64) -> Result<Attr, Errno> {
        let kind = self.tree.kind(inode).ok_or(Errno::ENOENT)?;
        let (size, mode, links, time) = match kind {
            Kind::Directory { directories, .. } => {
                (u64::from(BLOCK_SIZE), 0o555 & !self.view.umask, 2 + directories, None)
            }
            Kind::File(file) => {
                let file = self.content.info().files.get(file as usize).ok_or(Errno::ENOENT)?;
                let mode = if file.executable { 0o555 } else { 0o444 };
                (file.length, mode & !self.view.umask, 1, file.mtime.and_then(system_time))
            }
            Kind::Symlink => {
                (self.tree.target(inode).unwrap_or_default().len() as u64, 0o777, 1, None)
            }
        };
        Ok(Attr {
            inode,
            kind,
            size,
            blocks: if kind == Kind::Symlink { 0 } else { size.div_ceil(512) },
            mode: mode as u16,
            links,
            uid: self.view.uid,
            gid: self.view.gid,
            time: time.unwrap_or(self.view.time),
        })
    }

    /// Where a symbolic link points.
    pub fn readlink(&self, inode: u64) -> Result<&[u8], Errno> {
        self.tree.kind(inode).ok_or(Errno::ENOENT)?;
        self.tree.target(inode).ok_or(Errno::EINVAL)
    }

    /// A directory's entries from `offset` on: 0, or the `next` of an entry. `.` and `..` come first.
    pub fn readdir(
        &self,
        directory: u64,
        offset: u64,
    ) -> Result<impl Iterator<Item = DirEntry<'_>>, Errno> {
        let entries = self.tree.entries(directory).ok_or(Errno::ENOTDIR)?;
        let parent = self.tree.parent(directory).ok_or(Errno::ENOENT)?;
        let dots = [(directory, b".".as_slice()), (parent, b"..".as_slice())];
        let after = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = entries.start.saturating_add(offset.saturating_sub(dots.len() as u64));
        let rest = from.min(entries.end)..entries.end;
        let dots = dots
            .into_iter()
            .enumerate()
            .skip(after)
            .map(|(i, (inode, name))| (inode, name, i as u64 + 1));
        let first = entries.start;
        let rest = rest.map(move |inode| (inode, self.tree.name(inode), inode - first + 3));
        Ok(dots.chain(rest).filter_map(|(inode, name, next)| {
            Some(DirEntry { attr: self.attr(inode).ok()?, name, next })
        }))
    }

    /// Opens a file; the handle's number.
    ///
    /// # Errors
    /// `EROFS` for anything but reading.
    pub fn open(&self, inode: u64, flags: i32) -> Result<u64, Errno> {
        let file = match self.tree.kind(inode).ok_or(Errno::ENOENT)? {
            Kind::File(file) => file as usize,
            Kind::Directory { .. } => return Err(Errno::EISDIR),
            Kind::Symlink => return Err(Errno::ELOOP),
        };
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(Errno::EROFS);
        }
        let info = self.content.info();
        let size = info.files.get(file).ok_or(Errno::ENOENT)?.length;
        let pieces = READAHEAD_PIECES * u64::from(info.geometry.piece_length());
        let budget = pieces.clamp(READAHEAD_MIN, READAHEAD_MAX);
        Ok(self.handles.open(file, size, budget).id.0)
    }

    /// A file that is complete, if the kernel may read it itself; `open` is called with it.
    pub fn whole_file(
        &self,
        inode: u64,
        open: &mut dyn FnMut(BorrowedFd<'_>),
    ) -> Option<WholeFile> {
        match self.tree.kind(inode)? {
            Kind::File(file) => self.content.whole_file(file as usize, open),
            Kind::Directory { .. } | Kind::Symlink => None,
        }
    }

    /// Whether the kernel may read a file itself as soon as it is complete, and not yet.
    pub fn becomes_whole(&self, inode: u64) -> bool {
        match self.tree.kind(inode) {
            Some(Kind::File(file)) => self.content.becomes_whole(file as usize),
            _ => false,
        }
    }

    /// A descriptor of the handle was closed, perhaps because its process was killed: nothing is
    /// urgent any more. Others may share the handle, so its reads go on, and those of programs that
    /// still live are soon urgent again (`signals.rs`).
    pub fn flush(&self, handle: u64) -> Result<(), Errno> {
        let handle = self.handles.get(handle).ok_or(Errno::EBADF)?;
        if super::lock(&handle.window).withdraw() {
            self.content.read_ahead(handle.id, handle.file, 0, 0);
        }
        self.content.flushed(handle.id);
        handle.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// The last descriptor of the handle is gone.
    pub fn release(&self, handle: u64) {
        if let Some(handle) = self.handles.close(handle) {
            self.content.closed(handle.id);
        }
    }

    /// The mount has ended: what is still open will not be released any more.
    pub fn release_all(&self) {
        for handle in self.handles.close_all() {
            self.content.closed(handle.id);
        }
    }

    /// `lseek` for data and holes. What is not here yet is data.
    pub fn lseek(&self, inode: u64, offset: i64, whence: i32) -> Result<i64, Errno> {
        let size = i64::try_from(self.attr(inode)?.size).map_err(|_| Errno::EOVERFLOW)?;
        match whence {
            libc::SEEK_DATA | libc::SEEK_HOLE if !(0..size).contains(&offset) => Err(Errno::ENXIO),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `access`: writing is refused for everybody. The rest is the kernel's to check.
    pub fn access(&self, inode: u64, mask: i32) -> Result<(), Errno> {
        self.tree.kind(inode).ok_or(Errno::ENOENT)?;
        if mask & libc::W_OK != 0 { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// What `statfs` says.
    pub fn statfs(&self) -> StatFs {
        let total = self.content.info().geometry.payload();
        StatFs { blocks: total.div_ceil(BLOCK_SIZE.into()), files: self.tree.len() as u64 }
    }

    /// The value of an extended attribute; see [`xattr::get`].
    pub fn getxattr(&self, inode: u64, name: &[u8], size: u32) -> Result<Answer, Errno> {
        xattr::get(&*self.content, self.described(inode)?, name, size)
    }

    /// The names of the extended attributes; see [`xattr::list`].
    pub fn listxattr(&self, inode: u64, size: u32) -> Result<Answer, Errno> {
        xattr::list(self.described(inode)?, size)
    }

    fn described(&self, inode: u64) -> Result<Of, Errno> {
        Ok(match self.tree.kind(inode).ok_or(Errno::ENOENT)? {
            Kind::File(file) => Of::File(file as usize),
            Kind::Directory { .. } if inode == super::tree::ROOT => Of::Torrent,
            Kind::Directory { .. } | Kind::Symlink => Of::Nothing,
        })
    }
}

/// Seconds since 1970 as a time, if it can be shown as one.
fn system_time(seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}
