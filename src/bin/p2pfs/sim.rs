//! `p2pfs sim`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use p2pfs::rpc::size;
use p2pfs::sim::{Plan, Settings};

/// Run a simulated swarm and report how it went
///
/// The machines are those of the daemon; network, disks and clock are simulated. The same seed gives
/// the same run. Scenarios: worked-example, flash-crowd, seed-leaves, free-riders,
/// half-free-riders, liars, hostile, mixed-rates, reader, many-readers, churn, late-joiners,
/// asymmetric.
#[derive(Debug, Args)]
pub struct Sim {
    /// What to simulate
    scenario: String,
    /// Where all randomness comes from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many join beside the seed (default: 10)
    #[arg(long, value_name = "N")]
    peers: Option<usize>,
    /// Size of the torrent (default: 256M)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Draw everyone's progress into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Peers that have addresses of their own.
const MAX_PEERS: usize = 60_000;

impl Sim {
    pub fn run(self) -> Result<()> {
        if self.peers.is_some_and(|peers| peers == 0 || peers > MAX_PEERS) {
            bail!("--peers: from 1 to {MAX_PEERS} can be simulated");
        }
        let settings = Settings { seed: self.seed, peers: self.peers, size: self.size };
        let plan = Plan::scenario(&self.scenario, settings)?;
        let started = std::time::Instant::now();
        let report = p2pfs::sim::run(plan).context("--size")?;
        let took = started.elapsed();
        if let Some(path) = &self.plot {
            std::fs::write(path, report.plot()).with_context(|| path.display().to_string())?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
            let each = took.as_secs_f64() * 1e6 / report.events.max(1) as f64;
            println!("  time         {:.1} s, {each:.2} µs an event", took.as_secs_f64());
        }
        if let Some(first) = report.violations.first() {
            bail!("{first}; replay with: {}", report.replay);
        }
        Ok(())
    }
}
