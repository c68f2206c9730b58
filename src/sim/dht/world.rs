//! Lookups in virtual time: each one of the real machine, whose queries the network answers.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::network::{self, Kind, Network};
use super::plan::DhtPlan;
use crate::proto::dht::{Answers, Ask, K, Lookup, LookupOptions, NodeId, Size};
use crate::proto::time::Timestamp;

/// Lookups that each looker has made before, as every node does when it starts: they tell it how
/// nodes answer and how many there are.
const WARM_UP: usize = 16;

/// A round trip differs from the usual one of its node by up to this share.
const JITTER: f64 = 0.1;

/// Whoever does not answer in this time does not answer any more.
const SILENT: Duration = Duration::from_secs(3);

/// What came of a lookup.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// When the first peers came.
    pub first: Option<Duration>,
    pub done: Duration,
    pub queries: usize,
    pub answers: usize,
    pub hops: usize,
    /// The share of the k closest living nodes that it found.
    pub recall: f64,
    /// How many nodes it thinks there are.
    pub size: f64,
    /// Living nodes that keep the announce which was looked for.
    pub told: usize,
    /// Queries and announces that it took.
    pub announce: usize,
}

/// What a lookup is for.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// To learn how nodes answer and how many there are.
    WarmUp,
    /// To announce.
    Announce,
    /// To find somebody who announced to these.
    Find(&'a BTreeSet<usize>),
}

/// A node that looks up.
struct Looker {
    at: usize,
    answers: Answers,
    size: Size,
}

/// A query under way, or its answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Timestamp,
    sequence: usize,
    from: usize,
    ask: Ask,
    asked: Timestamp,
}

/// Everything there is.
pub(super) struct World {
    plan: DhtPlan,
    network: Network,
    rng: ChaCha8Rng,
    crowded: NodeId,
    now: Timestamp,
}

