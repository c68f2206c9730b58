//! What the filesystem needs of a torrent.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{ReadHandle, Torrent, Waiter};
use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::Layout;
use crate::store::WholeFile;

/// The source of a mount's files: [`Torrent`], or a stand-in for tests without a network. Each
/// method does what the one of the same name does there; none may block for long.
pub trait Content: Send + Sync + 'static {
    /// The info dictionary.
    fn info(&self) -> &Arc<Info>;

    /// The tree of safe names.
    fn layout(&self) -> &Arc<Layout>;

    /// Calls `f` with `length` bytes of file `file` from `offset` and returns true, if all of them
    /// are verified and here now. Returns false, without calling `f`, otherwise.
    fn read_now(&self, file: usize, offset: u64, length: usize, f: &mut dyn FnMut(&[u8])) -> bool;

    /// As [`Self::read_now`], of data of somebody else too; this one may block for long.
    fn read_anywhere(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: &mut dyn FnMut(&[u8]),
    ) -> bool {
        self.read_now(file, offset, length, f)
    }

    /// Whether nothing of a range is missing, and some of it is with somebody else.
    fn has_elsewhere(&self, _file: usize, _offset: u64, _length: usize) -> bool {
        false
    }

    /// Has `job` done on a thread that may call [`Self::read_anywhere`] for the file, or drops it.
    fn wait_elsewhere(&self, _file: usize, job: Box<dyn FnOnce() + Send>) {
        job();
    }

    /// Calls `waiter` once [`Self::read_now`] can serve the range, or the read has ended.
    fn read_later(
        &self,
        handle: ReadHandle,
        file: usize,
        offset: u64,
        length: usize,
        timeout: Option<Duration>,
        waiter: Waiter,
    );

    /// Replaces what the handle will probably read next.
    fn read_ahead(&self, handle: ReadHandle, file: usize, offset: u64, length: u64);

    /// A descriptor of the handle was closed.
    fn flushed(&self, handle: ReadHandle);

    /// The handle is gone for good.
    fn closed(&self, handle: ReadHandle);

    /// Verified bytes of one file, or of the whole torrent.
    fn verified_bytes(&self, file: Option<usize>) -> u64;

    /// A file that is complete, if the kernel may read it itself; `open` is called with it.
    fn whole_file(&self, file: usize, open: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile>;

    /// Whether the kernel may read a file itself as soon as it is complete, and not yet.
    fn becomes_whole(&self, file: usize) -> bool;
}

impl Content for Torrent {
    fn info(&self) -> &Arc<Info> {
        Torrent::info(self)
    }

    fn layout(&self) -> &Arc<Layout> {
        Torrent::layout(self)
    }

    fn read_now(&self, file: usize, offset: u64, length: usize, f: &mut dyn FnMut(&[u8])) -> bool {
        Torrent::read_now(self, file, offset, length, f).is_some()
    }

    fn read_anywhere(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: &mut dyn FnMut(&[u8]),
    ) -> bool {
        Torrent::read_anywhere(self, file, offset, length, f).is_some()
    }

    fn has_elsewhere(&self, file: usize, offset: u64, length: usize) -> bool {
        Torrent::has_elsewhere(self, file, offset, length)
    }

    fn wait_elsewhere(&self, file: usize, job: Box<dyn FnOnce() + Send>) {
        Torrent::wait_elsewhere(self, file, job);
    }

    fn read_later(
        &self,
        handle: ReadHandle,
        file: usize,
        offset: u64,
        length: usize,
        timeout: Option<Duration>,
        waiter: Waiter,
    ) {
        Torrent::read_later(self, handle, file, offset, length, timeout, waiter);
    }

    fn read_ahead(&self, handle: ReadHandle, file: usize, offset: u64, length: u64) {
        Torrent::read_ahead(self, handle, file, offset, length);
    }

    fn flushed(&self, handle: ReadHandle) {
        Torrent::flushed(self, handle);
    }

    fn closed(&self, handle: ReadHandle) {
        Torrent::closed(self, handle);
    }

    fn verified_bytes(&self, file: Option<usize>) -> u64 {
        Torrent::verified_bytes(self, file)
    }

    fn whole_file(&self, file: usize, open: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile> {
        Torrent::whole_file(self, file, open)
    }

    fn becomes_whole(&self, file: usize) -> bool {
        Torrent::becomes_whole(self, file)
    }
}
