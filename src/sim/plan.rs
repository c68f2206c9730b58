//! What is simulated: who takes part, over which links, and when they come and go.

use std::ops::Range;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::checks::{Bounds, Rule};
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
    /// The share of datagrams that is lost.
    pub loss: f64,
    /// Somewhere a connection breaks this often.
    pub resets: Option<Duration>,
    /// Out of 1,000 writes, how many the disk refuses.
    pub disk_failures: u32,
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

/// The names of all scenarios and what they show.
pub const SCENARIOS: [(&str, &str); 15] = [
    ("worked-example", "a seed and three empty peers share four pieces"),
    ("flash-crowd", "a seed and leechers that all come at once"),
    ("seed-leaves", "the seed leaves after it has sent each block once"),
    ("free-riders", "a tenth of the peers take and never give"),
    ("half-free-riders", "half of the peers take and never give"),
    ("liars", "a fifth of the peers send wrong bytes"),
    ("hostile", "liars, stallers and peers that claim to have everything"),
    ("mixed-rates", "half of the peers have a tenth of the rate"),
    ("reader", "a program reads while the swarm downloads"),
    ("churn", "peers come late, leave and crash, connections break, disks refuse"),
    ("late-joiners", "a second crowd comes when the first is half done"),
    ("asymmetric", "downlinks ten times as fast as uplinks"),
    ("lossy", "three out of ten datagrams to and from the tracker are lost"),
    ("natted", "half of the peers are behind a NAT"),
    ("many-readers", "ten programs on ten peers read while the swarm downloads"),
];

/// A scenario of this name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("there is no scenario `{0}`; there are: {known}", known = names())]
pub struct UnknownScenario(String);

fn names() -> String {
    SCENARIOS.map(|(name, _)| name).join(", ")
}

impl Plan {
    /// The plan of a scenario.
    pub fn scenario(name: &str, settings: Settings) -> Result<Self, UnknownScenario> {
        let known = SCENARIOS.iter().any(|(known, _)| *known == name);
        if !known {
            return Err(UnknownScenario(name.to_owned()));
        }
        let small = name == "worked-example";
        let peers = settings.peers.unwrap_or(if small { 3 } else { 10 });
        let mut plan = Self {
            name: name.to_owned(),
            seed: settings.seed,
            total: settings.size.unwrap_or(if small { 1 << 20 } else { 256 << 20 }).max(1),
            piece_length: 256 << 10,
            nodes: Vec::new(),
            rtt: (Duration::from_millis(30), Duration::from_millis(70)),
            loss: 0.0,
            resets: None,
            disk_failures: 0,
            bounds: Bounds::default(),
            breaks: None,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed ^ 0x706c_616e);
        plan.crowd(peers, &mut rng);
        plan.specialise(&mut rng);
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
            natted: false,
        };
        self.nodes.push(node);
        for _ in 0..peers {
            let joins = seconds(rng.random_range(JOINS));
            self.nodes.push(NodePlan { role: Role::Leecher, joins, ..node });
        }
    }

    /// What sets the scenario apart from a flash crowd.
    fn specialise(&mut self, rng: &mut ChaCha8Rng) {
        let bound = self.bound().as_secs_f64();
        match self.name.as_str() {
            "seed-leaves" => self.nodes[0].leaves = Leave::AfterOneCopy,
            "free-riders" => self.recast(Role::FreeRider, 10),
            "half-free-riders" => self.recast(Role::FreeRider, 2),
            "liars" => self.recast(Role::Liar, 5),
            "hostile" => {
                self.recast(Role::Liar, 10);
                self.recast(Role::Staller, 10);
                self.recast(Role::HaveFlooder, 10);
            }
            "mixed-rates" => {
                for node in self.nodes.iter_mut().skip(1).step_by(2) {
                    node.up /= 10.0;
                }
            }
            "reader" => self.recast(Role::Reader, usize::MAX),
            "many-readers" => {
                for node in self.nodes.iter_mut().skip(1).take(10) {
                    node.role = Role::Reader;
                }
            }
            "churn" => self.churn(bound, rng),
            "late-joiners" => {
                let late = self.nodes.len() / 2 + 1;
                for node in self.nodes.iter_mut().skip(late) {
                    node.joins = node.joins + Duration::from_secs_f64(bound / 2.0);
                }
            }
            "lossy" => self.loss = 0.3,
            "natted" => {
                for node in self.nodes.iter_mut().skip(1).step_by(2) {
                    node.natted = true;
                }
            }
            "asymmetric" => self.nodes.iter_mut().for_each(|node| node.down *= 10.0),
            _ => {}
        }
    }

    fn churn(&mut self, bound: f64, rng: &mut ChaCha8Rng) {
        self.resets = Some(Duration::from_secs(2));
        self.disk_failures = 2;
        for node in self.nodes.iter_mut().skip(1) {
            node.joins = seconds(rng.random_range(0.0..bound));
            let half = node.joins + Duration::from_secs_f64(bound / 2.0);
            node.leaves = match rng.random_range(0..4) {
                0 => Leave::At(half),
                1 => Leave::Crash(half),
                2 => Leave::AfterDone(Duration::from_secs(5)),
                _ => Leave::Never,
            };
        }
    }

    /// Gives another role to one out of `of` leechers, at least one.
    fn recast(&mut self, role: Role, of: usize) {
        let count = ((self.nodes.len() - 1) / of).max(1);
        let leechers = self.nodes.iter_mut().filter(|n| n.role == Role::Leecher);
        for node in leechers.take(count) {
            node.role = role;
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

fn seconds(seconds: f64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs_f64(seconds)
}
