//! Whole nodes: real machines that exchange real datagrams, with the compact network or with each
//! other alone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::network::{Kind, Network, head, mix, round_trip_of};
use super::plan::DhtPlan;
use super::report::Tables;
use super::world::{Outcome, random_id};
use crate::proto::dht::krpc::{Answer, Body, Message, Method};
use crate::proto::dht::{Announce, Config, Dht, GetPeers, K, NodeId, Output};
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// A round trip differs from the usual one by up to this share.
const JITTER: f64 = 0.1;

/// One machine joins after another: when all came at once, the first would know nobody.
const JOIN: Duration = Duration::from_millis(1);

/// After this the last one that joined has found its place.
const SETTLE: Duration = Duration::from_secs(30);

/// Nodes that a machine knows when it starts.
const ROUTERS: usize = 3;

/// Lookups that a machine makes before those that are measured.
const WARM_UP: usize = 16;

/// So many tables at most are looked at.
const TABLES: usize = 500;

/// A lookup that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What happens to a machine.
enum Event {
    Wake,
    Datagram { from: SocketAddr, bytes: Vec<u8> },
}

/// What will happen; the earliest is the greatest.
struct Queued {
    at: Timestamp,
    sequence: u64,
    to: usize,
    event: Event,
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Queued {}

/// A machine, and when it is due.
struct Node {
    id: NodeId,
    addr: SocketAddr,
    dht: Dht,
    /// When it is woken: no later than it wants to be.
    wake: Timestamp,
    /// Its usual round trip.
    usual: Duration,
    alive: bool,
}

/// What is seen of the lookup that is measured.
#[derive(Default)]
struct Watch {
    node: usize,
    target: Option<InfoHash>,
    started: Timestamp,
    first: Option<Timestamp>,
    done: Option<Timestamp>,
    queries: usize,
    answers: usize,
    /// Who answered, and how far each that was named is from the start.
    answered: BTreeSet<NodeId>,
    hops: BTreeMap<NodeId, usize>,
    /// Who was told, and announces sent.
    told: BTreeSet<NodeId>,
    announces: usize,
}

/// Machines and their network.
pub(super) struct Machines {
    plan: DhtPlan,
    network: Option<Network>,
    rng: ChaCha8Rng,
    now: Timestamp,
    nodes: Vec<Node>,
    /// Looked up only; its order is never seen.
    places: HashMap<SocketAddr, usize>,
    heap: BinaryHeap<Queued>,
    sequence: u64,
    /// Peers that compact nodes keep, by their ids and the hash.
    kept: BTreeMap<(NodeId, InfoHash), SocketAddr>,
    watch: Watch,
    datagrams: u64,
}

impl Machines {
    /// As many machines as look up, in a network of compact nodes.
    pub fn among(plan: DhtPlan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let crowded = random_id(&mut rng);
        let network = Network::new(&plan, head(&crowded)).with_addresses();
        let mut machines = Self::with(plan, rng, Some(network));
        machines.watch.target = machines.plan.sybils.map(|_| InfoHash::new(*crowded.as_bytes()));
        for _ in 0..machines.plan.lookers.max(2) {
            let at = machines.living();
            machines.join(at);
        }
        machines.run_until(machines.now + SETTLE);
        machines
    }

    /// All nodes are machines. When they have found each other, the share that is to be dead dies, of
    /// which no table knows yet; then those start that look up, as they do among compact nodes.
    pub fn alone(plan: DhtPlan) -> Self {
        let all = (plan.nodes as f64 / (1.0 - plan.dead)).round() as usize;
        let rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let addresses =
            Network::new(&DhtPlan { nodes: all, dead: 0.0, sybils: None, ..plan.clone() }, 0);
        let mut machines = Self::with(plan, rng, None);
        let mut order: Vec<_> = (0..addresses.len()).collect();
        order.sort_by_key(|at| mix(machines.plan.seed ^ 8, *at as u64));
        let lookers = order.split_off(order.len().saturating_sub(machines.plan.lookers.max(2)));
        machines.start_all(&addresses, &order);
        let dead = (machines.nodes.len() as f64 * machines.plan.dead) as usize;
        // Those that came first are better known: any may be among the dead.
        let mut order: Vec<_> = (0..machines.nodes.len()).collect();
        order.sort_by_key(|at| mix(machines.plan.seed ^ 10, *at as u64));
        order.into_iter().take(dead).for_each(|at| machines.nodes[at].alive = false);
        machines.start_all(&addresses, &lookers);
        machines
    }

