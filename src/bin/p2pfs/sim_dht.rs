//! `p2pfs sim dht`

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use p2pfs::sim::dht::{DhtPlan, Nodes, Sybils, run};

/// Look up in a simulated DHT and report how long it takes
///
/// Somebody announces itself under a random hash, then a node looks for it, again and again. Whoever
/// looks up is the lookup of the daemon; the nodes that answer are derived from the seed, each with k
/// random nodes in every bucket. Times are also given in median round trips.
#[derive(Debug, Args)]
pub struct SimDht {
    /// Nodes that are alive
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    nodes: usize,
    /// The share of the contacts in all tables that are dead
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = share)]
    dead: f64,
    /// The share of the nodes that died lately: half of the tables still name them
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    churn: f64,
    /// The share of datagrams that is lost
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    loss: f64,
    /// Lookups that are counted
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    lookups: usize,
    /// The median round trip, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 87, value_parser = clap::value_parser!(u32).range(1..=3_000))]
    rtt: u32,
    /// How much the round trips of nodes differ: the standard deviation of their logarithm
    #[arg(long, value_name = "SPREAD", default_value_t = 0.4, value_parser = spread)]
    spread: f64,
    /// A crowd of so many around the one hash that all look for, which names only each other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sybils: Option<u32>,
    /// How many networks (/64) the crowd is in (default: one for each)
    #[arg(long, value_name = "N", requires = "sybils", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    networks: Option<u32>,
    /// How many leading bits the crowd shares with the hash (default: so many that all are closer
    /// than the closest honest node)
    #[arg(long, value_name = "BITS", requires = "sybils", value_parser = clap::value_parser!(u32).range(0..=40))]
    bits: Option<u32>,
    /// The ids of the crowd fit their addresses (BEP 42)
    #[arg(long, requires = "sybils")]
    fitting: bool,
    /// Let whole nodes look up, which exchange datagrams with the others
    #[arg(long, conflicts_with = "real")]
    machines: bool,
    /// Simulate whole nodes only: first all join, then the share that is to be dead dies at once, then
    /// those start that look up
    #[arg(long, conflicts_with_all = ["sybils", "churn"])]
    real: bool,
    /// Where all randomness comes from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// More take longer than anybody waits.
const MAX_NODES: usize = 100_000_000;

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.0..=0.9).contains(&share).then_some(share).ok_or_else(|| "from 0 to 0.9".to_owned())
}

fn spread(text: &str) -> Result<f64, String> {
    let spread: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.0..=3.0).contains(&spread).then_some(spread).ok_or_else(|| "from 0 to 3".to_owned())
}

impl SimDht {
    pub fn run(self) -> Result<()> {
        if !(8..=MAX_NODES).contains(&self.nodes) {
            bail!("--nodes: from 8 to {MAX_NODES} can be simulated");
        }
        if self.lookups == 0 {
            bail!("--lookups: at least one");
        }
        let plan = self.plan();
        let started = std::time::Instant::now();
        let report = run(&plan);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
            println!("  time         {:.1} s", started.elapsed().as_secs_f64());
            if let Some(peak) = peak_memory() {
                println!("  process      {:.2} GiB at most", peak as f64 / f64::from(1 << 20));
            }
        }
        Ok(())
    }

    fn plan(&self) -> DhtPlan {
        // Twenty bits divide a million nodes; with four more even the closest is farther.
        let closer = (self.nodes as f64).log2() as u32 + 4;
        let sybils = self.sybils.map(|count| Sybils {
            count,
            networks: self.networks.unwrap_or(count),
            bits: self.bits.unwrap_or(closer),
            fitting: self.fitting,
        });
        let who = match (self.machines, self.real) {
            (true, _) => Nodes::Machines,
            (_, true) => Nodes::Real,
            _ => Nodes::Lookups,
        };
        DhtPlan {
            seed: self.seed,
            who,
            nodes: self.nodes,
            dead: self.dead,
            churn: self.churn,
            loss: self.loss,
            lookups: self.lookups,
            rtt: Duration::from_millis(self.rtt.into()),
            spread: self.spread,
            sybils,
            ..DhtPlan::default()
        }
    }
}

/// The most memory that this process had, in KiB.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
