//! Handing out: what a complete torrent gives to whom first, and who passes it on.
//!
//! Each piece should leave a seed once before any leaves it twice. Peers that seed a swarm's only
//! copy cannot arrange that among themselves: each asks for what it takes to be rarest, and does not
//! know what those it is not connected to have been given. So the seed suggests pieces, each to one
//! peer (BEP 6); those who do not care for suggestions are none the worse for them.
//!
//! Programs that read the same file at the same time all want the same piece next. A piece that is
//! on its way to one peer is refused to the others until they can have it from there.
//!
//! A piece that went to one peer when nobody else had it shows up elsewhere, unless that peer keeps
//! it (the idea behind BEP 16): that tells who passes on what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;

use super::PeerKey;
use crate::proto::geometry::PieceIndex;
use crate::proto::time::Timestamp;

/// Suggestions that one peer may not have taken up, and that we remember of one: what keeps a fast
/// and long connection busy even when pieces are small.
pub const MAX_SUGGESTED: usize = 256;

/// A piece that was promised to one peer is refused to others for this many times as long as it
/// takes until promised pieces show up elsewhere, so that nearly all can have it from there, ...
const PATIENCE: u32 = 4;

/// ... but no longer than this, so that somebody who keeps what it gets does not hold up readers.
const MAX_PATIENCE: Duration = Duration::from_secs(8);

/// How much the latest piece counts in the average time until they show up elsewhere.
const LATEST: f64 = 0.1;

/// What a block that was sent says about first copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The peer has been lent the first copy of the piece.
    Lent,
    /// That peer was lent it, and somebody else has to be given it too.
    Again(PeerKey),
    /// Nothing.
    Known,
}

/// What a complete torrent has given and suggested to whom.
#[derive(Clone, Debug)]
pub struct HandOut {
    /// Pieces that were suggested to nobody, in random order; some may have been given meanwhile.
    waiting: Vec<PieceIndex>,
    /// Pieces that others said they have when it was their turn.
    elsewhere: Vec<PieceIndex>,
    suggested: BTreeMap<PeerKey, BTreeSet<PieceIndex>>,
    /// Who was the first to ask for a piece that nobody had, and when.
    promised: BTreeMap<PieceIndex, (PeerKey, Timestamp)>,
    /// How long it takes on average until a promised piece shows up at a second peer.
    spreads_in: Duration,
    /// Pieces whose first copy went to a peer; `None` once that tells nothing any more.
    first: BTreeMap<PieceIndex, Option<PeerKey>>,
}

impl HandOut {
    /// Nothing was given yet of `pieces`.
    pub fn new(pieces: impl Iterator<Item = PieceIndex>, rng: &mut impl Rng) -> Self {
        let mut waiting: Vec<_> = pieces.collect();
        waiting.shuffle(rng);
        Self {
            waiting,
            elsewhere: Vec::new(),
            suggested: BTreeMap::new(),
            promised: BTreeMap::new(),
            spreads_in: MAX_PATIENCE / PATIENCE,
            first: BTreeMap::new(),
        }
    }

    /// Up to `more` pieces to suggest to `peer`, of which it need not have taken up others. `lacking`
    /// tells whether nobody but seeds has a piece.
    pub fn suggest(
        &mut self,
        peer: PeerKey,
        more: usize,
        lacking: impl Fn(PieceIndex) -> bool,
    ) -> Vec<PieceIndex> {
        let mut new = Vec::new();
        if more == 0 {
            return new;
        }
        let mine = self.suggested.entry(peer).or_default();
        mine.retain(|piece| !self.first.contains_key(piece));
        while new.len() < more
            && mine.len() < MAX_SUGGESTED
            && let Some(piece) = self.waiting.pop()
        {
            if self.first.contains_key(&piece) || self.promised.contains_key(&piece) {
                continue;
            }
            match lacking(piece) {
                false => self.elsewhere.push(piece),
                true if mine.insert(piece) => new.push(piece),
                true => {}
            }
        }
        new
    }

    /// `peer` asks for `piece`: the suggestion has been taken up, if it was one.
    pub fn asked(&mut self, peer: PeerKey, piece: PieceIndex) {
        if let Some(mine) = self.suggested.get_mut(&peer) {
            mine.remove(&piece);
        }
    }

