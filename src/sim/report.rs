//! What came of a run.

use std::fmt;

use serde::Serialize;

use super::node::Node;
use super::plan::Role;
use super::world::World;
use crate::proto::time::Timestamp;

/// What became of one node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerReport {
    /// Its number; the seed is 0.
    pub id: u32,
    /// How it behaved.
    pub role: Role,
    /// When it had everything, in seconds from the start.
    pub done_s: Option<f64>,
    /// Payload sent, in bytes.
    pub uploaded: u64,
    /// Payload received, in bytes.
    pub downloaded: u64,
}

/// How a program's reads went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadReport {
    /// The node it ran on.
    pub id: u32,
    /// Reads that ended.
    pub reads: usize,
    /// What the first, the median and the slowest of a hundred waited, in seconds.
    pub first_s: f64,
    /// The median wait, in seconds.
    pub p50_s: f64,
    /// 99 of 100 waited no longer, in seconds.
    pub p99_s: f64,
    /// When it had read everything, in seconds from the start.
    pub done_s: Option<f64>,
}

/// What came of a run. Times are in seconds of virtual time from the start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// No time could be shorter than this.
    pub bound_s: f64,
    /// When the last one that contributes was done; `None` when somebody never was.
    pub last_s: Option<f64>,
    /// The same for the middle one.
    pub median_s: Option<f64>,
    /// `last_s` in bounds.
    pub ratio: Option<f64>,
    /// Copies that the seed sent.
    pub seed_copies: f64,
    /// When the seed had sent each block once, and the copies it had sent by then.
    pub first_copy_s: Option<f64>,
    /// The copies that it took.
    pub first_copy_copies: Option<f64>,
    /// Share of the payload that came for nothing.
    pub duplicate_share: f64,
    /// Share of the uplinks of the seed and of contributors that was used.
    pub utilisation: f64,
    /// Jain's index of what contributors sent: 1 when all sent alike.
    pub fairness: f64,
    /// Wrong bytes that became readable on honest nodes.
    pub wrong_bytes: u64,
    /// Honest nodes that an honest node banned.
    pub banned_honest: usize,
    /// Nodes that sent wrong bytes and were banned by nobody.
    pub unbanned_liars: usize,
    /// Nodes that were sent wrong bytes by somebody whom they did not ban.
    pub unbanned_pairs: usize,
    /// Whether every free rider was done after every contributor, if there are any.
    pub free_rider_last: Option<bool>,
    /// The most memory for pieces on their way that a node took, in bytes.
    pub peak_memory: u64,
    /// Connections that were closed because nothing was heard.
    pub timeouts: u64,
    /// Announces that the tracker answered.
    pub announces: u64,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Of these, how many were lost.
    pub datagrams_lost: u64,
    /// Of these, how many a NAT kept out.
    pub datagrams_filtered: u64,
    /// Events.
    pub events: u64,
    /// A digest of everything that happened.
    pub trace: String,
    /// What must not happen and did.
    pub violations: Vec<String>,
    /// The command that runs this again.
    pub replay: String,
    /// How programs' reads went.
    pub readers: Vec<ReadReport>,
    /// What became of each node.
    pub peers: Vec<PeerReport>,
    /// Pieces in the order in which their first blocks left the seed, and who got them.
    #[serde(skip)]
    pub seed_sent: Vec<(u32, u32)>,
    /// By time: the share that each node had.
    #[serde(skip)]
    pub progress: Vec<(f64, Vec<f32>)>,
}

fn seconds(at: Timestamp) -> f64 {
    at.as_nanos() as f64 / 1e9
}

