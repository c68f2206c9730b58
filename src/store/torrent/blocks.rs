//! Blocks that are verified alone (BEP 52), and the hashes of blocks for peers.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{TorrentStore, overlap};
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::merkle::{Hash, Trusted, block_hashes};
use crate::store::answer::Answer;
use crate::store::blocks::Place;
use crate::store::buffer::PieceBuffer;
use crate::store::gate::{self, VerifiedRange};
use crate::store::workers::Class;
use crate::store::{lock, shared};

/// Hashes of blocks that are kept in memory: two mebibytes of them, which are those of 1 GiB.
const MAX_KEPT_HASHES: usize = 64 << 10;

/// Hashes that a piece has at least if they are kept: those of 1 MiB.
const MIN_KEPT_HASHES: usize = 64;

impl TorrentStore {
    /// Checks blocks of a piece that is not whole, each by its hash (BEP 52), and calls `done` with the
    /// numbers of those that are good and of those that are not. The good ones can be read then, and
    /// are written; of blocks that are not in the buffer nothing is said.
    pub fn verify_blocks(
        self: &Arc<Self>,
        buffer: Arc<PieceBuffer>,
        blocks: Vec<(u32, Trusted)>,
        done: impl FnOnce(&[u32], &[u32]) + Send + 'static,
    ) {
        let this = self.clone();
        self.store.workers.submit(Class::Verify, move || {
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            let (piece, mut ranges) = (buffer.piece(), Vec::new());
            for (index, hash) in blocks {
                let Some(data) = buffer.copy_block(index, &this.store.buffers) else { continue };
                match gate::check_block(&this.info, piece, index * BLOCK_LEN, &hash, data) {
                    Some(range) => {
                        this.blocks.hold(&range);
                        ranges.push(range);
                        good.push(index);
                    }
                    None => {
                        // What is at rest may have been what was bad.
                        this.blocks.forget_one(piece, index);
                        bad.push(index);
                    }
                }
            }
            drop(buffer);
            done(&good, &bad);
            let writing = this.clone();
            this.store.workers.submit(Class::Write, move || writing.write_blocks(&ranges));
        });
    }

    fn write_blocks(&self, ranges: &[VerifiedRange]) {
        for range in ranges {
            let start = self.info.geometry.piece_range(range.piece()).start;
            let start = start + u64::from(range.begin());
            let lost = match self.write_block(start, range) {
                Ok(()) => None,
                Err(_) => self.blocks.keep_unwritten(range),
            };
            if let Some((piece, index)) = lost {
                self.tell_lost(piece, Some(index));
            }
        }
    }

    fn write_block(&self, start: u64, range: &VerifiedRange) -> io::Result<()> {
        if self.is_in_place() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.write_reserved(start, range.bytes(), || self.blocks.at_rest(range))
    }

    /// Copies a verified block from wherever it is.
    pub(super) fn copy_block(&self, piece: PieceIndex, index: u32, into: &mut [u8]) -> bool {
        // Blocks have no pins: nothing is freed between looking and reading.
        let _disk = shared(&self.disk);
        match self.blocks.find(piece, index) {
            None => false,
            Some(Place::Memory(range)) => {
                let whole = range.bytes().len() == into.len();
                if whole {
                    into.copy_from_slice(range.bytes());
                }
                whole
            }
            Some(Place::Disk) => {
                let start = self.info.geometry.piece_range(piece).start;
                let read = self.files.read(start + u64::from(index * BLOCK_LEN), into);
                if read.is_err() {
                    for index in self.blocks.forget(piece) {
                        self.tell_lost(piece, Some(index));
                    }
                }
                read.is_ok()
            }
        }
    }

