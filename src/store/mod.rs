//! Bytes at rest and the gate.
//!
//! Untrusted bytes enter a [`PieceBuffer`], from which nothing can be read. A worker closes it and
//! hands its bytes to the gate; what matches its hash comes out as a [`VerifiedRange`], the only
//! thing that makes a piece readable, goes into memory's table of pending pieces and to disk:
//!
//! ```text
//! PieceBuffer ─► gate ─► VerifiedRange ─► pending (memory) ─► files + index (disk)
//!                                            └── read_file, read_block ──┘
//! ```
//!
//! On disk a torrent is `<cache>/<info hash>/`: `info` (the raw dictionary), `index` (which pieces
//! are at rest, a hint) and `files/N`, one sparse file per file of the torrent. Where the cache has a
//! limit, room is reserved before anything is written, and what was least recently read makes it
//! (`budget.rs`, `evict.rs`). There is no tokio
//! here: work is done by threads, completion is a callback.

mod answer;
mod blocks;
mod budget;
mod buffer;
mod care;
mod evict;
mod files;
mod gate;
mod giving;
mod in_place;
mod index;
mod lenders;
mod lent;
mod mapping;
mod order;
mod own;
mod pins;
mod pool;
mod states;
mod sync;
mod torrent;
mod twins;
mod workers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::time::{Instant, SystemTime};

pub use budget::{Limits, disk_size};
pub use buffer::PieceBuffer;
pub use care::{Cached, Checked};
pub use evict::{Guard, Kept, NoRoom, is_no_room};
pub use gate::{Verdict, VerifiedRange};
pub use torrent::{TorrentStore, WholeFile};

use crate::proto::geometry::PieceIndex;
use crate::proto::ids::InfoHash;
use crate::proto::merkle::Hash;
use crate::proto::metainfo::layout::Layout;
use crate::proto::metainfo::{Info, PieceLayers};
use budget::Ledger;
use buffer::BufferPool;
use files::{Files, Place, create_dir, open_own};
use index::Index;
use pool::{FilePool, LENT_FILES, OPEN_FILES};
use sync::Syncer;
use workers::Workers;

/// The most bytes of verified pieces kept in memory after their write failed, all torrents of a
/// store together; two pieces are kept in any case.
const MAX_UNWRITTEN: u64 = 32 << 20;

/// The largest info dictionary read back, in bytes: what is accepted from peers.
const MAX_INFO: u64 = 32 << 20;

/// What the directories of a torrent take, at most, in bytes.
const DIRECTORIES: u64 = 64 << 10;

/// The directory of a torrent's piece layers, one file each, named by the number of the file.
const LAYERS: &str = "layers";

/// Why a cache or a torrent in it cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon has the cache.
    #[error(
        "the cache {} is in use by another p2pfs daemon ({owner}); give this one a --data-dir of its own",
        dir.display()
    )]
    InUse {
        /// The cache.
        dir: PathBuf,
        /// What the other one wrote into the lock file: `process N`.
        owner: String,
    },
    /// A file or directory of the cache cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Cache {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file to be seeded cannot be read.
    #[error("cannot read {}, which the torrent needs: {source}", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No file of the torrent is where its data should be.
    #[error(
        "{}: has no file of {name}; name its file or folder, or the folder that holds it", path.display()
    )]
    NothingFits {
        /// Where.
        path: PathBuf,
        /// The torrent.
        name: String,
    },
    /// A file of a torrent that would be read from a mount of one.
    #[error("{}: lies in a mounted torrent; --use-data is for the download of another client", path.display())]
    InMount {
        /// The file.
        path: PathBuf,
    },
    /// A file to be seeded is not the torrent's.
    #[error("{} has {found} bytes, the torrent says {expected}", path.display())]
    DataSize {
        /// Which.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

/// A daemon's cache, with the worker threads, buffers and open files that its torrents share. The
/// directory is locked for as long as this or one of its torrents lives.
pub struct Store {
    dir: PathBuf,
    workers: Workers,
    buffers: Arc<BufferPool>,
    files: Arc<FilePool>,
    torrents: Mutex<Torrents>,
    /// A torrent is not being opened any more.
    opened: Condvar,
    ledger: Arc<Ledger>,
    /// Held by whoever makes room.
    evicting: Mutex<()>,
    /// Threads that wait for files of somebody else.
    lenders: Arc<AtomicUsize>,
    /// Handles that read ahead.
    windows: AtomicUsize,
    /// Bytes of the files that the kernel reads itself.
    whole_files: AtomicU64,
    began: Instant,
    /// Seconds since 1970 when it was opened.
    opened_at: u32,
    this: Weak<Self>,
    /// Pieces whose write failed, oldest first.
    unwritten: Mutex<VecDeque<(Weak<TorrentStore>, PieceIndex, u64)>>,
    numbers: AtomicU64,
    syncer: Syncer,
    _lock: own::Lock,
}

/// The torrents of a store that are in use.
#[derive(Default)]
struct Torrents {
    open: HashMap<InfoHash, Weak<TorrentStore>>,
    /// Those that are just being opened.
    opening: HashSet<InfoHash>,
}

impl Torrents {
    fn is_used(&self, hash: &InfoHash) -> bool {
        let open = self.open.get(hash).is_some_and(|torrent| torrent.strong_count() > 0);
        open || self.opening.contains(hash)
    }
}

/// A torrent that is just being opened, until this is dropped.
struct Opening<'a>(&'a Store, InfoHash);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        lock(&self.0.torrents).opening.remove(&self.1);
        self.0.opened.notify_all();
    }
}

