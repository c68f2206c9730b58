//! The messages that peers exchange after the handshake.

use bytes::Bytes;

use crate::proto::geometry::Block;
use crate::proto::merkle::Hash;

/// Three numbers from the wire that claim to name a block; nothing has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawBlock {
    /// Piece index.
    pub piece: u32,
    /// Offset within the piece, in bytes.
    pub begin: u32,
    /// Length in bytes.
    pub length: u32,
}

impl From<Block> for RawBlock {
    fn from(b: Block) -> Self {
        Self { piece: b.piece.get(), begin: b.begin(), length: b.length }
    }
}

/// Which hashes of which file's tree are meant, as the wire says it (BEP 52 "hash request"); nothing
/// has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawHashes {
    /// The root of the file's tree.
    pub root: Hash,
    /// The layer of the hashes, 0 for those of blocks ("base layer").
    pub layer: u32,
    /// The number of the first in its layer.
    pub index: u32,
    /// How many.
    pub length: u32,
    /// How many layers above theirs the proof covers.
    pub proof_layers: u32,
}

/// A message without payload; blocks of payload travel as [`super::Frame::Piece`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Nothing, to keep the connection open.
    KeepAlive,
    /// Requests will not be answered.
    Choke,
    /// Requests will be answered.
    Unchoke,
    /// We would ask if we were unchoked.
    Interested,
    /// We want nothing.
    NotInterested,
    /// The sender has this piece now.
    Have(u32),
    /// All pieces the sender has; only right after the handshake.
    Bitfield(Bytes),
    /// Asks for a block.
    Request(RawBlock),
    /// Withdraws a request.
    Cancel(RawBlock),
    /// The sender's DHT port (BEP 5).
    Port(u16),
    /// The sender would like us to ask for this piece (BEP 6).
    Suggest(u32),
    /// The sender has every piece (BEP 6).
    HaveAll,
    /// The sender has no piece (BEP 6).
    HaveNone,
    /// A request will not be answered (BEP 6).
    Reject(RawBlock),
    /// This piece may be asked for while choked (BEP 6).
    AllowedFast(u32),
    /// A message of the extension protocol (BEP 10): its number, 0 for the handshake, and payload.
    Extended(u8, Bytes),
    /// Asks for hashes of a file's tree and their proof (BEP 52).
    HashRequest(RawHashes),
    /// Hashes that were asked for, then the proof, lowest first (BEP 52).
    Hashes(RawHashes, Vec<Hash>),
    /// A request for hashes will not be answered (BEP 52).
    HashReject(RawHashes),
    /// A message of a type we do not know, which BEP 3 lets us ignore.
    Unknown(u8),
}
