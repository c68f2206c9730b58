//! Serving others: choking, the upload queue, and what we tell of our pieces.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Output, Torrent};
use crate::proto::choker::{Candidate, SNUB_AFTER};
use crate::proto::geometry::PieceIndex;
use crate::proto::peer::{Disconnect, MAX_SERVED_BLOCK, UPLOAD_QUEUE};
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::wire::allowed_fast::allowed_fast_set;
use crate::proto::wire::{Message, RawBlock};

/// Blocks handed to a connection before the first of them is sent.
const UPLOADS_AHEAD: usize = 8;

/// Pieces a choked peer may ask for all the same (BEP 6).
const ALLOWED_FAST: usize = 10;

impl Torrent {
    /// Peers that compete for upload slots; `torrent` names this one to the choker.
    pub fn candidates(&mut self, torrent: u64, now: Timestamp) -> Vec<Candidate> {
        if !self.options.upload {
            return Vec::new();
        }
        let seeding = self.active.as_ref().is_some_and(|a| a.announced.is_full());
        let interested = self.peers.iter_mut().filter(|(_, p)| p.peer_interested);
        interested
            .map(|(key, p)| Candidate {
                who: (torrent, *key),
                gives: p.down.per_second(now),
                takes: p.up.per_second(now),
                taken: p.up.total(),
                keeps: p.first_copies.are_kept(),
                seeding,
                snubbed: !p.window.is_empty() && now.since(p.last_block) > SNUB_AFTER,
                since: p.since,
            })
            .collect()
    }

