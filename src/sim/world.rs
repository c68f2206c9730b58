//! The world: nodes, the connections between them, and the events that move it on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::PORT;
use super::checks::Rule;
use super::datagram::Datagrams;
use super::event::{Agenda, End, NodeId, What, Wire};
use super::link::Net;
use super::node::{Node, Taint};
use super::plan::{Leave, Plan, Role};
use super::trace::Trace;
use super::tracker::Tracker;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Geometry, GeometryError, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::{FileEntry, Info};
use crate::proto::peer::PeerSession;
use crate::proto::swarm::{Digest, PeerKey};
use crate::proto::time::Timestamp;
use crate::proto::torrent::Torrent;
use crate::proto::wire::Message;

/// How long an attempt to connect waits for an answer, as the engine has it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the store keeps a piece in memory that the disk refused.
const KEPT_UNWRITTEN: Duration = Duration::from_secs(5);

/// Points of the plot.
pub(super) const SAMPLES: u32 = 100;

/// Findings that are told; one is enough to fail, and after these the run ends.
pub(super) const MAX_VIOLATIONS: usize = 20;

/// The whole world.
pub(super) struct World {
    pub plan: Plan,
    pub info: Arc<Info>,
    pub geometry: Geometry,
    pub agenda: Agenda,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub datagrams: Datagrams,
    /// Datagrams that a NAT kept out.
    pub filtered: u64,
    pub tracker: Tracker,
    pub rng: ChaCha8Rng,
    pub events: u64,
    /// Where a line for each event goes, if it is wanted.
    pub trace: Option<Trace>,
    /// Connections closed because nothing was heard.
    pub timeouts: u64,
    /// The node that was looked at last.
    pub next_checked: NodeId,
    pub violations: Vec<String>,
    /// Who banned whom.
    pub bans: BTreeSet<(NodeId, NodeId)>,
    /// Who was sent wrong bytes by whom.
    pub wronged: BTreeSet<(NodeId, NodeId)>,
    /// Wrong bytes that became readable on honest nodes.
    pub wrong_bytes: u64,
    /// When the seed had sent every block, and what it had sent until then, in bytes.
    pub first_copy: Option<(Timestamp, u64)>,
    /// Pieces whose first block the seed has sent, in order, and to whom.
    pub seed_sent: Vec<(u32, NodeId)>,
    /// Downloading nodes that are present or still to come and not done.
    pub unfinished: usize,
    /// By time: pieces of each node.
    pub samples: Vec<(Timestamp, Vec<u32>)>,
    pub sample_every: Duration,
}

/// Where a node listens: on an address of its own, up to 65,536 nodes.
pub(super) fn addr(node: NodeId) -> SocketAddr {
    let [.., high, low] = node.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high, low, 1)), PORT)
}

pub(super) fn node_of(addr: SocketAddr) -> NodeId {
    let IpAddr::V4(ip) = addr.ip() else { return 0 };
    let [_, high, low, _] = ip.octets();
    u32::from(high) << 8 | u32::from(low)
}

fn info(geometry: Geometry) -> Info {
    Info {
        info_hash: InfoHash::new([7; 20]),
        raw: vec![b'x'; 40 + 20 * geometry.piece_count() as usize],
        name: b"sim".to_vec(),
        files: vec![FileEntry::new(vec![b"sim".to_vec()], geometry.total())],
        geometry,
        piece_hashes: Vec::new(),
        single_file: true,
        v2: None,
        private: false,
    }
}

