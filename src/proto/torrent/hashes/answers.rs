//! Answering peers that ask for hashes.

use std::collections::BTreeSet;

use super::super::{Output, Torrent};
use crate::proto::geometry::PieceIndex;
use crate::proto::merkle::{Hash, HashRange, RangeError};
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawHashes};

/// Pieces that are hashed at a time because peers asked for hashes of their blocks.
const MAX_READS: usize = 4;

/// Questions of one peer that wait for pieces to be hashed; more are rejected.
const MAX_QUESTIONS: usize = 64;

impl Torrent {
    /// A peer asks for hashes. Those below the piece layer follow from the bytes of the piece, which
    /// the engine hashes. What comes too often is rejected.
    pub(in super::super) fn hashes_requested(
        &mut self,
        key: PeerKey,
        raw: RawHashes,
        now: Timestamp,
    ) {
        let (Some(active), Some(peer)) = (&mut self.active, self.peers.get_mut(&key)) else {
            return;
        };
        let trees = active.trees.as_mut().filter(|_| self.options.upload);
        let found = trees.and_then(|trees| {
            let (range, file) = (HashRange::of(&raw).ok()?, trees.with_root(&raw.root)?);
            let known = trees.file(file)?;
            range.fits(known.shape()).ok()?;
            let may = peer.hash_allowance.send(range.count(), now);
            may.then(|| (range, file, known.base(), known.answer(range)))
        });
        match found {
            Some((_, _, _, Ok(hashes))) => self.send(key, Message::Hashes(raw, hashes), now),
            Some((range, file, base, Err(RangeError::Unknown))) if range.layer() < base => {
                let at = range.index() >> (base - range.layer());
                let within = range.end() <= (at + 1) << (base - range.layer());
                let piece = self.piece_of(file, at).filter(|_| within);
                self.blocks_asked(key, piece, raw, now);
            }
            _ => self.send(key, Message::HashReject(raw), now),
        }
    }

    /// A peer asks for hashes that follow from the bytes of a piece.
    fn blocks_asked(
        &mut self,
        key: PeerKey,
        piece: Option<PieceIndex>,
        raw: RawHashes,
        now: Timestamp,
    ) {
        let (Some(active), Some(peer)) = (&self.active, self.peers.get_mut(&key)) else { return };
        let may = |_: &PieceIndex| {
            peer.hash_questions.len() < MAX_QUESTIONS
                && (!peer.am_choking || peer.hash_allowance.read(now))
        };
        let here = piece.filter(|piece| active.announced.contains(*piece)).filter(may);
        let Some(piece) = here else { return self.send(key, Message::HashReject(raw), now) };
        let readable = active.readable.contains(piece);
        peer.hash_questions.push_back((piece, raw));
        if !readable {
            self.check_at_rest(piece, now);
        }
        self.pump_hash_reads(now);
    }

    /// Has pieces hashed for peers, whoever had none for longest first. One that is only hinted waits
    /// until it was checked; questions about one that is gone are rejected.
    pub(in super::super) fn pump_hash_reads(&mut self, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let Some(trees) = &mut active.trees else { return };
        let mut rejected = Vec::new();
        for (key, peer) in self.peers.iter_mut().filter(|(_, p)| !p.hash_questions.is_empty()) {
            peer.hash_questions.retain(|(piece, raw)| {
                let here = active.announced.contains(*piece);
                rejected.extend((!here).then_some((*key, *raw)));
                here
            });
        }
        let reading: BTreeSet<PieceIndex> = trees.reading.clone();
        let ready = |piece: &PieceIndex| active.readable.contains(*piece);
        let mut waiting: Vec<_> = self
            .peers
            .iter_mut()
            .filter(|(_, p)| p.hash_questions.iter().any(|(p, _)| ready(p) && !reading.contains(p)))
            .collect();
        waiting.sort_by_key(|(key, p)| (p.last_hash_read, **key));
        for (_, peer) in waiting {
            let mut pieces = peer.hash_questions.iter().map(|(piece, _)| *piece);
            let next = pieces.find(|p| ready(p) && !trees.reading.contains(p));
            let Some(piece) = next.filter(|_| trees.reading.len() < MAX_READS) else { continue };
            peer.last_hash_read = now;
            trees.reading.insert(piece);
            self.outputs.push_back(Output::HashBlocks(piece));
        }
        for (key, raw) in rejected {
            self.send(key, Message::HashReject(raw), now);
        }
    }

    /// The blocks of a piece were hashed for peers; `None` if they could not be read. Whoever asked for
    /// hashes of them is answered.
    pub fn blocks_hashed(&mut self, piece: PieceIndex, blocks: Option<&[Hash]>, now: Timestamp) {
        let Some(trees) = self.active.as_mut().and_then(|a| a.trees.as_mut()) else { return };
        trees.reading.remove(&piece);
        let mut answers = Vec::new();
        for (key, peer) in self.peers.iter_mut().filter(|(_, p)| !p.hash_questions.is_empty()) {
            peer.hash_questions.retain(|(of, raw)| {
                if *of == piece {
                    let answer = blocks.and_then(|blocks| trees.answer(piece, raw, blocks));
                    let hashes = answer.map(|hashes| Message::Hashes(*raw, hashes));
                    answers.push((*key, hashes.unwrap_or(Message::HashReject(*raw))));
                }
                *of != piece
            });
        }
        for (key, message) in answers {
            self.send(key, message, now);
        }
        self.pump_hash_reads(now);
    }
}
