//! Ten million nodes in little memory: each is the head of an id and an address; everything else
//! about it follows from these and the seed.
//!
//! Nodes are sorted by id. A bucket of a node is a range of them, and what the node keeps of it are k
//! of the range, picked by a hash: so it gives the same answer whenever it is asked, and no table is
//! stored. Dead nodes are among the others: every table is as stale as the network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use super::plan::{DhtPlan, Sybils};
use crate::proto::dht::{Contact, K, MAX_STRANGE, NodeId, STRANGE_BITS, Table};

/// All addresses are of the range for documentation: 2^32 networks of one owner each.
const DOCUMENTATION: u128 = 0x2001_0db8 << 96;

/// Where a node listens that is alone at its address.
const PORT: u16 = 6881;

/// All but the first 21 of 64 bits: those an address says nothing about (BEP 42).
const PROVEN: u32 = 43;

/// How many lots are drawn for a place in a bucket until it is left empty: one may have been drawn
/// before.
const PICKS: u64 = 8;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Alive,
    Dead,
    /// It died lately: half of the tables know.
    Died,
    /// One of a crowd around some id that names only each other and keeps nothing.
    Sybil,
}

/// A node, in sixteen bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    /// The first 64 bits of its id.
    head: u64,
    network: u32,
    port: u16,
    sybil: bool,
}

impl Node {
    /// Its address: two of them have two.
    const fn key(&self) -> (u32, u16) {
        (self.network, self.port)
    }
}

/// The network.
pub(super) struct Network {
    nodes: Vec<Node>,
    /// Places in the order of addresses; empty unless datagrams are sent.
    by_address: Vec<u32>,
    seed: u64,
    dead: u64,
    died: u64,
    median: f64,
    spread: f64,
}

impl Network {
    /// The nodes of a plan, with a crowd around the id that begins with `crowded`.
    pub fn new(plan: &DhtPlan, crowded: u64) -> Self {
        let all = (plan.nodes as f64 / (1.0 - plan.dead)).round() as u32;
        let mut nodes: Vec<_> = (0..all).map(|number| honest(plan.seed, number)).collect();
        if let Some(sybils) = &plan.sybils {
            nodes.extend(crowd(plan, sybils, crowded, all));
        }
        nodes.sort_unstable();
        nodes.dedup_by_key(|node| node.head);
        Self {
            nodes,
            by_address: Vec::new(),
            seed: plan.seed,
            dead: part(plan.dead),
            died: part(plan.dead + (1.0 - plan.dead) * plan.churn),
            median: plan.rtt.as_secs_f64(),
            spread: plan.spread,
        }
    }

