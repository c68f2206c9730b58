//! The gate: the one place where bytes become verified bytes.
//!
//! [`VerifiedRange`] has private fields; [`check`] and [`check_block`] are the only functions that make
//! one, after the hash matched. Everything that marks a piece as readable ([`super::states`]), keeps it in
//! memory or writes it to disk asks for a `VerifiedRange`, so the compiler refuses any other way.

use std::sync::Arc;

use sha1::{Digest, Sha1};

use super::buffer::PooledBytes;
use crate::proto::geometry::{BLOCK_LEN, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::merkle::{Hash, Trusted, block_hash, block_hashes, piece_root};
use crate::proto::metainfo::Info;

/// Bytes of one piece that match its hash, or that of one of its blocks. Cheap to clone; the bytes can
/// never change.
#[derive(Clone)]
pub struct VerifiedRange {
    torrent: InfoHash,
    piece: PieceIndex,
    /// Where they begin in the piece.
    begin: u32,
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

    /// Where the verified bytes begin in the piece.
    pub fn begin(&self) -> u32 {
        self.begin
    }

    /// The verified bytes: the whole piece but for the padding that it ends in, or one block.
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
    /// One hash of a hybrid torrent matches and the other does not: it contradicts itself.
    Contradiction,
}

/// What the gate found out, with the bytes where they are not the piece's.
pub(super) enum Judged {
    /// With the hashes of the blocks, where they were computed.
    Verified(VerifiedRange, Vec<Hash>),
    Mismatch(PooledBytes),
    Contradiction,
}

/// Checks the bytes of a whole piece against the hash in `info`, where there is a v1 half, and against
/// the root of its tree, where there is a v2 half and that is known (BEP 52).
pub(super) fn check(
    info: &Info,
    piece: PieceIndex,
    root: Option<&Trusted>,
    data: PooledBytes,
) -> Judged {
    let v1 = (!info.is_v2_only()).then(|| v1_matches(info, piece, data.bytes()));
    let hashes = if root.is_some() { block_hashes(data.bytes()) } else { Vec::new() };
    let v2 = root.map(|root| root_of(info, piece, &hashes) == Some(*root.get()));
    match (v1, v2) {
        (Some(true), Some(true) | None) | (None, Some(true)) => {
            let (torrent, data) = (info.info_hash, Arc::new(data));
            Judged::Verified(VerifiedRange { torrent, piece, begin: 0, data }, hashes)
        }
        (Some(true), Some(false)) | (Some(false), Some(true)) => Judged::Contradiction,
        (Some(false), _) | (None, _) => Judged::Mismatch(data),
    }
}

/// Checks the bytes of one block, which begins at `begin` of its piece, against its hash.
pub(super) fn check_block(
    info: &Info,
    piece: PieceIndex,
    begin: u32,
    hash: &Trusted,
    data: PooledBytes,
) -> Option<VerifiedRange> {
    let matches = block_hash(data.bytes()) == *hash.get();
    let torrent = info.info_hash;
    matches.then(|| VerifiedRange { torrent, piece, begin, data: Arc::new(data) })
}

fn root_of(info: &Info, piece: PieceIndex, blocks: &[Hash]) -> Option<Hash> {
    let file = info.file_at(info.geometry.piece_range(piece).start)?;
    let length = info.files.get(file)?.length;
    Some(piece_root(blocks, length, info.geometry.piece_length()))
}

fn v1_matches(info: &Info, piece: PieceIndex, data: &[u8]) -> bool {
    let padding = vec![0; info.geometry.padding(piece) as usize];
    let digest: [u8; 20] = Sha1::new().chain_update(data).chain_update(padding).finalize().into();
    info.piece_hashes.get(piece.index()) == Some(&digest)
}

/// SHA-1 of each block in order.
pub(super) fn digests(data: &[u8]) -> Vec<[u8; 20]> {
    data.chunks(BLOCK_LEN as usize).map(|block| Sha1::digest(block).into()).collect()
}
