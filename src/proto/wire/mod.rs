//! The peer wire: handshake, messages and their codec, the extension protocol (BEP 3, 6, 9, 10).
//!
//! Everything here turns bytes into values and back, without I/O and with a bound on each thing a
//! peer may send. The one machine among them is [`metadata::MetadataFetch`], which asks several
//! peers for the info dictionary of a magnet.

pub mod allowed_fast;
pub mod codec;
mod error;
pub mod extended;
pub mod handshake;
mod message;
pub mod metadata;
pub mod pex;

pub use codec::{Decoder, Frame};
pub use error::WireError;
pub use handshake::{Handshake, Reserved};
pub use message::{Message, RawBlock, RawHashes};
