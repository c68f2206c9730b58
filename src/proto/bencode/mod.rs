//! Bencode (BEP 3): the encoding of .torrent files, tracker answers and extension messages.
//!
//! What is read comes from strangers, so it is read in two steps. [`Value::parse`] walks the bytes
//! once, without recursion and within [`Limits`], and refuses whatever is not bencode to the last
//! byte. After that a [`Value`] is nothing but the exact bytes of one value: cheap to copy, nothing
//! allocated, and [`Value::raw`] gives the span that hashes are made of. Keys may come in any order,
//! because real files have it so, but each only once.
//!
//! ```
//! use p2pfs::proto::bencode::{Dict, DictWriter, Limits};
//!
//! let bytes = DictWriter::new().int(b"piece", 3).bytes(b"msg", b"hello").finish();
//! let dict = Dict::parse(&bytes, Limits::MESSAGE)?;
//! assert_eq!(dict.int(b"piece"), Some(3));
//! assert_eq!(dict.bytes(b"absent"), None);
//! # Ok::<(), p2pfs::proto::bencode::BencodeError>(())
//! ```

mod scan;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use scan::{BencodeError, Fault, Limits};
pub use value::{Dict, Entries, List, Value};
pub use write::{DictWriter, ListWriter};
