//! Stub of the session, until the engine replaces it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Source, Torrent};

/// What a session is started with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The cache.
    pub cache_dir: PathBuf,
    /// Addresses to listen on; all when empty.
    pub listen: Vec<IpAddr>,
    /// The port; one is chosen when absent.
    pub port: Option<u16>,
    /// Bytes a second.
    pub upload_limit: Option<u64>,
    /// Bytes a second.
    pub download_limit: Option<u64>,
}

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
#[error("the session cannot start")]
pub struct SessionError;

/// Why a torrent cannot be added.
#[derive(Debug, thiserror::Error)]
#[error("there is no engine yet")]
pub struct AddError;

/// All torrents of a daemon.
#[derive(Clone)]
pub struct Session {
    port: u16,
}

/// A torrent to add.
pub struct AddTorrent {
    /// Which.
    pub source: Source,
    /// Peers to start with.
    pub peers: Vec<SocketAddr>,
    /// More trackers.
    pub trackers: Vec<String>,
    /// Fetch only what is read.
    pub on_demand: bool,
    /// Serve others.
    pub upload: bool,
    /// Globs; all when empty.
    pub select: Vec<String>,
    /// Where the bytes are.
    pub data: DataPlace,
    /// How long the metadata may take.
    pub metadata_timeout: Duration,
    /// Told how far it is.
    pub progress: tokio::sync::watch::Sender<AddProgress>,
}

/// Where a torrent's bytes are.
pub enum DataPlace {
    /// In the cache.
    Cache,
    /// Here, read-only.
    InPlace(PathBuf),
}

/// How far an add is.
#[derive(Clone, Default, Debug)]
pub struct AddProgress {
    /// Peers connected.
    pub peers: usize,
    /// Bytes here.
    pub metadata_bytes: u32,
    /// Bytes in all.
    pub metadata_size: u32,
    /// Pieces checked.
    pub checked_pieces: u32,
    /// Pieces in all.
    pub pieces: u32,
}

impl Session {
    /// Starts it.
    pub async fn start(config: SessionConfig) -> Result<Session, SessionError> {
        Ok(Session { port: config.port.unwrap_or(6881) })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Adds a torrent.
    pub async fn add(&self, _add: AddTorrent) -> Result<Torrent, AddError> {
        Err(AddError)
    }

    /// Removes it.
    pub async fn remove(&self, _torrent: &Torrent) {}

    /// Stops all.
    pub async fn shutdown(&self) {}
}
