//! The tokio shell around the machines.

mod http;
mod session;
pub mod source;
mod status;
mod torrent;
pub mod tracker;

pub use session::{
    AddError, AddProgress, AddTorrent, DataPlace, Session, SessionConfig, SessionError,
};
pub use source::{Source, SourceError, resolve};
pub use status::{TorrentStatus, TrackerStatus};
pub use torrent::{ReadError, ReadHandle, Torrent, Waiter};
