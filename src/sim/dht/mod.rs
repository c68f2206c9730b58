//! The DHT in virtual time: real lookups among up to ten million simulated nodes.
//!
//! A world of its own: nothing of the swarm takes part. Whoever looks up is the real machine; the
//! others are compact (`network`).

mod machine;
mod network;
mod plan;
mod report;
#[cfg(test)]
mod tests;
mod world;

pub use plan::{DhtPlan, Nodes, Sybils};
pub use report::{DhtReport, Spread, Tables};

/// Makes the lookups of a plan.
pub fn run(plan: &DhtPlan) -> DhtReport {
    match plan.who {
        Nodes::Lookups => {
            let mut world = world::World::new(plan.clone());
            let outcomes = world.run();
            DhtReport::of(plan, world.network().memory(), None, &outcomes)
        }
        Nodes::Machines => report(plan, machine::Machines::among(plan.clone())),
        Nodes::Real => report(plan, machine::Machines::alone(plan.clone())),
    }
}

fn report(plan: &DhtPlan, mut machines: machine::Machines) -> DhtReport {
    let tables = machines.tables();
    let outcomes = machines.run();
    let report = DhtReport::of(plan, machines.memory(), Some(machines.datagrams()), &outcomes);
    DhtReport { tables, ..report }
}
