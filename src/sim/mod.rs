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
pub mod dht;
mod discovery;
mod event;
mod link;
mod node;
mod plan;
mod plot;
mod report;
mod scenarios;
mod shell;
#[cfg(test)]
mod tests;
mod trace;
mod tracker;
mod world;

pub use crate::proto::geometry::GeometryError;
pub use checks::{Bounds, Rule};
pub use plan::{Leave, NodePlan, Plan, Role, Settings};
pub use report::{PeerReport, ReadReport, Report};
pub use scenarios::{SCENARIOS, Scenario, UnknownScenario};

use std::io;

/// Where every node listens.
const PORT: u16 = 6881;

/// Why a run came to no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no torrent of this size.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The trace could not be written.
    #[error("the trace cannot be written: {0}")]
    Trace(#[from] io::Error),
}

/// Runs a plan to its end.
pub fn run(plan: Plan) -> Result<Report, GeometryError> {
    let mut world = world::World::new(plan)?;
    world.run();
    Ok(Report::of(&world))
}

/// The same, with a line for each event written to `out`.
pub fn run_traced(plan: Plan, out: impl io::Write + 'static) -> Result<Report, RunError> {
    let mut world = world::World::new(plan)?;
    world.trace = Some(trace::Trace::new(Box::new(out)));
    world.run();
    world.trace.take().map_or(Ok(()), trace::Trace::finish)?;
    Ok(Report::of(&world))
}
