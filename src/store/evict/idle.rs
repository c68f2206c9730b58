//! Torrents of the cache that nobody uses: what of them is let go.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use crate::proto::cache::choose;
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::Info;
use crate::store::torrent::TorrentStore;
use crate::store::{Store, lock};

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
            match self.open_unused(&hash) {
                None => any |= self.is_useless(&hash) && self.remove_unused(hash),
                Some(torrent) => {
                    let chosen = choose(vec![torrent.candidates()], need - freed);
                    any |= chosen
                        .into_iter()
                        .filter(|(_, one)| torrent.let_all_go_of(one.clone()))
                        .count()
                        > 0;
                    drop(torrent);
                    if self.ledger.files_of(hash).is_empty() {
                        self.remove_unused(hash);
                    }
                }
            }
        }
        any
    }

    /// When a torrent was last used.
    pub(in crate::store) fn last_use(&self, hash: &InfoHash) -> Option<SystemTime> {
        fs::metadata(self.torrent_dir(hash).join("index")).and_then(|m| m.modified()).ok()
    }

    /// Opens a torrent that nobody uses; `None` if somebody does, or its description is not whole.
    pub(in crate::store) fn open_unused(&self, hash: &InfoHash) -> Option<Arc<TorrentStore>> {
        let mut torrents = lock(&self.torrents);
        if torrents.is_used(hash) {
            return None;
        }
        let info = self.saved_info(hash).and_then(|raw| Info::parse(raw).ok());
        let info = info.filter(|info| info.info_hash == *hash)?;
        let torrent = self.this.upgrade()?.open_torrent(Arc::new(info), false).ok()?;
        torrents.open.insert(*hash, Arc::downgrade(&torrent));
        drop(torrents);
        torrent.sweep();
        Some(torrent)
    }
}