    /// Starts one after the other and lets them find their places.
    fn start_all(&mut self, addresses: &Network, order: &[usize]) {
        for at in order {
            let contact = addresses.contact(*at);
            self.start(contact.id, contact.addr);
            self.run_until(self.now + JOIN);
        }
        self.run_until(self.now + SETTLE);
    }

    fn with(plan: DhtPlan, rng: ChaCha8Rng, network: Option<Network>) -> Self {
        Self {
            plan,
            network,
            rng,
            now: Timestamp::ZERO,
            nodes: Vec::new(),
            places: HashMap::new(),
            heap: BinaryHeap::new(),
            sequence: 0,
            kept: BTreeMap::new(),
            watch: Watch::default(),
            datagrams: 0,
        }
    }

    /// Datagrams that were sent.
    pub fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// Bytes that the compact nodes take.
    pub fn memory(&self) -> usize {
        self.network.as_ref().map_or(0, Network::memory)
    }

    /// What the tables of the living are like, by some of them; only where all are machines.
    pub fn tables(&self) -> Option<Tables> {
        let living: Vec<_> = (0..self.nodes.len()).filter(|at| self.nodes[*at].alive).collect();
        let some: Vec<_> = living.iter().copied().step_by(living.len() / TABLES + 1).collect();
        let (mut all, mut alive, mut near) = (0, 0, 0.0);
        for at in &some {
            let node = &self.nodes[*at];
            let known: BTreeSet<_> = node.dht.contacts(false).collect();
            let lives = |addr| self.places.get(addr).is_some_and(|at| self.nodes[*at].alive);
            all += known.len();
            alive += known.iter().filter(|contact| lives(&contact.addr)).count();
            let known: BTreeSet<_> = known.into_iter().map(|contact| contact.id).collect();
            let truth = self.closest(&node.id, *at);
            let found = truth.iter().filter(|id| known.contains(id)).count();
            near += found as f64 / truth.len().max(1) as f64;
        }
        let count = some.len().max(1) as f64;
        let nodes = all as f64 / count;
        let tables = Tables { nodes, alive: alive as f64 / all.max(1) as f64, near: near / count };
        self.network.is_none().then_some(tables)
    }

    /// Makes all lookups.
    pub fn run(&mut self) -> Vec<Outcome> {
        let crowded = self.watch.target;
        let pairs = self.pairs();
        let mut nodes: Vec<_> = pairs.iter().flat_map(|(who, other)| [*who, *other]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        self.warm_up(&nodes);
        pairs.into_iter().map(|pair| self.announce_and_find(pair, crowded)).collect()
    }

    /// Who looks, and who announces itself.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let lookers = self.plan.lookers.max(2).min(self.nodes.len());
        let pick = |lot: usize| self.nodes.len() - lookers + lot % lookers;
        (0..self.plan.lookups).map(|number| (pick(number), pick(number + 1))).collect()
    }

    /// Somebody announces itself, then another one searches for it.
    fn announce_and_find(
        &mut self,
        (who, other): (usize, usize),
        crowded: Option<InfoHash>,
    ) -> Outcome {
        let target = crowded.unwrap_or_else(|| InfoHash::new(*random_id(&mut self.rng).as_bytes()));
        self.kept.clear();
        let announce = Announce { port: 6881, implied: true, seed: false };
        self.look(other, target, Some(announce));
        let told = std::mem::take(&mut self.watch.told);
        let announce = self.watch.queries + self.watch.announces;
        self.look(who, target, None);
        let living = told.iter().filter(|id| self.is_honest(id)).count();
        Outcome { told: living, announce, ..self.outcome(who) }
    }

    /// They look for something or other, as nodes do all the time: it fills their tables, and they
    /// learn how many are dead.
    fn warm_up(&mut self, nodes: &[usize]) {
        for _ in 0..WARM_UP {
            for at in nodes {
                let target = random_id(&mut self.rng);
                self.nodes[*at].dht.find_node(target, self.now);
                self.settle(*at);
            }
            self.run_until(self.now + Duration::from_secs(4));
        }
    }

    /// One lookup, to its end.
    fn look(&mut self, who: usize, target: InfoHash, announce: Option<Announce>) {
        self.watch =
            Watch { node: who, target: Some(target), started: self.now, ..Watch::default() };
        let options = GetPeers { announce, ..GetPeers::default() };
        self.nodes[who].dht.get_peers(target, options, self.now);
        self.settle(who);
        let patience = self.now + PATIENCE;
        while self.watch.done.is_none() && self.step(patience) {}
    }

