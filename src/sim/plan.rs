//! What is simulated: who takes part, over which links, and when they come and go.

use std::ops::Range;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::checks::{Bounds, Rule};
use super::scenarios::{Scenario, UnknownScenario};
use crate::proto::time::Timestamp;

/// 10 Mbit/s, in bytes a second.
const TEN_MEGABIT: f64 = 1.25e6;

/// Leechers join in this time, in seconds. By then the tracker knows of the seed, which is there
/// from the start.
const JOINS: Range<f64> = 0.2..1.0;

/// How a node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Has everything from the start.
    Seed,
    /// Wants everything and plays by the rules.
    Leecher,
    /// A leecher on which a program reads from start to end, as fast as it gets the bytes.
    Reader,
    /// Takes and never gives, but tells the truth about what it has.
    FreeRider,
    /// Sends wrong bytes.
    Liar,
    /// Unchokes, accepts requests and never answers them.
    Staller,
    /// Claims to have everything and sends wrong bytes.
    HaveFlooder,
}

impl Role {
    /// Whether its bytes and its manners can be trusted.
    pub const fn is_honest(self) -> bool {
        matches!(self, Self::Seed | Self::Leecher | Self::Reader)
    }

    /// Whether it downloads and gives something back: what the bound counts.
    pub const fn contributes(self) -> bool {
        matches!(self, Self::Leecher | Self::Reader)
    }

    /// Whether it sends wrong bytes.
    pub const fn lies(self) -> bool {
        matches!(self, Self::Liar | Self::HaveFlooder)
    }
}

/// When a node leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Leave {
    /// It stays.
    Never,
    /// At this time.
    At(Timestamp),
    /// It vanishes at this time and tells nobody.
    Crash(Timestamp),
    /// When it has sent every block at least once.
    AfterOneCopy,
    /// This long after it has everything.
    AfterDone(Duration),
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub struct NodePlan {
    /// How it behaves.
    pub role: Role,
    /// Its uplink, in bytes a second.
    pub up: f64,
    /// Its downlink, in bytes a second.
    pub down: f64,
    /// When it joins.
    pub joins: Timestamp,
    /// When it leaves.
    pub leaves: Leave,
    /// Whom it knows from the start.
    pub knows: Option<u32>,
    /// It is behind a NAT: nobody can connect to it, and it hears only from where it sent to.
    pub natted: bool,
}

/// A run of the simulator: all that its outcome depends on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenario's name.
    pub name: String,
    /// Where all randomness comes from.
    pub seed: u64,
    /// The torrent, in bytes.
    pub total: u64,
    /// Its pieces, in bytes.
    pub piece_length: u64,
    /// Node 0 is the seed.
    pub nodes: Vec<NodePlan>,
    /// Round trips between two nodes: shortest and longest.
    pub rtt: (Duration, Duration),
    /// Users have given their uplinks' rates as upload limits, so that chokers know them.
    pub upload_limits: bool,
    /// The share of datagrams that is lost.
    pub loss: f64,
    /// Somewhere a connection breaks this often.
    pub resets: Option<Duration>,
    /// Out of 1,000 writes, how many the disk refuses.
    pub disk_failures: u32,
    /// When the tracker falls silent for good.
    pub tracker_ends: Option<Timestamp>,
    /// Nodes exchange addresses (BEP 11).
    pub pex: bool,
    /// What every node keeps to.
    pub bounds: Bounds,
    /// A rule that is broken, to see that it is noticed.
    pub breaks: Option<Rule>,
}

/// What a user may change of a scenario.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How many join beside the seed; each scenario has its own default.
    pub peers: Option<usize>,
    /// The torrent, in bytes; each scenario has its own default.
    pub size: Option<u64>,
}

impl Plan {
    /// The plan of a scenario.
    pub fn scenario(name: &str, settings: Settings) -> Result<Self, UnknownScenario> {
        let scenario = Scenario::named(name)?;
        let mut plan = Self {
            name: name.to_owned(),
            seed: settings.seed,
            total: settings.size.unwrap_or(scenario.size).max(1),
            piece_length: 256 << 10,
            nodes: Vec::new(),
            rtt: (Duration::from_millis(30), Duration::from_millis(70)),
            upload_limits: true,
            loss: 0.0,
            resets: None,
            disk_failures: 0,
            tracker_ends: None,
            pex: true,
            bounds: Bounds::default(),
            breaks: None,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed ^ 0x706c_616e);
        plan.crowd(settings.peers.unwrap_or(scenario.peers), &mut rng);
        (scenario.shape)(&mut plan, &mut rng);
        Ok(plan)
    }

    /// One seed and `peers` leechers that join within a second.
    fn crowd(&mut self, peers: usize, rng: &mut ChaCha8Rng) {
        let node = NodePlan {
            role: Role::Seed,
            up: TEN_MEGABIT,
            down: TEN_MEGABIT,
            joins: Timestamp::ZERO,
            leaves: Leave::Never,
            knows: None,
            natted: false,
        };
        self.nodes.push(node);
        for _ in 0..peers {
            let joins = Timestamp::ZERO + Duration::from_secs_f64(rng.random_range(JOINS));
            self.nodes.push(NodePlan { role: Role::Leecher, joins, ..node });
        }
    }

    /// The least time in which anyone could get everything to those who contribute:
    /// max(F/u_s, F/d, N·F/(u_s+Σu)).
    pub fn bound(&self) -> Duration {
        let total = self.total as f64;
        let seed_up = self.nodes.first().map_or(1.0, |n| n.up);
        let leechers = || self.nodes.iter().filter(|n| n.role.contributes());
        let all_up: f64 = seed_up + leechers().map(|n| n.up).sum::<f64>();
        let slowest = leechers().map(|n| total / n.down).fold(total / seed_up, f64::max);
        Duration::from_secs_f64(slowest.max(leechers().count() as f64 * total / all_up))
    }

    /// The command that runs this again.
    pub fn command(&self) -> String {
        let (name, seed, peers) = (&self.name, self.seed, self.nodes.len() - 1);
        format!("p2pfs sim {name} --seed {seed} --peers {peers} --size {}", self.total)
    }
}
