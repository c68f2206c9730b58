//! The DHT in virtual time: real lookups among up to ten million simulated nodes.
//!
//! A world of its own: nothing of the swarm takes part. Whoever looks up is the real machine; the
//! others are compact ([`network`]).

mod network;
mod plan;
mod report;
#[cfg(test)]
mod tests;
mod world;

pub use plan::{DhtPlan, Sybils};
pub use report::{DhtReport, Spread};

/// Makes the lookups of a plan.
pub fn run(plan: &DhtPlan) -> DhtReport {
    let mut world = world::World::new(plan.clone());
    let outcomes = world.run();
    DhtReport::of(plan, &world, &outcomes)
}
