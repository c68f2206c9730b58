//! What must hold in every scenario, looked at while it runs.
//!
//! What is cheap is checked with each event; what takes a look at whole nodes in turns, every
//! [`CHECK_EVERY`]. A finding is told with its time; one is enough to fail a run.

use std::time::Duration;

use super::event::{End, NodeId, What};
use super::node::Node;
use super::world::World;
use crate::proto::geometry::{Block, Geometry, PieceIndex};
use crate::proto::torrent::Ticket;

/// How often nodes are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Nodes whose machine is looked at each time.
const CHECKED_AT_ONCE: usize = 64;

/// The bounds that every node keeps. They are those of the design, said here once more: a machine
/// that forgets one of its own is found out.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections of a node.
    pub connections: usize,
    /// Attempts to connect that are under way.
    pub connecting: usize,
    /// Blocks asked of one peer and not answered.
    pub outstanding: usize,
    /// Requests of one peer that are not answered: 256 in the queue and 8 at the connection.
    pub uploads: usize,
    /// Addresses of peers that a node remembers.
    pub known_peers: usize,
    /// Peers unchoked at once, those included that ask for nothing.
    pub unchoked: usize,
    /// Bytes in a datagram: what fits an Ethernet packet.
    pub datagram: usize,
    /// Bytes of pieces that are not verified or not written; three pieces always may be there.
    pub memory: u64,
    /// How long a read waits while an honest peer that has the bytes serves the node.
    pub read_wait: Duration,
    /// How long a read waits while somebody honest has the bytes and could be connected to. Turns
    /// come round and connections are made in far less, even in a crowd: this is for reads of which
    /// nobody thinks any more.
    pub reach_wait: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 50,
            connecting: 50,
            outstanding: 512,
            uploads: 256 + 8,
            known_peers: 2_000,
            unchoked: 40,
            datagram: 1_472,
            memory: super::node::BUFFER_BUDGET,
            read_wait: Duration::from_secs(120),
            reach_wait: Duration::from_secs(600),
        }
    }
}

impl Bounds {
    /// The most that pieces on their way may take, in bytes.
    fn memory_for(&self, geometry: &Geometry) -> u64 {
        let piece = u64::from(geometry.piece_length());
        self.memory.max((3 * piece).min(96 << 20)).max(2 * piece)
    }
}

/// A rule that a run breaks on purpose, so that it shows whether that is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Only pieces that are right pass the gate.
    Gate,
    /// What has passed the gate is kept.
    Keep,
    /// Who unchokes a peer sends what it asks for.
    Serve,
    /// A block is asked for once.
    AskOnce,
    /// A block that is here is not asked for.
    AskForMissing,
    /// A block is asked of one peer.
    AskOne,
    /// Some peers are unchoked.
    Unchoke,
    /// A read is answered when its bytes are there.
    Reply,
}

impl World {
    /// Notes that something happened that must not.
    pub fn violation(&mut self, what: impl FnOnce() -> String) {
        if self.violations.len() < super::world::MAX_VIOLATIONS {
            let at = self.agenda.now().as_nanos() as f64 / 1e9;
            self.violations.push(format!("at {at:.3} s: {}", what()));
        }
    }

