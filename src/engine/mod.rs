//! The tokio shell around the machines: it owns sockets, timers and tasks, and decides nothing.
//!
//! A [`Session`] holds what all torrents share: the listening port, the cache, the choker and the
//! rate limits. Each torrent lives in a task of its own (`task.rs`), each connection in two
//! (`peer.rs`): one that reads, one that writes. [`Torrent`] is the handle for everybody else.

mod add;
mod blocks;
mod clock;
mod data;
pub mod dht;
mod http;
mod listen;
mod lsd;
mod network;
mod opening;
mod peer;
mod rates;
mod select;
mod session;
pub mod source;
mod status;
mod task;
mod torrent;
pub mod tracker;

pub use crate::store::{Kept, Limits, disk_size};
pub use add::{AddError, AddProgress, AddTorrent};
pub use data::DataPlace;
pub use rates::RateLimits;
pub use session::{DhtConfig, Session, SessionConfig, SessionError};
pub use source::{Source, SourceError, local, resolve};
pub use status::TorrentStatus;
pub use torrent::{ReadError, ReadHandle, Torrent, Waiter};