    /// Whether `peer` may have `piece` from us: not while its first copy is on its way to somebody
    /// else. If nobody has it (`lacking`), it is on its way to `peer` now.
    pub fn promise(
        &mut self,
        piece: PieceIndex,
        peer: PeerKey,
        lacking: bool,
        now: Timestamp,
    ) -> bool {
        let patience = (self.spreads_in * PATIENCE).min(MAX_PATIENCE);
        let promise = self.promised.get(&piece).filter(|(_, at)| now.since(*at) < patience);
        if promise.is_some_and(|(to, _)| *to != peer) {
            return false;
        }
        if promise.is_none() && lacking {
            self.promised.insert(piece, (peer, now));
        }
        true
    }

    /// Whether `peer` was suggested something since it could ask.
    pub fn has_suggested(&self, peer: PeerKey) -> bool {
        self.suggested.contains_key(&peer)
    }

    /// `peer` does not want a block of `piece` any more; others may have it if nothing of it was
    /// sent.
    pub fn cancelled(&mut self, peer: PeerKey, piece: PieceIndex) {
        if self.promised.get(&piece).is_some_and(|(to, _)| *to == peer) {
            self.void(piece);
        }
    }

    /// `peer` can ask for nothing more: what was suggested or promised to it is for others.
    pub fn take_back(&mut self, peer: PeerKey) {
        self.waiting.extend(self.suggested.remove(&peer).unwrap_or_default());
        let promised = self.promised.iter().filter(|(_, (to, _))| *to == peer);
        for piece in promised.map(|(piece, _)| *piece).collect::<Vec<_>>() {
            self.void(piece);
        }
    }

    /// A peer is gone: what it had, or said it has, may be nowhere else.
    pub fn peer_left(&mut self) {
        self.waiting.append(&mut self.elsewhere);
    }

    /// A promise is void, unless it was kept in part.
    fn void(&mut self, piece: PieceIndex) {
        if !self.first.contains_key(&piece) {
            self.promised.remove(&piece);
            self.waiting.push(piece);
        }
    }

    /// A block of `piece` went to `peer`; `lacking` when nobody but seeds has it.
    pub fn sent(&mut self, piece: PieceIndex, peer: PeerKey, lacking: bool) -> Sent {
        match self.first.get(&piece) {
            Some(&Some(to)) if to != peer => {
                self.first.insert(piece, None);
                Sent::Again(to)
            }
            None if lacking => {
                self.first.insert(piece, Some(peer));
                Sent::Lent
            }
            _ => Sent::Known,
        }
    }

    /// Whether `piece`, which was sent, shows up elsewhere will tell nothing of who was given it.
    pub fn tells_nothing(&mut self, piece: PieceIndex) {
        self.first.insert(piece, None);
    }

