//! A node of the DHT on the network: one task that owns the sockets and the machine [`Dht`], and
//! [`Node`], the handle by which others ask it for something. It needs no session.

mod driver;
mod seeking;
mod sockets;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::driver::{Command, Driver};
pub(super) use self::seeking::Seeking;
use self::sockets::Sockets;
use super::clock::Clock;
use crate::proto::dht::{
    Config, Contact, Dht, DhtStats, GetPeers, Item, MAX_ROUTERS, NodeId, Outcome,
};
use crate::proto::ids::InfoHash;

/// Nodes that everybody may begin with, as `host:port`.
pub const ROUTERS: [&str; 4] = [
    "router.bittorrent.com:6881",
    "dht.transmissionbt.com:6881",
    "dht.libtorrent.org:25401",
    "router.utorrent.com:6881",
];

/// What may wait for the node. Wishes wait for room; hints (nodes, votes) are dropped without.
const MAX_COMMANDS: usize = 256;

/// Names to begin with.
const MAX_NAMES: usize = 16;

/// Addresses of one name that are used: all names together have room.
const MAX_ADDRESSES: usize = MAX_ROUTERS / MAX_NAMES;

/// How long to wait before a name is looked up again: at first, doubled each time, and at most.
const RESOLVE_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// What a node is started with.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// Addresses to speak from; empty for all of IPv4 and IPv6. One of each family is used.
    pub listen: Vec<IpAddr>,
    /// The UDP port; another one is taken if it is not free. 0 for any.
    pub port: u16,
    /// Nodes to begin with, as `host:port` ([`Node::add_names`]); the first 16.
    pub bootstrap: Vec<String>,
    /// Where the table survives; without it, it does not.
    pub saved: Option<PathBuf>,
    /// Our id; without it that of the saved table, or a random one that follows our address (BEP 42).
    pub id: Option<NodeId>,
    /// Ask only, answer nothing (BEP 43).
    pub read_only: bool,
}

/// Something a node may be asked for.
#[derive(Clone, Debug)]
pub enum Wish {
    /// Peers of a torrent ([`Dht::get_peers`]).
    GetPeers(InfoHash, GetPeers),
    /// The nodes closest to an id ([`Dht::find_node`]).
    FindNode(NodeId),
    /// An item ([`Dht::get_item`]).
    GetItem {
        /// Where it is.
        target: NodeId,
        /// What the target of a mutable item was made with.
        salt: Vec<u8>,
        /// Only what has a greater number.
        newer_than: Option<i64>,
    },
    /// Have an item kept ([`Dht::put_item`]).
    PutItem {
        /// The item.
        item: Item,
        /// Only where its number is this.
        cas: Option<i64>,
    },
    /// Whether a node is there ([`Dht::ping`]).
    Ping(SocketAddr),
    /// Some of the info hashes that a node keeps peers of ([`Dht::sample`]).
    Sample(SocketAddr, NodeId),
}

/// What comes of a [`Wish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Peers, each address once.
    Peers {
        /// The node that knew them; `None` when they had announced themselves to us.
        from: Option<SocketAddr>,
        /// Their addresses.
        peers: Vec<SocketAddr>,
    },
    /// The end of it; the last event.
    Finished(Outcome),
}

/// What comes of one wish, as it comes. Dropping it gives the wish up. What the machine gives out for
/// one wish is bounded, therefore the channel is not.
#[derive(Debug)]
pub struct Answers(mpsc::UnboundedReceiver<Event>);

impl Answers {
    /// The next event; `None` after [`Event::Finished`], or when the node has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// Waits for the end; `None` when the node ended before.
    pub async fn outcome(mut self) -> Option<Outcome> {
        loop {
            if let Event::Finished(outcome) = self.next().await? {
                return Some(outcome);
            }
        }
    }
}

/// A running node, cheap to clone. It ends with [`Self::shutdown`], or when nobody has it any more;
/// either way its table is saved.
#[derive(Clone, Debug)]
pub struct Node {
    commands: mpsc::Sender<Command>,
    stats: watch::Receiver<DhtStats>,
    addrs: Vec<SocketAddr>,
    cancel: CancellationToken,
    task: TaskTracker,
}