    /// All nodes, dead ones and Sybils too.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.by_address.capacity() * 4
    }

    /// What the node at this place does.
    pub fn kind(&self, at: usize) -> Kind {
        let node = self.nodes[at];
        match mix(self.seed ^ 1, node.head) {
            _ if node.sybil => Kind::Sybil,
            lot if lot < self.dead => Kind::Dead,
            lot if lot < self.died => Kind::Died,
            _ => Kind::Alive,
        }
    }

    /// The id and the address of the node at this place.
    pub fn contact(&self, at: usize) -> Contact {
        let node = self.nodes[at];
        Contact { id: id(self.seed, node.head), addr: addr(node.network, node.port) }
    }

    /// The place of a node.
    pub fn find(&self, contact: &Contact) -> Option<usize> {
        let head = head(&contact.id);
        let at = self.nodes.binary_search_by_key(&head, |node| node.head).ok()?;
        (self.contact(at) == *contact).then_some(at)
    }

    /// How long the node at this place takes to answer, as a rule: a log-normal distribution.
    pub fn round_trip(&self, at: usize) -> Duration {
        log_normal(self.median, self.spread, mix(self.seed ^ 2, self.nodes[at].head))
    }

    /// The place of the node at an address.
    pub fn at(&self, addr: &SocketAddr) -> Option<usize> {
        let key = key_of(addr)?;
        let at = self.by_address.binary_search_by_key(&key, |at| self.nodes[*at as usize].key());
        at.ok().and_then(|at| self.by_address.get(at)).map(|at| *at as usize)
    }

    /// Makes [`Self::at`] possible, for four more bytes a node.
    #[must_use]
    pub fn with_addresses(mut self) -> Self {
        self.by_address = (0..self.nodes.len() as u32).collect();
        self.by_address.sort_unstable_by_key(|at| self.nodes[*at as usize].key());
        self
    }

    /// The k nodes closest to `target` that the one at this place knows, k of each bucket.
    pub fn answer(&self, at: usize, target: &NodeId) -> Vec<usize> {
        self.known(at, target, K, |_| K)
    }

    /// The same for a node that has a table such as ours: where its lookup starts.
    pub fn start(&self, at: usize, target: &NodeId) -> Vec<usize> {
        let known = self.known(at, target, 128, |bits| Table::capacity(bits as usize));
        let usual = (self.nodes.len() / K).max(1).ilog2() + STRANGE_BITS;
        let (head, mut strange) = (head(target), 0);
        let wanted = |at: &usize| {
            let near = (self.nodes[*at].head ^ head).leading_zeros() > usual;
            strange += usize::from(near);
            !near || strange <= MAX_STRANGE
        };
        known.into_iter().filter(wanted).take(2 * K).collect()
    }

    /// The `n` closest nodes that the one at this place knows, which keeps so many of a bucket.
    fn known(
        &self,
        at: usize,
        target: &NodeId,
        n: usize,
        keeps: impl Fn(u32) -> usize,
    ) -> Vec<usize> {
        let (own, target) = (self.nodes[at].head, head(target));
        let mut found = Vec::with_capacity(2 * n);
        let shared = (own ^ target).leading_zeros();
        // Everyone in the bucket of the target is closer than all in deeper buckets, and these are
        // closer than all in shallower ones.
        self.pick(own, shared, keeps(shared), &mut found);
        if found.len() < n {
            let mut deeper = self.shares(own, shared + 1, 0..self.nodes.len());
            for bits in shared + 1..64 {
                if deeper.len() <= 1 {
                    break;
                }
                self.pick(own, bits, keeps(bits), &mut found);
                deeper = self.shares(own, bits + 1, deeper);
            }
        }
        for bits in (0..shared).rev() {
            if found.len() >= n {
                break;
            }
            self.pick(own, bits, keeps(bits), &mut found);
        }
        found.sort_unstable_by_key(|at| self.nodes[*at].head ^ target);
        found.truncate(n);
        found
    }

    /// The `n` Sybils closest to `target`.
    pub fn accomplices(&self, target: &NodeId, n: usize) -> Vec<usize> {
        self.closest(target, n, |kind| kind == Kind::Sybil)
    }

    /// The `n` nodes closest to `target` that are `wanted`.
    pub fn closest(&self, target: &NodeId, n: usize, wanted: impl Fn(Kind) -> bool) -> Vec<usize> {
        let target = head(target);
        for bits in (0..64).rev() {
            let range = self.shares(target, bits, 0..self.nodes.len());
            if range.len() < n && bits > 0 {
                continue;
            }
            let mut found: Vec<_> = range.filter(|at| wanted(self.kind(*at))).collect();
            if found.len() >= n || bits == 0 {
                found.sort_unstable_by_key(|at| self.nodes[*at].head ^ target);
                found.truncate(n);
                return found;
            }
        }
        Vec::new()
    }

    /// Those within `within` that share so many bits with `head`.
    fn shares(&self, head: u64, bits: u32, within: Range<usize>) -> Range<usize> {
        let free = u64::MAX.checked_shr(bits).unwrap_or(0);
        let part = &self.nodes[within.clone()];
        let from = part.partition_point(|node| node.head < head & !free);
        let length = part[from..].partition_point(|node| node.head <= head | free);
        within.start + from..within.start + from + length
    }

    /// What a node keeps of those that share `bits` with it and differ in the next.
    fn pick(&self, own: u64, bits: u32, keeps: usize, found: &mut Vec<usize>) {
        let Some(bit) = (1u64 << 63).checked_shr(bits) else { return };
        let range = self.shares(own ^ bit, bits + 1, 0..self.nodes.len());
        if range.len() <= keeps {
            return found.extend(range.filter(|at| !self.has_noticed(own, *at)));
        }
        let salt = mix(self.seed ^ u64::from(bits) << 8, own);
        let first = found.len();
        for lot in 0..PICKS * keeps as u64 {
            let at = range.start + (unit(mix(salt, lot)) * range.len() as f64) as usize;
            if !found[first..].contains(&at) && !self.has_noticed(own, at) {
                found.push(at);
            }
            if found.len() == first + keeps {
                break;
            }
        }
    }

    /// Whether a node knows that another one died lately.
    fn has_noticed(&self, own: u64, at: usize) -> bool {
        self.died > self.dead
            && self.kind(at) == Kind::Died
            && mix(own, self.nodes[at].head).is_multiple_of(2)
    }
}

/// Node `number`, alone at its address, with an id that fits it.
fn honest(seed: u64, number: u32) -> Node {
    let network = number.wrapping_mul(0x9e37_79b1) ^ seed as u32;
    Node { head: fitting(seed, network, number.into()), network, port: PORT, sybil: false }
}