    /// `piece` has shown up at `peer`: who has passed it on, if it was lent to somebody else.
    pub fn shown(&mut self, piece: PieceIndex, peer: PeerKey, now: Timestamp) -> Option<PeerKey> {
        let to = (*self.first.get(&piece)?).filter(|to| *to != peer)?;
        if let Some((_, at)) = self.promised.get(&piece) {
            let (took, usual) = (now.since(*at).min(MAX_PATIENCE), self.spreads_in);
            self.spreads_in = usual.mul_f64(1.0 - LATEST) + took.mul_f64(LATEST);
        }
        self.first.insert(piece, None);
        Some(to)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::proto::geometry::Geometry;

    const A: PeerKey = PeerKey(1);
    const B: PeerKey = PeerKey(2);

    fn hand_out(pieces: u64) -> (HandOut, Vec<PieceIndex>) {
        let geometry = Geometry::new(pieces << 14, 1 << 14).unwrap();
        let all: Vec<_> = geometry.pieces().collect();
        (HandOut::new(all.iter().copied(), &mut ChaCha8Rng::seed_from_u64(1)), all)
    }

    #[test]
    fn each_piece_is_suggested_to_one_peer() {
        let (mut out, all) = hand_out(10);
        let (a, b) = (out.suggest(A, 6, |_| true), out.suggest(B, 6, |_| true));
        let both: BTreeSet<_> = a.iter().chain(&b).copied().collect();
        assert_eq!((a.len(), b.len(), both.len()), (6, 4, all.len()));
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn what_is_on_its_way_to_one_peer_is_refused_to_others_for_a_while() {
        let (mut out, all) = hand_out(3);
        assert!(out.promise(all[0], A, true, at(0)));
        assert!(out.promise(all[0], A, true, at(1)));
        assert!(!out.promise(all[0], B, true, at(1)));
        assert!(out.promise(all[1], B, true, at(1)));
        assert!(out.promise(all[2], A, false, at(1)) && out.promise(all[2], B, false, at(1)));
        assert!(out.promise(all[0], B, true, at(0) + MAX_PATIENCE));
        assert!(!out.promise(all[0], A, true, at(0) + MAX_PATIENCE), "now it is B's");
    }

    #[test]
    fn patience_follows_how_fast_pieces_spread() {
        let (mut out, all) = hand_out(101);
        for piece in &all[..100] {
            out.promise(*piece, A, true, at(0));
            out.sent(*piece, A, true);
            out.shown(*piece, B, at(0) + Duration::from_millis(50));
        }
        out.promise(all[100], A, true, at(0));
        assert!(!out.promise(all[100], B, true, at(0) + Duration::from_millis(190)));
        assert!(out.promise(all[100], B, true, at(0) + Duration::from_millis(250)));
    }

    #[test]
    fn a_promise_is_void_once_it_is_not_wanted_or_cannot_be_kept() {
        let (mut out, all) = hand_out(3);
        out.promise(all[0], A, true, at(0));
        out.cancelled(B, all[0]);
        assert!(!out.promise(all[0], B, true, at(0)));
        out.cancelled(A, all[0]);
        assert!(out.promise(all[0], B, true, at(0)));
        out.promise(all[1], A, true, at(0));
        out.promise(all[2], A, true, at(0));
        out.sent(all[2], A, true);
        out.take_back(A);
        assert!(out.promise(all[1], B, true, at(0)));
        assert!(!out.promise(all[2], B, true, at(0)), "it may finish what it has begun");
    }

    #[test]
    fn only_so_many_suggestions_wait_and_what_was_asked_for_makes_room_for_another() {
        let (mut out, _) = hand_out(1_000);
        while !out.suggest(A, 100, |_| true).is_empty() {}
        assert_eq!(out.suggested[&A].len(), MAX_SUGGESTED);
        let taken = *out.suggested[&A].first().unwrap();
        out.asked(A, taken);
        assert_eq!(out.suggest(A, 100, |_| true).len(), 1);
    }

    #[test]
    fn what_a_peer_did_not_ask_for_is_suggested_to_others() {
        let (mut out, _) = hand_out(3);
        let mut first = out.suggest(A, 3, |_| true);
        assert_eq!(out.suggest(B, 3, |_| true), []);
        out.take_back(A);
        let mut again = out.suggest(B, 3, |_| true);
        first.sort();
        again.sort();
        assert_eq!(first, again);
    }

    #[test]
    fn what_the_swarm_has_or_was_given_is_not_suggested() {
        let (mut out, all) = hand_out(3);
        assert_eq!(out.sent(all[0], B, true), Sent::Lent);
        assert_eq!(out.suggest(A, 3, |p| p != all[1]), [all[2]]);
    }

    #[test]
    fn a_loan_ends_when_the_piece_shows_up_elsewhere_or_has_to_be_given_again() {
        let (mut out, all) = hand_out(3);
        out.sent(all[0], A, true);
        assert_eq!(out.shown(all[0], A, at(0)), None);
        assert_eq!(out.shown(all[0], B, at(0)), Some(A));
        assert_eq!(out.shown(all[0], B, at(0)), None);
        out.sent(all[1], A, true);
        assert_eq!(out.sent(all[1], A, true), Sent::Known);
        assert_eq!(out.sent(all[1], B, true), Sent::Again(A));
        assert_eq!(out.sent(all[1], B, true), Sent::Known);
        assert_eq!(out.sent(all[2], A, false), Sent::Known);
    }
}
