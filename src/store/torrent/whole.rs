//! Complete files of the cache, which the kernel may read itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::TorrentStore;
use crate::proto::cache;
use crate::store::states::Pin;

/// A file of the cache of which every byte is verified and on disk. Nothing of it is let go until this is
/// dropped.
pub struct WholeFile {
    torrent: Arc<TorrentStore>,
    file: usize,
    length: u64,
    pieces: Pin,
}

impl TorrentStore {
    /// File number `file`, if all of it is verified and on disk, and if so much of the cache may be kept
    /// from being let go.
    pub fn whole_file(self: &Arc<Self>, file: usize) -> Option<WholeFile> {
        let entry = self.info.files.get(file)?;
        if self.is_in_place() || entry.pad || entry.length == 0 {
            return None;
        }
        let pieces =
            self.states.pin_all(self.pieces_of(entry.offset..entry.offset + entry.length))?;
        if !self.all_at_rest(pieces.pieces()) {
            return None;
        }
        let (length, held) = (entry.length, &self.store.whole_files);
        let all = held.fetch_add(length, Ordering::Relaxed) + length;
        if self.store.ledger.limit().is_some_and(|limit| all > cache::whole_files_share(limit)) {
            held.fetch_sub(length, Ordering::Relaxed);
            return None;
        }
        Some(WholeFile { torrent: self.clone(), file, length, pieces })
    }
}

impl WholeFile {
    /// Whether all of it still counts as verified: a check may have found that the disk has changed it.
    pub fn is_whole(&self) -> bool {
        self.torrent.all_at_rest(self.pieces.pieces())
    }

    /// Calls `f` with the file, open to read; `None` if it cannot be opened.
    pub fn with_file<R>(&self, f: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        let open = self.torrent.files.to_map(self.file).ok()??;
        let length = open.file.metadata().ok()?.len();
        (length == self.length).then(|| f(open.file.as_fd()))
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        self.torrent.states.touch(self.pieces.pieces(), self.torrent.store.moment());
        self.torrent.store.whole_files.fetch_sub(self.length, Ordering::Relaxed);
    }
}
