//! What the integration tests share: scratch space that cleans up after itself, torrents with
//! deterministic content, real peers as child processes, and the programs under test.
//!
//! Rules: everything talks to loopback only, every wait has a bound and names what it waits for,
//! and nothing (process, mount, file) outlives the test. Every test starts with a [`Scratch`];
//! what is declared after it is dropped before it.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

mod aria2;
mod content;
mod dht;
mod http;
mod libtorrent;
mod network;
mod opentracker;
mod p2pfs;
mod process;
mod scratch;
mod stalling;
mod torrent;
mod transmission;
mod tree;

use std::time::{Duration, Instant};

pub use aria2::Aria2;
pub use content::{Content, KIB, MIB, bytes};
pub use dht::{DhtAsker, DhtNode, DhtNodes};
pub use http::HttpServer;
pub use libtorrent::{Libtorrent, LibtorrentDht};
pub use network::{Eavesdropper, Host, LINK, Network, on_hosts};
pub use opentracker::Opentracker;
pub use p2pfs::{Mount, P2pfs, Status, is_mounted};
pub use process::{Finished, Process, run};
pub use scratch::{Scratch, free_port, mounts_below, small_disk};
pub use stalling::StallingDisk;
pub use torrent::Torrent;
pub use transmission::Transmission;
pub use tree::{Node, Tree, sha256};

/// Long enough for anything that ends by itself on a loaded machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` after `bound`. The one place that sleeps.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let met = wait_for(bound, || condition().then_some(()));
    assert!(met.is_some(), "waited {bound:?} in vain: {what}");
}

/// Waits until `get` returns something, at most `bound`.
pub fn wait_for<T>(bound: Duration, mut get: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + bound;
    loop {
        // Looked at once more after the deadline: this thread may have been kept from running.
        let late = Instant::now() >= deadline;
        if let Some(found) = get() {
            return Some(found);
        }
        if late {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
