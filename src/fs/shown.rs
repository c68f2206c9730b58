//! What a mount shows: the files of one torrent ([`Fs`]), or a folder for each of several
//! ([`super::folders::Folders`]).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::ops::{Attr, DirEntry, Fs, StatFs};
use super::reading::{ReadRequest, Reply};
use super::tree::ROOT;
use super::xattr::Answer;
use crate::store::WholeFile;

/// The operations of a filesystem, by inode numbers. Each does what the one of the same name does in
/// [`Fs`]; none waits.
pub trait Shown: Send + Sync + 'static {
    /// Whether the entries of a directory come and go: then the kernel may remember neither its
    /// attributes nor that a name is not there.
    fn changes(&self, inode: u64) -> bool;
    /// What tells an inode from another one that had its number in an earlier mount: who has kept the two
    /// (an NFS client) is never given a file of another torrent. 0 for the root, as the kernel has it.
    fn generation(&self, inode: u64) -> u32;
    /// The entry of a directory with this name. `.` and `..` are looked for by the kernel on behalf of NFS
    /// servers only, `.` also in what is no directory.
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Attr>, Errno>;
    /// What `stat` says.
    fn attr(&self, inode: u64) -> Result<Attr, Errno>;
    /// Where a symbolic link points.
    fn readlink(&self, inode: u64) -> Result<Vec<u8>, Errno>;
    /// Calls `each` with a directory's entries from `offset` on, until it says that it is full.
    fn readdir(
        &self,
        directory: u64,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno>;
    /// Opens a file; the handle's number.
    fn open(&self, inode: u64, flags: i32) -> Result<u64, Errno>;
    /// A file that is complete, if the kernel may read it itself; `open` is called with it.
    fn whole_file(&self, inode: u64, open: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile>;
    /// Whether the kernel may read a file itself as soon as it is complete, and not yet.
    fn becomes_whole(&self, inode: u64) -> bool;
    /// Reads; `reply` may be called later.
    fn read(&self, inode: u64, request: ReadRequest, reply: Reply);
    /// A descriptor of the handle was closed.
    fn flush(&self, inode: u64, handle: u64) -> Result<(), Errno>;
    /// The last descriptor of the handle is gone.
    fn release(&self, inode: u64, handle: u64);
    /// `lseek` for data and holes.
    fn lseek(&self, inode: u64, offset: i64, whence: i32) -> Result<i64, Errno>;
    /// `access`.
    fn access(&self, inode: u64, mask: i32) -> Result<(), Errno>;
    /// What `statfs` says.
    fn statfs(&self) -> StatFs;
    /// The value of an extended attribute.
    fn getxattr(&self, inode: u64, name: &[u8], size: u32) -> Result<Answer, Errno>;
    /// The names of the extended attributes.
    fn listxattr(&self, inode: u64, size: u32) -> Result<Answer, Errno>;
    /// What is shown, for what concerns the reads of all of it.
    fn all(&self) -> Vec<Arc<Fs>> {
        self.placed().into_iter().map(|(_, fs)| fs).collect()
    }
    /// What is shown, each with what is added to its inode numbers.
    fn placed(&self) -> Vec<(u64, Arc<Fs>)>;
}

/// One torrent.
pub(super) struct One(pub Arc<Fs>);

impl Shown for One {
    fn changes(&self, _: u64) -> bool {
        false
    }

    fn generation(&self, inode: u64) -> u32 {
        if inode == ROOT { 0 } else { self.0.generation() }
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Attr>, Errno> {
        self.0.lookup(directory, name)
    }

    fn attr(&self, inode: u64) -> Result<Attr, Errno> {
        self.0.attr(inode)
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, Errno> {
        self.0.readlink(inode).map(<[u8]>::to_vec)
    }

    fn readdir(
        &self,
        directory: u64,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let _full = self.0.readdir(directory, offset)?.any(each);
        Ok(())
    }

    fn open(&self, inode: u64, flags: i32) -> Result<u64, Errno> {
        self.0.open(inode, flags)
    }

    fn whole_file(&self, inode: u64, open: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile> {
        self.0.whole_file(inode, open)
    }

    fn becomes_whole(&self, inode: u64) -> bool {
        self.0.becomes_whole(inode)
    }

    fn read(&self, _: u64, request: ReadRequest, reply: Reply) {
        self.0.read(request, reply);
    }

    fn flush(&self, _: u64, handle: u64) -> Result<(), Errno> {
        self.0.flush(handle)
    }

    fn release(&self, _: u64, handle: u64) {
        self.0.release(handle);
    }

    fn lseek(&self, inode: u64, offset: i64, whence: i32) -> Result<i64, Errno> {
        self.0.lseek(inode, offset, whence)
    }

    fn access(&self, inode: u64, mask: i32) -> Result<(), Errno> {
        self.0.access(inode, mask)
    }

    fn statfs(&self) -> StatFs {
        self.0.statfs()
    }

    fn getxattr(&self, inode: u64, name: &[u8], size: u32) -> Result<Answer, Errno> {
        self.0.getxattr(inode, name, size)
    }

    fn listxattr(&self, inode: u64, size: u32) -> Result<Answer, Errno> {
        self.0.listxattr(inode, size)
    }

    fn placed(&self) -> Vec<(u64, Arc<Fs>)> {
        vec![(0, Arc::clone(&self.0))]
    }
}
