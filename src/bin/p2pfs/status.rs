//! `p2pfs status`

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{DhtNodes, Request, Response, ShareKind, ShareStatus, size, visible};

use super::{daemon, places};

/// Describe a mount, or all mounts and seeds
#[derive(Debug, Args)]
pub struct Status {
    /// Where the torrent is mounted (default: all)
    dir: Option<PathBuf>,
    /// As a JSON array with everything that is known
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let dir = self.dir.as_deref().map(places::in_mount).transpose()?;
        let one = dir.is_some();
        let request = Request::Status { dir: dir.map(Into::into) };
        let mut shares = Vec::new();
        let take = |event| {
            if let Response::Share(share) = event {
                shares.push(*share);
            }
        };
        if one {
            daemon::ask(socket, request, take).await?;
        } else {
            daemon::ask_all(socket, &request, take).await?;
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&shares)?)?;
        } else if shares.is_empty() {
            writeln!(out, "nothing is mounted or seeded")?;
        }
        for share in shares.iter().filter(|_| !self.json) {
            describe(&mut out, share)?;
        }
        Ok(())
    }
}

fn describe(out: &mut impl Write, share: &ShareStatus) -> io::Result<()> {
    let torrent = &share.torrent;
    let kind = match share.kind {
        ShareKind::Mount if share.detached => "detached",
        ShareKind::Mount => "mount",
        ShareKind::Seed => "seed",
    };
    let (path, name) = (visible(&share.path.to_string_lossy()), visible(&torrent.name));
    writeln!(out, "{path}  {kind} of {name} ({})", torrent.info_hash)?;
    writeln!(
        out,
        "  {}: {} of {} verified ({} %)",
        torrent.state,
        size::show(torrent.wanted_verified),
        size::show(torrent.wanted),
        size::percent(torrent.wanted_verified, torrent.wanted)
    )?;
    writeln!(
        out,
        "  {} ({}, {} known), {}/s down, {}/s up, share ratio {}, {} waiting",
        size::count(torrent.peers as u64, "peer"),
        size::count(torrent.seeders as u64, "seeder"),
        torrent.known_peers,
        size::show(torrent.download_rate),
        size::show(torrent.upload_rate),
        torrent.share_ratio,
        size::count(torrent.waiting_reads as u64, "read")
    )?;
    if !torrent.peers_from.is_empty() {
        let from: Vec<_> = torrent.peers_from.iter().map(|(who, n)| format!("{n} {who}")).collect();
        writeln!(out, "  peers by source: {}", from.join(", "))?;
    }
    if let Some(why) = &torrent.nobody {
        writeln!(out, "  no peers: {why}")?;
    }
    if let Some(why) = &torrent.limited {
        writeln!(out, "  {why}")?;
    }
    if let Some(DhtNodes { v4, v6 }) = share.dht_nodes {
        writeln!(out, "  DHT: {} by IPv4, {v6} by IPv6", size::count(v4 as u64, "node"))?;
    }
    if let Some(rule) = share.seed_until {
        writeln!(out, "  ends when it is complete and seeded until {rule}")?;
    }
    for tracker in &torrent.trackers {
        if let Some(error) = &tracker.error {
            writeln!(out, "  tracker {}: {error}", tracker.url)?;
        }
    }
    for problem in torrent.error.iter().chain(&share.problem) {
        writeln!(out, "  problem: {problem}")?;
    }
    Ok(())
}
