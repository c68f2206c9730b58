//! Nodes of the DHT: in the test's process, or `p2pfs dht node` as a process of its own.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use p2pfs::engine::dht::{Node, NodeConfig};
use p2pfs::proto::dht::{GetPeers, Outcome};
use tokio::runtime::Runtime;

use super::{PATIENCE, Process, Scratch, wait_for, wait_until};

/// A network of nodes in this process that know each other, at addresses of this thread's host.
pub struct DhtNodes {
    nodes: Vec<Node>,
    runtime: Runtime,
}

impl DhtNodes {
    /// A node at each address; all begin with the first.
    pub fn start(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let mut nodes: Vec<Node> = Vec::new();
        let entered = runtime.enter();
        for address in addresses {
            let first = nodes.first().map(|node| node.local_addrs()[0].to_string());
            let bootstrap = first.into_iter().collect();
            let config = NodeConfig { listen: vec![address], bootstrap, ..NodeConfig::default() };
            nodes.push(Node::start(config).unwrap());
        }
        drop(entered);
        let few = (nodes.len() - 1).min(8);
        wait_until("the nodes know each other", PATIENCE, || {
            nodes.iter().all(|n| n.nodes() >= few)
        });
        Self { nodes, runtime }
    }

    /// Whether somebody has announced a torrent. The nodes ask each other: one that came to ask and
    /// went away would stay in the tables of clients that do not know BEP 43.
    pub fn know_peers_of(&self, info_hash: &str) -> bool {
        find(&self.nodes[0], &self.runtime, info_hash)
    }

    /// Where they are.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.local_addrs()[0]).collect()
    }

    /// The first of them, as `--dht-bootstrap` wants it.
    pub fn bootstrap(&self) -> String {
        self.nodes[0].local_addrs()[0].to_string()
    }
}

/// Asks the DHT from loopback, in the test's process: it enters no table (BEP 43).
pub struct DhtAsker {
    node: Node,
    runtime: Runtime,
}

impl DhtAsker {
    /// Begins with this node.
    pub fn new(first: SocketAddr) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let node = {
            let _inside = runtime.enter();
            let (listen, bootstrap) = (vec![[127, 0, 0, 1].into()], vec![first.to_string()]);
            let config = NodeConfig { listen, bootstrap, read_only: true, ..NodeConfig::default() };
            Node::start(config).unwrap()
        };
        Self { node, runtime }
    }

    /// Waits until somebody has announced a torrent.
    #[track_caller]
    pub fn wait_for_peers_of(&self, info_hash: &str) {
        wait_until("it is announced", PATIENCE, || find(&self.node, &self.runtime, info_hash));
    }
}

/// Whether a node finds peers of a torrent.
fn find(node: &Node, runtime: &Runtime, info_hash: &str) -> bool {
    let hash = info_hash.parse().unwrap();
    let asked = async { node.get_peers(hash, GetPeers::default()).await.outcome().await };
    matches!(runtime.block_on(asked), Some(Outcome::Peers { peers: 1.., .. }))
}

/// `p2pfs dht node` on loopback.
pub struct DhtNode {
    pub process: Process,
    pub address: SocketAddr,
}

impl DhtNode {
    /// Starts it with these arguments; returns when it listens.
    #[track_caller]
    pub fn start(scratch: &Scratch, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
        command.args(["dht", "node", "--listen", "127.0.0.1"]).args(arguments);
        command.current_dir(scratch.root()).env("HOME", scratch.root());
        let mut process = Process::spawn(scratch, &mut command);
        let address = wait_for(PATIENCE, || {
            assert!(!process.has_ended(), "p2pfs dht node ended: {}", process.stderr());
            let said = String::from_utf8(process.stdout()).unwrap();
            said.strip_suffix('\n')?.parse().ok()
        });
        Self { process, address: address.expect("where the node listens") }
    }

    /// Its address, as `--dht-bootstrap` wants it.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }
}
