//! `p2pfs dht node`

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use p2pfs::engine::dht::NodeConfig;
use tokio::signal::unix::{SignalKind, signal};

use super::{Bootstrap, start};

/// Be a node of the DHT, nothing else
///
/// Prints where it listens, then answers others until SIGINT or SIGTERM. Others can begin with it:
/// --dht-bootstrap.
#[derive(Debug, Args)]
pub struct RunNode {
    /// Address to speak from, one of each family (default: all, IPv4 and IPv6)
    #[arg(long, value_name = "ADDR")]
    listen: Vec<IpAddr>,
    /// UDP port (default: one that is free)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// File that keeps the nodes it knows, and its id
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Begin with nobody: the first node of a network of one's own
    #[arg(long, conflicts_with = "nodes")]
    alone: bool,
    #[command(flatten)]
    bootstrap: Bootstrap,
}

impl RunNode {
    pub async fn run(self) -> Result<()> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let config = self.bootstrap.config(self.listen);
        let bootstrap = if self.alone { Vec::new() } else { config.bootstrap };
        let port = self.port.unwrap_or(0);
        let node = start(NodeConfig { bootstrap, port, saved: self.data, ..config })?;
        if self.port.is_some_and(|port| port != node.port()) {
            bail!("UDP port {port} is taken; choose another with --port");
        }
        print(node.local_addrs())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        node.shutdown().await;
        Ok(())
    }
}

/// Whoever waits for the addresses gets them at once.
fn print(addrs: &[SocketAddr]) -> Result<()> {
    let mut out = io::stdout().lock();
    addrs.iter().try_for_each(|addr| writeln!(out, "{addr}"))?;
    out.flush().context("cannot say where it listens")
}