impl World {
    pub fn new(plan: Plan) -> Result<Self, GeometryError> {
        let geometry = Geometry::new(plan.total, plan.piece_length)?;
        let info = Arc::new(info(geometry.clone()));
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let nodes: Vec<_> = plan
            .nodes
            .iter()
            .map(|node| {
                let machine = Torrent::new(info.info_hash, Node::options(plan.pex), rng.random());
                Node::new(*node, &geometry, machine, rng.random())
            })
            .collect();
        let (loss, info_hash) = (plan.loss, info.info_hash);
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
            datagrams: Datagrams::new(loss, rng.random()),
            filtered: 0,
            tracker: Tracker::new(info_hash, rng.random()),
            rng,
            events: 0,
            trace: None,
            timeouts: 0,
            next_checked: 0,
            violations: Vec::new(),
            bans: BTreeSet::new(),
            wronged: BTreeSet::new(),
            wrong_bytes: 0,
            first_copy: None,
            seed_sent: Vec::new(),
            samples: Vec::new(),
        };
        for id in 0..world.nodes.len() as NodeId {
            world.agenda.at(world.nodes[id as usize].plan.joins, What::Join(id));
        }
        world.agenda.after(Duration::ZERO, What::Sample);
        world.agenda.after(Duration::ZERO, What::Check);
        if world.plan.resets.is_some() {
            world.agenda.after(Duration::from_secs(5), What::Reset);
        }
        Ok(world)
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// Runs until everyone who wants something has it, or has had far more time than it takes.
    pub fn run(&mut self) {
        let limit = Timestamp::ZERO + self.plan.bound() * 20 + Duration::from_secs(600);
        while self.unfinished > 0
            && self.agenda.now() < limit
            && self.violations.len() < MAX_VIOLATIONS
            && self.step()
        {}
        self.sample();
        self.check_nobody_is_stuck();
        self.check_reads_have_ended();
        self.check_blame();
    }

    /// Has the next event happen; whether there was one.
    pub fn step(&mut self) -> bool {
        let next = self.agenda.next();
        let happens = next.is_some();
        if let Some(what) = next {
            self.events += 1;
            if let Some(trace) = &mut self.trace {
                trace.note(self.agenda.now(), &what);
            }
            self.happen(what);
        }
        happens
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Join(id) => self.join(id),
            What::Leave(id) => self.leave(id),
            What::Crash(id) => self.crash(id),
            What::Wake(id) => {
                if self.nodes[id as usize].wake_at <= self.agenda.now() {
                    self.node(id).wake_at = Timestamp::FAR_FUTURE;
                    self.settle(id);
                }
            }
            What::Choke(id) => self.choke_round(id),
            What::Tracker(id) => self.tracker_woken(id),
            What::Datagram(datagram) => self.datagram(*datagram),
            What::Connected { from, to } => self.connected(from, to),
            What::Unanswered { from, to } => {
                self.node(from).connecting -= 1;
                self.not_connected(from, to);
            }
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
            What::Check => self.check(),
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
        let (now, info, geometry) = (self.agenda.now(), self.info.clone(), self.geometry.clone());
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
        match node.plan.leaves {
            Leave::At(at) => self.agenda.at(at, What::Leave(id)),
            Leave::Crash(at) => self.agenda.at(at, What::Crash(id)),
            Leave::Never | Leave::AfterOneCopy | Leave::AfterDone(_) => {}
        }
        self.begin_announcing(id);
        self.be_told_of_peers(id);
        self.choke_round(id);
        self.read_on(id);
        self.settle(id);
    }

    pub fn leave(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let Some(links) = self.absent(id) else { return };
        for end in links {
            self.hang_up(id, end);
        }
        if let Some(announcer) = &mut self.node(id).announcer {
            announcer.leave(now);
        }
        self.tracker_step(id);
    }

    /// Nobody hears that `id` is gone: neither peers, whose connections stay half open, nor the
    /// tracker.
    fn crash(&mut self, id: NodeId) {
        let Some(links) = self.absent(id) else { return };
        for end in links {
            self.net.vanish(end);
        }
        let node = self.node(id);
        node.crashed = true;
        node.access.cut();
        node.announcer = None;
    }

    /// `id` is not there any more; the connections that it had.
    fn absent(&mut self, id: NodeId) -> Option<Vec<End>> {
        let now = self.agenda.now();
        let node = self.node(id);
        if !std::mem::replace(&mut node.present, false) {
            return None;
        }
        node.left_at = Some(now);
        node.disk.buffers.clear();
        let wanted = node.plan.role.contributes() || node.plan.role == Role::FreeRider;
        let unfinished = wanted && node.done_at.is_none();
        let links = std::mem::take(&mut node.links);
        self.unfinished -= usize::from(unfinished);
        Some(links.into_values().collect())
    }

    /// Closes `end`, which is at `id`; the other side hears of it.
    pub fn hang_up(&mut self, id: NodeId, end: End) {
        self.net.close(end);
        let access = &mut self.nodes[id as usize].access;
        self.net.send(end, Wire::Close, access, &mut self.agenda);
    }

