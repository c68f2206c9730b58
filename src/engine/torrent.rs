//! The handle through which everything outside the engine uses one torrent.

use std::sync::Arc;
use std::time::Duration;

use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::Layout;

/// Names one open file handle of the filesystem to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadHandle(pub u64);

/// Why a waiting read ended without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The time the read was given has passed.
    #[error("no data within the time allowed")]
    TimedOut,
    /// `abort` ended it.
    #[error("the read was aborted")]
    Aborted,
    /// The torrent was removed, or the daemon is stopping.
    #[error("the torrent is gone")]
    Gone,
    /// The disk failed.
    #[error("the cache's disk failed")]
    Disk,
}

/// Called once, on a thread of the engine that must not be blocked for long, when a read that
/// waited can be answered (`Ok`: [`Torrent::read_now`] will serve it) or has ended.
pub type Waiter = Box<dyn FnOnce(Result<(), ReadError>) + Send>;

/// A torrent of the session, cheap to clone. The torrent itself lives in its task.
#[derive(Clone)]
pub struct Torrent {}

impl Torrent {
    /// The info dictionary.
    pub fn info(&self) -> &Arc<Info> {
        todo!()
    }

    /// The tree of safe names.
    pub fn layout(&self) -> &Arc<Layout> {
        todo!()
    }

    /// Calls `f` with `length` bytes of file number `file` (its index in `info().files`) from
    /// `offset`, if all of them are verified and here now. Never waits for the network. The slice
    /// may be a mapping: hand it to a system call, do not look into it. The range must lie in the
    /// file.
    pub fn read_now<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let _ = (file, offset, length, f);
        todo!()
    }

    /// Waits, without blocking the caller, until [`Self::read_now`] can serve this range or
    /// `timeout` has passed.
    pub fn read_later(
        &self,
        handle: ReadHandle,
        file: usize,
        offset: u64,
        length: usize,
        timeout: Option<Duration>,
        waiter: Waiter,
    ) {
        let _ = (handle, file, offset, length, timeout, waiter);
        todo!()
    }

    /// Says what a handle will probably read next: `length` bytes from `offset` of file `file`; a
    /// length of 0 for nothing. Replaces what was said before for that handle.
    pub fn read_ahead(&self, handle: ReadHandle, file: usize, offset: u64, length: u64) {
        let _ = (handle, file, offset, length);
        todo!()
    }

    /// A descriptor of the handle was closed: its waiting reads stay, but are urgent no longer
    /// (fuse-facts: FLUSH is the only sign that a killed reader has gone).
    pub fn flushed(&self, handle: ReadHandle) {
        let _ = handle;
        todo!()
    }

    /// The handle is gone for good.
    pub fn closed(&self, handle: ReadHandle) {
        let _ = handle;
        todo!()
    }

    /// Reads that wait now.
    pub fn waiting_reads(&self) -> usize {
        todo!()
    }

    /// Ends all waiting reads with [`ReadError::Aborted`]; returns how many there were.
    pub fn abort_reads(&self) -> usize {
        todo!()
    }

    /// Verified bytes of file `file`, and of the whole torrent with `None`.
    pub fn verified_bytes(&self, file: Option<usize>) -> u64 {
        let _ = file;
        todo!()
    }

    /// Everything that `status` shows.
    pub fn status(&self) -> super::TorrentStatus {
        todo!()
    }

    /// Waits until everything selected is verified.
    pub async fn wait_complete(&self) -> Result<(), ReadError> {
        todo!()
    }

    /// Fetches these files (indexes in `info().files`) now.
    pub fn prefetch(&self, files: &[usize]) {
        let _ = files;
        todo!()
    }
}
