//! Where the socket and the cache are when nobody says otherwise.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What to say when there is no place for socket and cache.
pub const NO_PLACES: &str = "neither HOME nor XDG_CACHE_HOME is set: say --socket and --data-dir";

/// The default places of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The cache: `$XDG_CACHE_HOME/p2pfs`, `~/.cache/p2pfs`, or `/var/cache/p2pfs` for root.
    pub cache: PathBuf,
    /// The folder of sockets, of mode 0700: `/run/p2pfs` for root, `$XDG_RUNTIME_DIR/p2pfs` for
    /// others, or `run` in the cache where that is not set.
    pub sockets: PathBuf,
}

impl Places {
    /// The places of this process's user; `None` when neither `HOME` nor `XDG_CACHE_HOME` says
    /// where an ordinary user's cache could be.
    pub fn of_this_user() -> Option<Self> {
        let variable = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        Self::new(
            nix::unistd::geteuid().is_root(),
            variable("XDG_RUNTIME_DIR"),
            variable("XDG_CACHE_HOME"),
            variable("HOME"),
        )
    }

    /// The places for these absolute values of the environment.
    fn new(
        root: bool,
        runtime: Option<PathBuf>,
        cache_home: Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> Option<Self> {
        if root {
            // The same for a login, a service and fstab, whatever their environment.
            return Some(Self { cache: "/var/cache/p2pfs".into(), sockets: "/run/p2pfs".into() });
        }
        let cache = cache_home.or_else(|| home.map(|home| home.join(".cache")))?.join("p2pfs");
        let sockets = runtime.map_or_else(|| cache.join("run"), |dir| dir.join("p2pfs"));
        Some(Self { cache, sockets })
    }

    /// The socket of the user's daemon.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join("socket")
    }

    /// The socket of a daemon in the foreground, with this process id.
    pub fn foreground_socket(&self, pid: u32) -> PathBuf {
        self.sockets.join(format!("{pid}.socket"))
    }

    /// The sockets that may have a daemon behind them, the user's own first.
    pub fn all_sockets(&self) -> Vec<PathBuf> {
        let mut sockets: Vec<_> = std::fs::read_dir(&self.sockets)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension() == Some(OsStr::new("socket")))
            .collect();
        sockets.sort();
        sockets.insert(0, self.socket());
        sockets
    }
}

/// The file beside `socket` that says `what` (its lock, its log).
pub fn beside(socket: &Path, what: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<PathBuf> {
        Some(text.into())
    }

    #[test]
    fn an_ordinary_user_has_places_under_xdg() {
        let places = Places::new(false, path("/run/user/7"), None, path("/home/u")).unwrap();
        assert_eq!(places.socket(), Path::new("/run/user/7/p2pfs/socket"));
        assert_eq!(places.cache, Path::new("/home/u/.cache/p2pfs"));
    }

    #[test]
    fn without_a_runtime_folder_the_socket_is_in_the_cache() {
        let places = Places::new(false, None, path("/c"), path("/home/u")).unwrap();
        assert_eq!(places.socket(), Path::new("/c/p2pfs/run/socket"));
        assert_eq!(places.cache, Path::new("/c/p2pfs"));
    }

    #[test]
    fn root_has_the_systems_places() {
        let places = Places::new(true, path("/run/user/0"), path("/c"), path("/root")).unwrap();
        assert_eq!(places.socket(), Path::new("/run/p2pfs/socket"));
        assert_eq!(places.cache, Path::new("/var/cache/p2pfs"));
    }

    #[test]
    fn a_user_without_a_home_has_no_places() {
        assert_eq!(Places::new(false, path("/run/user/7"), None, None), None);
    }
}