    /// A connection breaks, which both ends notice.
    pub fn reset(&mut self) {
        if let Some(every) = self.plan.resets {
            self.agenda.after(every, What::Reset);
        }
        // The first with a connection at or after a random place: nobody has to be counted.
        let from = self.rng.random_range(0..self.nodes.len());
        let (before, after) = self.nodes.split_at(from);
        let Some(node) = after.iter().chain(before).find(|n| !n.links.is_empty()) else { return };
        let at = self.rng.random_range(0..node.links.len());
        // A half-open connection has nobody to break it.
        let unbroken = |end: &&End| !self.net.end_ref(**end).severed;
        let Some(&end) = node.links.values().nth(at).filter(unbroken) else { return };
        for end in [end, end.far()] {
            if self.net.end(end).open {
                self.far_side_closed(end);
            }
        }
    }

    // ---- connections

    /// The time from one node to another.
    pub fn latency(&self, a: NodeId, b: NodeId) -> Duration {
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
        self.node(from).connecting += 1;
        self.check_connecting(from);
    }

    fn connected(&mut self, from: NodeId, to: NodeId) {
        let now = self.agenda.now();
        let there = addr(to);
        // Who comes in comes from some other port than it listens on.
        let incoming = SocketAddr::new(addr(from).ip(), 40_000);
        let target = &self.nodes[to as usize];
        if target.crashed || target.nat.is_some() {
            let waited = self.latency(from, to) * 3;
            let wait = CONNECT_TIMEOUT.saturating_sub(waited);
            return self.agenda.after(wait, What::Unanswered { from, to });
        }
        self.node(from).connecting -= 1;
        let here = &self.nodes[from as usize];
        let (waits, ready) = (here.present, here.machine.has_room());
        let target = self.node(to);
        if !waits || !target.present || target.links.contains_key(&from) {
            return self.not_connected(from, to);
        }
        if !ready || !target.machine.accepts(incoming, now) {
            self.node(from).machine.found_no_room(there, now);
            return self.settle(from);
        }
        // Another connection may have to make room first.
        self.settle(to);
        let conn = self.net.open(from, to, self.latency(from, to));
        let key = PeerKey(conn.into());
        for (side, (at, other, remote)) in
            [(from, to, there), (to, from, incoming)].into_iter().enumerate()
        {
            let session = PeerSession::new(remote, side == 0, true, true, now);
            let node = self.node(at);
            node.links.insert(other, End { conn, side: side as u8 });
            node.machine.peer_connected(key, session, now);
            self.check_connections(at);
        }
        self.settle(from);
        self.settle(to);
    }

    fn not_connected(&mut self, from: NodeId, to: NodeId) {
        let now = self.agenda.now();
        if self.nodes[from as usize].present {
            self.node(from).machine.connect_failed(addr(to), false, now);
            self.settle(from);
        }
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
        if id == 0 && raw.begin == 0 {
            let to = self.net.end_ref(end.far()).node;
            self.seed_sent.push((raw.piece, to));
        }
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
                if let Message::Request(_) = &message {
                    self.net.end(to).owed += 1;
                    self.node(id).machine.message(key, message, now);
                    self.settle(id);
                    return self.check_uploads(id, to);
                }
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
                if let Some((block, _)) = asked.filter(|_| self.breaks(Rule::AskForMissing)) {
                    self.request(id, key, block);
                }
                if kept && !good {
                    self.wronged.insert((id, from));
                }
            }
        }
        self.settle(id);
    }

    // ---- the gate and the disk

    fn judged(&mut self, id: NodeId, piece: PieceIndex) {
        let (now, geometry) = (self.agenda.now(), self.geometry.clone());
        let (gate, keep) = (!self.breaks(Rule::Gate), !self.breaks(Rule::Keep));
        let node = self.node(id);
        let Some(buffer) = node.disk.discard(&geometry, piece) else { return };
        if !node.present {
            return;
        }
        let good = buffer.blocks.iter().all(|b| b.is_some_and(|taint| taint.good));
        let digests: Vec<_> = buffer.blocks.iter().map(digest).collect();
        if good || !gate {
            node.disk.content[piece.index()] = Some(good).filter(|_| keep);
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
