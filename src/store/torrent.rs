//! What of one torrent is here, and whether it may be read.

mod blocks;
mod whole;

pub use whole::WholeFile;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, RwLock};

use super::answer::Answer;
use super::blocks::Blocks;
use super::buffer::PieceBuffer;
use super::care::Found;
use super::evict::Protection;
use super::files::{FileError, Files, Place};
use super::gate::{self, Judged, Verdict, VerifiedRange};
use super::index::Index;
use super::lenders::Lenders;
use super::order;
use super::pool::{FilePool, LENT_FILES};
use super::states::{Pin, State, States};
use super::workers::Class;
use super::{Store, lock, shared};
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Block, PieceIndex};
use crate::proto::merkle::{Hash, Trusted};
use crate::proto::metainfo::Info;

/// Told of pieces, or of single blocks, that were verified and are no longer, on any thread, perhaps with
/// locks held: it must not wait, nor call the store.
type OnLost = Box<dyn Fn(PieceIndex, Option<u32>) + Send + Sync>;

/// The bytes of one torrent. All methods may be called from any thread; those that take a callback
/// return at once and call it on a worker thread.
pub struct TorrentStore {
    pub(super) store: Arc<Store>,
    pub(super) info: Arc<Info>,
    pub(super) states: Arc<States>,
    /// Verified pieces that are not at rest (yet).
    pending: Mutex<HashMap<PieceIndex, VerifiedRange>>,
    /// Verified blocks of other pieces.
    pub(super) blocks: Blocks,
    /// Held by whoever writes, or reads what it has not pinned; alone, by whoever frees what is at rest.
    pub(super) disk: RwLock<()>,
    /// What may not be evicted.
    pub(super) protection: Protection,
    /// Hashes of the blocks of pieces, the oldest first.
    hashed: Mutex<VecDeque<(PieceIndex, Arc<[Hash]>)>>,
    pub(super) files: Files,
    /// Files of somebody else, of which some pieces are used.
    pub(super) lent: Files,
    /// Who reads those.
    pub(super) lenders: Lenders,
    /// Where those were looked for.
    pub(super) lent_at: Mutex<Option<PathBuf>>,
    /// None for the data of somebody else.
    pub(super) index: Option<Index>,
    on_lost: Mutex<Option<Arc<OnLost>>>,
    on_close: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    /// When it was last noted which pieces were read when.
    pub(super) noted: AtomicU32,
}

impl TorrentStore {
    pub(super) fn new(
        store: Arc<Store>,
        info: Arc<Info>,
        files: Files,
        index: Option<Index>,
    ) -> Self {
        let all = || Bitfield::full(info.geometry.piece_count());
        let hinted = index.as_ref().map_or_else(all, Index::pieces);
        let count = info.geometry.piece_count() as usize;
        let used = files.dir().and_then(Path::parent);
        let used = used.map_or_else(|| vec![0; count], |d| order::read(d, count, store.moment()));
        let noted = AtomicU32::new(store.moment());
        let states = Arc::new(States::new(&info.geometry, &hinted, used));
        let (pending, hashed, on_lost) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (blocks, disk) = (Blocks::default(), RwLock::default());
        let protection = Protection::of(&files);
        let nothing = Place::Elsewhere(Mutex::default());
        // Not among the others: closing a file of somebody else may take long.
        let pool = Arc::new(FilePool::new(LENT_FILES));
        let lent = Files::new(info.clone(), nothing, pool, store.number());
        let lenders = Lenders::new(store.lenders.clone());
        if files.in_cache() {
            store.ledger.set_open(info.info_hash, true);
        }
        Self {
            store,
            info,
            states,
            pending,
            blocks,
            disk,
            protection,
            hashed,
            files,
            lent,
            lenders,
            lent_at: Mutex::default(),
            index,
            on_lost,
            on_close: Mutex::default(),
            noted,
        }
    }

    /// The torrent's info dictionary.
    pub fn info(&self) -> &Arc<Info> {
        &self.info
    }

    /// Keeps the piece layer of a file (BEP 52) with the torrent. A failure is logged: it costs asking
    /// peers again after a restart.
    pub fn keep_layer(&self, file: usize, hashes: &[Hash]) {
        if !self.is_in_place()
            && let Err(error) = self.store.keep_layer(&self.info, file, hashes)
        {
            tracing::warn!(%error, file, "cannot keep a piece layer in the cache");
        }
    }

