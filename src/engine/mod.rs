//! The tokio shell around the machines.

mod torrent;

pub use torrent::{ReadError, ReadHandle, Torrent, Waiter};