impl Report {
    pub(super) fn of(world: &World) -> Self {
        let contributors = || world.nodes.iter().filter(|n| n.plan.role.contributes());
        let stayed = || contributors().filter(|n| n.left_at.is_none() || n.done_at.is_some());
        let mut done: Vec<_> = stayed().filter_map(|n| n.done_at).map(seconds).collect();
        done.sort_by(f64::total_cmp);
        let all_done = done.len() == stayed().count();
        let last_s = done.last().copied().filter(|_| all_done);
        let bound_s = world.plan.bound().as_secs_f64();
        let total = world.geometry.total() as f64;
        let seed_sent = world.nodes.first().map_or(0, |n| n.uploaded);
        let received: u64 = contributors().map(|n| n.downloaded).sum();
        let wasted: u64 = contributors().map(|n| n.duplicates).sum();
        Self {
            scenario: world.plan.name.clone(),
            seed: world.plan.seed,
            bound_s,
            last_s,
            median_s: done.get(done.len() / 2).copied(),
            ratio: last_s.map(|last| last / bound_s),
            seed_copies: seed_sent as f64 / total,
            first_copy_s: world.first_copy.map(|(at, _)| seconds(at)),
            first_copy_copies: world.first_copy.map(|(_, sent)| sent as f64 / total),
            duplicate_share: wasted as f64 / received.max(1) as f64,
            utilisation: utilisation(world, last_s),
            fairness: fairness(contributors().map(|n| n.uploaded as f64)),
            wrong_bytes: world.wrong_bytes,
            banned_honest: banned_honest(world),
            unbanned_liars: unbanned_liars(world),
            unbanned_pairs: unbanned_pairs(world),
            free_rider_last: free_rider_last(world, last_s),
            peak_memory: world.nodes.iter().map(|n| n.disk.peak_memory).max().unwrap_or(0),
            timeouts: world.timeouts,
            announces: world.tracker.announces,
            datagrams: world.datagrams.sent,
            datagrams_lost: world.datagrams.lost,
            datagrams_filtered: world.filtered,
            events: world.events,
            trace: format!("{:016x}", world.agenda.trace()),
            violations: world.violations.clone(),
            replay: world.plan.command(),
            readers: world.nodes.iter().enumerate().filter_map(read_report).collect(),
            peers: world.nodes.iter().enumerate().map(peer_report).collect(),
            seed_sent: world.seed_sent.clone(),
            progress: progress(world),
        }
    }
}

fn peer_report((id, node): (usize, &Node)) -> PeerReport {
    PeerReport {
        id: id as u32,
        role: node.plan.role,
        done_s: node.done_at.map(seconds),
        uploaded: node.uploaded,
        downloaded: node.downloaded,
    }
}

fn read_report((id, node): (usize, &Node)) -> Option<ReadReport> {
    let program = node.program.as_ref()?;
    let first_s = *program.waited.first()?;
    let mut waited = program.waited.clone();
    waited.sort_by(f64::total_cmp);
    let part = |share: f64| waited[((waited.len() - 1) as f64 * share) as usize];
    Some(ReadReport {
        id: id as u32,
        reads: waited.len(),
        first_s,
        p50_s: part(0.5),
        p99_s: part(0.99),
        done_s: program.done_at.map(seconds),
    })
}

/// What was sent, of what the seed and the contributors could have sent until the last was done.
fn utilisation(world: &World, last_s: Option<f64>) -> f64 {
    let until = last_s.unwrap_or_else(|| seconds(world.agenda.now()));
    let until = Timestamp::from_nanos((until * 1e9) as u64);
    let gives = |n: &&Node| n.plan.role == Role::Seed || n.plan.role.contributes();
    let nodes = || world.nodes.iter().filter(gives);
    let could: f64 = nodes().map(|n| n.plan.up * n.time_present(until).as_secs_f64()).sum();
    nodes().map(|n| n.uploaded as f64).sum::<f64>() / could.max(1.0)
}

