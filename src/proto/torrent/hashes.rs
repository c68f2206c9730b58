//! The hash trees of v2 torrents (BEP 52): what is known of them, asking peers for what is lacking,
//! and blocks that are verified alone. `answers` has what peers ask.

mod answers;
#[cfg(test)]
mod tests;
mod trees;

use std::ops::Range;
use std::time::Duration;

use super::{Output, Torrent};
use crate::proto::demand::Wanted;
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::merkle::{Hash, MAX_HASHES, RangeError};
use crate::proto::metainfo::PieceLayers;
use crate::proto::peer::Disconnect;
use crate::proto::swarm::{PeerKey, Picker};
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawHashes};

pub use trees::Trees;

/// Questions for hashes that may be open at once, to all peers.
const MAX_ASKED: usize = 64;

/// A question is put to somebody else as well after this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// A question counts as not answered after this long: who is asked for the hashes of blocks may have to
/// read and hash a long piece first.
const NO_ANSWER: Duration = Duration::from_secs(20);

/// Nobody counts on the answer to a question after this long, though it may come still.
const LATE: Duration = Duration::from_secs(3);

/// A peer that refused hashes, did not answer, or was overtaken by one that was asked after [`PATIENCE`],
/// is not asked again for this long.
const REFUSAL: Duration = Duration::from_secs(30);

/// How long a piece with bad blocks waits for somebody who has the hashes that tell which they are,
/// when there are only others who would send all of it again.
const WAIT_FOR_HASHES: Duration = Duration::from_secs(10);

/// A piece of so few blocks is fetched whole at once: the hashes of its blocks would cost as much.
pub(super) const FEW_BLOCKS: u32 = 2;