impl Store {
    /// Opens the cache `dir`, without limits, and makes it if it is not there. One daemon at a time:
    /// [`StoreError::InUse`] for the second.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_limited(dir, Limits::default())
    }

    /// The same, with limits to what it may take; what is too much of it is let go at once.
    pub fn open_limited(dir: &Path, limits: Limits) -> Result<Arc<Self>, StoreError> {
        Self::open_as(dir, limits, false)
    }

    /// Opens a cache to look after it, for as long as no daemon wants it ([`Self::is_wanted`]).
    pub fn open_for_now(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_as(dir, Limits::default(), true)
    }

    fn open_as(dir: &Path, limits: Limits, for_now: bool) -> Result<Arc<Self>, StoreError> {
        let cache = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Cache { path, source }
        };
        create_dir(dir).map_err(cache(dir))?;
        let lock = own::take(dir, for_now)?;
        care::finish_removals(dir);
        let workers = Workers::start().map_err(cache(dir))?;
        let syncer = Syncer::start(dir).map_err(cache(dir))?;
        let store = Arc::new_cyclic(|this| Self {
            dir: dir.to_owned(),
            workers,
            buffers: Arc::default(),
            files: Arc::new(FilePool::new(OPEN_FILES)),
            torrents: Mutex::default(),
            opened: Condvar::new(),
            ledger: Arc::new(Ledger::open(dir, limits)),
            evicting: Mutex::default(),
            lenders: Arc::default(),
            windows: AtomicUsize::new(0),
            whole_files: AtomicU64::new(0),
            began: Instant::now(),
            opened_at: seconds_since_1970(),
            this: this.clone(),
            unwritten: Mutex::default(),
            numbers: AtomicU64::new(0),
            syncer,
            _lock: lock,
        });
        store.syncer.tick(store.this.clone());
        store.trim();
        if store.ledger.lacking(0) > 0 {
            tracing::warn!("the cache takes more than it may: what is pinned is not let go");
        }
        Ok(store)
    }

    /// The bytes that the cache may take as things are; `None` without a limit.
    pub fn limit(&self) -> Option<u64> {
        self.ledger.limit()
    }

    /// The clock of last uses: seconds since 1970, never 0; the system's clock may jump meanwhile.
    fn moment(&self) -> u32 {
        let since = u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.opened_at.saturating_add(since).max(1)
    }

    /// Opens a torrent of the cache, or begins it. A torrent that is open already is given out
    /// again. Files of which nothing is here, and which other torrents have, are copied first, which may
    /// take a while; who opens the same torrent meanwhile waits for that.
    pub fn torrent(self: &Arc<Self>, info: Arc<Info>) -> Result<Arc<TorrentStore>, StoreError> {
        let hash = info.info_hash;
        {
            let torrents = lock(&self.torrents);
            let mut torrents = self
                .opened
                .wait_while(torrents, |torrents| torrents.opening.contains(&hash))
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = torrents.open.get(&hash).and_then(Weak::upgrade) {
                open.protection.set_used();
                return Ok(open);
            }
            torrents.opening.insert(hash);
        }
        let _opening = Opening(self, hash);
        let dir = self.torrent_dir(&hash);
        let cache = |source| StoreError::Cache { path: dir.clone(), source };
        let described = info.raw.len() as u64 + u64::from(info.geometry.piece_count() / 8);
        let room = self.reserve(described + DIRECTORIES).map_err(cache)?;
        let torrent = self.open_torrent(info, true).map_err(cache)?;
        self.ledger.measure_rest(hash);
        drop(room);
        torrent.protection.set_used();
        torrent.sweep();
        let mut torrents = lock(&self.torrents);
        torrents.open.retain(|_, t| t.strong_count() > 0);
        torrents.open.insert(hash, Arc::downgrade(&torrent));
        Ok(torrent)
    }

    /// Opens a torrent that nobody else opens at the same time; with files that others have, to `adopt`
    /// them.
    fn open_torrent(
        self: &Arc<Self>,
        info: Arc<Info>,
        adopt: bool,
    ) -> io::Result<Arc<TorrentStore>> {
        let dir = self.torrent_dir(&info.info_hash);
        let (index, files) = Self::open_files(&dir, &info)?;
        let adopted = match adopt {
            true => twins::adopt(&self.dir, &dir, &info, &index, &self.ledger),
            false => 0,
        };
        if adopted > 0 {
            tracing::info!(torrent = %info.info_hash, adopted, "files that other torrents have");
        }
        let files = Files::new(info.clone(), files, self.files.clone(), self.number());
        Ok(Arc::new(TorrentStore::new(self.clone(), info, files, Some(index))))
    }

    fn open_files(dir: &Path, info: &Info) -> io::Result<(Index, Place)> {
        let files = dir.join("files");
        create_dir(&files)?;
        let (path, new) = (dir.join("info"), dir.join("info.new"));
        if fs::read(&path).ok().as_ref() != Some(&info.raw) {
            let mut file = open_own(&new)?;
            file.set_len(0)?;
            file.write_all(&info.raw)?;
            fs::rename(&new, &path)?;
        }
        let index = Index::open(&dir.join("index"), info)?;
        Ok((index, Place::Cache(files, Mutex::new(vec![0; info.files.len()]))))
    }

    /// A torrent whose data is somebody else's, at `path`: the file itself for a torrent of a
    /// single file, or the directory that has what `layout` names (or has it in a directory with
    /// the torrent's name). It is only ever read. All pieces are hinted.
    /// When a read finds that a file's length or modification time has changed, all pieces of that
    /// file are lost.
    ///
    /// The error names the first file that is missing or has another length.
    pub fn in_place(
        self: &Arc<Self>,
        info: Arc<Info>,
        layout: &Layout,
        path: &Path,
    ) -> Result<Arc<TorrentStore>, StoreError> {
        let files = Place::Elsewhere(Mutex::new(in_place::locate(&info, layout, path)?));
        // Not among those of the cache: closing a file of somebody else may take long.
        let pool = Arc::new(FilePool::new(LENT_FILES));
        let files = Files::new(info.clone(), files, pool, self.number());
        Ok(Arc::new(TorrentStore::new(self.clone(), info, files, None)))
    }

    /// The raw info dictionary of a torrent that was opened before, if it is whole.
    pub fn saved_info(&self, hash: &InfoHash) -> Option<Vec<u8>> {
        let file = File::open(self.torrent_dir(hash).join("info")).ok()?;
        let mut raw = Vec::new();
        file.take(MAX_INFO + 1).read_to_end(&mut raw).ok()?;
        hash.is_of(&raw).then_some(raw)
    }

    /// The piece layers that were learnt of a torrent (BEP 52), checked against its roots.
    pub fn layers(&self, info: &Info) -> PieceLayers {
        let dir = self.torrent_dir(&info.info_hash).join(LAYERS);
        let roots = info.v2.iter().flat_map(|v2| v2.roots.iter().enumerate());
        let named = fs::read_dir(&dir).into_iter().flatten().flatten();
        let numbers: BTreeSet<usize> =
            named.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let read = roots.filter(|(file, _)| numbers.contains(file)).filter_map(|(file, root)| {
            let length = info.files.get(file)?.length.div_ceil(info.geometry.piece_length().into());
            let mut bytes = Vec::new();
            let open = File::open(dir.join(file.to_string())).ok()?;
            open.take(32 * length + 1).read_to_end(&mut bytes).ok()?;
            Some(((*root)?, bytes.as_chunks::<32>().0.to_vec()))
        });
        PieceLayers::checked(read.collect(), info).unwrap_or_default()
    }

    fn keep_layer(&self, info: &Info, file: usize, hashes: &[Hash]) -> io::Result<()> {
        let dir = self.torrent_dir(&info.info_hash).join(LAYERS);
        let _room = self.reserve(hashes.as_flattened().len() as u64 + DIRECTORIES)?;
        create_dir(&dir)?;
        let (path, new) = (dir.join(file.to_string()), dir.join(format!("{file}.new")));
        let mut file = open_own(&new)?;
        file.set_len(0)?;
        let written = file.write_all(hashes.as_flattened()).and_then(|()| fs::rename(&new, &path));
        self.ledger.measure_rest(info.info_hash);
        written
    }

    fn torrent_dir(&self, hash: &InfoHash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a piece whose write failed in memory; the oldest such pieces are lost for it.
    fn keep_unwritten(&self, torrent: &Arc<TorrentStore>, piece: PieceIndex) {
        let length = u64::from(torrent.info().geometry.piece_len(piece));
        let mut unwritten = lock(&self.unwritten);
        let this = Arc::downgrade(torrent);
        unwritten.retain(|(other, failed, _)| {
            other.strong_count() > 0 && !(*failed == piece && other.ptr_eq(&this))
        });
        unwritten.push_back((this, piece, length));
        let mut total: u64 = unwritten.iter().map(|(_, _, length)| length).sum();
        let mut lost = Vec::new();
        while total > MAX_UNWRITTEN && unwritten.len() > 2 {
            if let Some((torrent, piece, length)) = unwritten.pop_front() {
                total -= length;
                lost.push((torrent, piece));
            }
        }
        drop(unwritten);
        for (torrent, piece) in lost {
            if let Some(torrent) = torrent.upgrade() {
                torrent.drop_unwritten(piece);
            }
        }
    }
}

fn seconds_since_1970() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// Locks a mutex; a panic while it was held does not matter, as no update here is left half done.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for whoever may share.
fn shared<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for one alone.
fn exclusive<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
