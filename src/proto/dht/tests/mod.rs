//! Nodes that talk over a network of the test's making: a fixed delay, no loss but what a test
//! wants, and time that jumps from one event to the next.

mod finding;
mod hostile;
mod keeping;
mod limits;
mod starting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::krpc::{Answer, Body, KrpcError, Message, Method};
use super::*;
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// How long a datagram takes.
const DELAY: Duration = Duration::from_millis(20);

/// A network without strangers, so that no address says anything about an id.
const CONFIG: Config = Config { id: None, v4: true, v6: false, read_only: false, restrict: false };

/// The same by IPv6, where each node has a site of its own and ids have to fit.
const CONFIG6: Config = Config { v4: false, v6: true, ..CONFIG };

fn local(n: usize) -> SocketAddr {
    let [.., a, b] = (n as u32).to_be_bytes();
    (Ipv4Addr::new(10, 77, a, b), 6881).into()
}

fn global(n: usize) -> SocketAddr {
    (Ipv6Addr::from_bits(0x2001_0db8 << 96 | (n as u128) << 64 | 1), 6881).into()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn hash(n: u8) -> InfoHash {
    InfoHash::new([n; 20])
}

/// What answers in place of a node: gets the sender and what it says.
type Script = Box<dyn FnMut(SocketAddr, &[u8]) -> Vec<Vec<u8>>>;

/// The network.
struct Net {
    now: Timestamp,
    nodes: BTreeMap<SocketAddr, Dht>,
    scripts: BTreeMap<SocketAddr, Script>,
    under_way: BTreeMap<(Timestamp, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    /// When each node is due, and in that order.
    due: BTreeMap<SocketAddr, Timestamp>,
    timers: BTreeSet<(Timestamp, SocketAddr)>,
    sent: u64,
    /// What nodes said, datagrams left out.
    said: Vec<(Timestamp, SocketAddr, Output)>,
    /// Nodes behind routers that let in only what comes from where they sent to.
    behind_nat: BTreeMap<SocketAddr, BTreeMap<IpAddr, Timestamp>>,
    /// The IPv4 address of nodes that have both, by their IPv6 address.
    second: BTreeMap<SocketAddr, SocketAddr>,
    /// Datagrams from or to these get lost.
    dead: BTreeSet<SocketAddr>,
}

impl Net {
    fn new() -> Self {
        Self {
            now: Timestamp::ZERO + secs(1_000),
            nodes: BTreeMap::new(),
            scripts: BTreeMap::new(),
            under_way: BTreeMap::new(),
            due: BTreeMap::new(),
            timers: BTreeSet::new(),
            sent: 0,
            said: Vec::new(),
            behind_nat: BTreeMap::new(),
            second: BTreeMap::new(),
            dead: BTreeSet::new(),
        }
    }

    /// So many nodes that know each other.
    fn of(count: usize) -> Self {
        Self::grown(count, CONFIG, local)
    }

    fn grown(count: usize, config: Config, addr: fn(usize) -> SocketAddr) -> Self {
        let mut net = Self::new();
        for n in 0..count {
            net.join(addr(n), config, addr(0));
        }
        net.run(secs(30));
        net.said.clear();
        net
    }

    /// A node that begins at `router`.
    fn join(&mut self, addr: SocketAddr, config: Config, router: SocketAddr) {
        let mut dht = Dht::new(config, u64::from(addr.port()) + self.nodes.len() as u64, self.now);
        if addr != router {
            dht.add_node(router, self.now);
        }
        self.nodes.insert(addr, dht);
        self.flush(addr);
    }

    /// Has a node do something and sends what it wants to send.
    fn with<T>(&mut self, addr: SocketAddr, act: impl FnOnce(&mut Dht, Timestamp) -> T) -> T {
        let now = self.now;
        let done = act(self.nodes.get_mut(&addr).unwrap(), now);
        self.flush(addr);
        done
    }

    fn flush(&mut self, addr: SocketAddr) {
        let dht = self.nodes.get_mut(&addr).unwrap();
        let outputs: Vec<_> = std::iter::from_fn(|| dht.poll_output()).collect();
        for output in outputs {
            match output {
                Output::Transmit { to, datagram } => self.transmit(addr, to, datagram),
                other => self.said.push((self.now, addr, other)),
            }
        }
        self.set_timer(addr);
    }

    fn set_timer(&mut self, addr: SocketAddr) {
        if let Some(at) = self.due.remove(&addr) {
            self.timers.remove(&(at, addr));
        }
        if let Some(at) = self.nodes.get(&addr).and_then(Dht::poll_timeout) {
            self.due.insert(addr, at);
            self.timers.insert((at, addr));
        }
    }

    fn leave(&mut self, addr: SocketAddr) {
        self.nodes.remove(&addr);
        self.set_timer(addr);
    }

    fn transmit(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        if let Some(open) = self.behind_nat.get_mut(&from) {
            open.insert(to.ip(), self.now);
        }
        let second = self.second.get(&from).filter(|_| to.is_ipv4());
        let from = second.copied().unwrap_or(from);
        self.sent += 1;
        self.under_way.insert((self.now + DELAY, self.sent), (from, to, datagram));
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let first = self.second.iter().find(|(_, second)| **second == to);
        let to = first.map_or(to, |(first, _)| *first);
        let wrote = |open: &BTreeMap<IpAddr, Timestamp>| open.get(&from.ip()).copied();
        let open = |at: Timestamp| self.now.since(at) < secs(120);
        let shut = self.behind_nat.get(&to).is_some_and(|nat| !wrote(nat).is_some_and(open));
        if shut || self.dead.contains(&from) || self.dead.contains(&to) {
            return;
        }
        if let Some(script) = self.scripts.get_mut(&to) {
            for answer in script(from, datagram) {
                self.transmit(to, from, answer);
            }
        } else if self.nodes.contains_key(&to) {
            self.with(to, |dht, now| dht.handle_datagram(from, datagram, now));
        }
    }

    /// Goes to the next event before `end`; whether there was one.
    fn step(&mut self, end: Timestamp) -> bool {
        let timer = self.timers.first().copied();
        let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
        let next = timer.map(|(at, _)| at).into_iter().chain(arrival).min();
        let Some(at) = next.filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(at);
        if arrival == Some(at) {
            let (_, (from, to, datagram)) = self.under_way.pop_first().unwrap();
            self.deliver(from, to, &datagram);
        } else if let Some((_, addr)) = timer {
            self.with(addr, |dht, now| dht.handle_timeout(now));
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut still = 0;
        let mut last = self.now;
        while self.step(end) {
            still = if self.now == last { still + 1 } else { 0 };
            last = self.now;
            assert!(still < 100_000, "time stands still at {:?}", self.now);
        }
    }

    /// Runs until a lookup of `addr` has ended, and says how.
    fn outcome(&mut self, addr: SocketAddr, lookup: LookupId) -> Outcome {
        let end = self.now + secs(120);
        loop {
            let found = self.said.iter().find_map(|(_, by, output)| match output {
                Output::Finished { lookup: id, outcome } if *id == lookup && *by == addr => {
                    Some(outcome.clone())
                }
                _ => None,
            });
            if let Some(outcome) = found {
                return outcome;
            }
            assert!(self.step(end), "no end of {lookup:?}");
        }
    }

    /// All peers that were given out to `addr`, in order.
    fn peers(&self, addr: SocketAddr) -> Vec<SocketAddr> {
        let of = |(_, to, output): &(Timestamp, SocketAddr, Output)| match output {
            Output::Peers { peers, .. } if *to == addr => peers.clone(),
            _ => Vec::new(),
        };
        self.said.iter().flat_map(of).collect()
    }

    /// `addr` announces itself, and it has been done.
    fn announce(&mut self, addr: SocketAddr, info_hash: InfoHash, seed: bool) -> usize {
        let announce = Some(Announce { port: 7_000, implied: false, seed });
        let options = GetPeers { announce, ..GetPeers::default() };
        let lookup = self.with(addr, |dht, now| dht.get_peers(info_hash, options, now));
        let Outcome::Peers { announced, .. } = self.outcome(addr, lookup) else { panic!() };
        self.said.clear();
        announced
    }

    /// `addr` looks for peers: those it finds, and the end of it.
    fn find(
        &mut self,
        addr: SocketAddr,
        info_hash: InfoHash,
        options: GetPeers,
    ) -> (Vec<SocketAddr>, Outcome) {
        self.said.clear();
        let lookup = self.with(addr, |dht, now| dht.get_peers(info_hash, options, now));
        let outcome = self.outcome(addr, lookup);
        (self.peers(addr), outcome)
    }

    /// What `to` answers to a question from `from` at once.
    fn ask(&mut self, from: SocketAddr, to: SocketAddr, method: Method) -> Option<Body> {
        self.say(from, to, &Message::query(b"t1".to_vec(), NodeId::new([9; 20]), method).encode())
    }

    /// What `to` answers to a datagram from `from` at once.
    fn say(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Option<Body> {
        let (now, addr) = (self.now, to);
        let dht = self.nodes.get_mut(&to).unwrap();
        dht.handle_datagram(from, datagram, now);
        let mut answer = None;
        while let Some(output) = dht.poll_output() {
            if let Output::Transmit { to, datagram } = output
                && to == from
                && let Ok(message) = Message::parse(&datagram)
                && message.transaction == b"t1"
            {
                answer = Some(message.body);
            }
        }
        self.set_timer(addr);
        answer
    }
}

fn answer_of(body: Option<Body>) -> Answer {
    match body {
        Some(Body::Answer(answer)) => *answer,
        other => panic!("{other:?}"),
    }
}

fn error_of(body: Option<Body>) -> i64 {
    match body {
        Some(Body::Error(KrpcError { code, .. })) => code,
        other => panic!("{other:?}"),
    }
}

/// A question as a script gets it.
fn question(datagram: &[u8]) -> Option<(Vec<u8>, Method)> {
    let message = Message::parse(datagram).ok()?;
    match message.body {
        Body::Query(query) => Some((message.transaction, query.method)),
        _ => None,
    }
}

fn answer_to(transaction: Vec<u8>, answer: Answer) -> Vec<u8> {
    Message { transaction, read_only: false, ip: None, body: Body::Answer(Box::new(answer)) }
        .encode()
}
