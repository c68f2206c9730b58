//! Data of somebody else that a torrent of the cache uses where it is: the finished or half-finished
//! download of another client.
//!
//! Its pieces are hashed before they count, and then read from there; what is missing is fetched into the
//! cache as ever. The files are only read, and nothing of them is in the budget. When one of them changes,
//! its pieces are lost.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::answer::Answer;
use super::gate::{self, Judged};
use super::in_place;
use super::states::State;
use super::torrent::TorrentStore;
use super::workers::Class;
use super::{StoreError, lock};
use crate::proto::geometry::PieceIndex;
use crate::proto::merkle::Trusted;
use crate::proto::metainfo::layout::Layout;

impl TorrentStore {
    /// Finds the torrent's files at `path`: the file or the directory itself, or the directory that has it
    /// under the torrent's name. Returns the pieces that may be there and are not here: they can be used
    /// after [`Self::verify_lent`]. The error is one if no file is there, one cannot be read, or one is on a
    /// device that is `refused`.
    pub fn borrow(
        &self,
        layout: &Layout,
        path: &Path,
        refused: &[u64],
    ) -> Result<Vec<PieceIndex>, StoreError> {
        let found = in_place::search(&self.info, layout, path)?;
        if let Some((path, _)) = found.values().find(|(_, stamp)| refused.contains(&stamp.device()))
        {
            return Err(StoreError::InMount { path: path.clone() });
        }
        *lock(&self.lent_at) = Some(path.to_owned());
        let has = |piece: PieceIndex| {
            let range = self.info.geometry.piece_range(piece);
            let mut spans = super::files::spans(&self.info, range);
            spans.all(|span| found.contains_key(&span.file) || self.is_pad(span.file))
        };
        let absent = |piece: &PieceIndex| self.states.get(*piece) == State::Absent;
        let pieces = self.info.geometry.pieces().filter(absent).filter(|p| has(*p)).collect();
        // What was verified stays with the file that it was verified in.
        self.lent.add(&found, |file| !self.lends(file));
        Ok(pieces)
    }

    /// Where the data is that is used in place beside the cache.
    pub fn lent_at(&self) -> Option<PathBuf> {
        lock(&self.lent_at).clone()
    }

    /// Hashes a piece in the files of somebody else, by the `root` of its tree too where that is given;
    /// `true`, and it is verified; `false` also if no thread could be had. As [`Self::verify_at_rest`], it is to be
    /// asked for a few at a time.
    pub fn verify_lent(
        self: &Arc<Self>,
        piece: PieceIndex,
        root: Option<Trusted>,
        done: impl FnOnce(bool) + Send + 'static,
    ) {
        let (this, done) = (self.clone(), Answer::new(done));
        self.lenders.submit_check(self.first_file(piece), move || {
            let good = this.check_lent(piece, root);
            drop(this);
            done.give(good);
        });
    }

    fn check_lent(&self, piece: PieceIndex, root: Option<Trusted>) -> bool {
        let start = self.info.geometry.piece_range(piece).start;
        let mut data = self.store.buffers.take(self.info.geometry.piece_len(piece) as usize);
        if self.lent.read(start, data.bytes_mut()).is_err() {
            return false;
        }
        match gate::check(&self.info, piece, root.as_ref(), data) {
            Judged::Verified(range, hashes) => {
                self.keep_hashes(piece, hashes.into());
                self.states.lend(&range)
            }
            _ => false,
        }
    }

    /// Whether a range of a file is verified, and some of it is in files of somebody else.
    pub fn has_elsewhere(&self, file: usize, offset: u64, length: usize) -> bool {
        let Some(entry) = self.info.files.get(file) else { return false };
        let start = entry.offset.saturating_add(offset);
        let range = start..start.saturating_add(length as u64);
        self.is_any_elsewhere(range.clone()) && self.has_all(&range)
    }

    /// Has `job` done on a thread that may wait for such a file. If those do not answer, it may be dropped
    /// instead.
    pub fn wait_elsewhere(&self, file: usize, job: impl FnOnce() + Send + 'static) {
        self.lenders.submit(file, job);
    }

    /// The file by which a piece that is elsewhere is waited for.
    pub fn lender_of(&self, piece: PieceIndex) -> Option<usize> {
        self.is_elsewhere(piece).then(|| self.first_file(piece))
    }

    /// Whether such a file has not answered for a while.
    pub fn is_stuck(&self, file: usize) -> bool {
        self.lenders.is_stuck(file)
    }

    fn first_file(&self, piece: PieceIndex) -> usize {
        let mut spans = super::files::spans(&self.info, self.info.geometry.piece_range(piece));
        spans.next().map_or(0, |span| span.file)
    }

    /// Has `job` hash a verified or hinted piece where it is.
    pub(super) fn submit_check(&self, piece: PieceIndex, job: impl FnOnce() + Send + 'static) {
        match self.lender_of(piece) {
            Some(file) => self.lenders.submit_check(file, job),
            None => self.store.workers.submit(Class::Check, job),
        }
    }

    /// Whether what is here of a piece is in files of somebody else.
    pub fn is_elsewhere(&self, piece: PieceIndex) -> bool {
        self.is_in_place() || self.is_lent(piece)
    }

    pub(super) fn is_any_elsewhere(&self, range: Range<u64>) -> bool {
        self.info.geometry.pieces_of(range).any(|piece| self.is_elsewhere(piece))
    }

    /// Whether the piece is verified, and in files of somebody else.
    pub fn is_lent(&self, piece: PieceIndex) -> bool {
        self.states.get(piece) == State::Lent
    }

    /// Bytes that are verified in files of somebody else, where the cache has others.
    pub fn lent_bytes(&self) -> u64 {
        let geometry = &self.info.geometry;
        let lent = geometry.pieces().filter(|piece| self.is_lent(*piece));
        lent.map(|piece| u64::from(geometry.piece_len(piece))).sum()
    }

    /// Whether some of those files are below `dir`.
    pub fn lends_from(&self, dir: &Path) -> bool {
        self.lent.is_any_below(dir)
    }

    /// Whether verified pieces are in a file of somebody else.
    pub(super) fn lends(&self, file: usize) -> bool {
        let range = self.info.files.get(file).map_or(0..0, |f| f.offset..f.offset + f.length);
        self.info.geometry.pieces_of(range).any(|piece| self.is_lent(piece))
    }

    pub(super) fn is_pad(&self, file: usize) -> bool {
        self.info.files.get(file).is_some_and(|f| f.pad)
    }
}
