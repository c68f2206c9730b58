//! Torrents of the cache that nobody uses: what of them is let go.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::cache::choose;
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::Info;
use crate::store::torrent::TorrentStore;
use crate::store::{Store, lock, pins};

/// A torrent that nobody uses.
enum Idle {
    Open(Arc<TorrentStore>),
    /// Its description is not whole, so nothing of it can be used.
    Broken(PathBuf),
}

impl Store {
    /// Lets go of so many bytes of torrents that nobody uses, those first that were so for longest;
    /// whether there was anything.
    pub(super) fn let_go_of_idle(&self, need: u64) -> bool {
        let mut idle: Vec<_> =
            self.ledger.idle().into_iter().map(|h| (self.last_use(&h), h)).collect();
        idle.sort();
        let (before, mut any) = (self.ledger.taken(), false);
        for (_, hash) in idle {
            let freed = before.saturating_sub(self.ledger.taken());
            if freed >= need {
                break;
            }
            match self.open_idle(&hash) {
                None => {}
                Some(Idle::Broken(dir)) => {
                    any |= fs::remove_dir_all(&dir).is_ok();
                    self.ledger.forget(hash);
                }
                Some(Idle::Open(torrent)) => {
                    let chosen = choose(torrent.candidates(), need - freed);
                    any |= chosen.into_iter().filter(|piece| torrent.let_go(*piece)).count() > 0;
                    drop(torrent);
                    self.remove_if_empty(hash);
                }
            }
        }
        any
    }

    /// Removes a torrent of which no payload is here, if nobody uses it and nothing of it is pinned.
    pub(in crate::store) fn remove_if_empty(&self, hash: InfoHash) {
        let torrents = lock(&self.torrents);
        let dir = self.torrent_dir(&hash);
        let pinned = !pins::read(&dir.join("files")).is_empty();
        if torrents.is_used(&hash) || pinned || !self.ledger.files_of(hash).is_empty() {
            return;
        }
        match fs::remove_dir_all(&dir) {
            Ok(()) => self.ledger.forget(hash),
            Err(error) => tracing::warn!(%error, dir = %dir.display(), "cannot be removed"),
        }
    }

    /// When a torrent was last used.
    pub(in crate::store) fn last_use(&self, hash: &InfoHash) -> Option<SystemTime> {
        fs::metadata(self.torrent_dir(hash).join("index")).and_then(|m| m.modified()).ok()
    }

    /// Opens a torrent to let something of it go; `None` if somebody uses it.
    fn open_idle(&self, hash: &InfoHash) -> Option<Idle> {
        let mut torrents = lock(&self.torrents);
        if torrents.is_used(hash) {
            return None;
        }
        let info = self.saved_info(hash).and_then(|raw| Info::parse(raw).ok());
        let Some(info) = info.filter(|info| info.info_hash == *hash) else {
            return Some(Idle::Broken(self.torrent_dir(hash)));
        };
        let this = self.this.upgrade()?;
        let torrent = this.open_torrent(Arc::new(info), false).ok()?;
        torrent.sweep();
        torrents.open.insert(*hash, Arc::downgrade(&torrent));
        Some(Idle::Open(torrent))
    }
}
