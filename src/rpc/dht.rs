//! What a daemon says about its node of the DHT.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::proto::dht::DhtStats;

/// A node of the DHT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtStatus {
    /// Process id of the daemon.
    pub pid: u32,
    /// Where it listens (UDP).
    pub listens: Vec<SocketAddr>,
    /// Its part that speaks IPv4, if there is one.
    pub v4: Option<FamilyStatus>,
    /// Its part that speaks IPv6, if there is one.
    pub v6: Option<FamilyStatus>,
    /// Whether it only asks (BEP 43), because nobody seems to reach it.
    pub read_only: bool,
    /// Torrents that peers are kept of for others.
    pub stored_torrents: usize,
    /// Peers that are kept for others.
    pub stored_peers: usize,
    /// Items that are kept for others (BEP 44).
    pub stored_items: usize,
    /// Lookups under way or waiting for their turn.
    pub lookups: usize,
    /// Questions of others that have come.
    pub asked: u64,
    /// Answers to our own that have come.
    pub answered: u64,
    /// Datagrams that have come and were dropped: no messages, answers to nothing, too many questions.
    pub dropped: u64,
    /// Our questions that nobody answered.
    pub silent: u64,
    /// Datagrams sent.
    pub sent: u64,
}

/// What a node is in one family of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// Its id.
    pub id: String,
    /// From where others see it, once enough of them agree.
    pub external: Option<IpAddr>,
    /// Nodes in its table.
    pub nodes: usize,
    /// How many nodes there are in the whole network, by estimate.
    pub network: Option<u64>,
}

impl DhtStatus {
    /// How things are with the node of the process `pid` that listens on `listens`.
    pub fn new(pid: u32, listens: &[SocketAddr], stats: &DhtStats) -> Self {
        let family = |at: usize| {
            Some(FamilyStatus {
                id: (*stats.ids.get(at)?)?.to_string(),
                external: *stats.external.get(at)?,
                nodes: *stats.nodes.get(at)?,
                network: *stats.network.get(at)?,
            })
        };
        let (stored_torrents, stored_peers) = stats.stored;
        let traffic = stats.traffic;
        Self {
            pid,
            listens: listens.to_vec(),
            v4: family(0),
            v6: family(1),
            read_only: stats.read_only,
            stored_torrents,
            stored_peers,
            stored_items: stats.items,
            lookups: stats.lookups.iter().sum(),
            asked: traffic.asked,
            answered: traffic.answered,
            dropped: traffic.dropped + traffic.limited,
            silent: traffic.silent,
            sent: traffic.sent,
        }
    }
}
