//! What a torrent knows once its metadata is here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::Output;
use super::hashes::Trees;
use crate::proto::bitfield::Bitfield;
use crate::proto::demand::{Demand, Wanted};
use crate::proto::geometry::{BLOCK_LEN, Block, Geometry, PieceIndex, SPARSE_PIECE};
use crate::proto::metainfo::Info;
use crate::proto::swarm::{Blame, HandOut, PeerKey, Picker, Priority};
use crate::proto::time::Timestamp;

/// A torrent with metadata.
pub(super) struct Active {
    pub info: Arc<Info>,
    pub geometry: Geometry,
    pub picker: Picker,
    pub demand: Demand,
    pub blame: Blame,
    /// Verified in this life of the daemon.
    pub readable: Bitfield,
    /// Told to peers: at rest, verified or hinted.
    pub announced: Bitfield,
    /// Until when nothing is asked for in the background, after the metadata came.
    pub first_chance: Option<Timestamp>,
    /// Wanted pieces that are not yet both verified and at rest.
    pub unfinished: Bitfield,
    /// What we gave to whom, once the torrent is complete.
    pub hand_out: Option<HandOut>,
    /// Hinted pieces that are being hashed.
    pub checking: BTreeSet<PieceIndex>,
    /// Where the background check of hinted pieces has got to.
    pub next_check: u32,
    /// Pieces whose bytes are in memory, partial, verifying, or waiting for the disk; and how many
    /// bytes of each count.
    pub buffered: BTreeMap<PieceIndex, u32>,
    pub buffered_bytes: u64,
    /// Counts how often memory became free.
    pub memory_epoch: u64,
    /// What readers want, in order; recomputed when `None`.
    pub order: Option<Arc<[Wanted]>>,
    pub complete: bool,
    /// Verified pieces that the disk refused. While there are any, nothing is downloaded in the
    /// background.
    pub unwritten: BTreeSet<PieceIndex>,
    /// When the disk is tried again.
    pub retry_write: Timestamp,
    /// Payload asked for a second time because a reader waited for a slow peer.
    pub hedged_bytes: u64,
    /// The hash trees of the files, where there is a v2 half.
    pub trees: Option<Trees>,
    /// Whether there is somebody to ask for the hashes by which a block is verified alone.
    pub by_blocks: bool,
    /// Demand came, or somebody who may have hashes for it: look for what can be asked.
    pub look_for_proof: bool,
}

impl Active {
    /// Demand, or what is missing, changed.
    pub fn demand_changed(&mut self) {
        self.order = None;
    }

    /// The same, and hashes may be needed for it.
    pub fn demand_came(&mut self) {
        self.demand_changed();
        self.look_for_proof = true;
    }

    /// The pieces readers want that have to be fetched or checked, in order; `by_blocks` says of which
    /// the blocks can be verified alone.
    pub fn ordered(&mut self, by_blocks: impl Fn(PieceIndex) -> bool) -> Arc<[Wanted]> {
        let (demand, geometry, readable) = (&self.demand, &self.geometry, &self.readable);
        let order = || demand.order(geometry, by_blocks, |p| !readable.contains(p)).into();
        self.order.get_or_insert_with(order).clone()
    }

    /// Whether neither a reader nor the background wants `piece`.
    pub fn is_unwanted(&self, piece: PieceIndex) -> bool {
        let demanded = |order: &Arc<[Wanted]>| order.iter().any(|w| w.piece == piece);
        self.picker.priority(piece) == Priority::None && !self.order.as_ref().is_some_and(demanded)
    }

    /// Whether all of `range` is verified.
    pub fn is_here(&self, range: &Range<u64>) -> bool {
        self.geometry.pieces_of(range.clone()).all(|piece| {
            let blocks = || self.geometry.blocks_of(piece, range.clone());
            self.readable.contains(piece) || self.picker.are_proven(piece, blocks())
        })
    }

    /// What the memory of `piece` will count for, with one more of some `blocks` that are wanted: that
    /// block alone if they are not all and the piece is long, or else the piece.
    pub fn buffer_with(&self, piece: PieceIndex, blocks: &Range<u32>) -> u32 {
        let length = self.geometry.piece_len(piece);
        let held = self.buffered.get(&piece).copied().unwrap_or(0);
        let part = blocks.len() < self.geometry.block_count(piece) as usize;
        if part && length >= SPARSE_PIECE { (held + BLOCK_LEN).min(length) } else { length }
    }

    /// Whether the cache has room for one more piece beside those that are on their way.
    pub fn fits(&self, room: Option<u64>) -> bool {
        let piece = u64::from(self.geometry.piece_length());
        room.is_none_or(|room| self.buffered_bytes + piece <= room)
    }

    /// Counts the memory of a piece that is begun, in bytes.
    pub fn buffer_begun(&mut self, piece: PieceIndex, bytes: u32) {
        let held = self.buffered.insert(piece, bytes).unwrap_or(0);
        self.buffered_bytes += u64::from(bytes) - u64::from(held);
    }

    /// The memory of a piece is free again.
    pub fn buffer_gone(&mut self, piece: PieceIndex) {
        if let Some(bytes) = self.buffered.remove(&piece) {
            self.buffered_bytes -= u64::from(bytes);
            self.memory_epoch += 1;
        }
    }

    /// Changes whenever there may be something new to ask of a peer for whom nothing was found.
    pub fn epoch(&self) -> u64 {
        self.picker.epoch() + self.memory_epoch
    }

    /// `peer` will not send `block`; a begun piece that this makes worthless is dropped.
    pub fn release(&mut self, block: Block, peer: PeerKey, outputs: &mut VecDeque<Output>) {
        self.picker.released(block, peer);
        self.drop_abandoned(block.piece, outputs);
    }

    /// Gives up a begun piece.
    pub fn abandon(&mut self, piece: PieceIndex, outputs: &mut VecDeque<Output>) {
        self.picker.abandon(piece);
        self.drop_abandoned(piece, outputs);
    }

    fn drop_abandoned(&mut self, piece: PieceIndex, outputs: &mut VecDeque<Output>) {
        if self.buffered.contains_key(&piece)
            && self.picker.is_wanting(piece)
            && !self.picker.is_in_memory(piece)
        {
            self.buffer_gone(piece);
            outputs.push_back(Output::Discard(piece));
            if let Some(trees) = &mut self.trees {
                trees.abandoned(piece);
            }
        }
    }
}
