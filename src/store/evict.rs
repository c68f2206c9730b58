//! Making room: what of the cache is let go when its limit is reached.
//!
//! Whoever wants to write reserves room first. If there is none, the least recently used pieces are let
//! go: first those of torrents that nobody uses, then of all others, but nothing that is pinned, is read
//! or read ahead, or is to be kept. A piece is absent, for everybody, before its bytes are freed.

mod idle;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::budget::{Reservation, most_allocated};
use super::files::{Files, spans};
use super::pins;
use super::torrent::TorrentStore;
use super::{Store, exclusive, lock, shared};
use crate::proto::bitfield::Bitfield;
use crate::proto::cache::{self, Candidate, choose};
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::metainfo::FileEntry;

/// A write was refused because nothing may be let go for it.
#[derive(Debug, thiserror::Error)]
#[error("all that the cache may take is taken by what is pinned, kept or being read")]
pub struct NoRoom;

/// Whether an error of a write says that the cache's limit is reached.
pub fn is_no_room(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NoRoom>())
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, NoRoom)
}

/// Who reads a range, or will.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    /// A read that waits, by a number of its own.
    Waiting(u64),
    /// What an open handle will probably read next.
    Ahead(u64),
}

/// What of a torrent may not be let go.
#[derive(Default)]
pub(super) struct Protection {
    readers: Mutex<BTreeMap<Reader, Range<u64>>>,
    last: AtomicU64,
    /// How many want all of it kept.
    keepers: AtomicUsize,
    /// Files that the user has pinned, and whether the torrent was in use, not only opened to make room.
    pinned: Mutex<BTreeSet<usize>>,
    used: AtomicBool,
    /// How many connected peers have each piece, up to 255.
    copies: Mutex<Arc<[u8]>>,
}

impl Protection {
    pub(super) fn of(files: &Files) -> Self {
        let pinned = files.dir().map_or_else(|| Ok(BTreeSet::new()), pins::read);
        // What cannot be read may be pinned.
        let keepers = AtomicUsize::new(usize::from(pinned.is_err()));
        Self { pinned: Mutex::new(pinned.unwrap_or_default()), keepers, ..Self::default() }
    }

    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// A range that is not let go until this is dropped.
pub struct Guard {
    torrent: Arc<TorrentStore>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.torrent.protection.readers).remove(&Reader::Waiting(self.number));
    }
}

/// A torrent of which nothing is let go until this is dropped.
pub struct Kept(Arc<TorrentStore>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.protection.keepers.fetch_sub(1, Ordering::Relaxed);
    }
}

// ---- what is protected

impl TorrentStore {
    /// Protects what a read waits for, in bytes of the torrent.
    pub fn guard(self: &Arc<Self>, range: Range<u64>) -> Guard {
        let number = self.protection.last.fetch_add(1, Ordering::Relaxed);
        lock(&self.protection.readers).insert(Reader::Waiting(number), range);
        Guard { torrent: self.clone(), number }
    }

    /// Protects what a handle will probably read next, an empty range for nothing, and returns as much of
    /// it as there is room for in the cache.
    pub fn read_ahead(&self, handle: u64, mut range: Range<u64>) -> Range<u64> {
        // What is seeded in place takes nothing of the cache.
        let limit = self.store.ledger.limit().filter(|_| !self.is_in_place());
        let Some(limit) = limit else { return range };
        let mut readers = lock(&self.protection.readers);
        let ahead = Reader::Ahead(handle);
        if readers.remove(&ahead).is_some() {
            self.store.windows.fetch_sub(1, Ordering::Relaxed);
        }
        if !range.is_empty() {
            let handles = self.store.windows.fetch_add(1, Ordering::Relaxed) + 1;
            let share = cache::window_share(limit, handles);
            range.end = range.end.min(range.start.saturating_add(share));
            readers.insert(ahead, range.clone());
        }
        range
    }

    /// Handles that read ahead and were not closed: the folder that they were in is gone.
    pub(super) fn end_windows(&self) {
        let mut readers = lock(&self.protection.readers);
        let before = readers.len();
        readers.retain(|reader, _| !matches!(reader, Reader::Ahead(_)));
        self.store.windows.fetch_sub(before - readers.len(), Ordering::Relaxed);
    }

    /// Protects everything.
    pub fn keep(self: &Arc<Self>) -> Kept {
        self.protection.keepers.fetch_add(1, Ordering::Relaxed);
        Kept(self.clone())
    }

    /// Files that are pinned.
    pub fn pinned(&self) -> BTreeSet<usize> {
        lock(&self.protection.pinned).clone()
    }

