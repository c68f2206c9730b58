//! `p2pfs dht`

mod get_peers;
mod node;
mod ping;
mod stats;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use p2pfs::engine::dht::{Node, NodeConfig, public_routers};

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
    #[arg(long = "dht-bootstrap", value_name = "HOST:PORT", value_parser = host_port)]
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

/// A `HOST:PORT`, whose host may be a name.
fn host_port(text: &str) -> Result<String, String> {
    let named = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<NonZeroU16>().is_ok());
    let ambiguous = text.matches(':').count() > 1 && !text.starts_with('[');
    match named && !ambiguous {
        true => Ok(text.to_owned()),
        false => Err("not HOST:PORT; an IPv6 address is written [ADDRESS]:PORT".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_by_host_and_port() {
        for good in ["localhost:1", "127.0.0.1:6881", "[2001:db8::1]:6881"] {
            assert_eq!(host_port(good).as_deref(), Ok(good));
        }
        for bad in ["localhost", ":1", "localhost:0", "localhost:65536", "2001:db8::1:6881"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn named_nodes_replace_the_public_ones() {
        let named = Bootstrap { nodes: vec!["192.0.2.1:1".into()] };
        assert_eq!(named.config(Vec::new()).bootstrap, ["192.0.2.1:1"]);
        assert!(Bootstrap::default().config(Vec::new()).bootstrap.len() > 1);
    }
}
