//! What can be told about a torrent.

use std::collections::BTreeMap;

use super::Torrent;
use crate::proto::rate::Rate;
use crate::proto::swarm::PeerSource;
use crate::proto::time::Timestamp;

/// Counters of a torrent's life in this daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub downloaded: u64,
    pub uploaded: u64,
    pub wasted: u64,
    pub failed_pieces: u64,
    pub down: Rate,
    pub up: Rate,
}

/// A torrent's state at one moment. Bytes, and bytes a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Pieces verified in this life of the daemon.
    pub pieces_readable: u32,
    /// Pieces at rest, verified or hinted.
    pub pieces_announced: u32,
    /// Wanted pieces that are not yet verified and at rest.
    pub pieces_unfinished: u32,
    /// Connected peers.
    pub peers: usize,
    /// Connected peers that have everything.
    pub seeders: usize,
    /// By whom we know of the connected peers ([`PeerSource::name`]), and how many.
    pub peers_from: BTreeMap<&'static str, usize>,
    /// Connections that it could make use of.
    pub wanted_connections: usize,
    /// Known addresses.
    pub known_peers: usize,
    /// Banned peers.
    pub banned: usize,
    /// Payload received.
    pub downloaded: u64,
    /// Payload sent.
    pub uploaded: u64,
    /// Payload received and thrown away: duplicates, failed pieces, unasked blocks.
    pub wasted: u64,
    /// Pieces that failed their hash.
    pub failed_pieces: u64,
    /// Payload received a second.
    pub download_rate: u64,
    /// Payload sent a second.
    pub upload_rate: u64,
    /// Hinted pieces that are being hashed.
    pub checking: usize,
    /// Reads that wait.
    pub waiting_reads: usize,
    /// Bytes of the info dictionary here, and in all, while it is fetched.
    pub metadata: (u32, u32),
    /// The background download rests because the disk refused a write.
    pub disk_paused: bool,
    /// The background download rests because the cache has no room for it.
    pub cache_full: bool,
}

impl Torrent {
    /// Bytes that are not at rest, as announces want it; `None` until the metadata is known.
    pub fn bytes_left(&self) -> Option<u64> {
        let active = self.active.as_ref()?;
        let missing = active.geometry.pieces().filter(|p| !active.announced.contains(*p));
        Some(missing.map(|p| u64::from(active.geometry.piece_len(p))).sum())
    }

    /// How many connected peers have each piece, up to 255.
    pub fn copies(&self) -> Vec<u8> {
        let count = |active: &super::Active| {
            let copies = active.geometry.pieces().map(|p| active.picker.availability(p));
            copies.map(|copies| u8::try_from(copies).unwrap_or(u8::MAX)).collect()
        };
        self.active.as_ref().map(count).unwrap_or_default()
    }

    /// Who told us of the peers that are connected. Whoever came to us is counted as that.
    fn peers_from(&self) -> BTreeMap<&'static str, usize> {
        let mut from = BTreeMap::new();
        for peer in self.peers.values() {
            let told = self.list.source(peer.known_addr()).filter(|_| peer.outgoing);
            *from.entry(told.unwrap_or(PeerSource::Incoming).name()).or_default() += 1;
        }
        from
    }

    /// The state at `now`.
    pub fn stats(&mut self, now: Timestamp) -> Stats {
        let active = self.active.as_ref();
        Stats {
            pieces_readable: active.map_or(0, |a| a.readable.count()),
            pieces_announced: active.map_or(0, |a| a.announced.count()),
            pieces_unfinished: active.map_or(0, |a| a.unfinished.count()),
            peers: self.peers.len(),
            seeders: self.peers.values().filter(|p| p.is_seed()).count(),
            peers_from: self.peers_from(),
            wanted_connections: self.wanted_connections(),
            known_peers: self.list.len(),
            banned: self.list.banned(),
            downloaded: self.totals.downloaded,
            uploaded: self.totals.uploaded,
            wasted: self.totals.wasted,
            failed_pieces: self.totals.failed_pieces,
            download_rate: self.totals.down.per_second(now) as u64,
            upload_rate: self.totals.up.per_second(now) as u64,
            checking: active.map_or(0, |a| a.checking.len()),
            waiting_reads: active.map_or(0, |a| a.demand.waiting()),
            metadata: self.fetch.as_ref().map_or((0, 0), |f| f.progress()),
            disk_paused: active.is_some_and(|a| !a.unwritten.is_empty()),
            cache_full: active.is_some_and(|a| a.picker.has_unbegun() && !a.fits(self.room)),
        }
    }
}