    /// The choker's decision: exactly these peers of ours are unchoked.
    pub fn set_unchoked(&mut self, unchoked: &[PeerKey], now: Timestamp) {
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            let choke = !unchoked.contains(&key);
            let Some(peer) = self.peers.get_mut(&key).filter(|p| p.am_choking != choke) else {
                continue;
            };
            peer.am_choking = choke;
            self.send(key, if choke { Message::Choke } else { Message::Unchoke }, now);
            if choke {
                self.drop_uploads(key, now);
            }
        }
    }

    /// Rejects what a choked peer asked for, but for what it may ask while choked.
    fn drop_uploads(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(peer), Some(active)) = (self.peers.get_mut(&key), &self.active) else { return };
        let queue = std::mem::take(&mut peer.uploads);
        let (kept, dropped): (VecDeque<RawBlock>, VecDeque<_>) =
            queue.into_iter().partition(|raw| {
                active.geometry.piece(raw.piece).is_some_and(|p| peer.allowed_to_it.contains(&p))
            });
        peer.uploads = kept;
        for raw in dropped {
            self.reject(key, raw, now);
        }
    }

    fn reject(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) {
        if self.peers.get(&key).is_some_and(|p| p.fast) {
            self.send(key, Message::Reject(raw), now);
        }
    }

    /// A peer asks for a block.
    pub(super) fn requested(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        let piece = active.geometry.contains(raw.piece, raw.begin, raw.length);
        let Some(piece) = piece.filter(|_| raw.length <= MAX_SERVED_BLOCK) else {
            self.disconnect(
                key,
                Disconnect::Protocol("a request for bytes that do not exist"),
                now,
            );
            return;
        };
        let welcome = self.options.upload
            && (!peer.am_choking || peer.allowed_to_it.contains(&piece))
            && active.announced.contains(piece)
            && peer.uploads.len() < UPLOAD_QUEUE;
        if welcome {
            peer.uploads.push_back(raw);
            self.pump_uploads(key, now);
        } else {
            self.reject(key, raw, now);
        }
    }

    /// A peer withdraws a request. What the connection has already been handed is sent.
    pub(super) fn cancelled(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Some(at) = peer.uploads.iter().position(|r| *r == raw) {
            peer.uploads.remove(at);
            self.reject(key, raw, now);
        }
    }

    /// A block was sent (`sent`), or could not be read.
    pub fn uploaded(&mut self, key: PeerKey, raw: RawBlock, sent: bool, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.uploading = peer.uploading.saturating_sub(1);
        peer.last_sent = now;
        if sent {
            peer.up.add(u64::from(raw.length), now);
            self.totals.uploaded += u64::from(raw.length);
            self.totals.up.add(u64::from(raw.length), now);
            self.note_first_copy(key, raw);
        } else {
            self.reject(key, raw, now);
        }
        self.pump_uploads(key, now);
    }

    /// Remembers to whom a piece went that nobody else has: whether it then shows up elsewhere tells
    /// whether that peer passes on what it gets (the idea behind BEP 16). If we have to give it to
    /// another although that peer has it, it did not; if both get it at the same time, it tells
    /// nothing.
    fn note_first_copy(&mut self, key: PeerKey, raw: RawBlock) {
        let Some(active) = &mut self.active else { return };
        let Some(piece) = active.geometry.piece(raw.piece) else { return };
        match active.first_copies.get(&piece) {
            Some(&Some(to)) if to != key => {
                active.first_copies.insert(piece, None);
                if let Some(peer) = self.peers.get_mut(&to).filter(|p| !p.has(piece)) {
                    peer.first_copies.lent = peer.first_copies.lent.saturating_sub(1);
                    peer.first_copies.kept = peer.first_copies.kept.saturating_sub(1);
                }
            }
            None if active.picker.is_only_at_seeds(piece) => {
                active.first_copies.insert(piece, Some(key));
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.first_copies.lent += 1;
                    peer.first_copies.kept += 1;
                }
            }
            _ => {}
        }
    }

    /// A piece has shown up at `key`: whoever was given its first copy has passed it on.
    pub(super) fn note_passed_on(&mut self, key: PeerKey, piece: PieceIndex) {
        let Some(active) = &mut self.active else { return };
        let Some(&Some(to)) = active.first_copies.get(&piece) else { return };
        if to != key {
            active.first_copies.insert(piece, None);
            if let Some(peer) = self.peers.get_mut(&to) {
                peer.first_copies.kept = peer.first_copies.kept.saturating_sub(1);
            }
        }
    }

    pub(super) fn pump_all_uploads(&mut self, now: Timestamp) {
        let waiting = self.peers.iter().filter(|(_, p)| !p.uploads.is_empty());
        let keys: Vec<_> = waiting.map(|(k, _)| *k).collect();
        for key in keys {
            self.pump_uploads(key, now);
        }
    }

    /// Hands queued requests to the connection. One whose piece is only hinted waits until it was
    /// hashed; one whose piece is gone is rejected.
    fn pump_uploads(&mut self, key: PeerKey, now: Timestamp) {
        loop {
            let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
                return;
            };
            if peer.uploading >= UPLOADS_AHEAD {
                return;
            }
            let Some(&raw) = peer.uploads.front() else { return };
            let piece = active.geometry.piece(raw.piece).filter(|p| active.announced.contains(*p));
            match piece {
                Some(piece) if active.readable.contains(piece) => {
                    peer.uploads.pop_front();
                    peer.uploading += 1;
                    self.outputs.push_back(Output::Upload(key, raw));
                }
                Some(piece) => {
                    if active.checking.insert(piece) {
                        self.outputs.push_back(Output::CheckAtRest(piece));
                    }
                    return;
                }
                None => {
                    peer.uploads.pop_front();
                    self.reject(key, raw, now);
                }
            }
        }
    }

    /// Tells a new peer which pieces we have, in the shortest form it understands.
    pub(super) fn open_haves(&mut self, key: PeerKey, now: Timestamp) {
        let Some(peer) = self.peers.get(&key) else { return };
        let announced = self.active.as_ref().map(|a| &a.announced);
        let message = match announced.filter(|bits| self.options.upload && !bits.is_empty()) {
            Some(bits) if bits.is_full() && peer.fast => Message::HaveAll,
            Some(bits) => Message::Bitfield(Bytes::copy_from_slice(bits.as_bytes())),
            None if peer.fast => Message::HaveNone,
            None => return,
        };
        self.send(key, message, now);
    }

    /// Tells a peer that connected before the metadata was known which pieces we have.
    pub(super) fn late_haves(&mut self, key: PeerKey, now: Timestamp) {
        let Some(active) = self.active.as_ref().filter(|_| self.options.upload) else { return };
        let pieces: Vec<_> = active.announced.iter(&active.geometry).collect();
        for piece in pieces {
            self.send(key, Message::Have(piece.get()), now);
        }
    }

    /// Grants the allowed-fast set (BEP 6), so that a newcomer has something to trade. A complete
    /// torrent does not: its uplink is for pieces that nobody else can give.
    pub(super) fn grant_allowed_fast(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        let std::net::IpAddr::V4(ip) = peer.addr.ip() else { return };
        let few = peer.holds.as_ref().is_some_and(|h| !h.is_full());
        if !self.options.upload
            || !peer.fast
            || !few
            || active.announced.is_empty()
            || active.announced.is_full()
        {
            return;
        }
        let count = active.geometry.piece_count();
        let set: Vec<PieceIndex> = allowed_fast_set(&self.info_hash, ip, count, ALLOWED_FAST)
            .into_iter()
            .filter_map(|i| active.geometry.piece(i))
            .filter(|p| active.announced.contains(*p))
            .collect();
        peer.allowed_to_it.extend(&set);
        for piece in set {
            self.send(key, Message::AllowedFast(piece.get()), now);
        }
    }

    /// Takes back a `have`: by BEP 54 where it is spoken; others find out by a reject.
    pub(super) fn retract(&mut self, piece: PieceIndex, now: Timestamp) {
        let speakers: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, p)| p.donthave != 0)
            .map(|(k, p)| (*k, p.donthave))
            .collect();
        for (key, id) in speakers {
            let payload = Bytes::copy_from_slice(&piece.get().to_be_bytes());
            self.send(key, Message::Extended(id, payload), now);
        }
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            self.update_interest(key, now);
        }
    }
}
