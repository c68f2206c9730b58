//! What goes on in a torrent, in more detail than [`super::Stats`], for who looks at it.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use super::Torrent;
use crate::proto::geometry::PieceIndex;
use crate::proto::swarm::Holds;
use crate::proto::time::Timestamp;

/// Reads told of at most.
const MAX_READS: usize = 20;

/// What goes on at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The connected peers.
    pub peers: Vec<PeerView>,
    /// The reads that wait, the oldest first; twenty at most.
    pub reads: Vec<ReadView>,
    /// Pieces of which blocks are here or asked for.
    pub coming: Vec<PieceIndex>,
}

/// A connected peer. Bytes a second.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerView {
    /// Its address.
    pub addr: SocketAddr,
    /// Its program, as it says.
    pub client: Option<String>,
    /// Payload from it.
    pub down: u64,
    /// Payload to it.
    pub up: u64,
    /// Pieces it has.
    pub pieces: u32,
}

/// A read that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadView {
    /// For what, in bytes of the torrent.
    pub range: Range<u64>,
    /// For how long.
    pub waited: Duration,
}

impl Torrent {
    /// What goes on at `now`.
    pub fn view(&mut self, now: Timestamp) -> View {
        let count = self.active.as_ref().map_or(0, |active| active.geometry.piece_count());
        let peers = self.peers.values_mut().map(|peer| PeerView {
            addr: peer.addr,
            client: peer.client.clone(),
            down: peer.down.per_second(now) as u64,
            up: peer.up.per_second(now) as u64,
            pieces: match &peer.holds {
                None => 0,
                Some(Holds::All) => count,
                Some(Holds::Some(bits)) => bits.count(),
            },
        });
        let peers = peers.collect();
        let active = self.active.as_ref();
        let waits = active.into_iter().flat_map(|active| active.demand.waits(now));
        let mut reads: Vec<_> = waits.map(|(range, waited)| ReadView { range, waited }).collect();
        reads.sort_by_key(|read| std::cmp::Reverse(read.waited));
        reads.truncate(MAX_READS);
        let coming = active.map(|active| active.picker.partial_pieces().collect());
        View { peers, reads, coming: coming.unwrap_or_default() }
    }
}
