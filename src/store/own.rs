//! One process at a time has a cache: a daemon, or a command that looks after it while there is none, and
//! gives it up as soon as a daemon wants it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::{Store, StoreError};

/// How long a daemon waits for a command to give up the cache. It does so between two pieces.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it tries.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// What a command that gives up the cache writes into the lock file, before its number.
const FOR_NOW: &str = "command";

/// The right to a cache, until it is dropped.
pub(super) type Lock = Flock<File>;

/// A file that says that a daemon waits for the cache.
struct Wanted(PathBuf);

impl Wanted {
    fn path(dir: &Path) -> PathBuf {
        dir.join("wanted")
    }

    fn say(dir: &Path) -> Self {
        let path = Self::path(dir);
        // Without it the daemon waits in vain, and says who has the cache.
        let _ = File::create(&path);
        Self(path)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Store {
    /// Whether a daemon waits for the cache.
    pub fn is_wanted(&self) -> bool {
        Wanted::path(&self.dir).symlink_metadata().is_ok()
    }
}

/// Takes the lock of a cache; `for_now`: until a daemon wants it.
pub(super) fn take(dir: &Path, for_now: bool) -> Result<Lock, StoreError> {
    let path = dir.join("lock");
    let cache = |source| StoreError::Cache { path: path.clone(), source };
    let (began, mut wanted) = (Instant::now(), None);
    loop {
        let file = open_lock(&path).map_err(cache)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let written = lock.set_len(0).and_then(|()| {
                    let who = if for_now { FOR_NOW } else { "process" };
                    let mut file: &File = &lock;
                    writeln!(file, "{who} {}", std::process::id())
                });
                // On a full disk the line is missing, and the lock holds all the same.
                let _ = written;
                return Ok(lock);
            }
            Err((file, nix::Error::EWOULDBLOCK)) => {
                let owner = owner(&file);
                if for_now || !owner.starts_with(FOR_NOW) || began.elapsed() > PATIENCE {
                    return Err(StoreError::InUse { dir: dir.to_owned(), owner });
                }
                wanted.get_or_insert_with(|| Wanted::say(dir));
                std::thread::sleep(TRY_EVERY);
            }
            Err((_, errno)) => return Err(cache(errno.into())),
        }
    }
}

/// Opens the lock file. What is there is never replaced: somebody may hold it.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let m = file.metadata()?;
    if m.is_file() && m.nlink() == 1 {
        return Ok(file);
    }
    Err(io::Error::other("something else is in the place of the cache's lock file"))
}

/// What whoever holds the lock wrote into the file.
fn owner(file: &File) -> String {
    let mut line = String::new();
    let _ = file.take(64).read_to_string(&mut line);
    let line = line.trim();
    if line.is_empty() { "process unknown".to_owned() } else { line.to_owned() }
}
