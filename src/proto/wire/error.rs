//! What a peer did wrong on the wire.

/// Bytes from a peer that are not the protocol. The only answer is to disconnect: after a frame
/// that makes no sense, the place of the next one is not known either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first twenty bytes are not those of BEP 3.
    #[error("not a BitTorrent handshake")]
    NotBitTorrent,
    /// A message is longer than any honest one of its type.
    #[error("a message of type {id} claims {length} bytes")]
    TooLong {
        /// The message's type.
        id: u8,
        /// The length it claims, in bytes.
        length: u32,
    },
    /// A message has a length that its type cannot have.
    #[error("a message of type {id} cannot have {length} bytes")]
    BadLength {
        /// The message's type.
        id: u8,
        /// The length it claims, in bytes.
        length: u32,
    },
    /// The payload of an extension message is not the bencoded dictionary it has to be.
    #[error("a malformed message of extension {0}")]
    BadExtension(&'static str),
}
