//! The handle through which everything outside the engine uses one torrent.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::clock::Clock;
use super::dht::Node;
use super::rates::{RateLimits, Rates};
use super::status::{Informants, TorrentStatus};
use super::task::{Command, Progress};
use super::tracker::Trackers;
use crate::proto::geometry::PieceIndex;
use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::Layout;
use crate::proto::seeding::{SeedUntil, Seeding, ShareRatio};
use crate::proto::torrent::View;
use crate::store::{Guard, Kept, TorrentStore, WholeFile};

/// What is said when the background download rests for want of room.
const CACHE_FULL: &str = "the cache is full: only what is read is fetched, in place of what was read \
     least recently";

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

/// Called once, on a thread that may be blocked for a moment, when a read that waited can be
/// answered (`Ok`: [`Torrent::read_now`] will serve it) or has ended.
pub type Waiter = Box<dyn FnOnce(Result<(), ReadError>) + Send>;

/// A torrent of the session, cheap to clone. The torrent itself lives in its task.
#[derive(Clone)]
pub struct Torrent {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub info: Arc<Info>,
    pub layout: Arc<Layout>,
    pub store: Arc<TorrentStore>,
    /// Unbounded: what fills it is bounded by the kernel (reads in flight, open handles).
    pub commands: mpsc::UnboundedSender<Command>,
    pub waiting: Arc<AtomicUsize>,
    pub rates: Arc<Rates>,
    pub progress: watch::Receiver<Progress>,
    /// The trackers of each swarm: two for a hybrid torrent (BEP 52).
    pub swarms: Arc<Vec<Trackers>>,
    /// `None` where the DHT is not asked.
    pub dht: Option<Node>,
}

impl Torrent {
    /// The info dictionary.
    pub fn info(&self) -> &Arc<Info> {
        &self.inner.info
    }

