//! What `p2pfs status` tells of a torrent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tracker::TrackerStatus;
use crate::proto::seeding::ShareRatio;

/// What is said when no peer is known and there is nobody who could name one.
pub const NOBODY_TO_ASK: &str = "nobody to ask for peers: PEX needs a first peer; give a tracker, \
                                 --peer or a magnet's x.pe";

/// A torrent's state. Bytes, and bytes a second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TorrentStatus {
    /// Info hash in hexadecimal.
    pub info_hash: String,
    /// The suggested name.
    pub name: String,
    /// All bytes.
    pub total: u64,
    /// Verified bytes. Those of an earlier life of the daemon count: they are hashed again before
    /// they are used.
    pub verified: u64,
    /// Bytes of the selected files.
    pub wanted: u64,
    /// Verified bytes of the selected files.
    pub wanted_verified: u64,
    /// All pieces.
    pub pieces: u32,
    /// Verified pieces.
    pub pieces_verified: u32,
    /// Connected peers.
    pub peers: usize,
    /// Connected peers that have everything.
    pub seeders: usize,
    /// Connected peers by who told us of them: `named` (by a person, or a magnet's `x.pe`),
    /// `tracker`, `pex` (another peer), `incoming` (they came themselves).
    pub peers_from: BTreeMap<String, usize>,
    /// Known addresses.
    pub known_peers: usize,
    /// Payload received a second.
    pub download_rate: u64,
    /// Payload sent a second.
    pub upload_rate: u64,
    /// Payload received.
    pub downloaded: u64,
    /// Payload sent.
    pub uploaded: u64,
    /// `uploaded` ÷ `verified`.
    pub share_ratio: ShareRatio,
    /// Payload received and thrown away.
    pub wasted: u64,
    /// Reads that wait.
    pub waiting_reads: usize,
    /// Peers banned for sending bad data.
    pub banned: usize,
    /// "checking", "downloading", "idle" (on demand, nothing wanted), "complete" or "error".
    pub state: String,
    /// Why nobody was found whom to fetch it from, in one line.
    pub nobody: Option<String>,
    /// What is wrong, in one line.
    pub error: Option<String>,
    /// The trackers.
    pub trackers: Vec<TrackerStatus>,
}
