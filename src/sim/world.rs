//! The world: nodes, the connections between them, and the events that move it on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::PORT;
use super::event::{Agenda, End, NodeId, What, Wire};
use super::link::Net;
use super::node::{Node, Taint};
use super::plan::{Leave, Plan, Role};
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Geometry, GeometryError, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::{FileEntry, Info};
use crate::proto::peer::PeerSession;
use crate::proto::swarm::{Digest, PeerKey, PeerSource};
use crate::proto::time::Timestamp;
use crate::proto::torrent::Torrent;
use crate::proto::wire::Message;

/// Peers in an answer of the tracker.
const TRACKER_PEERS: usize = 50;

/// When the tracker is asked again by a node that has few connections, and by one that has enough.
const ANNOUNCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1_800));

/// Connections that are enough.
const ENOUGH_LINKS: usize = 10;

/// How long the store keeps a piece in memory that the disk refused.
const KEPT_UNWRITTEN: Duration = Duration::from_secs(5);

/// Points of the plot.
pub(super) const SAMPLES: u32 = 100;

/// Findings that are told; one is enough to fail.
const MAX_VIOLATIONS: usize = 20;

/// The whole world.
pub(super) struct World {
    pub plan: Plan,
    pub info: Arc<Info>,
    pub geometry: Geometry,
    pub agenda: Agenda,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub rng: ChaCha8Rng,
    pub events: u64,
    pub violations: Vec<String>,
    /// Who banned whom.
    pub bans: BTreeSet<(NodeId, NodeId)>,
    /// Who was sent wrong bytes by whom.
    pub wronged: BTreeSet<(NodeId, NodeId)>,
    /// Wrong bytes that became readable on honest nodes.
    pub wrong_bytes: u64,
    /// When the seed had sent every block, and what it had sent until then, in bytes.
    pub first_copy: Option<(Timestamp, u64)>,
    /// Downloading nodes that are present or still to come and not done.
    pub unfinished: usize,
    /// By time: pieces of each node.
    pub samples: Vec<(Timestamp, Vec<u32>)>,
    pub sample_every: Duration,
}

/// Where a node listens: on an address of its own, up to 65,536 nodes.
fn addr(node: NodeId) -> SocketAddr {
    let [.., high, low] = node.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high, low, 1)), PORT)
}

fn node_of(addr: SocketAddr) -> NodeId {
    let IpAddr::V4(ip) = addr.ip() else { return 0 };
    let [_, high, low, _] = ip.octets();
    u32::from(high) << 8 | u32::from(low)
}

fn info(geometry: Geometry) -> Info {
    Info {
        info_hash: InfoHash::new([7; 20]),
        raw: vec![b'x'; 40 + 20 * geometry.piece_count() as usize],
        name: b"sim".to_vec(),
        geometry,
        piece_hashes: Vec::new(),
        files: vec![FileEntry::new(vec![b"sim".to_vec()], geometry.total())],
        single_file: true,
        private: false,
    }
}

