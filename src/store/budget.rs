//! How much of the disk the cache takes, and may take: what is allocated, counted in the blocks of the
//! file system, as `du` counts them.
//!
//! Room is reserved before anything is written, so the limit holds at every moment: what is allocated
//! is never more than what was measured and what is reserved. A reservation ends after its file was
//! measured again. Readers ask for the limit, too: the disk is never looked at while the accounts are held.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::files::{create_own, punch};
use super::lock;
use crate::proto::cache;
use crate::proto::ids::InfoHash;

/// Left free below the limit, in bytes: what is no torrent's payload (the index of a torrent that is
/// just added, a directory that grows) is measured only after it was written.
const MARGIN: u64 = 128 << 10;

/// Out of this many parts of the limit, up to so many bytes, one is left free beside that: `du` looks at
/// one file after the other, and counts what is let go of one meanwhile and written to another twice.
const WALK_SHARE: u64 = 32;
const MAX_WALK: u64 = 64 << 20;

/// Reserved with each write beside its bytes: a file system keeps lists of where a file's blocks are.
const SLACK: u64 = 32 << 10;

/// Parts of a file that its inode has room for (ext4).
const IN_INODE: u64 = 4;

/// Bytes that each part more takes (ext4): 12 in a list, which may be half empty.
const PART: u64 = 24;

/// Blocks of a file system have at least this many bytes for us: the pages of memory.
const MIN_BLOCK: u64 = 4096;

/// What a cache may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes it may take.
    pub size: Option<u64>,
    /// Bytes it has to leave free on its disk.
    pub free: Option<u64>,
}

impl Limits {
    fn is_any(&self) -> bool {
        self.size.is_some() || self.free.is_some()
    }
}

/// What one torrent takes, in bytes.
#[derive(Default)]
struct Account {
    files: HashMap<usize, u64>,
    /// What all files take: asked for with each event of each torrent.
    payload: u64,
    /// Description, index, hashes, and the directories themselves.
    rest: u64,
    /// How often it is open.
    open: usize,
}

#[derive(Default)]
struct Accounts {
    torrents: HashMap<InfoHash, Account>,
    /// What is no torrent's: the saved table of the DHT, the cache's own directory.
    root: u64,
    /// What all files and directories take.
    taken: u64,
    reserved: u64,
    /// What may be taken so that enough of the disk stays free, when that was last looked at.
    by_free: Option<u64>,
}

impl Accounts {
    fn set_root(&mut self, now: u64) {
        let before = std::mem::replace(&mut self.root, now);
        self.taken = (self.taken + now).saturating_sub(before);
    }
}

/// The accounts of one cache. Without limits nothing is counted.
pub(super) struct Ledger {
    dir: PathBuf,
    limits: Limits,
    /// Bytes that the file system allocates and frees at once.
    block: u64,
    /// Whether it can free a part of a file; else whole files are let go.
    punches: AtomicBool,
    accounts: Mutex<Accounts>,
    /// Held from looking at the disk until what was seen is noted: else what was seen before could be noted
    /// after what was seen later.
    measuring: Mutex<()>,
}

impl Ledger {
    /// Measures what is there.
    pub(super) fn open(dir: &Path, limits: Limits) -> Self {
        let block = nix::sys::statvfs::statvfs(dir).map_or(0, |s| s.fragment_size());
        let block = block.max(MIN_BLOCK);
        let mut accounts = Accounts::default();
        if limits.is_any() {
            accounts.root = root(dir);
            let account = |(hash, path): (_, PathBuf)| (hash, account(&path, block));
            accounts.torrents = torrents(dir).map(account).collect();
            let all = accounts.torrents.values().map(|a| a.payload + a.rest);
            accounts.taken = accounts.root + all.sum::<u64>();
        }
        let (dir, accounts) = (dir.to_owned(), Mutex::new(accounts));
        let punches = AtomicBool::new(!limits.is_any() || can_punch(&dir, block));
        let ledger = Self { dir, limits, block, punches, accounts, measuring: Mutex::default() };
        ledger.look_at_disk();
        ledger
    }

