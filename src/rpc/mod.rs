//! The control protocol: how `p2pfs` talks to `p2pfs-mountd` over a unix socket.
//!
//! One connection carries one request. The daemon speaks first, with a [`Hello`]; the client sends
//! a [`Call`]; any number of [`Response`]s follow, the last one [`Response::Done`] or
//! [`Response::Error`]. A client that hangs up earlier cancels what it asked for. Each message is a
//! [`frame`] of JSON, and both sides name their [`VERSION`] before anything else is read.
//!
//! Both ends look at the other's credentials: a daemon serves its own user and root, a client
//! trusts daemons of its own user and of root.

mod cache;
mod client;
mod config;
mod dht;
pub mod frame;
mod listener;
mod message;
pub mod metrics;
mod path;
mod place;
mod settings;
pub mod size;
mod view;

pub use cache::{CacheRequest, CachedTorrent, CheckedTorrent, care};
pub use client::{Client, ConnectError};
pub use config::{Config, DAEMON_KEYS, MOUNT_KEYS};
pub use dht::{DhtStatus, FamilyStatus};
pub use listener::{ListenError, Listener, start_lock};
pub use message::{
    Call, DhtNodes, ErrorKind, Hello, ListedFile, MountRequest, Outcome, PartStatus, Progress,
    Request, Response, RpcError, SeedRequest, ShareKind, ShareStatus, SourceRequest, Unmounting,
    visible,
};
pub use path::WirePath;
pub use place::{NO_PLACES, Places, beside};
pub use settings::{Settings, parse_log, parse_node};
pub use view::{Cell, MAX_CELLS, PeerStatus, TorrentView, WaitStatus};

/// The version of the protocol. Both sides must agree exactly: the programs are installed together.
pub const VERSION: u32 = 3;
