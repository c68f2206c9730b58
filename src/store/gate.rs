//! The gate: the one place where bytes become verified bytes.
//!
//! [`VerifiedRange`] has private fields and [`check`] is the only function that makes one, after
//! the hash matched. Everything that marks a piece as readable ([`super::states`]), keeps it in
//! memory or writes it to disk asks for a `VerifiedRange`, so the compiler refuses any other way.

use std::sync::Arc;

use sha1::{Digest, Sha1};

use super::buffer::PooledBytes;
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::Info;

/// Bytes of one piece that match the piece's hash. Cheap to clone; the bytes can never change.
#[derive(Clone)]
pub struct VerifiedRange {
    torrent: InfoHash,
    piece: PieceIndex,
    data: Arc<PooledBytes>,
}

impl VerifiedRange {
    /// The torrent it belongs to.
    pub fn torrent(&self) -> InfoHash {
        self.torrent
    }

    /// The piece it is.
    pub fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// The verified bytes: the whole piece.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }
}

impl std::fmt::Debug for VerifiedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifiedRange({} piece {})", self.torrent, self.piece.get())
    }
}

/// What the gate says about a piece.
#[derive(Debug)]
pub enum Verdict {
    /// The hash matches.
    Verified {
        /// The verified bytes.
        range: VerifiedRange,
        /// SHA-1 of each block in order, where it was asked for.
        block_digests: Option<Vec<[u8; 20]>>,
    },
    /// The hash does not match; the bytes are gone.
    Mismatch {
        /// SHA-1 of each block in order, to find out later which block was wrong (smart ban).
        /// Empty when blocks were missing: then nobody is to blame but us.
        block_digests: Vec<[u8; 20]>,
    },
}

/// Checks the bytes of a whole piece against the hash in `info`.
pub(super) fn check(
    info: &Info,
    piece: PieceIndex,
    data: PooledBytes,
    block_digests: bool,
) -> Verdict {
    let digest: [u8; 20] = Sha1::digest(data.bytes()).into();
    if info.piece_hashes.get(piece.index()) != Some(&digest) {
        return Verdict::Mismatch { block_digests: digests(data.bytes()) };
    }
    let block_digests = block_digests.then(|| digests(data.bytes()));
    let range = VerifiedRange { torrent: info.info_hash, piece, data: Arc::new(data) };
    Verdict::Verified { range, block_digests }
}

fn digests(data: &[u8]) -> Vec<[u8; 20]> {
    data.chunks(BLOCK_LEN as usize).map(|block| Sha1::digest(block).into()).collect()
}