impl World {
    pub fn new(plan: Plan) -> Result<Self, GeometryError> {
        let geometry = Geometry::new(plan.total, plan.piece_length)?;
        let info = Arc::new(info(geometry));
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let nodes: Vec<_> = plan
            .nodes
            .iter()
            .map(|node| {
                let machine = Torrent::new(info.info_hash, Node::options(), rng.random());
                Node::new(*node, &geometry, machine, rng.random())
            })
            .collect();
        let wants = |n: &&Node| n.plan.role.contributes() || n.plan.role == Role::FreeRider;
        let mut world = Self {
            unfinished: nodes.iter().filter(wants).count(),
            sample_every: plan.bound() / (SAMPLES / 2),
            plan,
            info,
            geometry,
            agenda: Agenda::default(),
            nodes,
            net: Net::default(),
            rng,
            events: 0,
            violations: Vec::new(),
            bans: BTreeSet::new(),
            wronged: BTreeSet::new(),
            wrong_bytes: 0,
            first_copy: None,
            samples: Vec::new(),
        };
        for id in 0..world.nodes.len() as NodeId {
            world.agenda.at(world.nodes[id as usize].plan.joins, What::Join(id));
        }
        world.agenda.after(Duration::ZERO, What::Sample);
        if world.plan.resets.is_some() {
            world.agenda.after(Duration::from_secs(5), What::Reset);
        }
        Ok(world)
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// Notes that something happened that must not.
    pub fn violation(&mut self, what: impl FnOnce() -> String) {
        if self.violations.len() < MAX_VIOLATIONS {
            let at = self.agenda.now().as_nanos() as f64 / 1e9;
            self.violations.push(format!("at {at:.3} s: {}", what()));
        }
    }

    /// Runs until everyone who wants something has it, or has had far more time than it takes.
    pub fn run(&mut self) {
        let limit = Timestamp::ZERO + self.plan.bound() * 20 + Duration::from_secs(600);
        while self.unfinished > 0 && self.agenda.now() < limit {
            let Some(what) = self.agenda.next() else { break };
            self.events += 1;
            self.happen(what);
        }
        self.sample();
        self.check_nobody_is_stuck();
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Join(id) => self.join(id),
            What::Leave(id) => self.leave(id),
            What::Wake(id) => {
                if self.nodes[id as usize].wake_at <= self.agenda.now() {
                    self.node(id).wake_at = Timestamp::FAR_FUTURE;
                    self.settle(id);
                }
            }
            What::Choke(id) => self.choke_round(id),
            What::Announce(id) => self.announce(id),
            What::Connected { from, to } => self.connected(from, to),
            What::Sent(id) => self.sent(id),
            What::Arrive(to, wire) => {
                let node = self.net.end(to).node as usize;
                let access = &mut self.nodes[node].access;
                if let Some(wire) = self.net.arrive(to, wire, access, &mut self.agenda) {
                    self.deliver(to, wire);
                }
            }
            What::Deliver(to, wire) => self.deliver(to, wire),
            What::Judged(id, piece) => self.judged(id, piece),
            What::Written(id, piece) => self.written(id, piece),
            What::Lost(id, piece) => self.lost(id, piece),
            What::Reset => self.reset(),
            What::Sample => {
                self.sample();
                self.agenda.after(self.sample_every, What::Sample);
            }
        }
    }

    fn sample(&mut self) {
        let have = self.nodes.iter().map(|n| n.disk.verified).collect();
        self.samples.push((self.agenda.now(), have));
    }

    // ---- nodes come and go

    fn join(&mut self, id: NodeId) {
        let (now, info, geometry) = (self.agenda.now(), self.info.clone(), self.geometry);
        let count = geometry.piece_count();
        let node = self.node(id);
        node.present = true;
        let claims = matches!(node.plan.role, Role::Seed | Role::HaveFlooder);
        let have = if claims { Bitfield::full(count) } else { Bitfield::empty(count) };
        node.machine.activate(info, have, &Bitfield::full(count), now);
        if claims {
            node.disk.content.fill(Some(node.plan.role == Role::Seed));
            for piece in geometry.pieces() {
                node.machine.checked_at_rest(piece, true, now);
            }
        }
        if let Leave::At(at) = node.plan.leaves {
            self.agenda.at(at, What::Leave(id));
        }
        self.announce(id);
        self.choke_round(id);
        self.read_on(id);
        self.settle(id);
    }

    pub fn leave(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let node = self.node(id);
        if !std::mem::replace(&mut node.present, false) {
            return;
        }
        node.left_at = Some(now);
        node.disk.buffers.clear();
        let wanted = node.plan.role.contributes() || node.plan.role == Role::FreeRider;
        let unfinished = wanted && node.done_at.is_none();
        let links = std::mem::take(&mut node.links);
        self.unfinished -= usize::from(unfinished);
        for end in links.into_values() {
            self.hang_up(id, end);
        }
    }

    /// Closes `end`, which is at `id`; the other side hears of it.
    pub fn hang_up(&mut self, id: NodeId, end: End) {
        self.net.close(end);
        let access = &mut self.nodes[id as usize].access;
        self.net.send(end, Wire::Close, access, &mut self.agenda);
    }