    /// Whether this run breaks `rule`.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.plan.breaks == Some(rule)
    }

    fn bound(&mut self, id: NodeId, what: &str, is: usize, bound: usize) {
        if is > bound {
            self.violation(|| format!("node {id} has {is} {what}, of at most {bound}"));
        }
    }

    // ---- with each event

    /// No block is asked twice of one peer; nor of two peers unless in endgame, because a reader
    /// waits for it, or because its piece keeps memory that the next one needs.
    pub fn check_request(&mut self, id: NodeId, end: End, block: Block) {
        let outstanding = self.net.end(end).asked.len() + 1;
        self.bound(id, "blocks asked of one peer", outstanding, self.plan.bounds.outstanding);
        let Some(held) = self.nodes[id as usize].disk.buffers.get(&block.piece) else { return };
        let here = held.blocks[block.index as usize].is_some();
        let asked = held.asked[block.index as usize] > 0;
        if here {
            self.violation(|| format!("node {id} asks for {block:?}, which it has"));
        }
        if !asked {
            return;
        }
        if self.net.end(end).asked.iter().any(|(asked, _)| *asked == block) {
            self.violation(|| format!("node {id} asks twice for {block:?} of one peer"));
        }
        let node = &self.nodes[id as usize];
        if self.is_waited_for(node, block.piece) || self.is_short_of_memory(node) {
            return;
        }
        if let Some(free) = self.first_free(node) {
            self.violation(|| {
                format!("node {id} asks a second peer for {block:?} while {free:?} has free blocks")
            });
        }
    }

    fn is_waited_for(&self, node: &Node, piece: PieceIndex) -> bool {
        let waits = node.program.as_ref().and_then(|program| program.waits.as_ref());
        waits.is_some_and(|(_, range, _)| {
            self.geometry.pieces_of(range.clone()).any(|waited| waited == piece)
        })
    }

    /// A quarter of the memory is kept for readers.
    fn is_short_of_memory(&self, node: &Node) -> bool {
        let bound = self.plan.bounds.memory_for(&self.geometry);
        node.disk.memory + u64::from(self.geometry.piece_length()) > bound - bound / 4
    }

    /// A piece of which nobody is asked for some missing block.
    fn first_free(&self, node: &Node) -> Option<PieceIndex> {
        let missing = self.geometry.pieces().filter(|p| node.disk.content[p.index()].is_none());
        let free = |p: &PieceIndex| node.disk.buffers.get(p).is_none_or(|b| b.has_free_block());
        missing.into_iter().find(free)
    }

    pub fn check_memory(&mut self, id: NodeId) {
        let bound = self.plan.bounds.memory_for(&self.geometry);
        let held = self.nodes[id as usize].disk.memory;
        self.bound(id, "bytes of pieces on their way", held as usize, bound as usize);
    }

    pub fn check_connections(&mut self, id: NodeId) {
        let links = self.nodes[id as usize].links.len();
        self.bound(id, "connections", links, self.plan.bounds.connections);
    }

    pub fn check_connecting(&mut self, id: NodeId) {
        let connecting = self.nodes[id as usize].connecting;
        self.bound(id, "attempts to connect", connecting, self.plan.bounds.connecting);
    }

    pub fn check_uploads(&mut self, id: NodeId, end: End) {
        let owed = self.net.end(end).owed;
        self.bound(id, "unanswered requests of one peer", owed, self.plan.bounds.uploads);
    }

    pub fn check_unchoked(&mut self, id: NodeId) {
        let ends = self.nodes[id as usize].links.values();
        let unchoked = ends.filter(|end| self.net.end_ref(**end).unchoked).count();
        self.bound(id, "unchoked peers", unchoked, self.plan.bounds.unchoked);
    }

    pub fn check_datagram(&mut self, id: NodeId, length: usize) {
        self.bound(id, "bytes in a datagram", length, self.plan.bounds.datagram);
    }

    // ---- in turns

    /// Looks at the reads that wait, and at some nodes.
    pub fn check(&mut self) {
        self.agenda.after(CHECK_EVERY, What::Check);
        for id in 0..self.nodes.len() as NodeId {
            self.check_read(id);
        }
        for _ in 0..CHECKED_AT_ONCE.min(self.nodes.len()) {
            self.next_checked = (self.next_checked + 1) % self.nodes.len() as NodeId;
            if self.nodes[self.next_checked as usize].present {
                self.check_machine(self.next_checked);
            }
        }
    }

    /// What a machine says of itself is within bounds, and it knows of the connections that there
    /// are and of no others.
    pub fn check_machine(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let stats = self.node(id).machine.stats(now);
        self.bound(id, "known peers", stats.known_peers, self.plan.bounds.known_peers);
        let links = self.nodes[id as usize].links.len();
        if stats.peers != links {
            self.violation(|| format!("node {id} knows {} of {links} connections", stats.peers));
        }
    }

    /// A read does not wait for long while somebody honest serves the node and has the bytes, nor
    /// for very long while such a one can be reached.
    fn check_read(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let Some((ticket, waited_for)) = self.waiting_read(id) else { return };
        let served = waited_for.iter().all(|piece| self.is_served(id, *piece));
        let reachable = waited_for.iter().all(|piece| self.is_reachable(id, *piece));
        let Some(program) = self.node(id).program.as_mut() else { return };
        let served = program.served.while_true(served, ticket, now);
        let reachable = program.reachable.while_true(reachable, ticket, now);
        if served > self.plan.bounds.read_wait {
            self.violation(|| {
                format!("a read on node {id} waits for {served:?} though an honest peer serves it")
            });
        }
        if reachable > self.plan.bounds.reach_wait {
            self.violation(|| {
                format!("a read on node {id} waits for {reachable:?} though somebody has the bytes")
            });
        }
    }

    /// The read that waits on `id` and the pieces it waits for.
    fn waiting_read(&self, id: NodeId) -> Option<(Ticket, Vec<PieceIndex>)> {
        let node = &self.nodes[id as usize];
        let (ticket, range, _) = node.program.as_ref()?.waits.as_ref().filter(|_| node.present)?;
        let pieces = self.geometry.pieces_of(range.clone());
        let missing = pieces.filter(|piece| node.disk.content[piece.index()].is_none());
        Some((*ticket, missing.collect()))
    }

    /// Whether somebody honest that has `piece` can be connected to.
    fn is_reachable(&self, id: NodeId, piece: PieceIndex) -> bool {
        self.nodes.iter().enumerate().any(|(other, peer)| {
            let has = peer.disk.content[piece.index()] == Some(true);
            other != id as usize
                && has
                && peer.present
                && peer.nat.is_none()
                && peer.plan.role.is_honest()
        })
    }

    /// Whether somebody honest that has `piece` is connected to `id` and lets it ask.
    fn is_served(&self, id: NodeId, piece: PieceIndex) -> bool {
        self.nodes[id as usize].links.iter().any(|(other, end)| {
            let peer = &self.nodes[*other as usize];
            let far = self.net.end_ref(end.far());
            let has = peer.disk.content[piece.index()] == Some(true);
            peer.present && peer.plan.role.is_honest() && has && far.open && far.unchoked
        })
    }

    // ---- at the end

    /// Whoever lacks a piece that an honest present node has was let down.
    pub fn check_nobody_is_stuck(&mut self) {
        let honest = |n: &&Node| n.present && n.plan.role.is_honest();
        let held: Vec<bool> = (0..self.geometry.piece_count() as usize)
            .map(|p| self.nodes.iter().filter(honest).any(|n| n.disk.content[p].is_some()))
            .collect();
        let lacks = |n: &&Node| {
            n.plan.role.contributes()
                && n.done_at.is_none()
                && n.disk.content.iter().zip(&held).any(|(have, held)| have.is_none() && *held)
        };
        let stuck = self.nodes.iter().filter(honest).filter(lacks).count();
        if stuck > 0 {
            self.violation(|| format!("{stuck} nodes lack pieces that honest nodes have"));
        }
    }

    /// Who has everything has no read that waits.
    pub fn check_reads_have_ended(&mut self) {
        let waits = |n: &&Node| {
            let program = n.program.as_ref();
            n.present && n.done_at.is_some() && program.is_some_and(|p| p.done_at.is_none())
        };
        let waiting = self.nodes.iter().filter(waits).count();
        if waiting > 0 {
            self.violation(|| format!("reads wait on {waiting} nodes that have everything"));
        }
    }

    /// No wrong byte became readable, and nobody was banned who did not lie.
    pub fn check_blame(&mut self) {
        let (wrong, unjust) = (self.wrong_bytes, super::report::banned_honest(self));
        if wrong > 0 {
            self.violation(|| format!("{wrong} wrong bytes became readable on honest nodes"));
        }
        if unjust > 0 {
            self.violation(|| format!("honest nodes banned {unjust} that did not lie"));
        }
    }
}
