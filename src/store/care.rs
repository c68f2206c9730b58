//! Looking after the cache as a whole: what is in it, freeing what nobody uses, pins, and checking.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::SystemTime;

use super::budget::{allocated, torrents};
use super::torrent::TorrentStore;
use super::workers::Class;
use super::{Store, lock, pins, shared};
use crate::proto::geometry::PieceIndex;
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::Info;
use crate::proto::torrent::Trees;

/// The end of the name of a torrent's directory that is just being removed.
const GONE: &str = ".gone";

/// Pieces that are hashed at once when a torrent is checked.
const CHECKS_AT_ONCE: usize = 8;

/// A torrent of the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// Its info hash.
    pub info_hash: InfoHash,
    /// Its description; `None` if that is not whole.
    pub info: Option<Arc<Info>>,
    /// Bytes of it that are listed as verified.
    pub here: u64,
    /// Bytes that it takes on disk.
    pub on_disk: u64,
    /// Files of it that are pinned.
    pub pinned: usize,
    /// Whether somebody uses it.
    pub in_use: bool,
    /// When it was last used.
    pub used: Option<SystemTime>,
}

/// What a check of one torrent found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Its description.
    pub info: Arc<Info>,
    /// Pieces that were checked.
    pub checked: u32,
    /// Those that are not what they should be.
    pub bad: Vec<PieceIndex>,
    /// Pieces that cannot be checked: hashes of a v2 torrent that peers have to give are missing.
    pub unknown: u32,
}

impl Checked {
    fn note(&mut self, piece: PieceIndex, found: Found) {
        match found {
            Found::Good => self.checked += 1,
            Found::Bad => {
                self.checked += 1;
                self.bad.push(piece);
            }
            Found::Unknown => self.unknown += 1,
            Found::Absent => {}
        }
    }
}

/// What a check says of one piece.
pub(super) enum Found {
    Good,
    Bad,
    /// It is not on disk, or no longer.
    Absent,
    /// The hash is missing.
    Unknown,
}

/// Removes what a removal that was cut short has left.
pub(super) fn finish_removals(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(GONE)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, dir = %entry.path().display(), "cannot be removed");
        }
    }
}

impl Store {
    /// The torrents of the cache, those first that were not used for longest.
    pub fn cached(&self) -> Vec<Cached> {
        let mut all: Vec<_> =
            torrents(&self.dir).map(|(hash, dir)| self.describe(hash, &dir)).collect();
        all.sort_by_key(|cached| (cached.used, cached.info_hash));
        all
    }

    fn describe(&self, info_hash: InfoHash, dir: &Path) -> Cached {
        let in_use = lock(&self.torrents).is_used(&info_hash);
        let used = self.last_use(&info_hash);
        let torrent = self.either(&info_hash);
        Cached {
            info_hash,
            info: torrent.as_ref().map(|torrent| torrent.info.clone()),
            here: torrent.as_ref().map_or(0, |torrent| torrent.verified_bytes(None)),
            on_disk: allocated(dir),
            pinned: pins::read(&dir.join("files")).map_or(0, |pinned| pinned.len()),
            in_use,
            used,
        }
    }

    /// A torrent, whether somebody uses it or not.
    fn either(&self, hash: &InfoHash) -> Option<Arc<TorrentStore>> {
        let open = || lock(&self.torrents).open.get(hash).and_then(std::sync::Weak::upgrade);
        open().or_else(|| self.open_unused(hash)).or_else(open)
    }

    /// Frees what nobody uses, but for what is pinned. Returns how many torrents that was of, and the
    /// bytes that they took.
    pub fn free_unused(&self) -> (u64, u64) {
        let _alone = lock(&self.evicting);
        let (mut count, mut bytes) = (0, 0);
        for (hash, dir) in torrents(&self.dir) {
            let before = allocated(&dir);
            if !self.remove_unused(hash)
                && let Some(torrent) = self.open_unused(&hash)
            {
                torrent.let_all_go();
            }
            let freed = before.saturating_sub(allocated(&dir));
            count += u64::from(freed > 0);
            bytes += freed;
        }
        (count, bytes)
    }

