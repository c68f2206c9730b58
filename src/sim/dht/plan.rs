//! What is simulated: how large and how ill the network is, and who looks up.

use std::time::Duration;

/// A crowd around one id.
#[derive(Clone, Copy, Debug)]
pub struct Sybils {
    /// How many.
    pub count: u32,
    /// How many networks (/64) they are in; so many for each way in which their ids begin (21 bits)
    /// when these fit their addresses.
    pub networks: u32,
    /// How many leading bits they share with the id.
    pub bits: u32,
    /// Their ids fit their addresses (BEP 42).
    pub fitting: bool,
}

/// What looks up, and what answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nodes {
    /// Lookups alone among compact nodes: the quickest.
    #[default]
    Lookups,
    /// Whole machines among compact nodes.
    Machines,
    /// Whole machines only.
    Real,
}

/// A run of the simulated DHT: all that its outcome depends on.
#[derive(Clone, Debug)]
pub struct DhtPlan {
    /// Where all randomness comes from.
    pub seed: u64,
    /// What looks up, and what answers.
    pub who: Nodes,
    /// Nodes that are alive.
    pub nodes: usize,
    /// The share of contacts in tables that are dead, 0–0.9.
    pub dead: f64,
    /// The share of the others that died lately, so that half of the tables name them, 0–0.9.
    pub churn: f64,
    /// The share of datagrams that is lost, 0–0.9.
    pub loss: f64,
    /// Lookups that are counted.
    pub lookups: usize,
    /// Nodes that look up, in turn.
    pub lookers: usize,
    /// The median round trip.
    pub rtt: Duration,
    /// The standard deviation of the logarithm of the nodes' round trips.
    pub spread: f64,
    /// A crowd around the hash that all look for.
    pub sybils: Option<Sybils>,
}

impl Default for DhtPlan {
    fn default() -> Self {
        Self {
            seed: 1,
            who: Nodes::default(),
            nodes: 1_000_000,
            dead: 0.3,
            churn: 0.0,
            loss: 0.0,
            lookups: 1_000,
            lookers: 20,
            rtt: Duration::from_millis(87),
            spread: 0.4,
            sybils: None,
        }
    }
}
