//! A simulated swarm: the real machines over a virtual network, in virtual time, from a seed.
//!
//! A node is a [`crate::proto::torrent::Torrent`] and a [`crate::proto::choker::Choker`], fed and
//! obeyed as the engine does it, and announces itself with the real tracker client, whose datagrams
//! may be lost. Links and disks are models. Every block carries who
//! sent it and whether it is good, and the gate lets a piece through only if all of its blocks
//! are: so "no wrong byte" is a finding, not an assumption. The same plan gives the same trace.

mod announcer;
#[cfg(test)]
mod broken;
mod checks;
mod datagram;
mod discovery;
mod event;
mod link;
mod node;
mod plan;
mod plot;
mod report;
mod shell;
#[cfg(test)]
mod tests;
mod tracker;
mod world;

pub use crate::proto::geometry::GeometryError;
pub use checks::{Bounds, Rule};
pub use plan::{Leave, NodePlan, Plan, Role, SCENARIOS, Settings, UnknownScenario};
pub use report::{PeerReport, ReadReport, Report};

/// Where every node listens.
const PORT: u16 = 6881;

/// Runs a plan to its end.
pub fn run(plan: Plan) -> Result<Report, GeometryError> {
    let mut world = world::World::new(plan)?;
    world.run();
    Ok(Report::of(&world))
}