    /// The hashes of the blocks of a verified piece (BEP 52), for a peer; `None` if it is not here.
    /// Those of long pieces that were last verified or asked for are in memory.
    pub fn hash_blocks(
        self: &Arc<Self>,
        piece: PieceIndex,
        done: impl FnOnce(Option<Arc<[Hash]>>) + Send + 'static,
    ) {
        if let Some(kept) = self.kept_hashes(piece) {
            return done(Some(kept));
        }
        let (this, done) = (self.clone(), Answer::new(done));
        self.submit_check(piece, move || {
            let hashes = this.kept_hashes(piece).or_else(|| this.hash_again(piece));
            drop(this);
            done.give(hashes);
        });
    }

    fn kept_hashes(&self, piece: PieceIndex) -> Option<Arc<[Hash]>> {
        let hashed = lock(&self.hashed);
        let kept = hashed.iter().find(|(kept, _)| *kept == piece)?;
        self.is_verified(piece).then(|| kept.1.clone())
    }

    fn hash_again(&self, piece: PieceIndex) -> Option<Arc<[Hash]>> {
        let mut data = self.store.buffers.take(self.info.geometry.piece_len(piece) as usize);
        if !self.read_block(piece, 0, data.bytes_mut()).ok()? {
            return None;
        }
        let hashes: Arc<[Hash]> = block_hashes(data.bytes()).into();
        self.keep_hashes(piece, hashes.clone());
        Some(hashes)
    }

    /// Those of short pieces are computed again as fast as they are found.
    pub(in crate::store) fn keep_hashes(&self, piece: PieceIndex, hashes: Arc<[Hash]>) {
        if hashes.len() < MIN_KEPT_HASHES {
            return;
        }
        let mut hashed = lock(&self.hashed);
        hashed.retain(|(kept, _)| *kept != piece);
        hashed.push_back((piece, hashes));
        while hashed.iter().map(|(_, hashes)| hashes.len()).sum::<usize>() > MAX_KEPT_HASHES {
            hashed.pop_front();
        }
    }

    /// Whether every byte of a range of the torrent is verified, be it in a block alone.
    pub(in crate::store) fn has_all(&self, range: &Range<u64>) -> bool {
        self.info.geometry.pieces_of(range.clone()).all(|piece| {
            let mut blocks = self.info.geometry.blocks_of(piece, range.clone());
            let in_blocks = |index| self.blocks.has(piece, index);
            self.is_verified(piece) || self.info.v2.is_some() && blocks.all(in_blocks)
        })
    }

    /// Calls `f` with a range of the torrent of which some pieces are not whole, if their blocks are
    /// verified.
    pub(super) fn read_blocks<R>(
        &self,
        range: Range<u64>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        if self.info.v2.is_none() || !self.has_all(&range) {
            return None;
        }
        self.states.touch(self.pieces_of(range.clone()), self.store.moment());
        let mut bytes = self.store.buffers.take((range.end - range.start) as usize);
        let mut block = self.store.buffers.take(BLOCK_LEN as usize);
        for piece in self.info.geometry.pieces_of(range.clone()) {
            let at = self.info.geometry.piece_range(piece);
            let part = overlap(at.clone(), &range);
            let span = (part.start - range.start) as usize..(part.end - range.start) as usize;
            let into = bytes.bytes_mut().get_mut(span)?;
            if self.read_block(piece, (part.start - at.start) as u32, into).ok()? {
                continue;
            }
            for index in self.info.geometry.blocks_of(piece, part.clone()) {
                let own = self.info.geometry.block(piece, index)?;
                let data = block.bytes_mut().get_mut(..own.length as usize)?;
                if !self.copy_block(piece, index, data) {
                    return None;
                }
                let start = at.start + u64::from(own.begin());
                let shared = overlap(start..start + u64::from(own.length), &part);
                let from = (shared.start - start) as usize..(shared.end - start) as usize;
                let to = (shared.start - part.start) as usize..(shared.end - part.start) as usize;
                into.get_mut(to)?.copy_from_slice(data.get(from)?);
            }
        }
        Some(f(bytes.bytes()))
    }
}
