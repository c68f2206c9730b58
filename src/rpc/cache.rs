//! Looking after a cache: the same for a daemon, which has one open, and for a command that opens one
//! that no daemon has.

use std::ops::ControlFlow;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Outcome, Progress, Response, RpcError, visible};
use crate::proto::ids::InfoHash;
use crate::store::Store;

/// What to do with a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheRequest {
    /// List what is in it. Sends [`Response::Cached`] for each torrent.
    List,
    /// Free what nobody uses and nobody has pinned.
    Free,
    /// Pin all files of a torrent, or unpin them.
    Pin {
        /// Its info hash.
        info_hash: String,
        /// Whether to pin.
        pin: bool,
    },
    /// Hash everything that is in it. Sends [`Progress`], and [`Response::CacheChecked`] for each torrent.
    Verify {
        /// Have what is bad fetched again.
        repair: bool,
    },
}

/// A torrent of a cache. Bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedTorrent {
    /// Info hash in hexadecimal, which is also the name of its folder in the cache.
    pub info_hash: String,
    /// Its name; absent if its description is not whole.
    pub name: Option<String>,
    /// All bytes.
    pub total: u64,
    /// Bytes that are here.
    pub here: u64,
    /// Bytes that it takes on disk.
    pub on_disk: u64,
    /// Files that are pinned.
    pub pinned_files: usize,
    /// Whether it is mounted.
    pub in_use: bool,
    /// When it was last used, in seconds since 1970.
    pub last_used: Option<u64>,
}

/// What a check of one torrent found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedTorrent {
    /// Info hash in hexadecimal.
    pub info_hash: String,
    /// Its name.
    pub name: String,
    /// Pieces that were checked.
    pub pieces: u32,
    /// Those that are bad.
    pub bad: Vec<u32>,
    /// Pieces that cannot be checked before a peer gives their hashes.
    pub unknown: u32,
}

/// Does it, telling `say` what is found, which may end it. May take as long as reading all of the cache.
/// `None` if it was ended.
pub fn care(
    store: &Store,
    request: &CacheRequest,
    mut say: impl FnMut(Response) -> ControlFlow<()>,
) -> Result<Option<Outcome>, RpcError> {
    match request {
        CacheRequest::List => {
            for cached in store.cached() {
                let name = |info: &crate::proto::metainfo::Info| {
                    visible(&String::from_utf8_lossy(&info.name))
                };
                let used = cached.used.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
                let told = say(Response::Cached(Box::new(CachedTorrent {
                    info_hash: cached.info_hash.to_string(),
                    name: cached.info.as_deref().map(name),
                    total: cached.info.map_or(0, |info| info.geometry.payload()),
                    here: cached.here,
                    on_disk: cached.on_disk,
                    pinned_files: cached.pinned,
                    in_use: cached.in_use,
                    last_used: used.map(|used| used.as_secs()),
                })));
                if told.is_break() {
                    return Ok(None);
                }
            }
            Ok(Some(Outcome::default()))
        }
        CacheRequest::Free => {
            let (files, bytes) = store.free_unused();
            Ok(Some(Outcome { files, bytes, ..Outcome::default() }))
        }
        CacheRequest::Pin { info_hash, pin } => {
            let not_here = || RpcError::failed(format_args!("{info_hash}: not in the cache"));
            let hash: InfoHash = info_hash.parse().map_err(|_| not_here())?;
            let pinned = store.set_pinned(&hash, *pin).map_err(RpcError::failed)?;
            let files = pinned.ok_or_else(not_here)? as u64;
            Ok(Some(Outcome { files, ..Outcome::default() }))
        }
        CacheRequest::Verify { repair } => Ok(verify(store, *repair, say)),
    }
}

fn verify(
    store: &Store,
    repair: bool,
    mut say: impl FnMut(Response) -> ControlFlow<()>,
) -> Option<Outcome> {
    let mut bad_bytes = 0;
    for cached in store.cached() {
        let mut ended = false;
        let progress = |done, of| {
            let told = say(Response::Progress(Progress::Checking { done, of }));
            ended |= told.is_break();
            told
        };
        let checked = store.check(&cached.info_hash, repair, progress);
        if ended {
            return None;
        }
        let Some(checked) = checked else { continue };
        let geometry = &checked.info.geometry;
        bad_bytes += checked.bad.iter().map(|p| u64::from(geometry.piece_len(*p))).sum::<u64>();
        let told = say(Response::CacheChecked(Box::new(CheckedTorrent {
            info_hash: cached.info_hash.to_string(),
            name: visible(&String::from_utf8_lossy(&checked.info.name)),
            pieces: checked.checked,
            bad: checked.bad.iter().map(|piece| piece.get()).collect(),
            unknown: checked.unknown,
        })));
        if told.is_break() {
            return None;
        }
    }
    Some(Outcome { bytes: bad_bytes, ..Outcome::default() })
}