    fn outcome(&self, who: usize) -> Outcome {
        let Watch { started, first, done, queries, answers, .. } = self.watch;
        let size = self.nodes[who].dht.stats().network[1].unwrap_or(0) as f64;
        let target = self.watch.target.map_or(NodeId::new([0; 20]), NodeId::from);
        let truth = self.closest(&target, who);
        let found = truth.iter().filter(|id| self.watch.answered.contains(id)).count();
        let closest = self.watch.answered.iter().min_by_key(|id| target.distance(id));
        Outcome {
            first: first.map(|at| at.since(started)),
            done: done.map_or(PATIENCE, |at| at.since(started)),
            queries,
            answers,
            hops: closest.map_or(0, |id| self.watch.hops.get(id).map_or(1, |hops| *hops)),
            recall: found as f64 / truth.len().max(1) as f64,
            size,
            ..Outcome::default()
        }
    }

    /// The k closest living nodes but for the one that looks.
    fn closest(&self, target: &NodeId, who: usize) -> Vec<NodeId> {
        let own = self.nodes[who].id;
        let mut all: Vec<_> = match &self.network {
            Some(network) => {
                let found = network.closest(target, K + 1, |kind| kind == Kind::Alive);
                found.into_iter().map(|at| network.contact(at).id).collect()
            }
            None => self.nodes.iter().filter(|node| node.alive).map(|node| node.id).collect(),
        };
        all.retain(|id| *id != own);
        if all.len() > K {
            all.select_nth_unstable_by_key(K - 1, |id| target.distance(id));
            all.truncate(K);
        }
        all
    }

    fn is_honest(&self, id: &NodeId) -> bool {
        let Some(network) = &self.network else { return true };
        let nearest = network.closest(id, 1, |_| true);
        nearest.first().is_some_and(|at| network.kind(*at) == Kind::Alive)
    }

    /// A living place of the compact network.
    fn living(&mut self) -> usize {
        let Some(network) = &self.network else { return 0 };
        loop {
            let at = self.rng.random_range(0..network.len());
            if network.kind(at) == Kind::Alive {
                return at;
            }
        }
    }

    /// A machine takes the place of a compact node, and knows some others.
    fn join(&mut self, at: usize) {
        let Some(network) = &self.network else { return };
        let own = network.contact(at);
        let routers = [(); ROUTERS].map(|()| self.living());
        let routers = routers.map(|at| self.network.as_ref().map(|n| n.contact(at).addr));
        self.start(own.id, own.addr);
        let node = self.nodes.len() - 1;
        for router in routers.into_iter().flatten() {
            self.nodes[node].dht.add_node(router, self.now);
        }
        self.settle(node);
    }

    /// The address of a living machine.
    fn anybody(&mut self) -> SocketAddr {
        loop {
            let node = &self.nodes[self.rng.random_range(0..self.nodes.len())];
            if node.alive {
                return node.addr;
            }
        }
    }

    /// A machine starts; where all are machines, it knows three that were there before.
    fn start(&mut self, id: NodeId, addr: SocketAddr) {
        let config =
            Config { id: Some(id), v4: false, v6: true, read_only: false, restrict: false };
        let seed = mix(self.plan.seed ^ 9, self.nodes.len() as u64);
        let mut dht = Dht::new(config, seed, self.now);
        if self.network.is_none() {
            for _ in 0..ROUTERS.min(self.nodes.len()) {
                dht.add_node(self.anybody(), self.now);
            }
        }
        self.places.insert(addr, self.nodes.len());
        let usual = round_trip_of(&self.plan, addr);
        self.nodes.push(Node { id, addr, dht, wake: Timestamp::FAR_FUTURE, usual, alive: true });
        self.settle(self.nodes.len() - 1);
    }

    fn run_until(&mut self, end: Timestamp) {
        while self.step(end) {}
        self.now = end;
    }

    /// The next event, if it comes before `end`.
    fn step(&mut self, end: Timestamp) -> bool {
        if self.heap.peek().is_none_or(|next| next.at > end) {
            return false;
        }
        let Some(Queued { at, to, event, .. }) = self.heap.pop() else { return false };
        self.now = at;
        let node = &mut self.nodes[to];
        match event {
            _ if !node.alive => return true,
            Event::Wake if node.wake != at => return true,
            Event::Wake => {
                node.wake = Timestamp::FAR_FUTURE;
                if node.dht.poll_timeout().is_some_and(|due| due <= at) {
                    node.dht.handle_timeout(at);
                }
            }
            Event::Datagram { from, bytes } => {
                if to == self.watch.node {
                    self.watch_answer(&bytes);
                }
                self.nodes[to].dht.handle_datagram(from, &bytes, at);
            }
        }
        self.settle(to);
        true
    }

