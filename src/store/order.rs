//! When each piece of a torrent was last read, kept in the torrent's directory, so that a restart does not
//! forget what is read often. Only a hint: whatever does not look right is taken as nothing.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use super::Store;
use super::files::open_own;
use super::torrent::TorrentStore;

/// Magic and version.
const MAGIC: [u8; 8] = *b"p2pfsou1";

/// How often it is written while pieces are read, in seconds.
const EVERY: u32 = 60;

/// Seconds since 1970, a number for each piece.
pub(super) fn read(dir: &Path, pieces: usize, now: u32) -> Vec<u32> {
    let nothing = || vec![0; pieces];
    let Ok(file) = fs::read(dir.join("order")) else { return nothing() };
    let Some(numbers) = file.strip_prefix(&MAGIC) else { return nothing() };
    if numbers.len() != 4 * pieces {
        return nothing();
    }
    // The clock may have been wrong.
    numbers.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n).min(now)).collect()
}

impl TorrentStore {
    /// Notes when the pieces were last read, if some were since it was last noted.
    pub(super) fn note_order(&self) {
        let Some(files) = self.files.dir().filter(|_| self.store.ledger.is_limited()) else {
            return;
        };
        let Some(used) = self.states.order(self.noted.load(Ordering::Relaxed)) else { return };
        self.noted.store(self.store.moment(), Ordering::Relaxed);
        let (path, new) = (files.with_file_name("order"), files.with_file_name("order.new"));
        let write = || -> io::Result<()> {
            let bytes: Vec<_> = used.iter().flat_map(|used| used.to_le_bytes()).collect();
            let Some(_room) = self.store.ledger.try_reserve(bytes.len() as u64 + (64 << 10)) else {
                return Err(io::ErrorKind::StorageFull.into());
            };
            let mut file = open_own(&new)?;
            file.set_len(0)?;
            file.write_all(&MAGIC)?;
            file.write_all(&bytes)?;
            fs::rename(&new, &path)?;
            self.store.ledger.measure_rest(self.info.info_hash);
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, "cannot note when pieces were read");
        }
    }
}

impl Store {
    /// Notes for all torrents when their pieces were last read, now and then.
    pub(super) fn note_orders(&self) {
        let open: Vec<_> =
            super::lock(&self.torrents).open.values().filter_map(|t| t.upgrade()).collect();
        for torrent in open {
            if self.moment().saturating_sub(torrent.noted.load(Ordering::Relaxed)) >= EVERY {
                torrent.note_order();
            }
        }
    }
}
