//! A network of whole nodes on loopback, with their sockets and no delay but the machine's: how long
//! an announce takes, and how long it then takes somebody else to hear of the first peer. p2pfs beside
//! `mainline`, one after the other in this process.
//!
//! `cargo bench --bench dht_network -- [--nodes N] [--lookups N] [--only p2pfs|mainline]`
// mainline's blocking calls are the simpler ones here, and give the same times.
#![allow(clippy::expect_used, missing_docs, deprecated)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use p2pfs::engine::dht::{Event, Node, NodeConfig};
use p2pfs::proto::dht::{Announce, GetPeers, Outcome};
use p2pfs::proto::ids::InfoHash;
use rand::RngExt;

/// How long the nodes of a network may take to find each other.
const SETTLING: Duration = Duration::from_secs(120);

/// Nodes that join at once: each asks one that is there already.
const JOINING: usize = 50;

/// Nobody listens there; it is only told.
const PORT: u16 = 7_777;

/// What was measured, in milliseconds.
#[derive(Default)]
struct Times {
    announce: Vec<f64>,
    first_peer: Vec<f64>,
    /// Lookups that found nobody.
    lost: usize,
}

fn main() {
    let nodes = number("--nodes", 1_000);
    let lookups = number("--lookups", 200);
    let only = option("--only");
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    raise_descriptors();
    println!("{nodes} nodes on loopback, {lookups} lookups; milliseconds");
    println!(
        "{:>10} {:>22} {:>22} {:>6}",
        "", "first peer p50/p95/max", "announce p50/p95/max", "lost"
    );
    if wanted("p2pfs") {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime").block_on(ours(nodes, lookups)).print("p2pfs");
    }
    if wanted("mainline") {
        theirs(nodes, lookups).print("mainline");
    }
}

async fn ours(count: usize, lookups: usize) -> Times {
    let nodes = network(count).await;
    let mut times = Times::default();
    for _ in 0..lookups {
        let (announcer, asker) = two(nodes.len());
        let hash = InfoHash::new(rand::random());
        let announce = Announce { port: PORT, implied: false, seed: false };
        let options = GetPeers { announce: Some(announce), ..GetPeers::default() };
        let began = Instant::now();
        let told = nodes[announcer].get_peers(hash, options).await.outcome().await;
        assert!(
            matches!(told, Some(Outcome::Peers { announced, .. }) if announced > 0),
            "nobody took the announce: {told:?}"
        );
        times.announce.push(millis(began));
        let began = Instant::now();
        let mut answers = nodes[asker].get_peers(hash, GetPeers::default()).await;
        match answers.next().await {
            Some(Event::Peers { peers, .. }) => {
                assert_eq!(peers, [SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))]);
                times.first_peer.push(millis(began));
            }
            _ => times.lost += 1,
        }
    }
    times
}

/// So many nodes that know each other as well as they want to.
async fn network(count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::with_capacity(count);
    while nodes.len() < count {
        let there = nodes.len();
        for _ in 0..JOINING.min(count - there).min(there.max(1)) {
            let known = |_| nodes[rand::rng().random_range(0..there)].local_addrs()[0].to_string();
            let config = NodeConfig {
                listen: vec![Ipv4Addr::LOCALHOST.into()],
                bootstrap: (0..there.min(1)).map(known).collect(),
                ..NodeConfig::default()
            };
            nodes.push(Node::start(config).expect("a node"));
        }
        let joined = nodes.len() > 1;
        for node in nodes[there..].iter().filter(|_| joined && there > 0) {
            tokio::time::timeout(SETTLING, node.wait_for_nodes()).await.expect("it joins");
        }
    }
    let began = Instant::now();
    let quiet = |node: &Node| node.stats().lookups == [0, 0];
    while !nodes.iter().all(quiet) && began.elapsed() < SETTLING {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    nodes
}

fn theirs(count: usize, lookups: usize) -> Times {
    let network = mainline::Testnet::builder(count).build().expect("a network");
    let mut times = Times::default();
    for _ in 0..lookups {
        let (announcer, asker) = two(network.nodes.len());
        let hash = mainline::Id::from(rand::random::<[u8; 20]>());
        let began = Instant::now();
        network.nodes[announcer].announce_peer(hash, Some(PORT)).expect("somebody takes it");
        times.announce.push(millis(began));
        let began = Instant::now();
        match network.nodes[asker].get_peers(hash).next() {
            Some(peers) => {
                assert_eq!(peers, [SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT)]);
                times.first_peer.push(millis(began));
            }
            None => times.lost += 1,
        }
    }
    times
}

/// Two of so many.
fn two(count: usize) -> (usize, usize) {
    let mut rng = rand::rng();
    let first = rng.random_range(0..count);
    (first, (first + rng.random_range(1..count)) % count)
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

impl Times {
    fn print(mut self, name: &str) {
        println!(
            "{name:>10} {:>22} {:>22} {:>6}",
            percentiles(&mut self.first_peer),
            percentiles(&mut self.announce),
            self.lost
        );
    }
}

fn percentiles(times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((share * (times.len().max(1) - 1) as f64).round() as usize);
    let shown = [0.5, 0.95, 1.0].map(|share| at(share).map_or("-".into(), |ms| format!("{ms:.1}")));
    shown.join(" / ")
}

/// The value of an option.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

fn number(name: &str, default: usize) -> usize {
    let value = option(name).map(|text| text.parse().expect("a number"));
    value.unwrap_or(default).max(2)
}

/// Each node has a socket, and more with mainline's threads.
fn raise_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many as allowed");
}