    /// Pins files, or unpins them, for this life of the daemon and later ones.
    pub fn set_pinned(&self, files: &[usize], pin: bool) -> io::Result<()> {
        let mut pinned = lock(&self.protection.pinned);
        let mut changed = pinned.clone();
        for file in files {
            if pin {
                changed.insert(*file)
            } else {
                changed.remove(file)
            };
        }
        pins::write(self.files.dir().ok_or(io::ErrorKind::PermissionDenied)?, &changed)?;
        *pinned = changed;
        Ok(())
    }

    /// How many connected peers have each piece.
    pub fn set_copies(&self, copies: Vec<u8>) {
        *lock(&self.protection.copies) = copies.into();
    }

    /// Whether the cache has a limit.
    pub fn is_limited(&self) -> bool {
        !self.is_in_place() && self.store.ledger.is_limited()
    }

    /// Bytes that this torrent may fetch in the background now; `None` for any number. What is to be
    /// kept may take the place of what is not.
    pub fn background_room(&self) -> Option<u64> {
        let limited = !self.is_in_place() && !self.is_kept();
        limited.then(|| self.store.ledger.background_room()).flatten()
    }

    fn is_kept(&self) -> bool {
        self.protection.keepers.load(Ordering::Relaxed) > 0
    }

    fn protected(&self) -> Bitfield {
        let geometry = &self.info.geometry;
        let mut protected = Bitfield::empty(geometry.piece_count());
        let pinned = lock(&self.protection.pinned).clone();
        let files = pinned.iter().filter_map(|file| self.info.files.get(*file));
        let ranges: Vec<_> = files.map(|f| f.offset..f.offset + f.length).collect();
        let read: Vec<_> = lock(&self.protection.readers).values().cloned().collect();
        for range in ranges.into_iter().chain(read) {
            for piece in geometry.pieces_of(range) {
                protected.insert(piece);
            }
        }
        protected
    }

    // ---- letting go

    /// What may be let go: pieces, or where parts of files cannot be freed, those of whole files.
    pub(super) fn candidates(&self) -> Vec<Candidate<Range<usize>>> {
        if self.is_in_place() || self.is_kept() {
            return Vec::new();
        }
        let protected = self.protected();
        let copies = lock(&self.protection.copies).clone();
        let candidate = |piece: PieceIndex, bytes: u32| Candidate {
            what: piece,
            used: self.states.used(piece),
            copies: copies.get(piece.index()).copied().unwrap_or(0).into(),
            bytes: bytes.into(),
        };
        let geometry = &self.info.geometry;
        let pieces = geometry.pieces().filter(|p| self.states.is_evictable(*p));
        let pieces = pieces.map(|p| candidate(p, geometry.piece_len(p)));
        let blocks = self.blocks.at_rest_of();
        let blocks = blocks.into_iter().map(|(p, count)| candidate(p, count * BLOCK_LEN));
        let pieces = pieces.chain(blocks).filter(|c| !protected.contains(c.what));
        if self.store.ledger.punches() {
            let one = |c: Candidate<PieceIndex>| Candidate {
                what: c.what.index()..c.what.index() + 1,
                used: c.used,
                copies: c.copies,
                bytes: c.bytes,
            };
            return pieces.map(one).collect();
        }
        self.whole_files(pieces.map(|c| (c.what, c)).collect())
    }

    /// The files of which everything that is here may be let go.
    fn whole_files(
        &self,
        pieces: BTreeMap<PieceIndex, Candidate<PieceIndex>>,
    ) -> Vec<Candidate<Range<usize>>> {
        let whole = |f: &FileEntry| {
            let what = self.pieces_of(f.offset..f.offset + f.length);
            let mut file = Candidate { what, used: 0, copies: u32::MAX, bytes: 0 };
            for piece in self.info.geometry.pieces_of(f.offset..f.offset + f.length) {
                match pieces.get(&piece) {
                    Some(one) => {
                        file.used = file.used.max(one.used);
                        file.copies = file.copies.min(one.copies);
                        file.bytes += one.bytes;
                    }
                    None if self.is_vacant(piece) => {}
                    None => return None,
                }
            }
            (file.bytes > 0).then_some(file)
        };
        self.info.files.iter().filter(|f| !f.pad && f.length > 0).filter_map(whole).collect()
    }

    /// Lets go of a candidate; whether there was something.
    pub(super) fn let_all_go_of(&self, pieces: Range<usize>) -> bool {
        let pieces = pieces.filter_map(|i| self.info.geometry.piece(u32::try_from(i).ok()?));
        pieces.filter(|piece| self.let_go(*piece)).count() > 0
    }

