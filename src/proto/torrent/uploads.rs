//! Serving others: choking, the upload queue, and what we tell of our pieces.

use std::collections::VecDeque;
use std::time::Duration;

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

/// When the uplink has run dry, somebody who has use for it is looked for this often at most.
const LOOK: Duration = Duration::from_millis(100);

/// Pieces a choked peer may ask for all the same (BEP 6).
const ALLOWED_FAST: usize = 10;

impl Torrent {
    /// Peers that compete for upload slots; `torrent` names this one to the choker.
    pub fn candidates(&mut self, torrent: u64, now: Timestamp) -> Vec<Candidate> {
        if !self.options.upload {
            return Vec::new();
        }
        let Some(active) = &self.active else { return Vec::new() };
        let (seeding, piece) = (active.announced.is_full(), active.geometry.piece_length().into());
        let mut interested = self.peers.values().filter(|p| p.peer_interested);
        // Where nobody passes anything on, there may be nobody to pass it on to.
        let some_pass_on = interested.any(|p| p.first_copies.are_passed_on());
        let interested = self.peers.iter_mut().filter(|(_, p)| p.peer_interested);
        interested
            .map(|(key, p)| Candidate {
                who: (torrent, *key),
                gives: p.down.per_second(now),
                takes: p.up.per_second(now),
                taken: p.up.total(),
                last_taken: p.last_given,
                free_rides: match seeding {
                    true => some_pass_on && p.first_copies.are_kept(),
                    false => p.owes(piece),
                },
                seeding,
                snubbed: !p.window.is_empty() && now.since(p.last_block) > SNUB_AFTER,
                busy: p.is_busy(),
                since: p.since,
                slot_ended: p.slot_ended,
                piece,
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
            if choke {
                peer.slot_ended = now;
                self.take_back_suggestions(key);
                self.let_finish(key, now);
                self.send(key, Message::Choke, now);
                self.drop_uploads(key, now);
            } else {
                self.suggest(key, now);
                self.send(key, Message::Unchoke, now);
            }
        }
    }

    /// Rejects what a choked peer asked for, but for what it may ask while choked.
    fn drop_uploads(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(peer), Some(active)) = (self.peers.get_mut(&key), &self.active) else { return };
        let queue = std::mem::take(&mut peer.uploads);
        let (kept, dropped): (VecDeque<RawBlock>, VecDeque<_>) =
            queue.into_iter().partition(|raw| {
                active
                    .geometry
                    .piece(raw.piece)
                    .is_some_and(|p| peer.allowed_to_it.contains_key(&p))
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
            && (!peer.am_choking || peer.allowed_to_it.contains_key(&piece))
            && active.announced.contains(piece)
            && peer.uploads.len() < UPLOAD_QUEUE;
        let welcome = welcome && (!peer.fast || self.may_have(key, piece, now));
        if welcome && let Some(peer) = self.peers.get_mut(&key) {
            peer.uploads.push_back(raw);
            self.pump_uploads(key, now);
            self.note_asked(key, piece);
        } else {
            self.reject(key, raw, now);
        }
    }

    /// A peer withdraws a request. What the connection has already been handed is sent.
    pub(super) fn cancelled(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Some(at) = peer.uploads.iter().position(|r| *r == raw) {
            peer.uploads.remove(at);
            self.note_cancelled(key, raw);
            self.reject(key, raw, now);
        }
    }

    /// A block was sent (`sent`), or could not be read.
    pub fn uploaded(&mut self, key: PeerKey, raw: RawBlock, sent: bool, now: Timestamp) {
        if sent {
            // The peer may have left with its last block.
            self.totals.uploaded += u64::from(raw.length);
            self.totals.up.add(u64::from(raw.length), now);
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.uploading = peer.uploading.saturating_sub(1);
        peer.last_sent = now;
        if sent {
            peer.up.add(u64::from(raw.length), now);
            peer.last_given = now;
            self.note_given(key, raw, now);
        } else {
            self.reject(key, raw, now);
        }
        self.pump_uploads(key, now);
        self.look_for_takers(now);
    }

    /// When nothing waits for the uplink, somebody else may have use for it.
    fn look_for_takers(&mut self, now: Timestamp) {
        if now.since(self.last_look) >= LOOK && self.peers.values().all(|p| !p.is_busy()) {
            self.last_look = now;
            self.outputs.push_back(Output::WantsUnchoke);
        }
    }

    /// At a complete torrent others wait for their turn.
    pub(super) fn pass_turns_on(&mut self) {
        let complete = self.active.as_ref().is_some_and(|a| a.announced.is_full());
        if complete && self.peers.values().any(|p| p.peer_interested && p.am_choking) {
            self.outputs.push_back(Output::WantsUnchoke);
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
                Some(piece) => return self.check_at_rest(piece, now),
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
        let whole = |piece: &PieceIndex| (*piece, active.geometry.piece_len(*piece));
        peer.allowed_to_it.extend(set.iter().map(whole));
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