/// The head of an id that fits the network (BEP 42).
fn fitting(seed: u64, network: u32, number: u64) -> u64 {
    let lot = mix(seed ^ 4, number);
    let mut random = [0; 20];
    random[..8].copy_from_slice(&lot.to_be_bytes());
    random[19] = random[7];
    head(&NodeId::secured(addr(network, PORT).ip(), random))
}

/// The crowd of a plan around the id that begins with `crowded`.
fn crowd(plan: &DhtPlan, sybils: &Sybils, crowded: u64, all: u32) -> Vec<Node> {
    let free = u64::MAX.checked_shr(sybils.bits).unwrap_or(0);
    let mut bases = BTreeMap::new();
    let mut node = |number: u32| {
        let lot = mix(plan.seed ^ 5, number.into());
        let (head, which) = (crowded & !free | lot & free, number % sybils.networks.max(1));
        let (network, head) = if sybils.fitting {
            let base = || fitting_place(plan.seed, head, which / 64);
            let (base, r) = *bases.entry((head >> PROVEN, which / 64)).or_insert_with(base);
            (like(base, which % 64), head & !7 | r)
        } else {
            (all.wrapping_add(which).wrapping_mul(0x9e37_79b1) ^ plan.seed as u32, head)
        };
        Node { head, network, port: PORT.wrapping_add(number as u16), sybil: true }
    };
    (0..sybils.count).map(&mut node).collect()
}

/// Network `number` of those where an id that begins like `wanted` may be, and its last bits there
/// (BEP 42).
fn fitting_place(seed: u64, wanted: u64, number: u32) -> (u32, u64) {
    let from = mix(seed ^ 6, wanted >> PROVEN ^ u64::from(number)) as u32;
    let fits = |network: u32, r: u8| {
        let mut random = [0; 20];
        random[19] = r;
        let made = NodeId::secured(addr(network, PORT).ip(), random);
        head(&made) >> PROVEN == wanted >> PROVEN
    };
    let found = (0..u32::MAX)
        .map(|n| from.wrapping_add(n))
        .find_map(|network| (0..8).find(|r| fits(network, *r)).map(|r| (network, u64::from(r))));
    found.unwrap_or((from, 0))
}

/// One of 64 networks that are the same to BEP 42, which does not look at all bits of an address.
const fn like(network: u32, number: u32) -> u32 {
    let unseen = (number & 7) << 29 | (number >> 3 & 3) << 22 | (number >> 5 & 1) << 15;
    network & !0xe0c0_8000 | unseen
}

/// The whole id: its head says the rest. Its last three bits are those that BEP 42 reads.
fn id(seed: u64, head: u64) -> NodeId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&head.to_be_bytes());
    bytes[8..16].copy_from_slice(&mix(seed ^ 7, head).to_be_bytes());
    bytes[19] = bytes[7];
    NodeId::new(bytes)
}

/// The first 64 bits of an id: no two nodes share them.
pub(super) fn head(id: &NodeId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn addr(network: u32, port: u16) -> SocketAddr {
    let bits = DOCUMENTATION | u128::from(network) << 64 | 1;
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), port)
}

/// The network and the port of an address.
fn key_of(addr: &SocketAddr) -> Option<(u32, u16)> {
    let IpAddr::V6(ip) = addr.ip() else { return None };
    Some(((ip.to_bits() >> 64) as u32, addr.port()))
}

/// A draw from a log-normal distribution, in seconds.
fn log_normal(median: f64, spread: f64, lot: u64) -> Duration {
    let (a, b) = (unit(mix(lot, 1)).max(f64::MIN_POSITIVE), unit(mix(lot, 2)));
    // Box and Muller.
    let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    Duration::from_secs_f64(median * (spread * normal).exp())
}

/// The usual round trip of whoever is at an address.
pub(super) fn round_trip_of(plan: &DhtPlan, addr: SocketAddr) -> Duration {
    let lot = key_of(&addr).map_or(0, |(network, port)| u64::from(network) << 16 | u64::from(port));
    log_normal(plan.rtt.as_secs_f64(), plan.spread, mix(plan.seed ^ 3, lot))
}

/// Two numbers to one that looks random (splitmix64).
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let z =
        a.wrapping_mul(0xd6e8_feb8_6659_fd93).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A number from 0 to 1, without 1.
fn unit(lot: u64) -> f64 {
    (lot >> 11) as f64 / (1u64 << 53) as f64
}

/// The lots below which this part of all lie.
fn part(share: f64) -> u64 {
    (share * 2f64.powi(64)) as u64
}