    /// Looks how much of the disk is free, if some of it is to stay so.
    fn look_at_disk(&self) {
        let Some(free) = self.limits.free else { return };
        let _measuring = lock(&self.measuring);
        let available = available(&self.dir);
        let mut accounts = lock(&self.accounts);
        // What is reserved may be written already, or not.
        let available = available.saturating_sub(accounts.reserved);
        let taken = accounts.taken + accounts.reserved;
        let limit = taken.saturating_add(available).saturating_sub(free.saturating_add(MARGIN));
        accounts.by_free = Some(limit);
    }

    /// Bytes that the file system allocates and frees at once.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// Whether a part of a file can be freed.
    pub(super) fn punches(&self) -> bool {
        self.punches.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn punch_no_more(&self) {
        self.punches.store(false, Ordering::Relaxed);
    }

    /// The most that a file counts for of which so many bytes, whole blocks in so many parts, are there.
    pub(super) fn most_counted(&self, bytes: u64, parts: u64) -> u64 {
        let lists = (parts.saturating_sub(IN_INODE) * PART).next_multiple_of(self.block);
        with_lists(bytes + lists, self.block)
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limits.is_any()
    }

    /// The bytes that the cache may take as things are, a margin left; `None` without a limit.
    pub(super) fn limit(&self) -> Option<u64> {
        let accounts = lock(&self.accounts);
        self.limit_of(&accounts)
    }

    fn limit_of(&self, accounts: &Accounts) -> Option<u64> {
        let by_size = self.limits.size.map(|size| {
            let walk = (size / WALK_SHARE).min(MAX_WALK);
            size.saturating_sub(MARGIN + walk)
        });
        [by_size, accounts.by_free].into_iter().flatten().min()
    }

    /// What is taken and reserved.
    pub(super) fn taken(&self) -> u64 {
        let accounts = lock(&self.accounts);
        accounts.taken + accounts.reserved
    }

    /// Bytes that one more torrent may fetch in the background; `None` without a limit.
    pub(super) fn background_room(&self) -> Option<u64> {
        let accounts = lock(&self.accounts);
        let limit = self.limit_of(&accounts)?;
        let (open, idle): (Vec<_>, Vec<_>) = accounts.torrents.values().partition(|a| a.open > 0);
        let idle = idle.iter().map(|a| a.payload).sum();
        let room = cache::background_room(limit, accounts.taken + accounts.reserved, idle);
        Some(room / (open.len() as u64).max(1))
    }

    /// Bytes by which the limit would be exceeded with so many more.
    pub(super) fn lacking(&self, bytes: u64) -> u64 {
        self.look_at_disk();
        let accounts = lock(&self.accounts);
        self.lacking_of(&accounts, bytes)
    }

    fn lacking_of(&self, accounts: &Accounts, bytes: u64) -> u64 {
        let Some(limit) = self.limit_of(accounts) else { return 0 };
        let wanted = accounts.taken + accounts.reserved;
        wanted.saturating_add(bytes).saturating_sub(limit)
    }

    /// Reserves room, if it is there.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.look_at_disk();
        let mut accounts = lock(&self.accounts);
        if self.lacking_of(&accounts, bytes) > 0 {
            return None;
        }
        accounts.reserved += bytes;
        Some(Reservation { ledger: self.clone(), bytes })
    }

    /// Measures a file of a torrent again. Returns how many files it has if this is a new one.
    pub(super) fn measure(&self, torrent: InfoHash, file: usize, path: &Path) -> Option<usize> {
        if !self.is_limited() {
            return None;
        }
        let _measuring = lock(&self.measuring);
        let now = fs::symlink_metadata(path).map_or(0, |m| counted(&m, self.block));
        let mut accounts = lock(&self.accounts);
        let account = accounts.torrents.entry(torrent).or_default();
        let before = match now {
            0 => account.files.remove(&file),
            now => account.files.insert(file, now),
        };
        let new = (now > 0 && before.is_none()).then_some(account.files.len());
        account.payload = (account.payload + now).saturating_sub(before.unwrap_or(0));
        accounts.taken = (accounts.taken + now).saturating_sub(before.unwrap_or(0));
        new
    }

