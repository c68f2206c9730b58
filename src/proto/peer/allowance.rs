//! How much one peer may ask hashes for (BEP 52).

use crate::proto::rate::Tokens;
use crate::proto::time::Timestamp;

/// Hashes that a peer may be sent at once, padding and proof included: 1 MiB, while asking for them takes
/// hardly anything.
const HASHES: f64 = 32_768.0;

/// Hashes that it may be sent in a second in the long run: 256 KiB.
const HASHES_PER_SECOND: f64 = 8_192.0;

/// What any answer counts for at least, in hashes.
const LEAST: f64 = 16.0;

/// Pieces that are hashed for a choked peer at once.
const READS: f64 = 16.0;

/// Pieces that are hashed for a choked peer in a second in the long run. One that is not choked has a
/// slot, which is of use to it only when it asks for blocks.
const READS_PER_SECOND: f64 = 1.0;

/// How much one peer may still ask hashes for.
#[derive(Clone, Debug)]
pub struct HashAllowance {
    hashes: Tokens,
    reads: Tokens,
}

impl HashAllowance {
    /// That of a new peer.
    pub const fn new(now: Timestamp) -> Self {
        Self { hashes: Tokens::new(HASHES, now), reads: Tokens::new(READS, now) }
    }

    /// Whether an answer of `count` hashes may be sent, which then counts.
    pub fn send(&mut self, count: usize, now: Timestamp) -> bool {
        let cost = (count as f64).max(LEAST);
        let may = self.hashes.earn(HASHES_PER_SECOND, HASHES, now) >= cost;
        if may {
            self.hashes.spend(cost);
        }
        may
    }

    /// Whether a piece may be hashed though the peer is choked, which then counts.
    pub fn read(&mut self, now: Timestamp) -> bool {
        let may = self.reads.earn(READS_PER_SECOND, READS, now) >= 1.0;
        if may {
            self.reads.spend(1.0);
        }
        may
    }
}
