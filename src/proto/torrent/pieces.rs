//! What becomes of blocks and pieces: arrival, the gate's verdict, the disk, and completion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::active::Active;
use super::hashes::Trees;
use super::{Output, ReadEnd, Torrent};
use crate::proto::bitfield::Bitfield;
use crate::proto::demand::Demand;
use crate::proto::geometry::{Block, PieceIndex};
use crate::proto::metainfo::Info;
use crate::proto::peer::Disconnect;
use crate::proto::swarm::{Blame, Digest, PeerKey, Picker, Priority};
use crate::proto::time::Timestamp;
use crate::proto::wire::Message;

/// How long after the disk refused a piece it is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(10);

/// How long after the cache had no room for a piece it is tried again.
const ROOM_PAUSE: Duration = Duration::from_millis(500);

/// How long a torrent whose metadata has just come is left to its first reader.
const FIRST_CHANCE: Duration = Duration::from_millis(100);

impl Torrent {
    /// The metadata is known and the cache open: `hinted` pieces are at rest according to its
    /// index, `wanted` are to be fetched in the background.
    pub fn activate(
        &mut self,
        info: Arc<Info>,
        hinted: Bitfield,
        wanted: &Bitfield,
        now: Timestamp,
    ) {
        let geometry = info.geometry.clone();
        let mut picker = Picker::new(geometry.clone(), &hinted, Priority::None);
        for piece in wanted.iter(&geometry) {
            picker.set_priority(piece, Priority::Normal);
        }
        let trees = Trees::new(&info);
        self.fetch = None;
        self.active = Some(Active {
            info,
            picker,
            demand: Demand::default(),
            blame: Blame::default(),
            readable: Bitfield::empty(geometry.piece_count()),
            geometry,
            announced: hinted,
            first_chance: Some(now + FIRST_CHANCE),
            unfinished: wanted.clone(),
            hand_out: None,
            checking: BTreeSet::new(),
            next_check: 0,
            buffered: BTreeMap::new(),
            buffered_bytes: 0,
            memory_epoch: 0,
            order: None,
            complete: false,
            unwritten: BTreeSet::new(),
            retry_write: Timestamp::ZERO,
            hedged_bytes: 0,
            trees,
            by_blocks: false,
            look_for_proof: false,
        });
        self.keep_to_privacy();
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            self.settle_early(key, now);
        }
        self.check_complete();
    }

    fn settle_early(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return;
        };
        match peer.settle_early(&active.geometry) {
            Ok(()) => {
                if let Some(holds) = &peer.holds {
                    active.picker.peer_came(holds);
                }
                self.offer_metadata(key, now);
                self.late_haves(key, now);
                self.update_interest(key, now);
            }
            Err(reason) => self.disconnect(key, reason, now),
        }
    }

    /// Wants more pieces in the background, with at least this priority.
    pub fn raise_priority(&mut self, pieces: impl Iterator<Item = PieceIndex>, to: Priority) {
        let Some(active) = &mut self.active else { return };
        active.complete = false;
        for piece in pieces {
            if active.picker.priority(piece) < to {
                active.picker.set_priority(piece, to);
            }
            if active.readable.contains(piece) && active.announced.contains(piece) {
                continue;
            }
            active.unfinished.insert(piece);
        }
        active.next_check = 0;
        self.check_complete();
    }

    /// A block that was asked of `key` came; `kept` when the piece's buffer took it (false when
    /// another copy was first).
    pub fn block_arrived(&mut self, key: PeerKey, block: Block, kept: bool, now: Timestamp) {
        let length = u64::from(block.length);
        self.totals.downloaded += length;
        self.totals.down.add(length, now);
        // After a pause much may come at once, until the next: that is when to ask for what others owe.
        if self.peers.get(&key).is_some_and(|p| p.window.is_pausing(now)) {
            self.hedge_soon(now);
        }
        // The bytes are in the buffer even if the peer has gone since.
        let asked = self.peers.get_mut(&key).is_some_and(|peer| {
            peer.last_received = now;
            peer.last_block = now;
            peer.note_block(block.piece, now);
            peer.down.add(length, now);
            peer.window.arrived(block, now)
        });
        let Some(active) = &mut self.active else { return };
        let arrived = if kept { active.picker.arrived(block, key) } else { None };
        let Some((others, whole)) = arrived else {
            self.totals.wasted += length;
            if asked {
                active.picker.released(block, key);
            }
            return;
        };
        match whole {
            true => self.verify(block.piece, now),
            false => self.check_blocks(block.piece, block.index..block.index + 1),
        }
        for other in others {
            if let Some(peer) = self.peers.get_mut(&other)
                && peer.window.beaten(block, now)
            {
                peer.note_cancelled();
                self.outputs.push_back(Output::Cancel(other, block));
            }
        }
    }

    /// Has the gate judge a piece that is whole, as soon as what it is judged by is known.
    pub(super) fn verify(&mut self, piece: PieceIndex, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let root = active.trees.as_mut().and_then(|trees| trees.piece_root(piece));
        if root.is_none() && active.info.is_v2_only() {
            return self.wait_for_root(piece, now);
        }
        let digests = active.blame.wants_digests(piece);
        self.outputs.push_back(Output::Verify { piece, digests, root });
    }

    /// Has a piece at rest hashed, as soon as what it is judged by is known.
    pub(super) fn check_at_rest(&mut self, piece: PieceIndex, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let root = active.trees.as_mut().and_then(|trees| trees.piece_root(piece));
        if root.is_none() && active.info.is_v2_only() {
            return self.wait_for_root(piece, now);
        }
        if active.checking.insert(piece) {
            self.outputs.push_back(Output::CheckAtRest(piece, root));
        }
    }

    /// `bytes` of payload came from `key` that nobody had asked for (any more).
    pub fn block_unasked(&mut self, key: PeerKey, bytes: u32, now: Timestamp) {
        self.totals.wasted += u64::from(bytes);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.last_received = now;
        peer.window.heard(now);
        if let Err(reason) = peer.note_unasked() {
            self.disconnect(key, reason, now);
        }
    }

    /// The gate let `piece` through. `digests` are those of its blocks, where they were wanted.
    pub fn piece_verified(
        &mut self,
        piece: PieceIndex,
        digests: Option<&[Digest]>,
        now: Timestamp,
    ) {
        let Some(active) = &mut self.active else { return };
        let guilty = digests.map(|d| active.blame.passed(piece, d)).unwrap_or_default();
        for key in active.picker.sources(piece) {
            if let Some(peer) = self.peers.get_mut(&key).filter(|p| p.suspected > 0) {
                peer.suspected -= 1;
            }
        }
        active.picker.verified(piece);
        if let Some(trees) = &mut active.trees {
            trees.verified(piece);
        }
        self.outputs.push_back(Output::Write(piece));
        self.became_readable(piece);
        for key in guilty {
            self.ban(key, now);
        }
    }

    fn became_readable(&mut self, piece: PieceIndex) {
        let Some(active) = &mut self.active else { return };
        active.readable.insert(piece);
        self.reply_to_readers(piece);
    }

    /// Answers those who waited for something of `piece` and have all that they want now.
    pub(super) fn reply_to_readers(&mut self, piece: PieceIndex) {
        let Some(active) = &mut self.active else { return };
        let mut demand = std::mem::take(&mut active.demand);
        let ended = demand.satisfied(&active.geometry, piece, |range| active.is_here(range));
        active.demand = demand;
        active.demand_changed();
        self.outputs.extend(ended.into_iter().map(|t| Output::Reply(t, ReadEnd::Ready)));
    }

    /// The gate refused `piece`; without `digests` because some of its bytes were missing, for which
    /// nobody is to blame. With a v2 half it is found out which of its blocks are wrong; else, or if
    /// nobody can say, whoever is proven to have sent bad data is banned, and it is asked of others, one
    /// at a time.
    pub fn piece_failed(&mut self, piece: PieceIndex, digests: Vec<Digest>, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        self.totals.failed_pieces += 1;
        if digests.is_empty() {
            return self.drop_piece(piece);
        }
        let missing = active.picker.reopen(piece);
        // The buffer takes them for what they were.
        self.outputs.extend(missing.into_iter().map(|index| Output::Refuse(piece, index)));
        if !self.find_bad_blocks(piece, now) {
            self.fetch_again(piece, digests, now);
        }
    }

    /// Gives up a piece that the gate refused.
    pub(super) fn fetch_again(&mut self, piece: PieceIndex, digests: Vec<Digest>, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let sources = active.picker.sources(piece);
        let count = active.geometry.block_count(piece) as usize;
        active.picker.failed(piece);
        self.drop_piece(piece);
        for key in sources.iter().collect::<BTreeSet<_>>() {
            if let Some(peer) = self.peers.get_mut(key) {
                peer.suspected += 1;
            }
        }
        // Where blocks were filled in from the disk, they may be what is wrong.
        let Some(active) = self.active.as_mut().filter(|_| sources.len() == count) else { return };
        if let Some(liar) = active.blame.failed(piece, sources, digests) {
            self.ban(liar, now);
        }
    }

    /// What there was of a piece that is to be fetched again is of no use.
    fn drop_piece(&mut self, piece: PieceIndex) {
        let Some(active) = &mut self.active else { return };
        active.picker.abandon(piece);
        self.outputs.push_back(Output::Discard(piece));
        self.totals.wasted += u64::from(active.geometry.piece_len(piece));
        active.buffer_gone(piece);
        active.demand_changed();
    }

    /// `piece` is written and indexed: peers may know of it.
    pub fn piece_written(&mut self, piece: PieceIndex, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        active.buffer_gone(piece);
        active.unwritten.remove(&piece);
        // The disk has room again: the next of those it refused.
        self.outputs.extend(active.unwritten.first().map(|next| Output::Write(*next)));
        if active.announced.insert(piece) {
            self.announce(piece, now);
        }
        self.at_rest(piece);
    }

    /// The disk would not take `piece`. It stays readable while the store holds it in memory, and
    /// is written later if there is room by then.
    pub fn write_failed(&mut self, piece: PieceIndex, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        active.buffer_gone(piece);
        active.unwritten.insert(piece);
        active.retry_write = now + DISK_PAUSE;
    }

    /// The cache may not take `piece` now, since nothing may be let go for it. As [`Self::write_failed`],
    /// but tried again soon.
    pub fn no_room(&mut self, piece: PieceIndex, now: Timestamp) {
        self.write_failed(piece, now);
        if let Some(active) = &mut self.active {
            active.retry_write = now + ROOM_PAUSE;
        }
    }

    /// Tries whether the disk takes one of the pieces that it refused.
    pub(super) fn retry_write(&mut self, now: Timestamp) {
        let Some(active) = self.active.as_mut().filter(|a| a.retry_write <= now) else { return };
        if let Some(piece) = active.unwritten.first() {
            active.retry_write = now + DISK_PAUSE;
            self.outputs.push_back(Output::Write(*piece));
        }
    }

    /// The gate says that the halves of a hybrid torrent contradict each other at `piece`: neither can
    /// be trusted.
    pub fn contradicted(&mut self, piece: PieceIndex, now: Timestamp) {
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            self.disconnect(key, Disconnect::Contradiction, now);
        }
        self.piece_lost(piece, now);
        let Some(mut active) = self.active.take() else { return };
        let ended = active.demand.end_all();
        self.outputs.extend(ended.into_iter().map(|t| Output::Reply(t, ReadEnd::Aborted)));
        (self.limit, self.given_up) = (0, true);
        self.outputs.push_back(Output::Contradiction);
    }

    /// A hinted piece was hashed.
    pub fn checked_at_rest(&mut self, piece: PieceIndex, good: bool, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        active.checking.remove(&piece);
        if good {
            self.became_readable(piece);
            self.at_rest(piece);
        } else {
            self.piece_lost(piece, now);
        }
        self.pump_all_uploads(now);
        self.pump_hash_reads(now);
    }

    /// The store no longer has `piece`.
    pub fn piece_lost(&mut self, piece: PieceIndex, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        active.readable.remove(piece);
        active.unwritten.remove(&piece);
        active.picker.lost(piece);
        if active.picker.priority(piece) > Priority::None {
            active.unfinished.insert(piece);
            active.complete = false;
        }
        active.demand_changed();
        if active.announced.remove(piece) {
            self.retract(piece, now);
        }
    }

    fn at_rest(&mut self, piece: PieceIndex) {
        if let Some(active) = &mut self.active {
            active.unfinished.remove(piece);
            self.check_complete();
        }
    }

    /// Whether everything wanted is verified and at rest.
    pub fn is_complete(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.complete)
    }

    fn check_complete(&mut self) {
        if let Some(active) = &mut self.active
            && !active.complete
            && active.unfinished.is_empty()
        {
            active.complete = true;
            self.outputs.push_back(Output::Complete);
        }
    }

    /// Tells everyone of a new piece, and loses interest in those who have nothing more for us.
    fn announce(&mut self, piece: PieceIndex, now: Timestamp) {
        let missing_nothing = self.active.as_ref().is_some_and(|a| a.announced.is_full());
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(holds) = self.peers.get(&key).and_then(|p| p.holds.as_ref()) else { continue };
            // What a peer has for us changes only if it has this piece.
            let concerned = missing_nothing || holds.contains(piece);
            if self.options.upload {
                self.send(key, Message::Have(piece.get()), now);
            }
            if concerned {
                self.update_interest(key, now);
            }
        }
    }

    /// Tells whether we want something of a peer, when that changed. A connection between two
    /// that have everything is closed.
    pub(super) fn update_interest(&mut self, key: PeerKey, now: Timestamp) {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return;
        };
        let Some(holds) = &peer.holds else { return };
        active.look_for_proof = true;
        let missing_nothing = active.announced.is_full();
        if missing_nothing && holds.is_full() {
            self.list.is_seed(peer.known_addr());
            self.disconnect(key, Disconnect::BothSeeds, now);
            return;
        }
        let interested = match holds {
            crate::proto::swarm::Holds::All => !missing_nothing,
            crate::proto::swarm::Holds::Some(bits) => bits.has_beyond(&active.announced),
        };
        if interested != peer.am_interested {
            peer.am_interested = interested;
            let message = if interested { Message::Interested } else { Message::NotInterested };
            self.send(key, message, now);
        }
    }
}
