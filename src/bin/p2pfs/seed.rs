//! `p2pfs seed`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use p2pfs::engine::Source;
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{Request, SeedRequest, size, visible};

use super::daemon::At;
use super::source::{self, Network};
use super::{daemon, mount, places};

/// Check data that you have, and serve it where it is
///
/// Returns when the data is checked and served. It is never written to. `p2pfs status` lists what is
/// seeded and what it has given, `p2pfs stop PATH` ends it.
#[derive(Debug, Args)]
pub struct Seed {
    /// .torrent file, or URL of one (http, https, file)
    torrent: String,
    /// File or folder that it describes
    path: PathBuf,
    /// Stop when this is met: ratio=R, so many full copies sent, or time=D, such as time=30m; see
    /// p2pfs(7). Without RULE, as the last word of the line, ratio=1.0
    #[arg(long, value_name = "RULE", num_args = 0..=1, default_missing_value = "ratio=1.0")]
    seed_until: Option<SeedUntil>,
    /// Stay, and stop on SIGINT and SIGTERM: a daemon of its own for this one seed
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    network: Network,
}

impl Seed {
    pub async fn run(self, at: At<'_>) -> Result<()> {
        let (torrent, resolved) = source::check(&self.torrent).await?;
        if let Some(Source::Magnet(_)) = resolved {
            bail!("{}: only names a torrent; seeding needs its .torrent file", self.torrent);
        }
        let data = places::existing(&self.path)?;
        let source = self.network.request(torrent, mount::TIMEOUT)?;
        let settings = source.settings.clone();
        let seed_until = self.seed_until;
        let request = SeedRequest { source, data: data.clone().into(), seed_until };
        let request = Request::Seed(Box::new(request));
        if self.foreground {
            return daemon::become_daemon(at, &settings, &request);
        }
        let seeding = daemon::ask_started(at, &settings, request, |_| {}).await?;
        eprintln!(
            "p2pfs: {} ({} in {}) is checked and seeded from {}",
            visible(&seeding.name),
            size::show(seeding.bytes),
            size::count(seeding.files, "file"),
            visible(&data.to_string_lossy())
        );
        Ok(())
    }
}
