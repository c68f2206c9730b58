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
    length: u64,
    pieces: Pin,
}

impl TorrentStore {
    /// File number `file`, if all of it is verified and on disk, and if so much of the cache may be kept
    /// from being let go; `open` is called with it, open to read.
    pub fn whole_file(
        self: &Arc<Self>,
        file: usize,
        open: &mut dyn FnMut(BorrowedFd<'_>),
    ) -> Option<WholeFile> {
        let entry = self.info.files.get(file)?;
        if self.is_in_place() || entry.pad || entry.length == 0 {
            return None;
        }
        // Held, so that it is not moved out of the cache before its pieces are pinned, and not waited for.
        let _disk = self.disk.try_read().ok()?;
        let pieces =
            self.states.pin_all(self.pieces_of(entry.offset..entry.offset + entry.length))?;
        let opened = self.files.to_map(file).ok()??;
        let length = opened.file.metadata().ok()?.len();
        if !self.all_at_rest(pieces.pieces()) || length != entry.length {
            return None;
        }
        let held = &self.store.whole_files;
        let all = held.fetch_add(length, Ordering::Relaxed) + length;
        if self.store.ledger.limit().is_some_and(|limit| all > cache::whole_files_share(limit)) {
            held.fetch_sub(length, Ordering::Relaxed);
            return None;
        }
        open(opened.file.as_fd());
        Some(WholeFile { torrent: self.clone(), length, pieces })
    }

    /// Whether [`Self::whole_file`] would give file number `file` once the rest of it is here, and not yet.
    pub fn becomes_whole(&self, file: usize) -> bool {
        let Some(entry) = self.info.files.get(file) else { return false };
        let pieces = self.pieces_of(entry.offset..entry.offset + entry.length);
        let share = self.store.ledger.limit().map_or(u64::MAX, cache::whole_files_share);
        !self.is_in_place() && !entry.pad && entry.length <= share && !self.all_at_rest(pieces)
    }
}

impl WholeFile {
    /// Whether all of it still counts as verified: a check may have found that the disk has changed it.
    pub fn is_whole(&self) -> bool {
        self.torrent.all_at_rest(self.pieces.pieces())
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        self.torrent.states.touch(self.pieces.pieces(), self.torrent.store.moment());
        self.torrent.store.whole_files.fetch_sub(self.length, Ordering::Relaxed);
    }
}
