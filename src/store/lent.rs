//! Data of somebody else that a torrent of the cache uses where it is: the finished or half-finished
//! download of another client.
//!
//! Its pieces are hashed before they count, and then read from there; what is missing is fetched into the
//! cache as ever. The files are only read, and nothing of them is in the budget. When one of them changes,
//! its pieces are lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// after [`Self::verify_lent`]. The error is one if no file is there, or one cannot be read.
    pub fn borrow(&self, layout: &Layout, path: &Path) -> Result<Vec<PieceIndex>, StoreError> {
        let found = in_place::search(&self.info, layout, path)?;
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
    /// `true`, and it is verified. As [`Self::verify_at_rest`], it is to be asked for a few at a time.
    pub fn verify_lent(
        self: &Arc<Self>,
        piece: PieceIndex,
        root: Option<Trusted>,
        done: impl FnOnce(bool) + Send + 'static,
    ) {
        let this = self.clone();
        self.store.workers.submit(Class::Check, move || {
            let good = this.check_lent(piece, root);
            drop(this);
            done(good);
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