    /// Whether this is data of somebody else ([`Store::in_place`]), which is never written.
    pub fn is_in_place(&self) -> bool {
        !self.files.in_cache()
    }

    /// Registers who is told of every piece that was verified and is no longer: its write failed
    /// and memory ran out, or what is on disk cannot be read or has changed. Replaces whoever was told before.
    pub fn set_on_lost(&self, on_lost: OnLost) {
        *lock(&self.on_lost) = Some(Arc::new(on_lost));
    }

    /// Has `f` called when nobody has the torrent open any more.
    pub fn on_close(&self, f: Box<dyn FnOnce() + Send>) {
        lock(&self.on_close).push(f);
    }

    /// The pieces that are probably at rest but not hashed in this life of the daemon: those that
    /// the index lists, or all for data in place.
    pub fn hinted(&self) -> Bitfield {
        let mut hinted = Bitfield::empty(self.info.geometry.piece_count());
        for piece in self.info.geometry.pieces() {
            if self.states.get(piece) == State::Hinted {
                hinted.insert(piece);
            }
        }
        hinted
    }

    /// Whether the piece is verified and can be read, from memory or at rest.
    pub fn is_verified(&self, piece: PieceIndex) -> bool {
        self.states.get(piece).is_verified()
    }

    /// Whether the piece is verified and on disk.
    pub fn is_at_rest(&self, piece: PieceIndex) -> bool {
        self.states.get(piece) == State::AtRest
    }

    /// Whether the piece was verified, in this life of the daemon or an earlier one.
    pub fn is_here(&self, piece: PieceIndex) -> bool {
        self.states.get(piece) != State::Absent
    }

    /// Bytes of file `file`, of the whole torrent with `None`, that were verified, in this life of
    /// the daemon or an earlier one. Takes time in proportion to the number of pieces (a million: a
    /// few milliseconds).
    pub fn verified_bytes(&self, file: Option<usize>) -> u64 {
        let geometry = &self.info.geometry;
        let range = match file {
            None => 0..geometry.total(),
            Some(file) => match self.info.files.get(file) {
                Some(f) => f.offset..f.offset + f.length,
                None => return 0,
            },
        };
        let length = |piece| {
            let start = geometry.piece_range(piece).start;
            let shared = overlap(start..start + u64::from(geometry.piece_len(piece)), &range);
            shared.end - shared.start
        };
        geometry.pieces_of(range.clone()).filter(|&p| self.is_here(p)).map(length).sum()
    }

    /// A buffer for an incoming piece. How many there are at a time is the caller's budget; a
    /// buffer's memory is free again when the buffer, and the [`VerifiedRange`] that came of it,
    /// are dropped and the piece is at rest or lost.
    pub fn buffer(self: &Arc<Self>, piece: PieceIndex) -> Arc<PieceBuffer> {
        let by_blocks = self.info.v2.is_some();
        let geometry = self.info.geometry.clone();
        Arc::new(PieceBuffer::new(piece, geometry, by_blocks, &self.store.buffers))
    }

    /// Closes `buffer` and checks its piece, by the `root` of its tree too (BEP 52) where that is
    /// given. If the hash matches, the piece can be read (from memory) before `done` is called; the
    /// caller must then hand the range to [`Self::write`], or it stays in memory. If it does not, and
    /// the torrent has a v2 half, the buffer is open again: hashes of its blocks can tell which are wrong.
    /// Block digests are made for a mismatch, and with `block_digests` always.
    pub fn verify(
        self: &Arc<Self>,
        buffer: Arc<PieceBuffer>,
        block_digests: bool,
        root: Option<Trusted>,
        done: impl FnOnce(Verdict) + Send + 'static,
    ) {
        let this = self.clone();
        self.store.workers.submit(Class::Verify, move || {
            let verdict = this.judge(&buffer, block_digests, root);
            drop(buffer);
            if let Verdict::Verified { range, .. } = &verdict {
                this.hold(range);
            }
            // The caller may count on being the last owner when it is called.
            drop(this);
            done(verdict);
        });
    }

