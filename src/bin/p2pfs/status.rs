//! `p2pfs status`

mod table;
mod watch;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{
    DhtNodes, PartStatus, Progress, Request, Response, ShareKind, ShareStatus, size, visible,
};

use super::{daemon, places};

/// Describe all mounts and seeds, one of them, or what of a file is here
#[derive(Debug, Args)]
pub struct Status {
    /// Where a torrent is mounted, data that is seeded, or a file or folder in a mount (default: all
    /// mounts and seeds)
    path: Option<PathBuf>,
    /// As a JSON array with everything that is known
    #[arg(long)]
    json: bool,
    /// Fill the terminal, anew each second, until Ctrl-C; of one mount or seed with a map of its pieces,
    /// its peers, and the reads that wait
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// What was told.
#[derive(Default)]
struct Told {
    shares: Vec<ShareStatus>,
    parts: Vec<PartStatus>,
}

impl Told {
    fn take(&mut self, event: Response) {
        match event {
            Response::Share(share) => self.shares.push(*share),
            Response::Part(part) => self.parts.push(*part),
            _ => {}
        }
    }
}

impl Status {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let path = self.path.as_deref().map(places::in_mount).transpose()?;
        if self.watch {
            return watch::run(socket, path).await;
        }
        let one = path.is_some();
        let request = Request::Status { path: path.map(Into::into) };
        let mut told = Told::default();
        if one {
            daemon::ask(socket, request, |event| told.take(event)).await?;
        } else {
            daemon::ask_all(socket, &request, |event| told.take(event)).await?;
        }
        let mut out = io::stdout().lock();
        if self.json {
            // It was one or the other that was asked about.
            let json = match told.parts.is_empty() {
                true => serde_json::to_string_pretty(&told.shares)?,
                false => serde_json::to_string_pretty(&told.parts)?,
            };
            writeln!(out, "{json}")?;
            return Ok(());
        }
        match (one, told.shares.is_empty()) {
            (true, _) => {
                told.shares.iter().try_for_each(|share| describe(&mut out, share))?;
                told.parts.iter().try_for_each(|part| describe_part(&mut out, part))?;
            }
            (false, true) => writeln!(out, "nothing is mounted or seeded")?,
            (false, false) => table::print(&mut out, &told.shares)?,
        }
        Ok(())
    }
}

/// What a share is, in a word.
fn kind(share: &ShareStatus) -> &'static str {
    match share.kind {
        ShareKind::Mount if share.detached => "detached",
        ShareKind::Mount => "mount",
        ShareKind::Seed => "seed",
    }
}

fn describe(out: &mut impl Write, share: &ShareStatus) -> io::Result<()> {
    let torrent = &share.torrent;
    let (path, name) = (visible(&share.path.to_string_lossy()), visible(&torrent.name));
    if torrent.info_hash.is_empty() {
        writeln!(out, "{path}  no metadata yet")?;
        return problems(share).iter().try_for_each(|problem| writeln!(out, "  {problem}"));
    }
    writeln!(out, "{path}  {} of {name} ({})", kind(share), torrent.info_hash)?;
    let (here, of) = torrent.here_of();
    let left = torrent.wanted.saturating_sub(torrent.wanted_verified);
    let left = size::time_left(left, torrent.download_rate);
    writeln!(
        out,
        "  {}: {} of {} verified ({} %){}",
        torrent.state,
        size::show(here),
        size::show(of),
        size::percent(here, of),
        left.map(|left| format!(", {left} left")).unwrap_or_default()
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
    if let Some(why) = &torrent.limited {
        writeln!(out, "  {why}")?;
    }
    if let Some(DhtNodes { v4, v6 }) = share.dht_nodes {
        writeln!(out, "  DHT: {} by IPv4, {v6} by IPv6", size::count(v4 as u64, "node"))?;
    }
    if let Some(rule) = share.seed_until {
        writeln!(out, "  ends when it is complete and seeded until {rule}")?;
    }
    if let Some((done, of)) = share.keeping {
        writeln!(out, "  {}", Progress::Keeping { done, of })?;
    }
    for problem in problems(share) {
        writeln!(out, "  {problem}")?;
    }
    Ok(())
}

/// What is wrong with a share, a line each.
fn problems(share: &ShareStatus) -> Vec<String> {
    let torrent = &share.torrent;
    let nobody = torrent.nobody.iter().map(|why| format!("no peers: {why}"));
    let trackers = torrent.trackers.iter().filter_map(|tracker| {
        let error = tracker.error.as_ref()?;
        Some(format!("tracker {}: {}", visible(&tracker.url), visible(error)))
    });
    let empty = torrent.info_hash.is_empty();
    let own = torrent.error.iter().chain(&share.problem).filter(|error| !error.is_empty());
    let own = own.map(|error| if empty { error.clone() } else { format!("problem: {error}") });
    nobody.chain(trackers).chain(own).collect()
}

fn describe_part(out: &mut impl Write, part: &PartStatus) -> io::Result<()> {
    let path = visible(&part.path.to_string_lossy());
    let files = match part.files {
        1 => String::new(),
        files => format!("{}, ", size::count(files, "file")),
    };
    writeln!(
        out,
        "{path}  {files}{} of {} verified ({} %), {} of {}",
        size::show(part.verified),
        size::show(part.total),
        size::percent(part.verified, part.total),
        part.pieces_verified,
        size::count(part.pieces, "piece")
    )
}
