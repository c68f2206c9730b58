//! The scenarios: what sets each apart from a crowd that downloads from one seed.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::plan::{Leave, NodePlan, Plan, Role};
use crate::proto::time::Timestamp;

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What happens in it.
    pub shows: &'static str,
    /// How many join beside the seed unless the user says otherwise.
    pub peers: usize,
    /// The torrent unless the user says otherwise, in bytes.
    pub size: u64,
    /// Makes the scenario of a flash crowd.
    pub(super) shape: fn(&mut Plan, &mut ChaCha8Rng),
}

/// A scenario of the usual size.
const fn usual(
    name: &'static str,
    shows: &'static str,
    shape: fn(&mut Plan, &mut ChaCha8Rng),
) -> Scenario {
    Scenario { name, shows, peers: 10, size: 256 << 20, shape }
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 17] = [
    Scenario {
        peers: 3,
        size: 1 << 20,
        ..usual("worked-example", "a seed and three empty peers share four pieces", |plan, _| {
            plan.piece_length = plan.total.div_ceil(4).next_power_of_two().max(16 << 10);
            // The three wait for the seed: it sends everything in the time that a crowd gathers.
            leechers(plan).for_each(|node| node.joins = Timestamp::ZERO);
            plan.nodes[0].joins = Timestamp::ZERO + Duration::from_secs(1);
        })
    },
    usual("flash-crowd", "a seed and leechers that all come at once", |_, _| {}),
    usual("seed-leaves", "the seed leaves after it has sent each block once", |plan, _| {
        plan.nodes[0].leaves = Leave::AfterOneCopy;
    }),
    usual("free-riders", "a tenth of the peers take and never give", |plan, _| {
        recast(plan, Role::FreeRider, 10);
    }),
    usual("half-free-riders", "half of the peers take and never give", |plan, _| {
        recast(plan, Role::FreeRider, 2);
    }),
    usual("liars", "a fifth of the peers send wrong bytes", |plan, _| {
        recast(plan, Role::Liar, 5);
    }),
    usual("hostile", "liars, stallers and peers that claim to have everything", |plan, _| {
        recast(plan, Role::Liar, 10);
        recast(plan, Role::Staller, 10);
        recast(plan, Role::HaveFlooder, 10);
    }),
    usual("mixed-rates", "half of the peers have a tenth of the uplink", |plan, _| {
        every_second(plan).for_each(|node| node.up /= 10.0);
    }),
    usual("unlike-rates", "each peer has a rate of its own, from a quarter to four times", unlike),
    usual("asymmetric", "downlinks ten times as fast as uplinks", |plan, _| {
        plan.nodes.iter_mut().for_each(|node| node.down *= 10.0);
    }),
    usual("reader", "a program reads while the swarm downloads", |plan, _| {
        recast(plan, Role::Reader, usize::MAX);
    }),
    usual("many-readers", "ten programs on ten peers read while the swarm downloads", |plan, _| {
        leechers(plan).take(10).for_each(|node| node.role = Role::Reader);
    }),
    usual("late-joiners", "a second crowd comes when the first is half done", |plan, _| {
        let (late, after) = (plan.nodes.len() / 2, plan.bound() / 2);
        leechers(plan).skip(late).for_each(|node| node.joins = node.joins + after);
    }),
    usual("churn", "peers come late, leave and crash, connections break, disks refuse", churn),
    usual("lossy", "three out of ten datagrams to and from the tracker are lost", |plan, _| {
        plan.loss = 0.3;
    }),
    usual(
        "tracker-dies",
        "the tracker dies; who comes later knows one peer, which leaves",
        |plan, _| {
            plan.tracker_ends = Some(Timestamp::ZERO + Duration::from_secs(2));
            let (late, bound) = (plan.nodes.len() / 2, plan.bound());
            leechers(plan)
                .take(1)
                .for_each(|door| door.leaves = Leave::At(Timestamp::ZERO + bound / 2));
            for node in leechers(plan).skip(late) {
                node.joins = node.joins + bound / 4;
                node.knows = Some(1);
            }
        },
    ),
    usual("natted", "half of the peers are behind a NAT", |plan, _| {
        every_second(plan).for_each(|node| node.natted = true);
    }),
];

/// No scenario has this name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("there is no scenario `{0}`; there are: {known}", known = SCENARIOS.map(|s| s.name).join(", "))]
pub struct UnknownScenario(String);

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Result<Self, UnknownScenario> {
        let found = SCENARIOS.into_iter().find(|scenario| scenario.name == name);
        found.ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}

/// Everyone but the seed.
fn leechers(plan: &mut Plan) -> impl Iterator<Item = &mut NodePlan> {
    plan.nodes.iter_mut().skip(1)
}

fn every_second(plan: &mut Plan) -> impl Iterator<Item = &mut NodePlan> {
    leechers(plan).step_by(2)
}

/// Gives another role to one out of `of` leechers, at least one.
fn recast(plan: &mut Plan, role: Role, of: usize) {
    let count = ((plan.nodes.len() - 1) / of).max(1);
    let leechers = plan.nodes.iter_mut().filter(|n| n.role == Role::Leecher);
    for node in leechers.take(count) {
        node.role = role;
    }
}

fn unlike(plan: &mut Plan, rng: &mut ChaCha8Rng) {
    for node in leechers(plan) {
        let factor = 4f64.powf(rng.random_range(-1.0..1.0));
        node.up *= factor;
        node.down *= factor;
    }
}

fn churn(plan: &mut Plan, rng: &mut ChaCha8Rng) {
    let bound = plan.bound();
    plan.resets = Some(Duration::from_secs(2));
    plan.disk_failures = 2;
    for node in leechers(plan) {
        node.joins = Timestamp::ZERO + bound.mul_f64(rng.random_range(0.0..1.0));
        let half = node.joins + bound / 2;
        node.leaves = match rng.random_range(0..4) {
            0 => Leave::At(half),
            1 => Leave::Crash(half),
            2 => Leave::AfterDone(Duration::from_secs(5)),
            _ => Leave::Never,
        };
    }
}
