//! `p2pfs dht get-peers`

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use p2pfs::engine::dht::{Answers, Event, Node};
use p2pfs::proto::dht::{self, Announce, Outcome};
use p2pfs::proto::ids::InfoHash;
use p2pfs::rpc::size;
use serde::Serialize;
use tokio::time::timeout;

use super::Bootstrap;

/// Look for the peers of a torrent
///
/// Prints each as soon as it is known, and in the end, on standard error, how it went.
#[derive(Debug, Args)]
pub struct GetPeers {
    /// The torrent
    #[arg(value_name = "INFOHASH")]
    info_hash: InfoHash,
    /// Announce a peer too, at our address and this port
    #[arg(long, value_name = "PORT")]
    announce: Option<NonZeroU16>,
    /// Seconds to look at most
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// As a JSON object, when all are known
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    info_hash: String,
    peers: Vec<SocketAddr>,
    /// Seconds until the first of them.
    first_after: Option<f64>,
    /// Seconds in all.
    seconds: f64,
    /// Whether the lookup came to its end within the time it was given.
    complete: bool,
    /// Nodes that answered; unknown when it did not come to its end.
    nodes: Option<usize>,
    /// Nodes that took the announce.
    announced: usize,
}

impl GetPeers {
    pub async fn run(self) -> Result<()> {
        let began = Instant::now();
        let node = self.bootstrap.clone().ask_only()?;
        let mut found = Found { info_hash: self.info_hash.to_string(), ..Found::default() };
        let limit = Duration::from_secs(self.timeout);
        let looked = timeout(limit, self.look(&node, began, &mut found)).await;
        found.seconds = began.elapsed().as_secs_f64();
        if let Ok(looked) = looked {
            looked?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&found)?);
        }
        self.judge(&found, node.nodes())
    }

    async fn look(&self, node: &Node, began: Instant, found: &mut Found) -> Result<()> {
        let announce =
            self.announce.map(|port| Announce { port: port.get(), implied: false, seed: false });
        if !node.wait_for_nodes().await {
            return Ok(());
        }
        let options = dht::GetPeers { announce, ..dht::GetPeers::default() };
        let mut answers: Answers = node.get_peers(self.info_hash, options).await;
        while let Some(event) = answers.next().await {
            match event {
                Event::Peers { peers, .. } => self.take(peers, began, found)?,
                Event::Finished(Outcome::Peers { nodes, announced, .. }) => {
                    (found.nodes, found.announced, found.complete) = (Some(nodes), announced, true);
                }
                Event::Finished(_) => found.nodes = Some(0),
            }
        }
        Ok(())
    }

    fn take(&self, peers: Vec<SocketAddr>, began: Instant, found: &mut Found) -> io::Result<()> {
        found.first_after.get_or_insert(began.elapsed().as_secs_f64());
        if !self.json {
            let mut out = io::stdout().lock();
            peers.iter().try_for_each(|peer| writeln!(out, "{peer}"))?;
            out.flush()?;
        }
        found.peers.extend(peers);
        Ok(())
    }

    /// One line of how it went.
    fn judge(&self, found: &Found, known: usize) -> Result<()> {
        let answered = || size::count(found.nodes.unwrap_or(known) as u64, "node");
        let Some(first) = found.first_after else {
            if found.nodes.unwrap_or(known) == 0 {
                bail!("{}: no node of the DHT answered; {NO_NODES}", self.info_hash);
            }
            if self.announce.is_some() && found.announced > 0 {
                eprintln!("p2pfs: no peers; {} took the announce", nodes(found.announced));
                return Ok(());
            }
            bail!("{}: {} asked, nobody knows a peer", self.info_hash, answered());
        };
        let count = size::count(found.peers.len() as u64, "peer");
        let ended = if found.complete { "" } else { ", not all of them: the time is over" };
        let took = match found.announced {
            0 => String::new(),
            taken => format!(", {} took the announce", nodes(taken)),
        };
        eprintln!(
            "p2pfs: {count}, the first after {first:.3} s; {} answered in {:.3} s{took}{ended}",
            answered(),
            found.seconds
        );
        Ok(())
    }
}

/// What to do when nobody answers.
const NO_NODES: &str = "check the network, or name a node that is there with --dht-bootstrap";

fn nodes(count: usize) -> String {
    size::count(count as u64, "node")
}