    fn announce(&mut self, id: NodeId) {
        if !self.nodes[id as usize].present {
            return;
        }
        let mut others: Vec<_> = (0..self.nodes.len() as NodeId)
            .filter(|&other| other != id && self.nodes[other as usize].present)
            .collect();
        while others.len() > TRACKER_PEERS {
            let at = self.rng.random_range(0..others.len());
            others.swap_remove(at);
        }
        let addrs: Vec<_> = others.into_iter().map(addr).collect();
        let node = self.node(id);
        node.machine.peers_found(&addrs, PeerSource::Tracker);
        let enough = node.links.len() >= ENOUGH_LINKS;
        self.agenda.after(if enough { ANNOUNCE.1 } else { ANNOUNCE.0 }, What::Announce(id));
        self.settle(id);
    }

    fn reset(&mut self) {
        let Some(every) = self.plan.resets else { return };
        self.agenda.after(every, What::Reset);
        let ends: Vec<_> = self.nodes.iter().flat_map(|n| n.links.values().copied()).collect();
        if ends.is_empty() {
            return;
        }
        let end = ends[self.rng.random_range(0..ends.len())];
        for end in [end, end.far()] {
            if self.net.end(end).open {
                self.far_side_closed(end);
            }
        }
    }

    // ---- connections

    /// The time from one node to another.
    fn latency(&self, a: NodeId, b: NodeId) -> Duration {
        let (low, high) = self.plan.rtt;
        let pair = u64::from(a.min(b)) << 32 | u64::from(a.max(b));
        let mut rng = ChaCha8Rng::seed_from_u64(self.plan.seed ^ pair.wrapping_mul(0x9e37_79b9));
        low / 2 + (high - low).mul_f64(rng.random::<f64>() / 2.0)
    }

    /// A machine wants a connection: it stands after a round trip for TCP and half of one for the
    /// handshake.
    pub fn connect(&mut self, from: NodeId, addr: SocketAddr) {
        let to = node_of(addr);
        let wait = self.latency(from, to) * 3;
        self.agenda.after(wait, What::Connected { from, to });
    }

    fn connected(&mut self, from: NodeId, to: NodeId) {
        let now = self.agenda.now();
        let (there, here) = (addr(to), addr(from));
        // Who comes in comes from some other port than it listens on.
        let incoming = SocketAddr::new(here.ip(), 40_000);
        if !self.nodes[from as usize].present {
            return;
        }
        let target = self.node(to);
        let welcome = target.present
            && !target.links.contains_key(&from)
            && target.machine.accepts(incoming, now);
        if !welcome {
            self.node(from).machine.connect_failed(there, false, now);
            self.settle(from);
            return;
        }
        let conn = self.net.open(from, to, self.latency(from, to));
        let key = PeerKey(conn.into());
        for (side, (at, other, remote)) in
            [(from, to, there), (to, from, incoming)].into_iter().enumerate()
        {
            let session = PeerSession::new(remote, side == 0, true, true, now);
            let node = self.node(at);
            node.links.insert(other, End { conn, side: side as u8 });
            node.machine.peer_connected(key, session, now);
        }
        self.settle(from);
        self.settle(to);
    }

    /// The connection at `end` is gone.
    fn far_side_closed(&mut self, end: End) {
        let (now, id, other) = (self.agenda.now(), self.net.end(end).node, self.far_node(end));
        self.forget_asked(id, end);
        self.net.close(end);
        let node = self.node(id);
        node.links.remove(&other);
        node.machine.peer_disconnected(PeerKey(end.conn.into()), now);
        self.settle(id);
    }

    /// The blocks asked for at `end` will not come.
    pub fn forget_asked(&mut self, id: NodeId, end: End) {
        for (block, buffer) in std::mem::take(&mut self.net.end(end).asked) {
            self.nodes[id as usize].disk.not_asked(block, buffer);
        }
    }

    pub fn far_node(&mut self, end: End) -> NodeId {
        self.net.end(end.far()).node
    }

