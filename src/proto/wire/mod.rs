//! The peer wire: handshake, messages and their codec, the extension protocol (BEP 3, 6, 9, 10).

mod message;

pub use message::{Message, RawBlock};