    /// Measures what a torrent takes beside its payload, and what is no torrent's.
    pub(super) fn measure_rest(&self, torrent: InfoHash) {
        if !self.is_limited() {
            return;
        }
        let _measuring = lock(&self.measuring);
        let (now, root) = (rest(&self.dir.join(torrent.to_string())), root(&self.dir));
        let mut accounts = lock(&self.accounts);
        let account = accounts.torrents.entry(torrent).or_default();
        let before = std::mem::replace(&mut account.rest, now);
        accounts.taken = (accounts.taken + now).saturating_sub(before);
        accounts.set_root(root);
    }

    /// A torrent is used, or no longer.
    pub(super) fn set_open(&self, torrent: InfoHash, open: bool) {
        if self.is_limited() {
            let mut accounts = lock(&self.accounts);
            let times = &mut accounts.torrents.entry(torrent).or_default().open;
            *times = if open { *times + 1 } else { times.saturating_sub(1) };
        }
    }

    /// The files of a torrent that take something.
    pub(super) fn files_of(&self, torrent: InfoHash) -> Vec<(usize, u64)> {
        let accounts = lock(&self.accounts);
        let files = accounts.torrents.get(&torrent).map(|a| a.files.iter());
        files.into_iter().flatten().map(|(file, bytes)| (*file, *bytes)).collect()
    }

    /// A torrent is being removed: what it takes counts as no torrent's, until that is measured.
    pub(super) fn forget(&self, torrent: InfoHash) {
        let _measuring = lock(&self.measuring);
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.torrents.remove(&torrent) {
            accounts.root += account.payload + account.rest;
        }
    }

    /// Measures what is no torrent's.
    pub(super) fn measure_others(&self) {
        if self.is_limited() {
            let _measuring = lock(&self.measuring);
            let root = root(&self.dir);
            lock(&self.accounts).set_root(root);
        }
    }

    /// The torrents that nobody uses and that have payload.
    pub(super) fn idle(&self) -> Vec<InfoHash> {
        let accounts = lock(&self.accounts);
        let idle = accounts.torrents.iter().filter(|(_, a)| a.open == 0 && !a.files.is_empty());
        idle.map(|(hash, _)| *hash).collect()
    }
}

/// Room that is kept for a write until this is dropped: after what was written has been measured.
pub(super) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.ledger.accounts).reserved -= self.bytes;
    }
}

/// Whether the file system of `dir` can free a part of a file.
fn can_punch(dir: &Path, block: u64) -> bool {
    let path = dir.join("punch.new");
    let tried = create_own(&path).and_then(|file| {
        file.set_len(2 * block)?;
        punch(&file, 0, block)
    });
    let _ = fs::remove_file(path);
    let cannot = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
    match tried.as_ref().err().filter(|e| cannot(e)) {
        None => true,
        Some(_) => {
            tracing::warn!(
                "the cache's file system cannot free parts of files, so whole files are let go: of a \
                 file that is larger than the cache may be, reading goes past the cache"
            );
            false
        }
    }
}

/// The most that writing these parts of files can allocate in blocks of so many bytes; offset and length
/// of each in bytes.
pub(super) fn most_allocated(block: u64, spans: impl Iterator<Item = (u64, u64)>) -> u64 {
    let most = |(offset, length): (u64, u64)| {
        let end = (offset + length).next_multiple_of(block);
        end - offset / block * block + block
    };
    spans.map(most).sum::<u64>() + SLACK
}

/// Bytes allocated for a file.
fn bytes_of(m: &Metadata) -> u64 {
    m.blocks() * 512
}

/// What a file counts for: what is allocated, and a block more if its parts may become too many for its
/// inode. The file system allocates that only when it writes them out, perhaps half a minute later.
fn counted(m: &Metadata, block: u64) -> u64 {
    with_lists(bytes_of(m), block)
}