    /// Carries out what a machine wants, and notes when it is due.
    fn settle(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].dht.poll_output() {
            match output {
                Output::Transmit { to, datagram } => self.send(at, to, datagram),
                // Perhaps it keeps the announce itself.
                Output::Peers { info_hash, .. }
                    if at == self.watch.node && Some(info_hash) == self.watch.target =>
                {
                    self.watch.first = self.watch.first.or(Some(self.now));
                }
                Output::Finished { .. } if at == self.watch.node => {
                    self.watch.done = self.watch.done.or(Some(self.now));
                }
                _ => {}
            }
        }
        let node = &mut self.nodes[at];
        let due = node.dht.poll_timeout().unwrap_or(Timestamp::FAR_FUTURE).max(self.now);
        // Mostly it wants to be woken later than it wanted before: then the time is right that it has.
        if due < node.wake {
            node.wake = due;
            self.queue(at, due.since(self.now), Event::Wake);
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        self.datagrams += 1;
        if from == self.watch.node {
            self.watch_query(&bytes);
        }
        if self.plan.loss > 0.0 && self.rng.random_bool(self.plan.loss) {
            return;
        }
        let stray = self.rng.random_range(1.0 - JITTER..1.0 + JITTER);
        if let Some(place) = self.places.get(&to).copied() {
            let ways = self.nodes[from].usual + self.nodes[place].usual;
            let event = Event::Datagram { from: self.nodes[from].addr, bytes };
            return self.queue(place, (ways / 4).mul_f64(stray), event);
        }
        let Some(network) = &self.network else { return };
        let Some(at) = network.at(&to) else { return };
        if let Some(bytes) = self.compact_answer(at, self.nodes[from].addr, &bytes)
            && !(self.plan.loss > 0.0 && self.rng.random_bool(self.plan.loss))
        {
            let delay = self.network.as_ref().map_or(Duration::ZERO, |n| n.round_trip(at));
            self.datagrams += 1;
            self.queue(from, delay.mul_f64(stray), Event::Datagram { from: to, bytes });
        }
    }

    fn queue(&mut self, to: usize, delay: Duration, event: Event) {
        self.sequence += 1;
        let (at, sequence) = (self.now + delay, self.sequence);
        self.heap.push(Queued { at, sequence, to, event });
    }

    /// What a compact node answers to a datagram, if it is alive.
    fn compact_answer(&mut self, at: usize, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let network = self.network.as_ref()?;
        let kind = network.kind(at);
        if !matches!(kind, Kind::Alive | Kind::Sybil) {
            return None;
        }
        let Message { transaction, body: Body::Query(query), .. } = Message::parse(bytes).ok()?
        else {
            return None;
        };
        let own = network.contact(at).id;
        let named = |target: &NodeId| {
            let named = match kind {
                Kind::Sybil => network.accomplices(target, K),
                _ => network.answer(at, target),
            };
            Some(named.into_iter().map(|at| network.contact(at)).collect())
        };
        let mut answer = Answer::new(own);
        match query.method {
            Method::FindNode { target, .. } => answer.nodes6 = named(&target),
            Method::GetPeers { info_hash, .. } => {
                answer.nodes6 = named(&info_hash.into());
                answer.token = Some(b"token".to_vec());
                answer.values = self.kept.get(&(own, info_hash)).copied().into_iter().collect();
            }
            Method::AnnouncePeer { info_hash, .. } if kind == Kind::Alive => {
                self.kept.insert((own, info_hash), from);
            }
            _ => {}
        }
        let body = Body::Answer(Box::new(answer));
        Some(Message { transaction, read_only: false, ip: None, body }.encode())
    }

    /// Counts what the machine asks that is watched.
    fn watch_query(&mut self, bytes: &[u8]) {
        let Ok(Message { body: Body::Query(query), .. }) = Message::parse(bytes) else { return };
        match query.method {
            Method::GetPeers { .. } | Method::FindNode { .. } if self.watch.done.is_none() => {
                self.watch.queries += 1;
            }
            Method::AnnouncePeer { .. } => self.watch.announces += 1,
            _ => {}
        }
    }

    /// Notes who answers the machine that is watched, and whom it names.
    fn watch_answer(&mut self, bytes: &[u8]) {
        let Ok(Message { body: Body::Answer(answer), .. }) = Message::parse(bytes) else { return };
        if answer.nodes6.is_none() {
            self.watch.told.insert(answer.id);
            return;
        }
        self.watch.answers += 1;
        self.watch.answered.insert(answer.id);
        let hops = self.watch.hops.get(&answer.id).map_or(1, |hops| *hops) + 1;
        for contact in answer.contacts() {
            self.watch.hops.entry(contact.id).or_insert(hops);
        }
    }
}
