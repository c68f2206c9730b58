//! What `p2pfs status` tells of a torrent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rates::RateLimits;
use super::tracker::TrackerStatus;
use crate::proto::seeding::ShareRatio;

/// Who could name peers of a torrent, beside other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Informants {
    /// There are trackers.
    pub trackers: bool,
    /// How many nodes the DHT knows; `None` where it is not asked.
    pub dht: Option<usize>,
}

impl Informants {
    /// When there is nobody: what to say.
    pub fn nobody(self) -> Option<&'static str> {
        match (self.trackers, self.dht) {
            (false, None) => Some(
                "nobody to ask for peers: PEX needs a first peer; give a tracker, --peer or a \
                 magnet's x.pe",
            ),
            (false, Some(0)) => Some(
                "nobody to ask for peers: the DHT knows no node (--dht-bootstrap names one) and \
                 PEX needs a first peer; give a tracker, --peer or a magnet's x.pe",
            ),
            _ => None,
        }
    }

    /// Why no peer is known.
    pub fn why_no_peer(self) -> &'static str {
        let asked = match (self.trackers, self.dht) {
            (true, None) => "no tracker has named a peer so far, and PEX needs a first one",
            (true, Some(_)) => {
                "neither a tracker nor the DHT has named a peer so far, and PEX needs a first one"
            }
            (false, _) => "the DHT has named no peer so far, and PEX needs a first one",
        };
        self.nobody().unwrap_or(asked)
    }
}

/// A torrent's state. Bytes, and bytes a second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TorrentStatus {
    /// Info hash in hexadecimal: the v1 hash, or without a v1 half the beginning of the v2 hash.
    pub info_hash: String,
    /// The v2 info hash in hexadecimal, where there is a v2 half (BEP 52).
    #[serde(default)]
    pub info_hash_v2: Option<String>,
    /// The suggested name.
    pub name: String,
    /// All bytes.
    pub total: u64,
    /// Verified bytes. Those of an earlier life of the daemon count: they are hashed again before
    /// they are used.
    pub verified: u64,
    /// How many of these are not in the cache but in files of somebody else (`--use-data`).
    #[serde(default)]
    pub lent: u64,
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
    /// `tracker`, `dht`, `pex` (another peer), `lsd` (the local network), `incoming` (they came
    /// themselves).
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
    /// How much this torrent may send and receive a second.
    #[serde(default)]
    pub limits: RateLimits,
    /// Payload received and thrown away.
    pub wasted: u64,
    /// Reads that wait.
    pub waiting_reads: usize,
    /// Peers banned for sending bad data.
    pub banned: usize,
    /// "metadata" (not known yet), "checking", "downloading", "idle" (only what is read is fetched, and
    /// nobody reads), "cache full" (only what is read is fetched), "complete" or "error".
    pub state: String,
    /// Why nobody was found whom to fetch it from, in one line.
    pub nobody: Option<String>,
    /// Why not all of it is fetched, in one line.
    #[serde(default)]
    pub limited: Option<String>,
    /// What is wrong, in one line.
    pub error: Option<String>,
    /// The trackers.
    pub trackers: Vec<TrackerStatus>,
}

impl TorrentStatus {
    /// What is here of what is to be here: of the selected files, or of all where nothing is fetched
    /// unless it is read.
    pub fn here_of(&self) -> (u64, u64) {
        match self.wanted {
            0 => (self.verified, self.total),
            wanted => (self.wanted_verified, wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nobody_to_ask_without_trackers_and_nodes() {
        let nobody = |trackers, dht| Informants { trackers, dht }.nobody().is_some();
        assert!(nobody(false, None) && nobody(false, Some(0)));
        assert!(!nobody(true, None) && !nobody(true, Some(0)) && !nobody(false, Some(1)));
    }

    #[test]
    fn what_is_said_names_who_was_asked() {
        let why = |trackers, dht| Informants { trackers, dht }.why_no_peer();
        assert!(why(true, None).starts_with("no tracker has"));
        assert!(why(true, Some(0)).starts_with("neither a tracker nor the DHT"));
        assert!(why(false, Some(1)).starts_with("the DHT has named no peer"));
        assert!(why(false, Some(0)).contains("--dht-bootstrap"));
    }
}