    fn judge(&self, buffer: &PieceBuffer, digests: bool, root: Option<Trusted>) -> Verdict {
        let piece = buffer.piece();
        let verified = |block: Block, into: &mut [u8]| self.copy_block(piece, block.index, into);
        let Some(data) = buffer.close(verified) else {
            return Verdict::Mismatch { block_digests: Vec::new() };
        };
        match gate::check(&self.info, piece, root.as_ref(), data) {
            Judged::Verified(range, hashes) => {
                self.keep_hashes(piece, hashes.into());
                let block_digests = digests.then(|| gate::digests(range.bytes()));
                Verdict::Verified { range, block_digests }
            }
            Judged::Mismatch(data) => {
                let block_digests = gate::digests(data.bytes());
                if self.info.v2.is_some() {
                    buffer.reopen(data);
                }
                Verdict::Mismatch { block_digests }
            }
            Judged::Contradiction => Verdict::Contradiction,
        }
    }

    /// Hashes a hinted piece as it is on disk, by the `root` of its tree too where that is given: `true`, and it is verified; `false`, and the hint is
    /// gone. The queue takes any number, but ask for a few at a time: what is urgent cannot
    /// overtake.
    pub fn verify_at_rest(
        self: &Arc<Self>,
        piece: PieceIndex,
        root: Option<Trusted>,
        done: impl FnOnce(bool) + Send + 'static,
    ) {
        let (this, done) = (self.clone(), Answer::new(done));
        self.submit_check(piece, move || {
            let pin = this.states.pin_one(piece).or_else(|| this.check_at_rest(piece, root));
            drop(this);
            // It cannot be evicted before whoever asked has been told.
            done.give(pin.is_some());
        });
    }

    /// Writes a verified piece and lists it in the index; then it is read from disk and its memory
    /// is free. If that fails it can still be read from memory, until newer pieces that could not
    /// be written push it out and it is lost.
    pub fn write(
        self: &Arc<Self>,
        range: VerifiedRange,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        let this = self.clone();
        self.store.workers.submit(Class::Write, move || {
            let result = this.put_at_rest(&range);
            drop((range, this));
            // It cannot be evicted before whoever asked has been told.
            let (result, _pin) = match result {
                Ok(pin) => (Ok(()), pin),
                Err(error) => (Err(error), None),
            };
            done(result);
        });
    }

