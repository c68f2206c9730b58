//! What came of a run.

use std::fmt;

use serde::Serialize;

use super::plan::DhtPlan;
use super::world::Outcome;

/// The middle, the nineteen of twenty, and the mean of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half are no greater.
    pub p50: f64,
    /// 95 of 100 are no greater.
    pub p95: f64,
    /// The mean.
    pub mean: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let part = |share: f64| {
            let at = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
            sorted.get(at).copied().unwrap_or(0.0)
        };
        let mean = sorted.iter().sum::<f64>() / sorted.len().max(1) as f64;
        Self { p50: part(0.5), p95: part(0.95), mean }
    }
}

/// What the tables of whole nodes were like before the lookups, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tables {
    /// Nodes in a table.
    pub nodes: f64,
    /// The share of them that is alive.
    pub alive: f64,
    /// The share of the k living nodes closest to its owner that are in a table.
    pub near: f64,
}

/// What came of a run of the simulated DHT.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DhtReport {
    /// Its seed.
    pub seed: u64,
    /// Nodes that are alive.
    pub nodes: usize,
    /// Lookups that were counted.
    pub lookups: usize,
    /// The share of lookups that found who had announced itself.
    pub found: f64,
    /// Until the first peers came, in milliseconds.
    pub first_ms: Spread,
    /// The same in median round trips.
    pub first_rtt: Spread,
    /// Until the lookup decided that the k closest are known, in milliseconds.
    pub done_ms: Spread,
    /// The same in median round trips.
    pub done_rtt: Spread,
    /// Queries sent by a lookup.
    pub queries: Spread,
    /// Queries and the answers to them that came in time.
    pub datagrams: Spread,
    /// Nodes on the way to the closest one, itself counted.
    pub hops: Spread,
    /// Queries and announces that an announce took.
    pub announce: Spread,
    /// Living honest nodes that keep an announce.
    pub told: Spread,
    /// The share of the k closest living nodes that a lookup found, on average.
    pub recall: f64,
    /// The number of nodes by the lookers' estimates.
    pub size: Spread,
    /// Bytes that the compact nodes take.
    pub memory: usize,
    /// Datagrams of all machines, from the start to the end.
    pub traffic: Option<u64>,
    /// Tables, where all nodes are whole ones.
    pub tables: Option<Tables>,
}

impl DhtReport {
    pub(super) fn of(
        plan: &DhtPlan,
        memory: usize,
        traffic: Option<u64>,
        outcomes: &[Outcome],
    ) -> Self {
        let of = |value: fn(&Outcome) -> f64| Spread::of(outcomes.iter().map(value));
        let done_ms = of(|o| o.done.as_secs_f64() * 1e3);
        let firsts = || outcomes.iter().filter_map(|o| o.first);
        let first_ms = Spread::of(firsts().map(|first| first.as_secs_f64() * 1e3));
        let rtt = plan.rtt.as_secs_f64() * 1e3;
        let in_rtt = |s: Spread| Spread { p50: s.p50 / rtt, p95: s.p95 / rtt, mean: s.mean / rtt };
        Self {
            seed: plan.seed,
            nodes: plan.nodes,
            lookups: outcomes.len(),
            found: firsts().count() as f64 / outcomes.len().max(1) as f64,
            first_ms,
            first_rtt: in_rtt(first_ms),
            done_ms,
            done_rtt: in_rtt(done_ms),
            queries: of(|o| o.queries as f64),
            datagrams: of(|o| (o.queries + o.answers) as f64),
            hops: of(|o| o.hops as f64),
            announce: of(|o| o.announce as f64),
            told: of(|o| o.told as f64),
            recall: of(|o| o.recall).mean,
            size: of(|o| o.size),
            memory,
            traffic,
            tables: None,
        }
    }
}

impl fmt::Display for DhtReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, lookups, seed, .. } = self;
        writeln!(f, "{lookups} lookups among {nodes} nodes, seed {seed}")?;
        writeln!(f, "                   p50      p95     mean")?;
        for (name, s) in [
            ("first, ms", self.first_ms),
            ("first, RTT", self.first_rtt),
            ("done, ms", self.done_ms),
            ("done, RTT", self.done_rtt),
            ("queries", self.queries),
            ("datagrams", self.datagrams),
            ("hops", self.hops),
            ("announce", self.announce),
            ("told", self.told),
        ] {
            writeln!(f, "  {name:<12} {:>8.2} {:>8.2} {:>8.2}", s.p50, s.p95, s.mean)?;
        }
        writeln!(f, "  recall       {:.4}, found {:.4}", self.recall, self.found)?;
        writeln!(f, "  size         {:.0} estimated", self.size.p50)?;
        if let Some(traffic) = self.traffic {
            writeln!(f, "  traffic      {traffic} datagrams in all")?;
        }
        if let Some(Tables { nodes, alive, near }) = self.tables {
            writeln!(
                f,
                "  tables       {nodes:.0} nodes, {alive:.3} alive; {near:.3} of those nearby"
            )?;
        }
        if self.memory > 0 {
            let each = self.memory as f64 / self.nodes.max(1) as f64;
            let all = self.memory as f64 / f64::from(1 << 20);
            writeln!(f, "  memory       {all:.1} MiB of compact nodes, {each:.1} bytes each")?;
        }
        Ok(())
    }
}
