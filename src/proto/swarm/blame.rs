//! Blame: who sent the bad block.
//!
//! When a piece fails its hash and several peers sent its blocks, none is proven guilty. The
//! digest of each block is remembered with its sender; once the piece passes, every remembered
//! block that differs from the good one proves its sender wrong ("smart ban"). A piece that came
//! from one peer alone proves it at once.

use std::collections::BTreeMap;

use super::PeerKey;
use crate::proto::geometry::PieceIndex;

/// SHA-1 of one block, for comparison only.
pub type Digest = [u8; 20];

/// Pieces whose failures are remembered; beyond it the oldest index goes first.
const MAX_PIECES: usize = 256;

/// Failures remembered of one piece.
const MAX_FAILURES: usize = 8;

#[derive(Clone, Debug)]
struct Failure {
    sources: Vec<PeerKey>,
    digests: Vec<Digest>,
}

/// What is remembered of failed pieces.
#[derive(Clone, Debug, Default)]
pub struct Blame {
    failures: BTreeMap<PieceIndex, Vec<Failure>>,
}

impl Blame {
    /// `piece` failed; `sources[i]` sent the block whose digest is `digests[i]`. Returns the peer
    /// that is thereby proven to have sent bad data.
    pub fn failed(
        &mut self,
        piece: PieceIndex,
        sources: Vec<PeerKey>,
        digests: Vec<Digest>,
    ) -> Option<PeerKey> {
        let first = *sources.first()?;
        if sources.iter().all(|&s| s == first) {
            return Some(first);
        }
        if self.failures.len() >= MAX_PIECES && !self.failures.contains_key(&piece) {
            self.failures.pop_first();
        }
        let of_piece = self.failures.entry(piece).or_default();
        if of_piece.len() < MAX_FAILURES {
            of_piece.push(Failure { sources, digests });
        }
        None
    }

    /// Whether the digests of the good blocks of `piece` are of use.
    pub fn wants_digests(&self, piece: PieceIndex) -> bool {
        self.failures.contains_key(&piece)
    }

    /// `piece` passed with these block digests: who had sent something else?
    pub fn passed(&mut self, piece: PieceIndex, good: &[Digest]) -> Vec<PeerKey> {
        let mut guilty: Vec<_> = self
            .failures
            .remove(&piece)
            .unwrap_or_default()
            .into_iter()
            .flat_map(|f| f.sources.into_iter().zip(f.digests).zip(good).collect::<Vec<_>>())
            .filter(|((_, sent), good)| sent != *good)
            .map(|((peer, _), _)| peer)
            .collect();
        guilty.sort_unstable();
        guilty.dedup();
        guilty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::geometry::Geometry;

    fn piece() -> PieceIndex {
        Geometry::new(100_000, 32_768).unwrap().piece(0).unwrap()
    }

    #[test]
    fn a_sole_source_is_proven_at_once() {
        let mut blame = Blame::default();
        let liar = PeerKey(7);
        assert_eq!(blame.failed(piece(), vec![liar; 2], vec![[0; 20]; 2]), Some(liar));
        assert!(!blame.wants_digests(piece()));
    }

    #[test]
    fn only_the_sender_of_the_differing_block_is_guilty() {
        let mut blame = Blame::default();
        let sources = vec![PeerKey(1), PeerKey(2)];
        assert_eq!(blame.failed(piece(), sources, vec![[1; 20], [9; 20]]), None);
        assert!(blame.wants_digests(piece()));
        assert_eq!(blame.passed(piece(), &[[1; 20], [2; 20]]), [PeerKey(2)]);
        assert!(!blame.wants_digests(piece()));
    }
}