    /// Calls `f` with `length` bytes of file number `file` from `offset`, if every piece of the
    /// range is verified and none is with somebody else (`None`: that is not so, or the range is not in
    /// the file). Never waits for the network; may wait for the cache's disk. The slice may be a mapping:
    /// hand it to a system call, do not look into it.
    pub fn read_file<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        self.read(file, offset, length, false, f)
    }

    /// As [`Self::read_file`], from files of somebody else too: it may wait for those as long as they let it.
    pub fn read_anywhere<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        self.read(file, offset, length, true, f)
    }

    fn read<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        anywhere: bool,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let entry = self.info.files.get(file)?;
        if offset.checked_add(length as u64)? > entry.length {
            return None;
        }
        if length == 0 {
            return Some(f(&[]));
        }
        let start = entry.offset + offset;
        let range = start..start + length as u64;
        let pieces = self.pieces_of(range.clone());
        let pins = self.states.pin(pieces.clone());
        if !anywhere && self.is_any_elsewhere(range.clone()) {
            return None;
        }
        let Some(_pins) = pins else { return self.read_blocks(range, f) };
        self.states.touch(pieces.clone(), self.store.moment());
        if pieces.len() == 1
            && let Some(held) = self.held(pieces.start)
        {
            let at = self.info.geometry.piece_range(held.piece()).start;
            let from = usize::try_from(start - at).ok()?;
            return held.bytes().get(from..from + length).map(f);
        }
        if self.all_at_rest(pieces) {
            let open = self.files.to_map(file).map_err(|error| self.files.failed(file, error));
            let open = open.map_err(|e| self.forget(range.clone(), e)).ok()?;
            let mapping = open.as_ref().and_then(|o| o.mapping(entry.length));
            if let Some(slice) = mapping.and_then(|m| m.slice(offset, length)) {
                return Some(f(slice));
            }
        }
        let mut bytes = self.store.buffers.take(length);
        let read = self.read_verified(start, bytes.bytes_mut());
        let read = read.map_err(|e| self.forget(range, e)).ok()?;
        read.then(|| f(bytes.bytes()))
    }

    /// Fills `out` with bytes of a piece from `begin`, for an upload. `false`: the piece is not
    /// verified, or has no such bytes. An error is one of the disk, and the piece is lost.
    pub fn read_block(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> io::Result<bool> {
        let range = self.info.geometry.piece_range(piece);
        let start = range.start + u64::from(begin);
        let end = start + out.len() as u64;
        if end > range.end {
            return Ok(false);
        }
        let Some(_pins) = self.states.pin(piece.index()..piece.index() + 1) else {
            return Ok(false);
        };
        self.read_verified(start, out).map_err(|e| self.forget(start..end, e))
    }

    /// A piece that is in memory.
    fn held(&self, piece: usize) -> Option<VerifiedRange> {
        let piece = self.info.geometry.piece(u32::try_from(piece).ok()?)?;
        lock(&self.pending).get(&piece).cloned()
    }

    /// Copies bytes of pinned pieces from wherever each is. `false`: one was lost meanwhile.
    fn read_verified(&self, start: u64, out: &mut [u8]) -> Result<bool, FileError> {
        let range = start..start + out.len() as u64;
        for piece in self.info.geometry.pieces_of(range.clone()) {
            let at = self.info.geometry.piece_range(piece);
            let part = overlap(at.clone(), &range);
            let into = &mut out[(part.start - start) as usize..(part.end - start) as usize];
            let held = lock(&self.pending).get(&piece).cloned();
            if let Some(held) = held {
                let from = (part.start - at.start) as usize;
                let here = held.bytes().get(from..).unwrap_or_default();
                let here = &here[..here.len().min(into.len())];
                let (bytes, padding) = into.split_at_mut(here.len());
                bytes.copy_from_slice(here);
                padding.fill(0);
            } else {
                match self.states.get(piece) {
                    State::AtRest => self.files.read(part.start, into)?,
                    State::Lent => self.lent.read(part.start, into)?,
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// A verified piece becomes readable from memory.
    fn hold(&self, range: &VerifiedRange) {
        let mut pending = lock(&self.pending);
        pending.insert(range.piece(), range.clone());
        if !self.states.hold(range) {
            pending.remove(&range.piece());
        }
        drop(pending);
        self.blocks.forget(range.piece());
    }

    fn put_at_rest(self: &Arc<Self>, range: &VerifiedRange) -> io::Result<Option<Pin>> {
        let piece = range.piece();
        if range.torrent() != self.info.info_hash || self.is_in_place() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let pin = self.states.pin_one(piece);
        if pin.is_some() && self.is_at_rest(piece) {
            return Ok(pin);
        }
        let start = self.info.geometry.piece_range(piece).start;
        let written = self.write_reserved(start, range.bytes(), || {
            self.list(piece, true);
            self.states.at_rest(range);
            lock(&self.pending).remove(&piece);
            self.states.pin_one(piece)
        });
        if written.is_err() {
            self.store.keep_unwritten(self, piece);
        }
        written
    }

    fn check_at_rest(&self, piece: PieceIndex, root: Option<Trusted>) -> Option<Pin> {
        let disk = shared(&self.disk);
        let start = self.info.geometry.piece_range(piece).start;
        let mut data = self.store.buffers.take(self.info.geometry.piece_len(piece) as usize);
        match self.files.read(start, data.bytes_mut()) {
            Ok(()) => {
                let judged = gate::check(&self.info, piece, root.as_ref(), data);
                if let Judged::Verified(range, hashes) = judged {
                    self.keep_hashes(piece, hashes.into());
                    self.states.at_rest(&range);
                    self.list(piece, true);
                    return self.states.pin_one(piece);
                }
            }
            Err(FileError { file, error, .. }) => {
                tracing::debug!(%error, file, piece = piece.get(), "cannot read a hinted piece");
            }
        }
        let lost = self.states.lose(piece, |s| s == State::Hinted).is_some();
        if lost {
            self.list(piece, false);
        }
        drop(disk);
        if lost {
            self.free_lost(piece);
        }
        self.states.pin_one(piece)
    }

    /// Hashes a piece that is on disk, whatever is known of it. A bad one no longer counts as verified;
    /// with `repair` its room on the disk is freed.
    pub(super) fn hash_at_rest(
        &self,
        piece: PieceIndex,
        root: Option<Trusted>,
        repair: bool,
    ) -> Found {
        let on_disk = |s| matches!(s, State::AtRest | State::Hinted);
        {
            let _disk = shared(&self.disk);
            if !on_disk(self.states.get(piece)) {
                return Found::Absent;
            }
            let start = self.info.geometry.piece_range(piece).start;
            let mut data = self.store.buffers.take(self.info.geometry.piece_len(piece) as usize);
            if self.files.read(start, data.bytes_mut()).is_ok()
                && let Judged::Verified(range, _) =
                    gate::check(&self.info, piece, root.as_ref(), data)
            {
                self.states.at_rest(&range);
                return Found::Good;
            }
            if self.states.lose(piece, on_disk).is_some() {
                self.list(piece, false);
                self.tell_lost(piece, None);
            }
        }
        if repair {
            self.free_lost(piece);
        }
        Found::Bad
    }

    /// A piece that could not be written leaves memory.
    pub(super) fn drop_unwritten(&self, piece: PieceIndex) {
        let mut pending = lock(&self.pending);
        let lost = self.states.lose(piece, |s| s == State::Held).is_some();
        let out = if lost { pending.remove(&piece) } else { None };
        drop(pending);
        drop(out);
        if lost {
            self.tell_lost(piece, None);
        }
    }

    /// After an error at a file: what it held of `range` no longer counts as verified; of a file
    /// of somebody else that has changed, nothing does.
    fn forget(
        &self,
        range: Range<u64>,
        FileError { file, elsewhere, error }: FileError,
    ) -> io::Error {
        tracing::warn!(%error, file, torrent = %self.info.info_hash, "cannot use data on disk");
        let range = match self.info.files.get(file) {
            Some(f) if elsewhere => f.offset..f.offset + f.length,
            _ => range,
        };
        let of_cache = !elsewhere || self.is_in_place();
        let is_there = |s| match s {
            State::AtRest | State::Hinted => of_cache,
            State::Lent => elsewhere,
            State::Absent | State::Held => false,
        };
        for piece in self.info.geometry.pieces_of(range) {
            let lost = self.states.lose(piece, is_there);
            if matches!(lost, Some(State::AtRest | State::Hinted)) {
                self.list(piece, false);
            }
            if lost.is_some_and(State::is_verified) {
                self.tell_lost(piece, None);
            }
        }
        error
    }

    pub(super) fn list(&self, piece: PieceIndex, at_rest: bool) {
        if let Some(index) = &self.index {
            index.set(piece, at_rest);
        }
    }

    pub(super) fn tell_lost(&self, piece: PieceIndex, block: Option<u32>) {
        let on_lost = lock(&self.on_lost).clone();
        if let Some(on_lost) = on_lost {
            on_lost(piece, block);
        }
    }

    #[cfg(test)]
    pub(super) fn pins(&self, piece: PieceIndex) -> u32 {
        self.states.pins(piece)
    }

    #[cfg(test)]
    pub(super) fn blocks_are_settled(&self) -> bool {
        self.blocks.are_settled()
    }

    pub(super) fn pieces_of(&self, range: Range<u64>) -> Range<usize> {
        let pieces = self.info.geometry.pieces_of(range);
        let count = pieces.len();
        pieces.take(1).map(|p| p.index()..p.index() + count).next().unwrap_or_default()
    }

    pub(super) fn all_at_rest(&self, pieces: Range<usize>) -> bool {
        let mut pieces = pieces.filter_map(|i| self.info.geometry.piece(u32::try_from(i).ok()?));
        pieces.all(|p| self.is_at_rest(p))
    }
}

impl Drop for TorrentStore {
    fn drop(&mut self) {
        self.end_windows();
        if let Some(index) = &self.index {
            self.note_order();
            index.note_use(self.protection.was_used());
            self.store.ledger.set_open(self.info.info_hash, false);
        }
        std::mem::take(&mut *lock(&self.on_close)).into_iter().for_each(|f| f());
    }
}

fn overlap(a: Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}