fn fairness(values: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

fn is_honest(world: &World, id: u32) -> bool {
    world.nodes.get(id as usize).is_some_and(|n| n.plan.role.is_honest())
}

pub(super) fn banned_honest(world: &World) -> usize {
    let unjust = world.bans.iter().filter(|(by, of)| is_honest(world, *by) && !lies(world, *of));
    unjust.map(|(_, of)| of).collect::<std::collections::BTreeSet<_>>().len()
}

fn lies(world: &World, id: u32) -> bool {
    world.nodes.get(id as usize).is_some_and(|n| n.plan.role.lies())
}

fn unbanned_liars(world: &World) -> usize {
    let liars: std::collections::BTreeSet<_> =
        world.wronged.iter().map(|(_, by)| *by).filter(|by| lies(world, *by)).collect();
    let free =
        |liar: &&u32| !world.bans.iter().any(|(by, of)| of == *liar && is_honest(world, *by));
    liars.iter().filter(free).count()
}

fn unbanned_pairs(world: &World) -> usize {
    let wronged = world.wronged.iter().filter(|(at, _)| is_honest(world, *at));
    wronged.filter(|pair| !world.bans.contains(pair)).count()
}

fn free_rider_last(world: &World, last_s: Option<f64>) -> Option<bool> {
    let mut riders = world.nodes.iter().filter(|n| n.plan.role == Role::FreeRider).peekable();
    riders.peek()?;
    let first = riders.filter_map(|n| n.done_at).map(seconds).fold(f64::INFINITY, f64::min);
    Some(last_s.is_some_and(|last| last < first))
}

fn progress(world: &World) -> Vec<(f64, Vec<f32>)> {
    let pieces = world.geometry.piece_count() as f32;
    let shares = |have: &Vec<u32>| have.iter().map(|have| *have as f32 / pieces).collect();
    world.samples.iter().map(|(at, have)| (seconds(*at), shares(have))).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |t: Option<f64>| t.map_or("never".to_owned(), |t| format!("{t:.1} s"));
        writeln!(f, "{} with {} peers, seed {}", self.scenario, self.peers.len() - 1, self.seed)?;
        let ratio = self.ratio.map_or(String::new(), |r| format!(", {r:.3} × the bound"));
        let (last, median) = (time(self.last_s), time(self.median_s));
        writeln!(
            f,
            "  done         last {last}, median {median}; bound {:.1} s{ratio}",
            self.bound_s
        )?;
        let first = self.first_copy_copies.map_or(String::new(), |copies| {
            format!("; each block once after {}, {copies:.3} copies", time(self.first_copy_s))
        });
        writeln!(f, "  seed         sent {:.3} copies{first}", self.seed_copies)?;
        writeln!(
            f,
            "  uplinks      {:.1} % used, fairness {:.3}; {:.2} % of payload was duplicate",
            self.utilisation * 100.0,
            self.fairness,
            self.duplicate_share * 100.0
        )?;
        writeln!(
            f,
            "  blame        {} wrong bytes, {} honest banned, {} liars not banned ({} pairs)",
            self.wrong_bytes, self.banned_honest, self.unbanned_liars, self.unbanned_pairs
        )?;
        writeln!(
            f,
            "  tracker      {} announces answered, {} of {} datagrams lost",
            self.announces, self.datagrams_lost, self.datagrams
        )?;
        if let Some(last) = self.free_rider_last {
            writeln!(f, "  free riders  {}", if last { "last" } else { "NOT last" })?;
        }
        for r in &self.readers {
            let done = time(r.done_s);
            writeln!(
                f,
                "  reader {:<5} first {:.2} s, p50 {:.3} s, p99 {:.2} s of {} reads, done {done}",
                r.id, r.first_s, r.p50_s, r.p99_s, r.reads
            )?;
        }
        write!(f, "  machine      {} events, peak {} KiB, ", self.events, self.peak_memory >> 10)?;
        writeln!(f, "trace {}", self.trace)?;
        for violation in &self.violations {
            writeln!(f, "  VIOLATION    {violation}")?;
        }
        if !self.violations.is_empty() {
            writeln!(f, "  replay with  {}", self.replay)?;
        }
        Ok(())
    }
}
