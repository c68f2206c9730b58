//! A node: the real machine and choker, and a stand-in for its disk and its gate.

use std::collections::BTreeMap;
use std::time::Duration;

use super::announcer::Announcer;
use super::datagram::Nat;
use super::event::{End, NodeId};
use super::link::Access;
use super::plan::{NodePlan, Role};
use crate::proto::choker::Choker;
use crate::proto::demand::window::ReadWindow;
use crate::proto::geometry::{Block, Geometry, PieceIndex};
use crate::proto::time::Timestamp;
use crate::proto::torrent::{Options, Ticket, Torrent};

/// Memory for unverified and unwritten pieces, in bytes, as the engine has it.
pub(super) const BUFFER_BUDGET: u64 = 32 << 20;

/// What a program reads at a time, in bytes.
const READ: u64 = 128 << 10;

/// How far a handle is read ahead of, in bytes.
const READ_AHEAD: u64 = 16 << 20;

/// Where the bytes of a block came from and whether they are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taint {
    pub from: NodeId,
    pub good: bool,
}

/// A piece on its way: each block's bytes, where they are here, and of how many peers it is asked.
pub(super) struct Buffer {
    pub id: u32,
    pub blocks: Vec<Option<Taint>>,
    pub asked: Vec<u8>,
}

impl Buffer {
    /// Whether nobody is asked for some block that is missing.
    pub fn has_free_block(&self) -> bool {
        self.blocks.iter().zip(&self.asked).any(|(block, asked)| block.is_none() && *asked == 0)
    }
}

/// Bytes at rest and in memory.
pub(super) struct Disk {
    pub buffers: BTreeMap<PieceIndex, Buffer>,
    last_buffer: u32,
    /// Verified and not yet written.
    pub unwritten: BTreeMap<PieceIndex, u32>,
    /// By piece: whether it is verified, and then whether it is right.
    pub content: Vec<Option<bool>>,
    pub verified: u32,
    pub memory: u64,
    pub peak_memory: u64,
}

impl Disk {
    fn new(geometry: &Geometry, full: bool) -> Self {
        let count = geometry.piece_count();
        Self {
            buffers: BTreeMap::new(),
            last_buffer: 0,
            unwritten: BTreeMap::new(),
            content: vec![full.then_some(true); count as usize],
            verified: if full { count } else { 0 },
            memory: 0,
            peak_memory: 0,
        }
    }

    /// The buffer of `piece`, begun if need be.
    pub fn buffer(&mut self, geometry: &Geometry, piece: PieceIndex) -> &mut Buffer {
        self.buffers.entry(piece).or_insert_with(|| {
            self.last_buffer += 1;
            self.memory += u64::from(geometry.piece_len(piece));
            self.peak_memory = self.peak_memory.max(self.memory);
            let count = geometry.block_count(piece) as usize;
            Buffer { id: self.last_buffer, blocks: vec![None; count], asked: vec![0; count] }
        })
    }

    /// Drops the buffer of `piece`.
    pub fn discard(&mut self, geometry: &Geometry, piece: PieceIndex) -> Option<Buffer> {
        let buffer = self.buffers.remove(&piece)?;
        self.memory -= u64::from(geometry.piece_len(piece));
        Some(buffer)
    }

    /// Keeps `piece` in memory until it is written.
    pub fn hold(&mut self, geometry: &Geometry, piece: PieceIndex) {
        let length = geometry.piece_len(piece);
        self.unwritten.insert(piece, length);
        self.memory += u64::from(length);
    }

    /// The disk has answered for `piece`.
    pub fn let_go(&mut self, piece: PieceIndex) {
        self.memory -= u64::from(self.unwritten.remove(&piece).unwrap_or(0));
    }

    /// One peer less is asked for `block`.
    pub fn not_asked(&mut self, block: Block, buffer: u32) {
        if let Some(held) = self.buffers.get_mut(&block.piece).filter(|b| b.id == buffer) {
            let asked = &mut held.asked[block.index as usize];
            *asked = asked.saturating_sub(1);
        }
    }

