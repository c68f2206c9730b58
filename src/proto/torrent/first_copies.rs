//! What a complete torrent does so that each piece leaves it once before any leaves it twice.

#[cfg(test)]
mod tests;

use super::{Output, Torrent};
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::peer::PeerSession;
use crate::proto::swarm::{HandOut, PeerKey, Sent};
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawBlock};

/// Blocks that a peer may know of beyond what it has asked for: what goes through a fast and long
/// connection in a round trip.
const MAX_LOOK_AHEAD: usize = 4_096;

/// Half-sent pieces remembered of one peer; beyond it the one of which it has least is forgotten.
const MAX_HALF_SENT: usize = 8;

/// Of these, how many it may finish while choked: more would be a second turn that no slot counts.
const MAX_FINISHED: usize = 2;

impl Torrent {
    /// Suggests pieces to an unchoked peer as soon as it will have nothing left to ask for: not
    /// earlier, since others may come to whom they could be given.
    pub(super) fn suggest(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return;
        };
        if peer.am_choking || !peer.fast || !active.announced.is_full() || peer.is_seed() {
            return;
        }
        let (picker, pieces) = (&active.picker, active.geometry.pieces());
        let hand_out = active.hand_out.get_or_insert_with(|| HandOut::new(pieces, &mut self.rng));
        let blocks = active.geometry.piece_length().div_ceil(BLOCK_LEN) as usize;
        let (waits, told_of) = (peer.uploads.len() + peer.uploading, peer.blocks_told_of());
        let ahead = peer.look_ahead.get_or_insert((blocks / 2).max(1));
        if told_of == 0 && waits <= *ahead / 2 && hand_out.has_suggested(key) {
            *ahead = (*ahead * 2).min(MAX_LOOK_AHEAD);
        }
        let missing = ahead.saturating_sub(waits + told_of).div_ceil(blocks);
        let new = hand_out.suggest(key, missing, |p| picker.is_only_at_seeds(p));
        peer.told_of.extend(new.iter().map(|p| (*p, active.geometry.block_count(*p))));
        for piece in new {
            self.send(key, Message::Suggest(piece.get()), now);
        }
    }

    /// Whether a peer may have `piece` from us now: a complete torrent does not begin to send what is
    /// on its way to somebody else, who will pass it on, as long as there is other use for its
    /// uplink.
    pub(super) fn may_have(&mut self, key: PeerKey, piece: PieceIndex, now: Timestamp) -> bool {
        let Some(active) = self.active.as_mut().filter(|a| a.announced.is_full()) else {
            return true;
        };
        let (lacking, pieces) = (active.picker.is_only_at_seeds(piece), active.geometry.pieces());
        let hand_out = active.hand_out.get_or_insert_with(|| HandOut::new(pieces, &mut self.rng));
        hand_out.promise(piece, key, lacking, now)
            || self.peers.get(&key).is_some_and(|p| p.half_sent.contains_key(&piece))
            || self.peers.iter().all(|(other, p)| *other == key || !p.is_busy())
    }

    /// A peer asks for a block of `piece`.
    pub(super) fn note_asked(&mut self, key: PeerKey, piece: PieceIndex) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.asks_for(piece);
        }
        if let Some(hand_out) = self.active.as_mut().and_then(|a| a.hand_out.as_mut()) {
            hand_out.asked(key, piece);
        }
    }

    /// A peer has withdrawn a request that waited for us.
    pub(super) fn note_cancelled(&mut self, key: PeerKey, raw: RawBlock) {
        let Some(active) = &mut self.active else { return };
        if let (Some(hand_out), Some(piece)) =
            (&mut active.hand_out, active.geometry.piece(raw.piece))
        {
            hand_out.cancelled(key, piece);
        }
    }

    /// What was suggested to a peer that is gone or choked is suggested to others.
    pub(super) fn take_back_suggestions(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.told_of.clear();
        }
        if let Some(hand_out) = self.active.as_mut().and_then(|a| a.hand_out.as_mut()) {
            hand_out.take_back(key);
        }
    }

    /// Lets a peer that is about to be choked ask for the rest of what it has got a part of: else
    /// that part would have to be sent again to somebody else (BEP 6).
    pub(super) fn let_finish(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        if !peer.fast || !active.announced.is_full() {
            return;
        }
        let mut pieces: Vec<_> = peer.half_sent.iter().map(|(p, sent)| (*sent, *p)).collect();
        pieces.sort_unstable_by(|a, b| b.cmp(a));
        let before = std::mem::take(&mut peer.allowed_to_it);
        for (sent, piece) in pieces.into_iter().take(MAX_FINISHED) {
            let left = active.geometry.piece_len(piece).saturating_sub(sent);
            peer.allowed_to_it.insert(piece, left);
            if !before.contains_key(&piece) {
                self.outputs.push_back(Output::Send(key, Message::AllowedFast(piece.get())));
            }
        }
        peer.last_sent = now;
    }

    /// A block was sent.
    pub(super) fn note_given(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        let Some(piece) = active.geometry.piece(raw.piece) else { return };
        peer.use_allowance(piece, raw.length);
        if active.announced.is_full() {
            self.note_half_sent(key, piece, raw.length);
            self.note_first_copy(key, piece);
            self.suggest(key, now);
        }
    }

    fn note_half_sent(&mut self, key: PeerKey, piece: PieceIndex, bytes: u32) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        let sent = peer.half_sent.entry(piece).or_default();
        *sent = sent.saturating_add(bytes);
        if *sent >= active.geometry.piece_len(piece) {
            peer.forget_half_sent(piece);
        } else if peer.half_sent.len() > MAX_HALF_SENT {
            let others = peer.half_sent.iter().filter(|(p, _)| **p != piece);
            if let Some((&least, _)) = others.min_by_key(|(_, sent)| **sent) {
                peer.forget_half_sent(least);
            }
        }
    }

    fn note_first_copy(&mut self, key: PeerKey, piece: PieceIndex) {
        let Some(active) = &mut self.active else { return };
        let (lacking, pieces) = (active.picker.is_only_at_seeds(piece), active.geometry.pieces());
        let hand_out = active.hand_out.get_or_insert_with(|| HandOut::new(pieces, &mut self.rng));
        let takes = |(other, p): (&PeerKey, &PeerSession)| *other != key && !p.is_seed();
        match hand_out.sent(piece, key, lacking) {
            // What nobody else is there to get says nothing about who got it.
            Sent::Lent if !self.peers.iter().any(takes) => hand_out.tells_nothing(piece),
            Sent::Lent => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.first_copies.lent += 1;
                    peer.first_copies.kept += 1;
                }
            }
            // It may be on its way to the first peer still, and then says nothing about it.
            Sent::Again(to) => {
                if let Some(first) = self.peers.get_mut(&to).filter(|p| !p.has(piece)) {
                    first.first_copies.lent = first.first_copies.lent.saturating_sub(1);
                    first.first_copies.kept = first.first_copies.kept.saturating_sub(1);
                }
            }
            Sent::Known => {}
        }
    }

    /// A piece has shown up at `key`: whoever was given its first copy has passed it on.
    pub(super) fn note_passed_on(&mut self, key: PeerKey, piece: PieceIndex, now: Timestamp) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.forget_half_sent(piece);
            peer.told_of.remove(&piece);
        }
        let Some(hand_out) = self.active.as_mut().and_then(|a| a.hand_out.as_mut()) else { return };
        hand_out.asked(key, piece);
        if let Some(peer) = hand_out.shown(piece, key, now).and_then(|to| self.peers.get_mut(&to)) {
            peer.first_copies.kept = peer.first_copies.kept.saturating_sub(1);
        }
    }
}
