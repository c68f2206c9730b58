//! Stub of the status, until the engine replaces it.

use serde::{Deserialize, Serialize};

/// How a torrent is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TorrentStatus {
    /// Hexadecimal.
    pub info_hash: String,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub total: u64,
    /// Bytes.
    pub verified: u64,
    /// Selected bytes.
    pub wanted: u64,
    /// Bytes.
    pub wanted_verified: u64,
    /// Pieces.
    pub pieces: u32,
    /// Pieces.
    pub pieces_verified: u32,
    /// Connected.
    pub peers: usize,
    /// Of them complete.
    pub seeders: usize,
    /// Addresses known.
    pub known_peers: usize,
    /// Bytes a second.
    pub download_rate: u64,
    /// Bytes a second.
    pub upload_rate: u64,
    /// Bytes.
    pub downloaded: u64,
    /// Bytes.
    pub uploaded: u64,
    /// Bytes.
    pub wasted: u64,
    /// Reads.
    pub waiting_reads: usize,
    /// Peers.
    pub banned: usize,
    /// One word.
    pub state: String,
    /// What went wrong.
    pub error: Option<String>,
    /// The trackers.
    pub trackers: Vec<TrackerStatus>,
}

/// How a tracker is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// Its address.
    pub url: String,
}
