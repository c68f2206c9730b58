//! What peers say.

use std::time::Duration;

use bytes::Bytes;

use super::requests::TAIL;
use super::{Output, Torrent};
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Geometry, PieceIndex};
use crate::proto::peer::{Disconnect, Early, UPLOAD_QUEUE};
use crate::proto::swarm::{Holds, PeerKey, Priority};
use crate::proto::time::Timestamp;
use crate::proto::wire::extended::{self, ExtendedHandshake, MetadataMessage};
use crate::proto::wire::{Message, RawBlock};

/// How we name ourselves in extended handshakes.
const CLIENT: &str = concat!("p2pfs ", env!("CARGO_PKG_VERSION"));

/// How long a peer that refused a piece is not asked for it.
const REFUSAL: Duration = Duration::from_secs(30);

/// How long a piece that a seed gives to somebody else is not asked of it again: others will have
/// it soon.
const NOT_NOW: Duration = Duration::from_secs(1);

impl Torrent {
    /// The first words on a new connection: extended handshake, then what we have.
    pub(super) fn greet(&mut self, key: PeerKey, now: Timestamp) {
        self.offer_metadata(key, now);
        self.open_haves(key, now);
        self.name_dht_port(key, now);
        if let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key))
            && peer.settle_early(&active.geometry).is_ok()
            && let Some(holds) = &peer.holds
        {
            active.picker.peer_came(holds);
        }
    }

    /// The extended handshake. It is said again when the metadata has come (BEP 10 allows that), so
    /// that peers know that we can give it to them.
    pub(super) fn offer_metadata(&mut self, key: PeerKey, now: Timestamp) {
        let Some(peer) = self.peers.get(&key).filter(|p| p.extended) else { return };
        let ours = ExtendedHandshake {
            listen_port: Some(self.options.port).filter(|p| *p != 0),
            client: Some(CLIENT.to_owned()),
            reqq: Some(UPLOAD_QUEUE as u32),
            metadata_size: self.active.as_ref().map(|a| a.info.raw.len() as u32),
            yourip: Some(peer.addr.ip()),
            upload_only: self.active.as_ref().is_some_and(|a| a.announced.is_full()),
            ..ExtendedHandshake::ours(self.hears_of_peers())
        };
        self.send(key, Message::Extended(extended::HANDSHAKE_ID, ours.encode()), now);
    }

    /// A message from a peer. Blocks come through [`Self::block_arrived`] instead.
    pub fn message(&mut self, key: PeerKey, message: Message, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.last_received = now;
        let done = match message {
            Message::KeepAlive | Message::Unknown(_) => Ok(()),
            Message::Port(port) => {
                self.dht_port_named(key, port);
                Ok(())
            }
            Message::Suggest(index) => self.suggested(key, index, now),
            Message::Choke => self.choked(key),
            Message::Unchoke => {
                peer.peer_choking = false;
                peer.nothing_at = None;
                self.askable = None;
                Ok(())
            }
            Message::Interested => {
                if !std::mem::replace(&mut peer.peer_interested, true) {
                    self.outputs.push_back(Output::WantsUnchoke);
                }
                Ok(())
            }
            Message::NotInterested => {
                peer.peer_interested = false;
                Ok(())
            }
            Message::Have(index) => self.peer_has(key, index, now),
            Message::Bitfield(bytes) => self.peer_holds(key, Early::Bitfield(bytes), now),
            Message::HaveAll => self.peer_holds(key, Early::All, now),
            Message::HaveNone => self.peer_holds(key, Early::None, now),
            Message::Request(raw) => {
                self.requested(key, raw, now);
                Ok(())
            }
            Message::Cancel(raw) => {
                self.cancelled(key, raw, now);
                Ok(())
            }
            Message::Reject(raw) => self.rejected(key, raw, now),
            Message::AllowedFast(index) => self.allowed_fast(key, index),
            Message::HashRequest(raw) => {
                self.hashes_requested(key, raw, now);
                Ok(())
            }
            Message::Hashes(raw, hashes) => self.hashes(key, raw, &hashes, now),
            Message::HashReject(raw) => {
                self.hashes_rejected(key, raw, now);
                Ok(())
            }
            Message::Extended(id, payload) => self.extended(key, id, payload, now),
        };
        if let Err(reason) = done {
            self.disconnect(key, reason, now);
        }
    }

    /// A choke without the fast extension drops all requests, which the connection has to forget
    /// too; with it each is rejected or still answered (BEP 6).
    fn choked(&mut self, key: PeerKey) -> Result<(), Disconnect> {
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        peer.peer_choking = true;
        peer.forget_suggestions();
        self.askable = None;
        if !peer.fast {
            let blocks = peer.window.clear();
            self.withdraw(key, blocks);
        }
        Ok(())
    }

    fn peer_has(&mut self, key: PeerKey, index: u32, now: Timestamp) -> Result<(), Disconnect> {
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        let Some(active) = &mut self.active else {
            peer.note_early(Early::Have(index))?;
            self.hope_for_something(key, now);
            return Ok(());
        };
        let piece = piece(&active.geometry, index)?;
        let Some(Holds::Some(bits)) = &mut peer.holds else { return Ok(()) };
        if !bits.insert(piece) {
            return Ok(());
        }
        let full = bits.is_full();
        active.picker.peer_got(piece);
        if active.picker.is_wanting(piece) {
            peer.nothing_at = None;
        }
        self.note_passed_on(key, piece, now);
        let Some(peer) = self.peers.get(&key) else { return Ok(()) };
        let Some(active) = &self.active else { return Ok(()) };
        if full || (!peer.am_interested && !active.announced.contains(piece)) {
            self.update_interest(key, now);
        }
        Ok(())
    }

    fn peer_holds(&mut self, key: PeerKey, said: Early, now: Timestamp) -> Result<(), Disconnect> {
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        peer.note_opening()?;
        let has_some = match &said {
            Early::All => true,
            Early::Bitfield(bytes) => bytes.iter().any(|bits| *bits != 0),
            Early::None | Early::Have(_) => false,
        };
        peer.note_early(said)?;
        let Some(active) = &mut self.active else {
            if has_some {
                self.hope_for_something(key, now);
            }
            return Ok(());
        };
        if let Some(old) = peer.holds.take() {
            active.picker.peer_left(&old);
        }
        peer.settle_early(&active.geometry)?;
        peer.nothing_at = None;
        if let Some(holds) = &peer.holds {
            active.picker.peer_came(holds);
        }
        self.grant_allowed_fast(key, now);
        self.update_interest(key, now);
        Ok(())
    }

    /// Is interested in a peer before the metadata tells in what: then it lets us ask by the time we
    /// know.
    fn hope_for_something(&mut self, key: PeerKey, now: Timestamp) {
        let peer = self.peers.get_mut(&key).filter(|peer| !peer.am_interested);
        if let Some(peer) = peer {
            peer.am_interested = true;
            self.send(key, Message::Interested, now);
        }
    }

    /// A request is refused. If that happens again and again while unchoked, the peer counts as
    /// lacking the piece; for a while only, since its queue may have been full or its disk slow.
    fn rejected(&mut self, key: PeerKey, raw: RawBlock, now: Timestamp) -> Result<(), Disconnect> {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return Ok(());
        };
        let Some(block) = active.geometry.block_at(raw.piece, raw.begin, raw.length) else {
            return match raw.length {
                TAIL => Ok(()),
                _ => Err(Disconnect::Protocol("a reject for a block that does not exist")),
            };
        };
        peer.allowed_to_us.remove(&block.piece);
        if !peer.window.withdrawn(block) {
            return Ok(());
        }
        let not_now = !peer.peer_choking && peer.hands_out();
        if not_now {
            peer.not_now.insert(block.piece, now);
        }
        let lacks = !not_now && !peer.peer_choking && peer.note_rejected();
        if lacks {
            peer.refused.insert(block.piece, now);
        }
        active.release(block, key, &mut self.outputs);
        if lacks {
            self.peer_lacks(key, block.piece);
        }
        Ok(())
    }

    /// A peer turns out not to have `piece`. From then on its pieces are counted one by one, also
    /// when it has all of them again: to and fro must not cost a walk over all pieces each time.
    fn peer_lacks(&mut self, key: PeerKey, piece: PieceIndex) {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return;
        };
        match &mut peer.holds {
            Some(Holds::Some(bits)) if bits.contains(piece) => {
                bits.remove(piece);
                active.picker.peer_lost(piece);
            }
            Some(holds @ Holds::All) => {
                active.picker.peer_left(holds);
                let mut bits = Bitfield::full(active.geometry.piece_count());
                bits.remove(piece);
                *holds = Holds::Some(bits);
                active.picker.peer_came(holds);
            }
            Some(Holds::Some(_)) | None => {}
        }
    }

    /// Asks again for pieces that were refused long enough ago.
    pub(super) fn forgive_refusals(&mut self, key: PeerKey, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.not_now.retain(|_, at| now.since(*at) < NOT_NOW);
        let over = |at: &Timestamp| now.since(*at) >= REFUSAL;
        let pieces: Vec<_> =
            peer.refused.iter().filter(|(_, at)| over(at)).map(|(p, _)| *p).collect();
        for piece in pieces {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.refused.remove(&piece);
            }
            // It names a piece that exists, so it is no violation.
            let _ = self.peer_has(key, piece.get(), now);
        }
    }

    /// A seed says what it would rather give us than others (BEP 6).
    fn suggested(&mut self, key: PeerKey, index: u32, now: Timestamp) -> Result<(), Disconnect> {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else {
            return Ok(());
        };
        let piece = piece(&active.geometry, index)?;
        // What we would not fetch is no reason to wait for more suggestions; only seeds hand out.
        if peer.is_seed()
            && active.picker.is_wanting(piece)
            && active.picker.priority(piece) > Priority::None
        {
            peer.keep_suggestions(|p| active.picker.is_wanting(p));
            peer.note_suggestion(piece, now);
        }
        Ok(())
    }

    fn allowed_fast(&mut self, key: PeerKey, index: u32) -> Result<(), Disconnect> {
        /// More than any client grants (BEP 6 suggests 10).
        const MAX_ALLOWED: usize = 64;
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else {
            return Ok(());
        };
        let piece = piece(&active.geometry, index)?;
        if peer.allowed_to_us.len() < MAX_ALLOWED && peer.allowed_to_us.insert(piece) {
            peer.nothing_at = None;
            self.askable = None;
        }
        Ok(())
    }

    fn extended(
        &mut self,
        key: PeerKey,
        id: u8,
        payload: Bytes,
        now: Timestamp,
    ) -> Result<(), Disconnect> {
        const BAD: Disconnect = Disconnect::Protocol("a malformed extension message");
        match id {
            extended::HANDSHAKE_ID => {
                // A client that writes bad bencode there, and some do, sends pieces all the same.
                if let Ok(theirs) = ExtendedHandshake::parse(&payload) {
                    self.extended_handshake(key, theirs, now);
                }
            }
            extended::UT_METADATA_ID => {
                let message = MetadataMessage::parse(&payload).map_err(|_| BAD)?;
                self.metadata_message(key, message, now);
            }
            extended::UT_PEX_ID => self.told_of_peers(key, &payload, now)?,
            extended::LT_DONTHAVE_ID => {
                let index = extended::parse_donthave(&payload).map_err(|_| BAD)?;
                let Some(active) = &self.active else { return Ok(()) };
                let piece = piece(&active.geometry, index)?;
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.refused.remove(&piece);
                }
                self.peer_lacks(key, piece);
            }
            _ => {}
        }
        Ok(())
    }

    fn extended_handshake(&mut self, key: PeerKey, theirs: ExtendedHandshake, now: Timestamp) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.ut_metadata = theirs.ut_metadata.unwrap_or(0);
        peer.donthave = theirs.donthave.unwrap_or(0);
        peer.exchange.ut_pex = theirs.ut_pex.unwrap_or(0);
        peer.upload_only = theirs.upload_only;
        peer.client = theirs.client;
        if let Some(reqq) = theirs.reqq {
            peer.window.set_limit(reqq);
        }
        if let Some(ours) = theirs.yourip {
            let by = peer.addr.ip();
            self.external.vote(by, ours);
            self.outputs.push_back(Output::SeenAt { by, ours });
        }
        if let Some(port) = theirs.listen_port {
            self.peer_listens(key, port, now);
        }
        self.metadata_offered(key, theirs.metadata_size.unwrap_or(0), now);
    }
}

fn piece(geometry: &Geometry, index: u32) -> Result<PieceIndex, Disconnect> {
    geometry.piece(index).ok_or(Disconnect::Protocol("a piece beyond the last"))
}