    /// Lets a piece go, and blocks of one that is not whole; whether there was something.
    pub(super) fn let_go(&self, piece: PieceIndex) -> bool {
        let _disk = exclusive(&self.disk);
        if self.states.evict(piece) {
            self.list(piece, false);
            self.tell_lost(piece, None);
        } else {
            let blocks = self.blocks.evict(piece);
            if blocks.is_empty() {
                return false;
            }
            blocks.into_iter().for_each(|block| self.tell_lost(piece, Some(block)));
        }
        self.states.touch(piece.index()..piece.index() + 1, 0);
        self.free(piece);
        true
    }

    /// Frees what is at rest of a piece that turned out not to be what it should.
    pub(super) fn free_lost(&self, piece: PieceIndex) {
        let _disk = exclusive(&self.disk);
        if !self.is_in_place() && self.is_vacant(piece) {
            self.free(piece);
        }
    }

    fn is_vacant(&self, piece: PieceIndex) -> bool {
        self.states.is_vacant(piece) && !self.blocks.any(piece)
    }

    /// Whether nothing in a range of the torrent is needed.
    fn are_vacant(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.info.geometry.pieces_of(range).all(|piece| self.is_vacant(piece))
    }

    /// Lets everything go that may be.
    pub(super) fn let_all_go(&self) {
        for candidate in self.candidates() {
            self.let_all_go_of(candidate.what);
        }
    }

    /// Frees the blocks on disk of a vacant piece, those too that it shares with vacant neighbours. A
    /// file of which nothing is needed is removed: that frees all of it, however small it is. The disk is
    /// held alone.
    fn free(&self, piece: PieceIndex) {
        let start = self.info.geometry.piece_range(piece).start;
        let end = start + u64::from(self.info.geometry.piece_len(piece));
        for span in spans(&self.info, start..end) {
            let length = (span.at.end - span.at.start) as u64;
            let freed = self.free_span(span.file, span.offset..span.offset + length);
            if let Err(error) = freed {
                tracing::warn!(%error, file = span.file, "cannot free a part of the cache");
            }
            self.measure(span.file);
        }
    }

    fn free_span(&self, file: usize, at: Range<u64>) -> io::Result<()> {
        let Some(entry) = self.info.files.get(file) else { return Ok(()) };
        let in_file = |range: Range<u64>| {
            entry.offset + range.start..entry.offset + range.end.min(entry.length)
        };
        if self.is_nothing_beside(in_file(0..entry.length), in_file(at.clone())) {
            return self.files.remove(file);
        }
        let block = self.store.ledger.block();
        let (down, up) = (at.start / block * block, at.end.next_multiple_of(block));
        let before = self.are_vacant(in_file(down..at.start));
        let after = at.end >= entry.length || self.are_vacant(in_file(at.end..up));
        let start = if before { down } else { at.start.next_multiple_of(block) };
        let end = if after { up } else { at.end / block * block };
        let can = self.store.ledger.punches();
        if start < end && can { self.files.punch(file, start, end - start) } else { Ok(()) }
    }

    /// Whether nothing in a range is needed, of which a part is known to be vacant. Looks at what is
    /// nearest to that part first: pieces mostly come and go in runs.
    fn is_nothing_beside(&self, range: Range<u64>, vacant: Range<u64>) -> bool {
        let mut before = self.info.geometry.pieces_of(range.start..vacant.start).rev();
        let mut after = self.info.geometry.pieces_of(vacant.end..range.end);
        loop {
            let two = (before.next(), after.next());
            if two == (None, None) {
                return true;
            }
            if !two.0.into_iter().chain(two.1).all(|piece| self.is_vacant(piece)) {
                return false;
            }
        }
    }

    /// Frees what is on disk and is not in the index: blocks that were verified alone, and what a crash
    /// has left. Returns how many holes that took.
    pub(super) fn sweep(&self) -> usize {
        let files = self.store.ledger.files_of(self.info.info_hash);
        files.into_iter().map(|(file, taken)| self.sweep_file(file, taken)).sum()
    }

    /// Sweeps a file, unless it takes no more than what is needed of it may.
    fn sweep_file(&self, file: usize, taken: u64) -> usize {
        let _disk = exclusive(&self.disk);
        let Some(entry) = self.info.files.get(file) else { return 0 };
        let holes = self.holes(entry);
        let whole = entry.length.next_multiple_of(self.store.ledger.block());
        let needed = whole - holes.iter().map(|hole| hole.end - hole.start).sum::<u64>();
        if needed > 0 && taken <= self.store.ledger.most_counted(needed, holes.len() as u64 + 1) {
            return 0;
        }
        let punch = |hole: &Range<u64>| self.files.punch(file, hole.start, hole.end - hole.start);
        let freed = match needed {
            0 => self.files.remove(file),
            _ if !self.store.ledger.punches() => return 0,
            _ => holes.iter().try_for_each(punch),
        };
        if let Err(error) = freed {
            tracing::warn!(%error, file, "cannot free a part of the cache");
        }
        self.measure(file);
        holes.len()
    }

