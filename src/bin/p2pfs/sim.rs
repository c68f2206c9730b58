//! `p2pfs sim`

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use p2pfs::rpc::size;
use p2pfs::sim::{Plan, Report, RunError, SCENARIOS, Settings, run, run_traced};

use super::sim_dht::SimDht;

/// Run a simulated swarm and report how it went
///
/// The machines are those of the daemon; network, disks and clock are simulated. The same seed gives
/// the same run.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Sim {
    #[command(subcommand)]
    other: Option<Other>,
    /// What to simulate
    #[arg(long_help = help(), required_unless_present = "list")]
    scenario: Option<String>,
    /// List the scenarios and what they show
    #[arg(long)]
    list: bool,
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
    /// Write a line for each event into a file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What else there is to simulate.
#[derive(Debug, Subcommand)]
enum Other {
    Dht(SimDht),
}

/// Peers that have addresses of their own.
const MAX_PEERS: usize = 60_000;

/// A line for each scenario.
fn scenarios() -> String {
    SCENARIOS.iter().map(|s| format!("{:<17} {}\n", s.name, s.shows)).collect()
}

/// The same as help. Indented lines are not joined in the manual page.
fn help() -> String {
    let lines: String = scenarios().lines().map(|line| format!("\n  {line}")).collect();
    format!("What to simulate; there are{lines}")
}

impl Sim {
    pub fn run(self) -> Result<()> {
        if let Some(Other::Dht(dht)) = self.other {
            return dht.run();
        }
        let Some(scenario) = self.scenario.as_deref().filter(|_| !self.list) else {
            std::io::stdout().write_all(scenarios().as_bytes())?;
            return Ok(());
        };
        if self.peers.is_some_and(|peers| peers == 0 || peers > MAX_PEERS) {
            bail!("--peers: from 1 to {MAX_PEERS} can be simulated");
        }
        let settings = Settings { seed: self.seed, peers: self.peers, size: self.size };
        let plan = Plan::scenario(scenario, settings)?;
        let started = std::time::Instant::now();
        let report = self.simulate(plan)?;
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

    fn simulate(&self, plan: Plan) -> Result<Report> {
        let Some(path) = &self.trace else { return run(plan).context("--size") };
        let file = File::create(path).with_context(|| path.display().to_string())?;
        run_traced(plan, file).map_err(|error| match error {
            RunError::Geometry(_) => anyhow::Error::new(error).context("--size"),
            RunError::Trace(_) => anyhow::Error::new(error).context(path.display().to_string()),
        })
    }
}
