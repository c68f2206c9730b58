//! The tokio shell around the machines.

mod http;
pub mod source;
mod torrent;
pub mod tracker;

pub use torrent::{ReadError, ReadHandle, Torrent, Waiter};
