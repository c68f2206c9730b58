//! `p2pfs dht`

mod get_peers;
mod node;
mod ping;
mod stats;

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use p2pfs::engine::dht::{Node, NodeConfig, public_routers};
use p2pfs::rpc::parse_node;

/// Ask the distributed hash table, or be a part of it
///
/// Without a daemon, but for `stats`.
#[derive(Debug, Args)]
pub struct Dht {
    #[command(subcommand)]
    verb: DhtVerb,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum DhtVerb {
    Ping(ping::Ping),
    GetPeers(get_peers::GetPeers),
    Node(node::RunNode),
    Stats(stats::Stats),
}

impl Dht {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        match self.verb {
            DhtVerb::Ping(verb) => verb.run().await,
            DhtVerb::GetPeers(verb) => verb.run().await,
            DhtVerb::Node(verb) => verb.run().await,
            DhtVerb::Stats(verb) => verb.run(socket).await,
        }
    }
}

/// Whom to begin with.
#[derive(Clone, Debug, Default, Args)]
pub struct Bootstrap {
    /// DHT node to begin with instead of the public ones, repeatable
    #[arg(long = "dht-bootstrap", value_name = "HOST:PORT", value_parser = parse_node)]
    pub nodes: Vec<String>,
}

impl Bootstrap {
    /// What a node is started with that speaks from `listen`, at any port.
    pub fn config(self, listen: Vec<IpAddr>) -> NodeConfig {
        let bootstrap = if self.nodes.is_empty() { public_routers(&listen) } else { self.nodes };
        NodeConfig { listen, bootstrap, ..NodeConfig::default() }
    }

    /// A node that asks something and ends: it answers nothing, so nobody remembers it (BEP 43).
    pub fn ask_only(self) -> Result<Node> {
        start(NodeConfig { read_only: true, ..self.config(Vec::new()) })
    }
}

fn start(config: NodeConfig) -> Result<Node> {
    Node::start(config).context("no UDP socket can be opened for the DHT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_nodes_replace_the_public_ones() {
        let named = Bootstrap { nodes: vec!["192.0.2.1:1".into()] };
        assert_eq!(named.config(Vec::new()).bootstrap, ["192.0.2.1:1"]);
        assert!(Bootstrap::default().config(Vec::new()).bootstrap.len() > 1);
    }
}
