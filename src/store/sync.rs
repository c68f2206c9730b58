//! What was written goes to the disk soon: when the power fails, the system has forgotten what it had
//! not written out by itself, which can be half a minute's.
//!
//! What is lost then is only work: the index is a hint, and what it lists is hashed before it is used.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::{Store, lock};

/// How often what was written meanwhile is synced. With the time that this takes, the promise is that no
/// more than five seconds of work are lost.
const EVERY: Duration = Duration::from_secs(3);

/// With more files than this, all of the file system is synced at once.
const MAX_FILES: usize = 64;

#[derive(Default)]
struct State {
    written: HashSet<PathBuf>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    store: OnceLock<Weak<Store>>,
    state: Mutex<State>,
    end: Condvar,
}

/// The files that were written and not synced, and the thread that does it. It ends with this.
pub(super) struct Syncer {
    shared: Arc<Shared>,
}

impl Syncer {
    pub(super) fn start(dir: &Path) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (of_thread, dir) = (shared.clone(), dir.to_owned());
        let thread = thread::Builder::new().name("store-sync".into());
        thread.spawn(move || work(&dir, &of_thread))?;
        Ok(Self { shared })
    }

    /// From now on the store notes things, too, as often as it syncs.
    pub(super) fn tick(&self, store: Weak<Store>) {
        let _ = self.shared.store.set(store);
    }

    /// Something was written to these files.
    pub(super) fn written(&self, paths: impl Iterator<Item = PathBuf>) {
        lock(&self.shared.state).written.extend(paths);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.end.notify_all();
    }
}

fn work(dir: &Path, shared: &Shared) {
    let mut state = lock(&shared.state);
    loop {
        let waited = shared.end.wait_timeout_while(state, EVERY, |state| !state.ended);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.ended {
            return;
        }
        let written = std::mem::take(&mut state.written);
        drop(state);
        sync(dir, written);
        if let Some(store) = shared.store.get().and_then(Weak::upgrade) {
            store.note_orders();
        }
        state = lock(&shared.state);
    }
}

/// The data first, then the indexes that list it.
fn sync(dir: &Path, written: HashSet<PathBuf>) {
    if written.len() > MAX_FILES {
        let synced = File::open(dir).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
        if let Err(error) = synced {
            tracing::debug!(%error, "cannot sync the cache");
        }
        return;
    }
    let (indexes, data): (Vec<_>, Vec<_>) =
        written.into_iter().partition(|path| path.ends_with("index"));
    for path in data.into_iter().chain(indexes) {
        match File::open(&path).and_then(|file| file.sync_data()) {
            // It was let go meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "cannot sync a file of the cache");
            }
            Ok(()) => {}
        }
    }
}