    /// The runs of blocks of a file in which nothing is needed, in bytes of the file. The disk is held
    /// alone.
    fn holes(&self, entry: &FileEntry) -> Vec<Range<u64>> {
        let (geometry, block) = (&self.info.geometry, self.store.ledger.block());
        let (first, last) = (entry.offset, entry.offset + entry.length);
        let mut holes: Vec<Range<u64>> = Vec::new();
        for piece in geometry.pieces_of(first..last).filter(|piece| self.is_vacant(*piece)) {
            let at = geometry.piece_range(piece);
            let (start, end) = (at.start.max(first) - first, at.end.min(last) - first);
            match holes.last_mut() {
                Some(hole) if hole.end == start => hole.end = end,
                _ => holes.push(start..end),
            }
        }
        for hole in &mut holes {
            // Blocks that are shared with what is needed stay.
            hole.start = hole.start.next_multiple_of(block);
            let up = hole.end.next_multiple_of(block);
            hole.end = if hole.end == entry.length { up } else { hole.end / block * block };
        }
        holes.retain(|hole| hole.start < hole.end);
        holes
    }

    // ---- writing

    /// Reserves room, writes verified bytes at `start` of the torrent, and calls `written` before
    /// anything can be freed again.
    pub(super) fn write_reserved<T>(
        &self,
        start: u64,
        bytes: &[u8],
        written: impl FnOnce() -> T,
    ) -> io::Result<T> {
        let room = self.reserve(start..start + bytes.len() as u64)?;
        let result = {
            let _disk = shared(&self.disk);
            self.files.write(start, bytes).map(|()| written())
        };
        let files = || spans(&self.info, start..start + bytes.len() as u64).map(|span| span.file);
        let index = self.files.dir().map(|dir| dir.with_file_name("index"));
        let paths = files().filter_map(|file| self.files.path(file)).chain(index);
        self.store.syncer.written(paths);
        if room.is_some() {
            files().for_each(|file| self.measure(file));
        }
        result
    }

    fn reserve(&self, range: Range<u64>) -> io::Result<Option<Reservation>> {
        let spans = spans(&self.info, range);
        let spans = spans.map(|s| (s.offset, (s.at.end - s.at.start) as u64));
        self.store.reserve(most_allocated(self.store.ledger.block(), spans))
    }

    pub(super) fn measure(&self, file: usize) {
        let Some(path) = self.files.path(file) else { return };
        let new = self.store.ledger.measure(self.info.info_hash, file, &path);
        // Their directory grows.
        if new.is_some_and(|files| files % 256 == 1) {
            self.store.ledger.measure_rest(self.info.info_hash);
        }
    }
}

// ---- over all torrents

impl Store {
    /// Reserves room for so many bytes on disk, and makes it if need be; `None` without a limit. The
    /// error is [`NoRoom`].
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<Option<Reservation>> {
        if !self.ledger.is_limited() {
            return Ok(None);
        }
        loop {
            if let Some(room) = self.ledger.try_reserve(bytes) {
                return Ok(Some(room));
            }
            let _alone = lock(&self.evicting);
            if let Some(room) = self.ledger.try_reserve(bytes) {
                return Ok(Some(room));
            }
            if !self.make_room(bytes) {
                return Err(no_room());
            }
        }
    }

    /// Lets go of as much as is lacking, and a little more; whether there was anything to let go.
    fn make_room(&self, bytes: u64) -> bool {
        let batch = cache::batch(self.ledger.limit().unwrap_or(0));
        let need = self.ledger.lacking(bytes).saturating_add(batch);
        if self.let_go_of_idle(need) {
            return true;
        }
        let open: Vec<_> = lock(&self.torrents).open.values().filter_map(|t| t.upgrade()).collect();
        let chosen = choose(open.iter().map(|torrent| torrent.candidates()).collect(), need);
        let go = |(number, pieces): &(usize, Range<usize>)| {
            open.get(*number).is_some_and(|torrent| torrent.let_all_go_of(pieces.clone()))
        };
        let gone = chosen.iter().filter(|one| go(one)).count();
        tracing::debug!(gone, bytes = need, "making room in the cache");
        gone > 0
    }

    /// Lets go of what is too much: the limit is lower than it was, or others have filled the disk.
    pub fn trim(&self) {
        let _alone = lock(&self.evicting);
        while self.ledger.lacking(0) > 0 && self.make_room(0) {}
    }
}
