//! `p2pfs dht stats`

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use p2pfs::rpc::{DhtStatus, FamilyStatus, Request, Response, size};

use super::super::daemon;

/// Describe the DHT node of the running daemon
#[derive(Debug, Args)]
pub struct Stats {
    /// As a JSON array, an object for each daemon
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let mut nodes = Vec::new();
        let take = |event| {
            if let Response::Dht(node) = event {
                nodes.push(*node);
            }
        };
        daemon::ask_all(socket, &Request::Dht, take).await?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&nodes)?)?;
        } else if nodes.is_empty() {
            bail!("no daemon with a DHT node is running");
        }
        for node in nodes.iter().filter(|_| !self.json) {
            describe(&mut out, node)?;
        }
        Ok(())
    }
}

fn describe(out: &mut impl Write, node: &DhtStatus) -> io::Result<()> {
    let listens: Vec<_> = node.listens.iter().map(ToString::to_string).collect();
    let kind = if node.read_only { "read-only: nobody seems to reach it" } else { "a full node" };
    writeln!(out, "process {} at UDP {}, {kind}", node.pid, listens.join(", "))?;
    for (name, family) in [("IPv4", &node.v4), ("IPv6", &node.v6)] {
        if let Some(family) = family {
            describe_family(out, name, family)?;
        }
    }
    writeln!(
        out,
        "  keeps {} of {} and {} for others",
        size::count(node.stored_peers as u64, "peer"),
        size::count(node.stored_torrents as u64, "torrent"),
        size::count(node.stored_items as u64, "item")
    )?;
    writeln!(
        out,
        "  {} sent; {} and {} came, {} dropped; {} unanswered; {} under way",
        size::count(node.sent, "datagram"),
        size::count(node.asked, "question"),
        size::count(node.answered, "answer"),
        node.dropped,
        node.silent,
        size::count(node.lookups as u64, "lookup")
    )
}

fn describe_family(out: &mut impl Write, name: &str, family: &FamilyStatus) -> io::Result<()> {
    write!(out, "  {name}: {} known", size::count(family.nodes as u64, "node"))?;
    if let Some(network) = family.network {
        write!(out, " of about {network}")?;
    }
    write!(out, ", id {}", family.id)?;
    match family.external {
        Some(external) => writeln!(out, ", seen at {external}"),
        None => writeln!(out),
    }
}