impl Torrent {
    /// Piece layers that came with the torrent. They are checked again against the roots.
    pub fn know_layers(&mut self, layers: &PieceLayers) {
        if let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) {
            trees.know(layers);
        }
    }

    // ---- asking

    /// Whether there is somebody who will probably say soon by which hashes the blocks of a piece can be
    /// verified alone.
    fn somebody_proves(&self, piece: PieceIndex) -> bool {
        let Some(active) = self.active.as_ref().filter(|a| a.by_blocks) else { return false };
        self.peers.values().any(|p| p.has(piece) && p.proves_soon(&active.info))
    }

    /// There may be something to ask hashes for, or somebody to ask.
    fn look_for_proof(&mut self) {
        self.active.iter_mut().for_each(|active| active.look_for_proof = true);
    }

    /// Looks whether there is anybody who can be asked for hashes at all.
    pub(super) fn look_for_hashes(&mut self) {
        let Some(active) = self.active.as_mut().filter(|a| a.trees.is_some()) else { return };
        let able = self.peers.values().any(|p| p.proves_soon(&active.info));
        if active.by_blocks != able {
            active.by_blocks = able;
            active.demand_came();
        }
    }

    /// Asks for the hashes by which the blocks that readers want can be verified alone.
    pub(super) fn prove_wanted(&mut self, order: &[Wanted], now: Timestamp) {
        let Some(active) = self.active.as_mut().filter(|a| a.by_blocks) else { return };
        if !std::mem::take(&mut active.look_for_proof) {
            return;
        }
        for wanted in order.iter().take(MAX_ASKED) {
            let Some(active) = &self.active else { return };
            let count = active.geometry.block_count(wanted.piece) as usize;
            let (piece, part) = (wanted.piece, wanted.blocks.len() < count);
            let proven = |picker: &Picker| picker.are_proven(piece, wanted.blocks.clone());
            if part && active.picker.is_wanting(piece) && !proven(&active.picker) {
                self.prove_blocks(piece, wanted.blocks.clone(), now);
            }
        }
    }

    /// Asks for the hashes of some blocks of a piece, as far as they are not known.
    fn prove_blocks(&mut self, piece: PieceIndex, blocks: Range<u32>, now: Timestamp) {
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
        let Some((file, known, at)) = trees.at(piece) else { return };
        let first = at << known.base();
        let of = first + u64::from(blocks.start)..first + u64::from(blocks.end);
        self.ask_hashes(file, piece, 0, of, now);
    }

    /// Asks for the hash of a piece, and of those after it that will be wanted too.
    pub(super) fn prove_piece(&mut self, piece: PieceIndex, now: Timestamp) {
        let more = if self.options.on_demand { 1 } else { MAX_HASHES.into() };
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
        let Some((file, known, at)) = trees.at(piece) else { return };
        let base = known.base();
        if known.hash(base, at).is_none() {
            self.ask_hashes(file, piece, base, at..at + more, now);
        }
    }

    /// A piece cannot be judged before its hash is known, which is asked for.
    pub(super) fn wait_for_root(&mut self, piece: PieceIndex, now: Timestamp) {
        if let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) {
            trees.unproven.insert(piece);
        }
        self.prove_piece(piece, now);
    }

    /// Asks for the hashes `of` a layer of a file that are not known and nobody was asked for, of a peer
    /// that has `piece`.
    fn ask_hashes(
        &mut self,
        file: usize,
        piece: PieceIndex,
        layer: u32,
        of: Range<u64>,
        now: Timestamp,
    ) {
        let trees = self.active.as_ref().and_then(|a| a.trees.as_ref());
        let late = trees.map(|t| t.late(now, PATIENCE)).unwrap_or_default();
        let mut first = of.start;
        while let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut())
            && let Some(range) = trees.file(file).and_then(|k| k.lacking(layer, first, of.end))
            && (trees.asked.len() < MAX_ASKED || trees.asked.contains_key(&(file, range)))
        {
            first = range.end();
            let Some(root) = trees.root(file) else { return };
            let asked = trees.asked.get(&(file, range)).cloned().unwrap_or_default();
            if asked.iter().any(|(_, at)| now.since(*at) < PATIENCE) {
                continue;
            }
            let Some(info) = self.active.as_ref().map(|a| &a.info) else { return };
            let new = |k: &PeerKey| asked.iter().all(|(asked, _)| asked != k);
            let able =
                self.peers.iter().filter(|(k, p)| new(k) && p.has(piece) && p.gives_hashes(info));
            let slow = |k: &PeerKey| late.contains(k);
            let fastest = able.min_by_key(|(k, p)| (slow(k), p.window.expected_delay(), **k));
            let Some(key) = fastest.map(|(k, _)| *k) else { continue };
            if let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) {
                trees.asked.entry((file, range)).or_default().push((key, now));
            }
            self.send(key, Message::HashRequest(range.raw(root)), now);
        }
    }

    /// Gives up questions that were not answered, or whose peer has gone, and asks again for what
    /// pieces wait for.
    pub(super) fn ask_hashes_again(&mut self, now: Timestamp) {
        for peer in self.peers.values_mut() {
            peer.hashes_refused = peer.hashes_refused.filter(|at| now.since(*at) < REFUSAL);
        }
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
        let peers = &mut self.peers;
        trees.asked.retain(|_, asked| {
            asked.retain(|(key, since)| {
                let Some(peer) = peers.get_mut(key) else { return false };
                let in_time = now.since(*since) < NO_ANSWER;
                if !in_time {
                    peer.hashes_refused = Some(now);
                }
                in_time
            });
            !asked.is_empty()
        });
        let late = trees.late(now, LATE);
        for (key, peer) in peers {
            peer.hashes_late = late.contains(key);
        }
        let unproven: Vec<_> = trees.unproven.iter().copied().collect();
        let broken: Vec<_> = trees.broken.keys().copied().collect();
        self.look_for_hashes();
        // Who has what, and is not late, may have changed.
        if let Some(active) = self.active.as_mut().filter(|a| a.by_blocks) {
            active.demand_came();
        }
        for piece in unproven {
            self.prove_piece(piece, now);
        }
        for piece in broken {
            self.find_bad_blocks(piece, now);
        }
    }

    /// A peer sent hashes.
    pub(super) fn hashes(
        &mut self,
        key: PeerKey,
        raw: RawHashes,
        hashes: &[Hash],
        now: Timestamp,
    ) -> Result<(), Disconnect> {
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else {
            return Ok(());
        };
        // What is known by now from somebody who was faster, or was never asked for, does not count.
        let Some((file, range)) = trees.answered(key, &raw) else { return Ok(()) };
        let beaten = trees.asked.get(&(file, range)).cloned().unwrap_or_default();
        let Some(known) = trees.file(file) else { return Ok(()) };
        let whole = known.piece_layer().is_some();
        match known.learn(range, hashes) {
            Ok(()) => {}
            Err(RangeError::Unknown) => return Ok(()),
            Err(_) => {
                self.look_for_proof();
                self.ban(key, now);
                return Ok(());
            }
        }
        trees.asked.remove(&(file, range));
        for (other, since) in beaten {
            let slow = now.since(since) >= PATIENCE;
            if let Some(peer) = self.peers.get_mut(&other).filter(|_| slow) {
                peer.hashes_refused = Some(now);
            }
        }
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else {
            return Ok(());
        };
        let Some(known) = trees.file(file) else { return Ok(()) };
        if !whole && let Some(layer) = known.piece_layer() {
            self.outputs.push_back(Output::KeepLayer(file, layer.to_vec()));
        }
        let shift = known.base().saturating_sub(range.layer());
        let (first, last) = (range.index(), range.end() - 1);
        if shift > 0 {
            for at in first >> shift..=last >> shift {
                if let Some(piece) = self.piece_of(file, at) {
                    self.check_blocks(piece, 0..u32::MAX);
                }
            }
        }
        self.look_for_proof();
        self.go_on_with_proven(now);
        Ok(())
    }

    fn piece_of(&mut self, file: usize, at: u64) -> Option<PieceIndex> {
        let active = self.active.as_mut()?;
        let length = u64::from(active.geometry.piece_length());
        let first = active.info.files.get(file)?.offset / length;
        active.geometry.piece(u32::try_from(first + at).ok()?)
    }

    /// Goes on with pieces that waited for their hash.
    fn go_on_with_proven(&mut self, now: Timestamp) {
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
        let waiting: Vec<_> = trees.unproven.iter().copied().collect();
        for piece in waiting {
            let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
            if trees.piece_root(piece).is_none() {
                continue;
            }
            trees.unproven.remove(&piece);
            let Some(active) = &self.active else { return };
            match active.picker.has(piece) {
                true => self.check_at_rest(piece, now),
                false => self.verify(piece, now),
            }
        }
    }

    /// A peer refuses a question for hashes.
    pub(super) fn hashes_rejected(&mut self, key: PeerKey, raw: RawHashes, now: Timestamp) {
        let trees = self.active.as_mut().and_then(|a| a.trees.as_mut());
        if trees.and_then(|t| t.answered(key, &raw)).is_some()
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.hashes_refused = Some(now);
            self.ask_hashes_again(now);
        }
    }

    // ---- blocks that are verified alone

    /// Has those of some blocks of a begun piece that came, and whose hashes are known, judged.
    pub(super) fn check_blocks(&mut self, piece: PieceIndex, blocks: Range<u32>) {
        let Some(active) = &mut self.active else { return };
        let Some(trees) = &mut active.trees else { return };
        let unproven = active.picker.unproven(piece, blocks);
        let of = |index| trees.block(piece, index).map(|hash| (index, hash));
        let blocks: Vec<_> = unproven.into_iter().filter_map(of).collect();
        if blocks.is_empty() {
            return;
        }
        for (index, _) in &blocks {
            active.picker.checking(piece, *index);
        }
        self.outputs.push_back(Output::VerifyBlocks(piece, blocks));
    }

    /// The gate has judged blocks of a begun piece.
    pub fn blocks_judged(&mut self, piece: PieceIndex, good: &[u32], bad: &[u32], now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        for index in good {
            active.picker.proven(piece, *index);
        }
        let mut liars = Vec::new();
        for index in bad {
            liars.extend(active.picker.refused(piece, *index));
            self.totals.wasted += u64::from(BLOCK_LEN);
            self.outputs.push_back(Output::Refuse(piece, *index));
        }
        active.demand_changed();
        let broken = active.trees.as_mut().is_some_and(|trees| trees.broken.contains_key(&piece));
        self.reply_to_readers(piece);
        if broken {
            self.bad_blocks_found(piece, bad.is_empty(), now);
        }
        for key in liars {
            self.ban(key, now);
        }
    }

    /// The store no longer has a block that was proven.
    pub fn block_lost(&mut self, piece: PieceIndex, index: u32) {
        if let Some(active) = &mut self.active {
            active.picker.refused(piece, index);
            active.demand_changed();
            // It may be in memory still, and would be in the way of the next copy.
            self.outputs.push_back(Output::Refuse(piece, index));
        }
    }

    /// The gate refused a piece whose root is known: asks for the hashes of its blocks, which say who
    /// sent what is wrong. `false` if there is nobody to ask.
    pub(super) fn find_bad_blocks(&mut self, piece: PieceIndex, now: Timestamp) -> bool {
        let able = self.somebody_proves(piece);
        let Some(active) = &mut self.active else { return false };
        let Some(trees) = active.trees.as_mut() else { return false };
        let count = active.geometry.block_count(piece);
        let since = trees.broken.get(&piece).copied();
        if !active.picker.is_in_memory(piece) {
            // It was given up meanwhile, for its memory.
            trees.broken.remove(&piece);
            return false;
        }
        if count == 1 || (!able && since.is_none()) {
            return false;
        }
        if !active.picker.is_partial(piece) {
            // It is whole again and at the gate.
            return true;
        }
        // Whoever sent it may be banned by now; others with the hashes may come.
        let others = self.peers.values().any(|p| p.serves(piece));
        if !able && others && since.is_some_and(|at| now.since(at) > WAIT_FOR_HASHES) {
            trees.broken.remove(&piece);
            self.fetch_again(piece, Vec::new(), now);
            return false;
        }
        trees.broken.entry(piece).or_insert(now);
        self.prove_blocks(piece, 0..count, now);
        self.check_blocks(piece, 0..count);
        true
    }

    /// Some blocks of a piece that the gate had refused were judged.
    fn bad_blocks_found(&mut self, piece: PieceIndex, none_bad: bool, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let all_good =
            none_bad && active.picker.are_proven(piece, 0..active.geometry.block_count(piece));
        if let Some(trees) = active.trees.as_mut().filter(|_| all_good || !none_bad) {
            trees.broken.remove(&piece);
        }
        if all_good && let Some(active) = &mut self.active {
            // They are what their hashes say, and the piece is not what its own says: as the root is known
            // by now, the gate sees whether it is the torrent that contradicts itself.
            active.picker.judged_again(piece);
            self.verify(piece, now);
        }
    }
}