    fn sent(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let piece_length = u64::from(self.geometry.piece_length());
        let node = &mut self.nodes[id as usize];
        let Some((end, raw)) = self.net.sent(&mut node.access, &mut self.agenda) else { return };
        node.uploaded += u64::from(raw.length);
        let offset = u64::from(raw.piece) * piece_length + u64::from(raw.begin);
        let sent = node.sent.get_mut((offset >> 14) as usize);
        if sent.is_some_and(|sent| !std::mem::replace(sent, true)) {
            node.unsent -= 1;
            if node.unsent == 0 && id == 0 {
                self.first_copy = Some((now, node.uploaded));
                if node.plan.leaves == Leave::AfterOneCopy {
                    self.agenda.after(Duration::from_secs(1), What::Leave(id));
                }
            }
        }
        if self.net.end(end).open {
            self.node(id).machine.uploaded(PeerKey(end.conn.into()), raw, true, now);
            self.settle(id);
        }
    }

    fn deliver(&mut self, to: End, wire: Wire) {
        let (now, id) = (self.agenda.now(), self.net.end(to).node);
        if !self.net.end(to).open {
            return;
        }
        let key = PeerKey(to.conn.into());
        match wire {
            Wire::Close => return self.far_side_closed(to),
            Wire::Message(message) => {
                if let Message::Reject(raw) = &message
                    && let Some((block, buffer)) = self.net.take_asked(to, *raw)
                {
                    self.node(id).disk.not_asked(block, buffer);
                }
                self.node(id).machine.message(key, message, now);
            }
            Wire::Block { raw, good } => {
                let from = self.far_node(to);
                let asked = self.net.take_asked(to, raw);
                let node = &mut self.nodes[id as usize];
                node.downloaded += u64::from(raw.length);
                let kept = if let Some((block, buffer)) = asked {
                    node.disk.not_asked(block, buffer);
                    let kept = node.disk.put(block, buffer, Taint { from, good });
                    node.machine.block_arrived(key, block, kept, now);
                    kept
                } else {
                    node.machine.block_unasked(key, raw.length, now);
                    false
                };
                node.duplicates += if kept { 0 } else { u64::from(raw.length) };
                if kept && !good {
                    self.wronged.insert((id, from));
                }
            }
        }
        self.settle(id);
    }

    // ---- the gate and the disk

    fn judged(&mut self, id: NodeId, piece: PieceIndex) {
        let (now, geometry, gate) = (self.agenda.now(), self.geometry, self.plan.gate);
        let node = self.node(id);
        let Some(buffer) = node.disk.discard(&geometry, piece) else { return };
        if !node.present {
            return;
        }
        let good = buffer.blocks.iter().all(|b| b.is_some_and(|taint| taint.good));
        let digests: Vec<_> = buffer.blocks.iter().map(digest).collect();
        if good || !gate {
            node.disk.content[piece.index()] = Some(good);
            node.disk.verified += 1;
            node.disk.hold(&geometry, piece);
            let honest = node.plan.role.is_honest();
            node.machine.piece_verified(piece, Some(&digests), now);
            if honest && !good {
                self.wrong_bytes += u64::from(geometry.piece_len(piece));
            }
        } else {
            node.machine.piece_failed(piece, digests, now);
        }
        self.settle(id);
    }

    fn written(&mut self, id: NodeId, piece: PieceIndex) {
        let now = self.agenda.now();
        let refused = self.plan.disk_failures > 0
            && self.rng.random_range(0..1_000) < self.plan.disk_failures;
        let node = self.node(id);
        node.disk.let_go(piece);
        if !node.present {
            return;
        }
        if refused {
            node.machine.write_failed(piece, now);
            self.agenda.after(KEPT_UNWRITTEN, What::Lost(id, piece));
        } else {
            node.machine.piece_written(piece, now);
        }
        self.settle(id);
    }

    fn lost(&mut self, id: NodeId, piece: PieceIndex) {
        let now = self.agenda.now();
        let node = self.node(id);
        if node.present {
            node.disk.content[piece.index()] = None;
            node.disk.verified -= 1;
            node.machine.piece_lost(piece, now);
            self.settle(id);
        }
    }
}

/// The digest of a block: all good copies of a block are alike, and no bad one is like another's.
fn digest(block: &Option<Taint>) -> Digest {
    let mut digest = [0; 20];
    if let Some(taint) = block.filter(|taint| !taint.good) {
        digest[..4].copy_from_slice(&taint.from.to_be_bytes());
        digest[4] = 1;
    }
    digest
}