    /// The tree of safe names.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.inner.layout
    }

    /// Calls `f` with `length` bytes of file number `file` (its index in `info().files`) from
    /// `offset`, if all of them are verified and in the cache now. Never waits for the network. The slice
    /// may be a mapping: hand it to a system call, do not look into it. The range must lie in the
    /// file.
    pub fn read_now<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        self.inner.store.read_file(file, offset, length, f)
    }

    /// As [`Self::read_now`], of data of somebody else too, for which it may wait without end.
    pub fn read_anywhere<R>(
        &self,
        file: usize,
        offset: u64,
        length: usize,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        self.inner.store.read_anywhere(file, offset, length, f)
    }

    /// Whether all of a range is verified and some of it is with somebody else.
    pub fn has_elsewhere(&self, file: usize, offset: u64, length: usize) -> bool {
        self.inner.store.has_elsewhere(file, offset, length)
    }

    /// Has `job` done on a thread that may call [`Self::read_anywhere`] for that file. It may be dropped instead,
    /// if nothing is heard from there.
    pub fn wait_elsewhere(&self, file: usize, job: impl FnOnce() + Send + 'static) {
        self.inner.store.wait_elsewhere(file, job);
    }

    /// File number `file`, if it is complete and the kernel may read it itself; `open` is called with it.
    pub fn whole_file(
        &self,
        file: usize,
        open: &mut dyn FnMut(BorrowedFd<'_>),
    ) -> Option<WholeFile> {
        self.inner.store.whole_file(file, open)
    }

    /// Whether the kernel may read file number `file` itself as soon as it is complete, and not yet.
    pub fn becomes_whole(&self, file: usize) -> bool {
        self.inner.store.becomes_whole(file)
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
        let range = self.range(file, offset, length as u64);
        let guard = self.inner.store.guard(range.clone());
        let waiting = Waiting::begin(self.inner.waiting.clone(), waiter, guard);
        self.tell(Command::Read { handle, range, timeout, waiting });
    }

    /// Says what a handle will probably read next: `length` bytes from `offset` of file `file`; a
    /// length of 0 for nothing. Replaces what was said before for that handle.
    pub fn read_ahead(&self, handle: ReadHandle, file: usize, offset: u64, length: u64) {
        let range = self.inner.store.read_ahead(handle.0, self.range(file, offset, length));
        self.tell(Command::ReadAhead(handle, range));
    }

    /// A descriptor of the handle was closed: its waiting reads stay, but are urgent no longer
    /// (FLUSH is the only sign that a killed reader has gone).
    pub fn flushed(&self, handle: ReadHandle) {
        self.inner.store.read_ahead(handle.0, 0..0);
        self.tell(Command::Flushed(handle));
    }

    /// The handle is gone for good.
    pub fn closed(&self, handle: ReadHandle) {
        self.inner.store.read_ahead(handle.0, 0..0);
        self.tell(Command::Closed(handle));
    }

    /// Reads that wait now.
    pub fn waiting_reads(&self) -> usize {
        self.inner.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of file `file`, and of the whole torrent with `None`, that were verified, in this life
    /// of the daemon or an earlier one (then they are hashed again before they are used).
    pub fn verified_bytes(&self, file: Option<usize>) -> u64 {
        self.inner.store.verified_bytes(file)
    }

    /// Where data of somebody else is that is used beside the cache.
    pub fn lent_at(&self) -> Option<PathBuf> {
        self.inner.store.lent_at()
    }

    /// Whether some of that data is below `dir`.
    pub fn lends_from(&self, dir: &Path) -> bool {
        self.inner.store.lends_from(dir)
    }

    /// Bytes that are verified there.
    pub fn lent_bytes(&self) -> u64 {
        self.inner.store.lent_bytes()
    }

    /// The pieces that hold some of these files (indexes in `info().files`), in order.
    pub fn pieces_of(&self, files: &[usize]) -> Vec<PieceIndex> {
        let info = self.info();
        super::select::pieces_of(info, files).iter(&info.geometry).collect()
    }

    /// Whether a piece was verified, in this life of the daemon or an earlier one.
    pub fn is_here(&self, piece: PieceIndex) -> bool {
        self.inner.store.is_here(piece)
    }

    /// Bytes of the pieces that are to be fetched in the background; waits until that is known.
    pub async fn wanted_bytes(&self) -> u64 {
        let mut progress = self.inner.progress.clone();
        let known = progress.wait_for(|p| !p.wanted.as_bytes().is_empty()).await;
        let geometry = &self.inner.info.geometry;
        let length = |piece| u64::from(geometry.piece_len(piece));
        known.map_or(0, |p| p.wanted.iter(geometry).map(length).sum())
    }

    /// Keeps all of it that is in the cache there until what is returned is dropped, whatever else is
    /// read.
    pub fn keep(&self) -> Kept {
        self.inner.store.keep()
    }

    /// Has `to`, which is empty, share the blocks of a verified file, if the file system can.
    pub fn share_file(&self, file: usize, to: &File) -> io::Result<()> {
        self.inner.store.share_file(file, to)
    }

    /// Whether files can be moved from the cache into `dir`.
    pub fn can_give_to(&self, dir: &Path) -> bool {
        self.inner.store.can_give_to(dir)
    }

    /// Moves verified files out of the cache, each to a path where nothing is; they are read there then.
    /// Of the kind `WouldBlock`, an error says that not all of them can be moved now.
    pub fn give_away(&self, files: &[(usize, PathBuf)]) -> io::Result<()> {
        self.inner.store.give_away(files)
    }

    /// Whether a file was moved out of the cache to `to`.
    pub fn is_given_to(&self, file: usize, to: &Path) -> bool {
        self.inner.store.is_given_to(file, to)
    }

    /// Whether a file is pinned.
    pub fn is_pinned(&self, file: usize) -> bool {
        self.inner.store.pinned().contains(&file)
    }

    /// Pins files (indexes in `info().files`), so that they are never let go of, or unpins them. An error
    /// is one of the disk.
    pub fn set_pinned(&self, files: &[usize], pin: bool) -> io::Result<()> {
        self.inner.store.set_pinned(files, pin)
    }

    /// Fetches these files (indexes in `info().files`) before everything nobody waits for.
    pub fn prefetch(&self, files: &[usize]) {
        self.tell(Command::Prefetch(files.to_vec()));
    }

    /// How much this torrent may send and receive; what all together may, holds beside it.
    pub fn limits(&self) -> RateLimits {
        self.inner.rates.get()
    }

    /// Has these limits hold from now on.
    pub fn set_limits(&self, limits: RateLimits) {
        self.inner.rates.set(limits);
    }

    /// Waits until everything selected is verified and at rest.
    pub async fn wait_complete(&self) -> Result<(), ReadError> {
        let mut progress = self.inner.progress.clone();
        progress.wait_for(|p| p.complete).await.map_err(|_| ReadError::Gone)?;
        Ok(())
    }

    /// Waits until `rule` says that this torrent was seeded for long enough. Without peers a share
    /// ratio is never reached, so that is a wait without end.
    pub async fn wait_seeded(&self, rule: SeedUntil) -> Result<(), ReadError> {
        let mut progress = self.inner.progress.clone();
        let (clock, mut seeding) = (Clock::start(), Seeding::new(rule));
        loop {
            let ratio = {
                let progress = progress.borrow_and_update();
                let ratio = || ShareRatio::of(progress.stats.uploaded, self.verified_bytes(None));
                progress.complete.then(ratio)
            };
            if seeding.is_met(ratio, clock.now()) {
                return Ok(());
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| ReadError::Gone)?,
                () = sleep(seeding.poll_timeout().since(clock.now())) => {}
            }
        }
    }

    /// The torrent's state, at most a tenth of a second old while anything moves.
    pub fn status(&self) -> TorrentStatus {
        let progress = self.inner.progress.borrow().clone();
        let (info, store) = (&self.inner.info, &self.inner.store);
        let geometry = &info.geometry;
        let verified = store.verified_bytes(None);
        let overlap = progress.wanted.iter(geometry).fold((0, 0), |(all, here), piece| {
            let length = u64::from(geometry.piece_len(piece));
            (all + length, here + if store.is_here(piece) { length } else { 0 })
        });
        let stats = progress.stats;
        let trackers = self.inner.swarms.first().map(Trackers::status).unwrap_or_default();
        let lacking = verified < geometry.payload();
        let alone = lacking && stats.peers == 0 && stats.known_peers == 0;
        let dht = self.inner.dht.as_ref().map(Node::nodes);
        let informants = Informants { trackers: !trackers.is_empty(), dht };
        let state = match () {
            () if progress.error.is_some() || stats.disk_paused && !store.is_limited() => "error",
            // Where nothing is wanted in the background, nothing of it is missing either.
            () if progress.complete && (overlap.0 > 0 || !lacking) => "complete",
            () if stats.checking > 0 => "checking",
            () if stats.cache_full || stats.disk_paused => "cache full",
            () if stats.pieces_unfinished == 0 && stats.waiting_reads == 0 => "idle",
            () => "downloading",
        };
        TorrentStatus {
            info_hash: info.info_hash.to_string(),
            info_hash_v2: info.info_hash_v2().map(|hash| hash.to_string()),
            name: String::from_utf8_lossy(&info.name).into_owned(),
            total: geometry.payload(),
            verified,
            lent: store.lent_bytes(),
            wanted: overlap.0,
            wanted_verified: overlap.1,
            pieces: geometry.piece_count(),
            pieces_verified: geometry.pieces().filter(|p| store.is_here(*p)).count() as u32,
            peers: stats.peers,
            seeders: stats.seeders,
            peers_from: stats.peers_from.iter().map(|(k, n)| (k.to_string(), *n)).collect(),
            known_peers: stats.known_peers,
            download_rate: stats.download_rate,
            upload_rate: stats.upload_rate,
            downloaded: stats.downloaded,
            uploaded: stats.uploaded,
            share_ratio: ShareRatio::of(stats.uploaded, verified),
            wasted: stats.wasted,
            limits: self.limits(),
            waiting_reads: self.waiting_reads(),
            banned: stats.banned,
            state: state.to_owned(),
            nobody: alone.then(|| informants.why_no_peer().to_owned()),
            limited: (state == "cache full").then(|| CACHE_FULL.to_owned()),
            error: progress.error,
            trackers,
        }
    }

    /// What goes on; nothing once the torrent has ended.
    pub async fn view(&self) -> View {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::View(answer));
        answered.await.unwrap_or_default()
    }

    fn range(&self, file: usize, offset: u64, length: u64) -> std::ops::Range<u64> {
        let Some(entry) = self.inner.info.files.get(file) else { return 0..0 };
        let start = entry.offset + offset.min(entry.length);
        start..start + length.min(entry.offset + entry.length - start)
    }

    pub(super) fn tell(&self, command: Command) {
        // An error means that the task has ended; a read in the command ends with `Gone` then.
        let _ = self.inner.commands.send(command);
    }
}

/// A read that waits. However it ends, the waiter is called: dropping it means [`ReadError::Gone`].
pub(super) struct Waiting {
    waiter: Option<Waiter>,
    count: Arc<AtomicUsize>,
    /// What has come stays until the read is answered.
    _guard: Guard,
}

impl Waiting {
    fn begin(count: Arc<AtomicUsize>, waiter: Waiter, guard: Guard) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { waiter: Some(waiter), count, _guard: guard }
    }

    pub(super) fn end(mut self, result: Result<(), ReadError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<(), ReadError>) {
        if let Some(waiter) = self.waiter.take() {
            self.count.fetch_sub(1, Ordering::Relaxed);
            waiter(result);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.finish(Err(ReadError::Gone));
    }
}