    /// Puts a block into its buffer; whether it was taken.
    pub fn put(&mut self, block: Block, buffer: u32, taint: Taint) -> bool {
        let held = self.buffers.get_mut(&block.piece).filter(|b| b.id == buffer);
        let Some(slot) = held.map(|b| &mut b.blocks[block.index as usize]) else { return false };
        let free = slot.is_none();
        slot.get_or_insert(taint);
        free
    }
}

/// A program that reads the torrent from start to end.
pub(super) struct Program {
    pub window: ReadWindow,
    pub next: u64,
    pub last_ticket: u64,
    /// What the waiting read is for, and since when it waits.
    pub waits: Option<(Ticket, std::ops::Range<u64>, Timestamp)>,
    /// A read that waits, and since when somebody honest could have served it.
    pub served: Option<(Ticket, Timestamp)>,
    /// Seconds that each read waited.
    pub waited: Vec<f64>,
    pub done_at: Option<Timestamp>,
}

impl Program {
    fn new(total: u64) -> Self {
        Self {
            window: ReadWindow::new(total, READ_AHEAD),
            next: 0,
            last_ticket: 0,
            waits: None,
            served: None,
            waited: Vec::new(),
            done_at: None,
        }
    }

    /// The next read, and what to read ahead from now on if that has changed.
    pub fn read(
        &mut self,
        total: u64,
        now: Timestamp,
    ) -> Option<(Ticket, std::ops::Range<u64>, Option<std::ops::Range<u64>>)> {
        let range = self.next..(self.next + READ).min(total);
        if range.is_empty() {
            self.done_at = Some(now);
            return None;
        }
        self.next = range.end;
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let ahead = self.window.observe(range.start, range.end - range.start);
        self.waits = Some((ticket, range.clone(), now));
        Some((ticket, range, ahead))
    }
}

/// A node.
pub(super) struct Node {
    pub plan: NodePlan,
    pub machine: Torrent,
    pub choker: Choker,
    pub access: Access,
    /// What stands between it and the others, if anything does.
    pub nat: Option<Nat>,
    /// From when it joins.
    pub announcer: Option<Announcer>,
    pub disk: Disk,
    pub program: Option<Program>,
    /// Joined and not left.
    pub present: bool,
    /// Vanished: nobody answers at its address any more.
    pub crashed: bool,
    /// Attempts to connect that are under way.
    pub connecting: usize,
    /// Open connections by the node at the other end.
    pub links: BTreeMap<NodeId, End>,
    pub wake_at: Timestamp,
    pub wants_unchoke: bool,
    pub done_at: Option<Timestamp>,
    pub left_at: Option<Timestamp>,
    /// Payload, in bytes.
    pub uploaded: u64,
    pub downloaded: u64,
    /// Payload that came for nothing.
    pub duplicates: u64,
    /// By block: sent at least once. Kept for seeds only.
    pub sent: Vec<bool>,
    pub unsent: u32,
}

impl Node {
    pub fn new(plan: NodePlan, geometry: &Geometry, machine: Torrent, seed: u64) -> Self {
        let full = plan.role == Role::Seed;
        let blocks = if full { geometry.total().div_ceil(16 << 10) } else { 0 };
        Self {
            machine,
            choker: Choker::new(seed),
            access: Access::new(plan.up, plan.down),
            nat: plan.natted.then(Nat::default),
            announcer: None,
            disk: Disk::new(geometry, full),
            program: (plan.role == Role::Reader).then(|| Program::new(geometry.total())),
            present: false,
            crashed: false,
            connecting: 0,
            links: BTreeMap::new(),
            wake_at: Timestamp::FAR_FUTURE,
            wants_unchoke: false,
            done_at: full.then_some(Timestamp::ZERO),
            left_at: None,
            uploaded: 0,
            downloaded: 0,
            duplicates: 0,
            sent: vec![false; blocks as usize],
            unsent: blocks as u32,
            plan,
        }
    }

    /// How the engine sets up a torrent.
    pub fn options(pex: bool) -> Options {
        let buffer_budget = BUFFER_BUDGET;
        Options { on_demand: false, upload: true, buffer_budget, port: super::PORT, pex, dht: None }
    }

    /// How long it was there until `now`.
    pub fn time_present(&self, now: Timestamp) -> Duration {
        self.left_at.unwrap_or(now).since(self.plan.joins)
    }
}