fn with_lists(bytes: u64, block: u64) -> u64 {
    if bytes > IN_INODE * block { bytes + block } else { bytes }
}

/// Bytes allocated for what is at `path` and below.
pub(super) fn allocated(path: &Path) -> u64 {
    let Ok(m) = fs::symlink_metadata(path) else { return 0 };
    let below = match m.is_dir() {
        true => fs::read_dir(path).into_iter().flatten().flatten().map(|e| allocated(&e.path())),
        false => return bytes_of(&m),
    };
    bytes_of(&m) + below.sum::<u64>()
}

/// The directories of the torrents of a cache.
pub(super) fn torrents(cache: &Path) -> impl Iterator<Item = (InfoHash, PathBuf)> + use<> {
    fs::read_dir(cache).into_iter().flatten().flatten().filter_map(|entry| {
        let hash = entry.file_name().to_str()?.parse().ok()?;
        entry.file_type().ok()?.is_dir().then(|| (hash, entry.path()))
    })
}

/// What is no torrent's, in bytes.
fn root(cache: &Path) -> u64 {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let other = entries.filter(|e| {
        let name = e.file_name();
        name.to_str().is_none_or(|name| name.parse::<InfoHash>().is_err())
    });
    let own = fs::symlink_metadata(cache).map_or(0, |m| bytes_of(&m));
    own + other.map(|e| allocated(&e.path())).sum::<u64>()
}

/// What of a torrent's directory is not payload, in bytes.
fn rest(dir: &Path) -> u64 {
    let own = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| bytes_of(&m));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let files = dir.join("files");
    own(dir) + entries.map(|p| if p == files { own(&p) } else { allocated(&p) }).sum::<u64>()
}

fn account(dir: &Path, block: u64) -> Account {
    let files = fs::read_dir(dir.join("files")).into_iter().flatten().flatten();
    let measured = files.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, counted(&fs::symlink_metadata(entry.path()).ok()?, block)))
    });
    let files: HashMap<_, _> = measured.filter(|(_, bytes)| *bytes > 0).collect();
    Account { payload: files.values().sum(), files, rest: rest(dir), open: 0 }
}

/// Bytes that may be written to the disk of `dir`; without an answer, none.
fn available(dir: &Path) -> u64 {
    nix::sys::statvfs::statvfs(dir).map_or(0, |s| s.blocks_available() * s.fragment_size())
}

/// Bytes of the whole disk that `dir` is on.
pub fn disk_size(dir: &Path) -> io::Result<u64> {
    let s = nix::sys::statvfs::statvfs(dir)?;
    Ok(s.blocks() as u64 * s.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_counted_in_whole_blocks() {
        let most = |offset, length| most_allocated(4096, [(offset, length)].into_iter()) - SLACK;
        assert_eq!(most(0, 1), 2 * 4096);
        assert_eq!(most(0, 4096), 2 * 4096);
        assert_eq!(most(4095, 2), 3 * 4096);
    }

    #[test]
    fn what_is_reserved_is_not_there_for_others() {
        let dir = tempfile::TempDir::new().unwrap();
        let limits = Limits { size: Some(1 << 20), free: None };
        let ledger = Arc::new(Ledger::open(dir.path(), limits));
        let first = ledger.try_reserve(600 << 10).unwrap();
        assert!(ledger.try_reserve(600 << 10).is_none());
        assert!(ledger.lacking(600 << 10) > 0);
        drop(first);
        assert!(ledger.try_reserve(600 << 10).is_some());
    }

    #[test]
    fn a_disk_keeps_the_space_that_is_to_stay_free() {
        let dir = tempfile::TempDir::new().unwrap();
        let limits = Limits { size: None, free: Some(u64::MAX / 2) };
        let ledger = Arc::new(Ledger::open(dir.path(), limits));
        assert!(ledger.try_reserve(1).is_none());
        let limits = Limits { size: None, free: Some(0) };
        assert!(Arc::new(Ledger::open(dir.path(), limits)).try_reserve(1).is_some());
    }
}