impl Node {
    /// Opens the sockets and starts the node, in the runtime that this is called in. An error is that
    /// of the last address that could not be used, when none could.
    pub fn start(config: NodeConfig) -> io::Result<Self> {
        let sockets = Sockets::open(&config.listen, config.port)?;
        let addrs = sockets.addrs();
        let clock = Clock::start();
        let machine = Config {
            id: config.id,
            v4: addrs.iter().any(SocketAddr::is_ipv4),
            v6: addrs.iter().any(SocketAddr::is_ipv6),
            read_only: config.read_only,
            restrict: true,
        };
        let dht = Dht::new(machine, rand::rng().random(), clock.now());
        let (commands, commands_rx) = mpsc::channel(MAX_COMMANDS);
        let (stats, stats_rx) = watch::channel(dht.stats());
        let (cancel, task) = (CancellationToken::new(), TaskTracker::new());
        let driver = Driver::new(dht, clock, sockets, commands_rx, stats, config.saved);
        task.spawn(driver.run(cancel.clone()));
        task.close();
        let node = Self { commands, stats: stats_rx, addrs, cancel, task };
        node.add_names(config.bootstrap.into_iter().take(MAX_NAMES));
        Ok(node)
    }

    /// Where it listens: at most one address of each family.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The UDP port of IPv4, or of IPv6 where there is no other.
    pub fn port(&self) -> u16 {
        self.addrs.first().map_or(0, SocketAddr::port)
    }

    /// Asks for something. At most some hundreds of wishes wait at once; others end at once with
    /// [`Outcome::Refused`].
    pub async fn ask(&self, wish: Wish) -> Answers {
        let (events, answers) = mpsc::unbounded_channel();
        // When the node has ended, so do the answers.
        let _ = self.commands.send(Command::Wish(wish, events)).await;
        Answers(answers)
    }

    /// Looks for peers of a torrent, and announces it if that is wanted.
    pub async fn get_peers(&self, info_hash: InfoHash, options: GetPeers) -> Answers {
        self.ask(Wish::GetPeers(info_hash, options)).await
    }

    /// Who is at an address, and how far it is; `None` without an answer.
    pub async fn ping(&self, addr: SocketAddr) -> Option<(Contact, Duration)> {
        match self.ask(Wish::Ping(addr)).await.outcome().await? {
            Outcome::Pong { contact, rtt } => Some((contact, rtt)),
            _ => None,
        }
    }

    /// Says that there may be nodes at these names (`host:port`), which are looked up in the
    /// background, again and again until that succeeds.
    pub fn add_names(&self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let (commands, cancel) = (self.commands.downgrade(), self.cancel.clone());
            tokio::spawn(async move {
                cancel.run_until_cancelled(introduce(name, commands)).await;
            });
        }
    }

    /// Says that somebody names itself as a node (BEP 5, PORT): it is asked once whether it is there.
    /// Dropped when the node has too much to do.
    pub fn met(&self, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::Met(addr));
    }

    /// Says that there may be a node to begin with: it is asked, again until somebody is known, and
    /// used if it answers. Dropped when the node has
    /// too much to do.
    pub fn add_node(&self, addr: SocketAddr) {
        let _ = self.commands.try_send(Command::AddNode(addr));
    }

    /// Says that `voter` sees us at `ours` (BEP 10, `yourip`). Dropped when the node has too much to
    /// do.
    pub fn voted(&self, voter: IpAddr, ours: IpAddr) {
        let _ = self.commands.try_send(Command::Voted(voter, ours));
    }

    /// How things are, a tenth of a second ago at most; that the first node is known is said at once.
    pub fn stats(&self) -> DhtStats {
        self.stats.borrow().clone()
    }

    /// How many nodes are known.
    pub fn nodes(&self) -> usize {
        self.stats.borrow().nodes.iter().sum()
    }

    /// Waits until a node is known; for ever if none ever is. `false` when the node has ended.
    pub async fn wait_for_nodes(&self) -> bool {
        let known = |stats: &DhtStats| stats.nodes.iter().any(|nodes| *nodes > 0);
        self.stats.clone().wait_for(known).await.is_ok()
    }

    /// Saves the table and ends the node.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.task.wait().await;
    }
}

/// The public routers, unless we listen on loopback addresses only: then nobody beyond this machine
/// is to hear of us.
pub fn public_routers(listen: &[IpAddr]) -> Vec<String> {
    let loopback = !listen.is_empty() && listen.iter().all(IpAddr::is_loopback);
    if loopback { Vec::new() } else { ROUTERS.map(str::to_owned).to_vec() }
}

/// Tells the node what addresses a name has, once that is known.
async fn introduce(name: String, commands: mpsc::WeakSender<Command>) {
    let (mut delay, longest) = RESOLVE_AGAIN;
    loop {
        match tokio::net::lookup_host(&name).await {
            Ok(addrs) => {
                let Some(commands) = commands.upgrade() else { return };
                for addr in addrs.take(MAX_ADDRESSES) {
                    let _ = commands.send(Command::AddNode(addr)).await;
                }
                return;
            }
            Err(error) => debug!(name, %error, "a DHT router is not known"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(longest);
    }
}

#[cfg(test)]
mod tests;
