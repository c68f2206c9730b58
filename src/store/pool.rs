//! A bounded number of open files and mappings, shared by all torrents of the cache: 100,000 small
//! files would exceed the limits on descriptors and on mappings. Those of somebody else have a pool for each torrent.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};

use lru::LruCache;

use super::lock;
use super::mapping::Mapping;

/// Open files kept, each with at most one mapping. Those in use beyond that stay open for as long
/// as the use lasts.
pub(super) const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Open files of somebody else that are kept for one torrent.
pub(super) const LENT_FILES: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Files shorter than this are read with `pread`: a mapping would not pay.
const MIN_MAPPED: u64 = 1 << 20;

/// A file of a torrent: the torrent's number within the store and the index in `Info::files`.
pub(super) type FileKey = (u64, usize);

/// An open file, and its mapping once there is one.
pub(super) struct OpenFile {
    pub(super) file: File,
    mapping: OnceLock<Option<Mapping>>,
}

impl OpenFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, mapping: OnceLock::new() }
    }

    /// The mapping of a file of `length` bytes, unless it is small or cannot be mapped.
    pub(super) fn mapping(&self, length: u64) -> Option<&Mapping> {
        let map = || match Mapping::new(&self.file, length) {
            Ok(mapping) => Some(mapping),
            Err(error) => {
                tracing::debug!(%error, "cannot map a file of the cache");
                None
            }
        };
        if length < MIN_MAPPED { None } else { self.mapping.get_or_init(map).as_ref() }
    }
}

/// The least recently used are closed first.
pub(super) struct FilePool(Mutex<LruCache<FileKey, Arc<OpenFile>>>);

impl FilePool {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(most)))
    }

    pub(super) fn get(&self, key: FileKey) -> Option<Arc<OpenFile>> {
        lock(&self.0).get(&key).cloned()
    }

    pub(super) fn insert(&self, key: FileKey, file: Arc<OpenFile>) {
        // Closing and unmapping what falls out must not hold up the others.
        let out = lock(&self.0).push(key, file);
        drop(out);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Closes the files that `which` names.
    pub(super) fn close(&self, which: impl Fn(FileKey) -> bool) {
        let mut files = lock(&self.0);
        let keys: Vec<_> = files.iter().map(|(k, _)| *k).filter(|k| which(*k)).collect();
        let out: Vec<_> = keys.iter().filter_map(|k| files.pop(k)).collect();
        drop(files);
        drop(out);
    }
}
