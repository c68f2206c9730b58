//! Open files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::engine::ReadHandle;
use crate::proto::demand::window::ReadWindow;

/// The next handle. Counted for the whole process, because several mounts may show one torrent.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One open file.
#[derive(Debug)]
pub struct Handle {
    /// Its name towards the engine; the number is also the kernel's.
    pub id: ReadHandle,
    /// The file's index in the info dictionary.
    pub file: usize,
    /// The file's length in bytes.
    pub size: u64,
    /// What its reads so far say about the next ones.
    pub window: Mutex<ReadWindow>,
    /// How often its demand has been withdrawn.
    pub flushes: AtomicU32,
}

/// The open files of one mount.
#[derive(Debug, Default)]
pub struct Handles {
    open: Mutex<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Opens a file of `size` bytes, of which up to `budget` bytes may be read ahead.
    pub fn open(&self, file: usize, size: u64, budget: u64) -> Arc<Handle> {
        let id = ReadHandle(NEXT.fetch_add(1, Ordering::Relaxed));
        let window = Mutex::new(ReadWindow::new(size, budget));
        let handle = Arc::new(Handle { id, file, size, window, flushes: AtomicU32::new(0) });
        lock(&self.open).insert(id.0, Arc::clone(&handle));
        handle
    }

    /// The open file with this number.
    pub fn get(&self, id: u64) -> Option<Arc<Handle>> {
        lock(&self.open).get(&id).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes it.
    pub fn close(&self, id: u64) -> Option<Arc<Handle>> {
        lock(&self.open).remove(&id)
    }

    /// Closes all of them.
    pub fn close_all(&self) -> Vec<Arc<Handle>> {
        lock(&self.open).drain().map(|(_, handle)| handle).collect()
    }
}