    /// Whether what is kept of a torrent is of no use, because its description is missing or wrong. One
    /// that cannot be read now is neither.
    pub(super) fn is_useless(&self, hash: &InfoHash) -> bool {
        match fs::read(self.torrent_dir(hash).join("info")) {
            Ok(raw) => !Info::parse(raw).is_ok_and(|info| info.info_hash == *hash),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Removes a torrent, if nobody uses it and nothing of it is pinned.
    pub(super) fn remove_unused(&self, hash: InfoHash) -> bool {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (dir, gone) =
            (self.torrent_dir(&hash), self.dir.join(format!("{hash}.{number}{GONE}")));
        {
            let torrents = lock(&self.torrents);
            // What cannot be read may be pinned.
            let pinned = pins::read(&dir.join("files")).map_or(true, |pinned| !pinned.is_empty());
            // Whoever mounts it now begins anew; removing many files would hold him up.
            if torrents.is_used(&hash) || pinned || fs::rename(&dir, &gone).is_err() {
                return false;
            }
            // Whoever mounts it now has a new account; what is not deleted yet counts as no torrent's.
            self.ledger.forget(hash);
        }
        if let Err(error) = fs::remove_dir_all(&gone) {
            tracing::warn!(%error, dir = %gone.display(), "cannot be removed");
        }
        self.ledger.measure_others();
        true
    }

    /// Pins all files of a torrent, or unpins them. Returns how many there are; `None` if it is not in the
    /// cache.
    pub fn set_pinned(&self, hash: &InfoHash, pin: bool) -> io::Result<Option<usize>> {
        let Some(torrent) = self.either(hash) else { return Ok(None) };
        let files: Vec<_> = (0..torrent.info.files.len()).collect();
        torrent.set_pinned(&files, pin)?;
        Ok(Some(files.len()))
    }

    /// Hashes all of a torrent that is here, on all workers, and with `repair` forgets what is bad: it is
    /// fetched again then. Calls `progress` with how many pieces were checked, and of how many; that may end
    /// it. `None` if it was ended, or the torrent is not in the cache.
    pub fn check(
        &self,
        hash: &InfoHash,
        repair: bool,
        mut progress: impl FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Option<Checked> {
        let torrent = self.either(hash)?;
        let info = torrent.info.clone();
        let mut trees = Trees::new(&info);
        trees.iter_mut().for_each(|trees| trees.know(&self.layers(&info)));
        for file in 0..info.files.len() {
            // Else a file could be removed while it is opened.
            let _disk = shared(&torrent.disk);
            torrent.files.uncache(file);
        }
        let here: Vec<_> = info.geometry.pieces().filter(|p| torrent.is_here(*p)).collect();
        let mut checked = Checked { info, checked: 0, bad: Vec::new(), unknown: 0 };
        let mut number = 0;
        // A few at a time: a reader's piece waits for all that were submitted before it.
        for few in here.chunks(CHECKS_AT_ONCE) {
            let (tell, told) = mpsc::channel();
            for piece in few {
                let root = trees.as_mut().and_then(|trees| trees.piece_root(*piece));
                let (torrent, piece, tell) = (torrent.clone(), *piece, tell.clone());
                self.workers.submit(Class::Check, move || {
                    let found = match root.is_none() && torrent.info.is_v2_only() {
                        true => Found::Unknown,
                        false => torrent.hash_at_rest(piece, root, repair),
                    };
                    drop(torrent);
                    let _ = tell.send((piece, found));
                });
            }
            drop(tell);
            for (piece, found) in told {
                number += 1;
                checked.note(piece, found);
                if progress(number, here.len() as u32).is_break() {
                    return None;
                }
            }
        }
        checked.bad.sort_unstable();
        Some(checked)
    }
}