impl World {
    pub fn new(plan: DhtPlan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let crowded = random_id(&mut rng);
        let network = Network::new(&plan, network::head(&crowded));
        Self { plan, network, rng, crowded, now: Timestamp::ZERO }
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Makes all lookups.
    pub fn run(&mut self) -> Vec<Outcome> {
        let lookers = self.plan.lookers.clamp(1, self.plan.lookups.max(1));
        let mut outcomes = Vec::with_capacity(self.plan.lookups);
        for number in 0..lookers {
            let mut looker = self.looker();
            for _ in 0..WARM_UP {
                let target = random_id(&mut self.rng);
                self.look(&mut looker, target, Purpose::WarmUp);
            }
            let counted = (self.plan.lookups + lookers - 1 - number) / lookers;
            for _ in 0..counted {
                let outcome = self.announce_and_find(&mut looker);
                outcomes.push(outcome);
            }
        }
        outcomes
    }

    /// A living node, who knows nothing yet.
    fn looker(&mut self) -> Looker {
        loop {
            let at = self.rng.random_range(0..self.network.len());
            if self.network.kind(at) == Kind::Alive {
                return Looker { at, answers: Answers::default(), size: Size::default() };
            }
        }
    }

    /// Somebody announces itself, then the looker searches for it.
    fn announce_and_find(&mut self, looker: &mut Looker) -> Outcome {
        let target = match self.plan.sybils {
            Some(_) => self.crowded,
            None => random_id(&mut self.rng),
        };
        let mut announcer = self.looker();
        (announcer.answers, announcer.size) = (looker.answers.clone(), looker.size.clone());
        let (announce, told) = self.look(&mut announcer, target, Purpose::Announce);
        let (find, _) = self.look(looker, target, Purpose::Find(&told));
        Outcome { told: told.len(), announce: announce.queries + announce.told, ..find }
    }

    /// One lookup. Gives also the living nodes to which it would announce.
    fn look(
        &mut self,
        looker: &mut Looker,
        target: NodeId,
        purpose: Purpose<'_>,
    ) -> (Outcome, BTreeSet<usize>) {
        let started = self.now;
        let mut start = self.network.start(looker.at, &target);
        start.extend(self.network.start(looker.at, &target.flipped(0)));
        let start: Vec<_> = start.into_iter().map(|at| (self.network.contact(at), None)).collect();
        let expected = looker.size.expected(K);
        let beyond = expected.filter(|_| !matches!(purpose, Purpose::WarmUp));
        let answers = looker.answers.clone();
        let options = LookupOptions { answers, expected, beyond, avoid: None };
        let mut lookup = Lookup::new(target, &start, options, started);
        let (mut heap, mut outcome) = (BinaryHeap::new(), Outcome::default());
        let mut unanswered = BTreeSet::new();
        while !lookup.is_finished() {
            while let Some(ask) = lookup.next(self.now) {
                let lost = !ask.again || unanswered.contains(&(ask.to, ask.target));
                let answer = self.ask(ask, &mut outcome.queries);
                if ask.again && lost {
                    looker.answers.asked_again(answer.is_some());
                }
                match answer {
                    // Who is only late answers twice, which is of no use.
                    Some(arrival) if lost => heap.push(Reverse(arrival)),
                    Some(_) => {}
                    None => drop(unanswered.insert((ask.to, ask.target))),
                }
            }
            let wake = lookup.poll_timeout().unwrap_or(Timestamp::FAR_FUTURE);
            match heap.peek() {
                Some(Reverse(next)) if next.at <= wake => {
                    let Some(Reverse(next)) = heap.pop() else { break };
                    self.now = next.at;
                    self.arrive(&next, &mut lookup);
                    looker.answers.answered(next.at.since(next.asked));
                    outcome.answers += 1;
                    if matches!(purpose, Purpose::Find(told) if told.contains(&next.from)) {
                        outcome.first = outcome.first.or(Some(self.now.since(started)));
                    }
                }
                _ if wake == Timestamp::FAR_FUTURE => break,
                _ => {
                    self.now = wake;
                    lookup.handle_timeout(wake);
                }
            }
        }
        // The looker goes on listening.
        heap.iter().for_each(|late| looker.answers.answered(late.0.at.since(late.0.asked)));
        unanswered.iter().for_each(|_| looker.answers.silent());
        if matches!(purpose, Purpose::WarmUp) {
            looker.size.sample(&lookup.distances());
        }
        outcome.done = self.now.since(started);
        outcome.hops = lookup.hops();
        outcome.size = looker.size.nodes().unwrap_or(0.0);
        outcome.recall = self.recall(looker, &target, &lookup);
        self.now = self.now + SILENT;
        let told = lookup.announce_to();
        outcome.told = told.len();
        let told = told.iter().filter_map(|contact| self.network.find(contact));
        (outcome, told.filter(|at| self.network.kind(*at) == Kind::Alive).collect())
    }

    /// Sends a query; gives its answer, if one will come.
    fn ask(&mut self, ask: Ask, queries: &mut usize) -> Option<Arrival> {
        *queries += 1;
        let from = self.network.find(&ask.to)?;
        let delivered = self.rng.random_bool((1.0 - self.plan.loss).powi(2));
        let alive = matches!(self.network.kind(from), Kind::Alive | Kind::Sybil);
        let stray = self.rng.random_range(1.0 - JITTER..1.0 + JITTER);
        let round_trip = self.network.round_trip(from).mul_f64(stray);
        (delivered && alive && round_trip < SILENT).then_some(Arrival {
            at: self.now + round_trip,
            sequence: *queries,
            from,
            ask,
            asked: self.now,
        })
    }

    /// An answer comes in.
    fn arrive(&self, arrival: &Arrival, lookup: &mut Lookup) {
        let target = &arrival.ask.target;
        let named = match self.network.kind(arrival.from) {
            Kind::Sybil => self.network.accomplices(target, K),
            _ => self.network.answer(arrival.from, target),
        };
        let nodes: Vec<_> = named.into_iter().map(|at| self.network.contact(at)).collect();
        lookup.answered(arrival.ask, &nodes, arrival.at.since(arrival.asked), arrival.at);
    }

    /// How many of the k closest living nodes, the looker left out, it found.
    fn recall(&self, looker: &Looker, target: &NodeId, lookup: &Lookup) -> f64 {
        let mut truth = self.network.closest(target, K + 1, |kind| kind == Kind::Alive);
        truth.retain(|at| *at != looker.at);
        truth.truncate(K);
        let found: BTreeSet<_> = lookup.closest_answering().into_iter().collect();
        let hits = truth.iter().filter(|at| found.contains(&self.network.contact(**at))).count();
        hits as f64 / truth.len().max(1) as f64
    }
}

pub(super) fn random_id(rng: &mut ChaCha8Rng) -> NodeId {
    let mut bytes = [0; 20];
    rng.fill_bytes(&mut bytes);
    NodeId::new(bytes)
}
