//! What goes on in one torrent, for who looks at it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{ShareStatus, WirePath};

/// The most cells that a map of pieces may have.
pub const MAX_CELLS: u32 = 10_000;

/// One mount or seed in detail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorrentView {
    /// What the status says of it.
    pub share: ShareStatus,
    /// The pieces in order, as many as a cell holds.
    pub map: Vec<Cell>,
    /// The connected peers.
    pub peers: Vec<PeerStatus>,
    /// Reads that wait, the oldest first, twenty at most.
    pub reads: Vec<WaitStatus>,
}

/// What there is to say of some pieces that follow each other; what comes first is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cell {
    /// A reader waits for one that is not here.
    Wanted,
    /// One is coming.
    Coming,
    /// All are here.
    Here,
    /// Some are here.
    Partly,
    /// None is here.
    Missing,
}

/// A connected peer. Bytes a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its address.
    pub addr: SocketAddr,
    /// Its program, as it says.
    pub client: Option<String>,
    /// How much it has, in per cent.
    pub percent: u64,
    /// Payload from it.
    pub down: u64,
    /// Payload to it.
    pub up: u64,
}

/// A read that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitStatus {
    /// The file, in the torrent.
    pub file: WirePath,
    /// From where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// For how long, in seconds.
    pub seconds: u64,
}
