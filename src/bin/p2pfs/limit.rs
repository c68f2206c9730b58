//! `p2pfs limit`

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, Response, size};

use super::{daemon, places};

/// Show how fast data may be sent and received, or change it
///
/// Without PATH of all torrents together, with it of the one that is mounted or seeded there; both
/// hold. A change lasts as long as the daemon does, or the mount or seed.
#[derive(Debug, Args)]
pub struct Limit {
    /// Where a torrent is mounted, or data that is seeded (default: all torrents together)
    path: Option<PathBuf>,
    /// Most bytes a second to send (K, M, G may follow), or none
    #[arg(long, value_name = "RATE", value_parser = size::parse_limit)]
    up: Option<u64>,
    /// Most bytes a second to receive (K, M, G may follow), or none
    #[arg(long, value_name = "RATE", value_parser = size::parse_limit)]
    down: Option<u64>,
}

impl Limit {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let path = self.path.as_deref().map(places::in_mount).transpose()?;
        let one = path.is_some();
        let request = Request::Limit { path: path.map(Into::into), up: self.up, down: self.down };
        let mut told = Vec::new();
        let take = |event| {
            if let Response::Limits(limits) = event {
                told.push(limits);
            }
        };
        if one {
            daemon::ask(socket, request, take).await?;
        } else {
            daemon::ask_all(socket, &request, take).await?;
        }
        let mut out = io::stdout().lock();
        if told.is_empty() {
            writeln!(out, "no daemon is running")?;
        }
        for limits in told {
            writeln!(out, "up {}, down {}", size::limit(limits.up), size::limit(limits.down))?;
        }
        Ok(())
    }
}
