//! The daemon's socket: exactly one daemon behind a path, however many want to be it.
//!
//! Two locks keep the order. `SOCKET.lock` is held by the daemon for its life: whoever holds it may
//! remove a stale socket. `SOCKET.start` is held by a client while it looks for a daemon and starts
//! one, so that two clients at once end up with the same daemon.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};

use super::place::beside;

/// How long a new daemon waits for one that is leaving; longer than that one's shutdown takes.
const LEAVING_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another one does.
    #[error("a daemon is already running at {0}: use it, or name another with --socket")]
    Running(String),
    /// The folder is writable for others, who could put their own socket there.
    #[error(
        "{0} belongs to another user or can be written by others: name a socket elsewhere with --socket"
    )]
    Unsafe(String),
    /// Something else is there, perhaps a file of the user's.
    #[error("{0}: is there already and not a socket: name another path with --socket")]
    Occupied(String),
    /// The system refuses.
    #[error("cannot listen at {socket}: {cause}")]
    Io {
        /// Path of the socket.
        socket: String,
        /// What the system says.
        cause: io::Error,
    },
}

/// A bound socket, removed on drop.
pub struct Listener {
    listener: UnixListener,
    socket: PathBuf,
}

impl Listener {
    /// Takes the place of the daemon behind `socket`; its folder is created (mode 0700). The lock
    /// is to be held until all that another daemon would need (port, cache) is free again.
    pub async fn bind(socket: &Path) -> Result<(Self, Flock<File>), ListenError> {
        let failed = |cause| ListenError::Io { socket: socket.display().to_string(), cause };
        prepare_folder(socket).map_err(failed)?;
        if let Some(folder) = socket.parent()
            && !is_ours_alone(folder).map_err(failed)?
        {
            return Err(ListenError::Unsafe(folder.display().to_string()));
        }
        let lock = take_lock(socket).await?;
        remove_stale(socket)?;
        let listener = UnixListener::bind(socket).map_err(failed)?;
        std::fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok((Self { listener, socket: socket.into() }, lock))
    }

    /// The next connection of this user or of root. Others are turned away.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == geteuid().as_raw() || uid == 0 {
                return Ok(stream);
            }
            tracing::warn!(uid, "a connection of another user was refused");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The client's right to start the daemon behind `socket`, until it is dropped. Blocks while
/// another client has it.
pub fn start_lock(socket: &Path) -> io::Result<Flock<File>> {
    prepare_folder(socket)?;
    let file = lock_file(&beside(socket, "start"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Takes the daemon's lock, waiting for a daemon that is on its way out or not yet in.
async fn take_lock(socket: &Path) -> Result<Flock<File>, ListenError> {
    let failed = |cause| ListenError::Io { socket: socket.display().to_string(), cause };
    let mut file = lock_file(&beside(socket, "lock")).map_err(failed)?;
    let mut waited = Duration::ZERO;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        if waited >= LEAVING_WITHIN || UnixStream::connect(socket).await.is_ok() {
            return Err(ListenError::Running(socket.display().to_string()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        waited += LOOK_EVERY;
    }
}

/// Removes a socket that a dead daemon left. To be called with the daemon's lock: nobody listens.
fn remove_stale(socket: &Path) -> Result<(), ListenError> {
    let shown = || socket.display().to_string();
    let removed = match std::fs::symlink_metadata(socket) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(socket),
        Ok(_) => return Err(ListenError::Occupied(shown())),
        Err(error) => Err(error),
    };
    match removed {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(ListenError::Io { socket: shown(), cause })
        }
        _ => Ok(()),
    }
}

/// Creates the folder of `socket` for this user alone, if it is missing.
fn prepare_folder(socket: &Path) -> io::Result<()> {
    let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Whether only this user and root can put files in `folder`, or replace them there (as a sticky
/// folder like /tmp ensures).
fn is_ours_alone(folder: &Path) -> io::Result<bool> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let meta = std::fs::metadata(folder)?;
    let trusted = meta.uid() == geteuid().as_raw() || meta.uid() == 0;
    Ok(trusted && (meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0))
}

/// Opens a lock file, which is never removed: a removed one would let two hold "the" lock.
fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let socket = dir.path().join("s");
            let _first = Listener::bind(&socket).await.unwrap();
            assert!(matches!(Listener::bind(&socket).await, Err(ListenError::Running(_))));
        });
    }

    #[test]
    fn a_stale_socket_is_replaced_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("new/s");
        std::fs::create_dir(dir.path().join("new")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        run(async {
            let listener = Listener::bind(&socket).await.unwrap();
            let mode = std::fs::metadata(&socket).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600);
            drop(listener);
        });
        assert!(!socket.exists());
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("film.mkv");
        std::fs::write(&socket, "dear to the user").unwrap();
        let bound = run(Listener::bind(&socket));
        assert!(matches!(bound, Err(ListenError::Occupied(_))));
        assert_eq!(std::fs::read(&socket).unwrap(), b"dear to the user");
    }

    #[test]
    fn the_folder_of_the_socket_is_private() {
        let dir = tempfile::tempdir().unwrap();
        run(async { drop(Listener::bind(&dir.path().join("a/b/s")).await.unwrap()) });
        let mode = std::fs::metadata(dir.path().join("a/b")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let bound = run(Listener::bind(&dir.path().join("s")));
        assert!(matches!(bound, Err(ListenError::Unsafe(_))));
    }
}
