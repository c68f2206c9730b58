//! One machine and peers that are played by hand, for tests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::tests::info;
use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::BLOCK_LEN;

pub(super) const BUDGET: u64 = 1 << 20;

/// Where our DHT node would be.
pub(super) const DHT_PORT: u16 = 6882;

pub(super) struct Lone {
    pub machine: Torrent,
    pub now: Timestamp,
    pub info: Arc<Info>,
    pub last_key: u64,
    pub asked: BTreeSet<(PeerKey, Block)>,
    /// How often each block was asked for.
    pub times: BTreeMap<Block, u32>,
    pub sent: Vec<(PeerKey, Message)>,
    pub others: Vec<Output>,
}

impl Lone {
    /// A machine that wants `wanted` of a torrent with `pieces` pieces of `blocks` blocks.
    pub fn new(pieces: u32, blocks: u32, wanted: impl Fn(u32) -> bool) -> Self {
        Self::of(info(pieces, blocks * BLOCK_LEN), wanted)
    }

    /// A machine that wants `wanted` of a torrent.
    pub fn of(info: Arc<Info>, wanted: impl Fn(u32) -> bool) -> Self {
        let geometry = &info.geometry;
        let pieces = geometry.piece_count();
        let options = Options {
            on_demand: false,
            upload: true,
            buffer_budget: BUDGET,
            port: 6881,
            pex: true,
            dht: Some(DHT_PORT),
        };
        let mut machine = Torrent::new(info.info_hash, options, 1);
        let mut set = Bitfield::empty(pieces);
        for piece in geometry.pieces().filter(|p| wanted(p.get())) {
            set.insert(piece);
        }
        let now = Timestamp::ZERO + Duration::from_secs(1);
        machine.activate(info.clone(), Bitfield::empty(pieces), &set, Timestamp::ZERO);
        let (asked, times) = (BTreeSet::new(), BTreeMap::new());
        let (sent, others) = (Vec::new(), Vec::new());
        Self { machine, now, info, last_key: 0, asked, times, sent, others }
    }

    pub fn on_demand(pieces: u32, blocks: u32) -> Self {
        Self::new(pieces, blocks, |_| false)
    }

    pub fn connect(&mut self, outgoing: bool, fast: bool) -> PeerKey {
        self.connect_as(outgoing, fast, false)
    }

    fn connect_as(&mut self, outgoing: bool, fast: bool, v2: bool) -> PeerKey {
        self.last_key += 1;
        let key = PeerKey(self.last_key);
        let addr = SocketAddr::from(([192, 0, 2, 1], 1_000 + self.last_key as u16));
        let mut session = PeerSession::new(addr, outgoing, fast, true, self.now);
        session.v2 = v2;
        self.machine.peer_connected(key, session, self.now);
        key
    }

    /// A peer that has these pieces and lets us ask for them.
    pub fn holder(&mut self, fast: bool, has: impl Fn(u32) -> bool) -> PeerKey {
        self.holder_as(fast, false, has)
    }

    /// The same, which may speak BitTorrent v2.
    pub fn holder_as(&mut self, fast: bool, v2: bool, has: impl Fn(u32) -> bool) -> PeerKey {
        let key = self.connect_as(true, fast, v2);
        let mut bits = Bitfield::empty(self.info.geometry.piece_count());
        for piece in self.info.geometry.pieces().filter(|p| has(p.get())) {
            bits.insert(piece);
        }
        self.say(key, Message::Bitfield(Bytes::copy_from_slice(bits.as_bytes())));
        self.say(key, Message::Unchoke);
        key
    }

    pub fn seed(&mut self) -> PeerKey {
        self.holder(true, |_| true)
    }

    pub fn say(&mut self, key: PeerKey, message: Message) {
        self.machine.message(key, message, self.now);
    }

    pub fn read(&mut self, piece: u32) {
        let start = self.info.geometry.piece_range(self.piece(piece)).start;
        let (ticket, handle) = (Ticket(u64::from(piece)), HandleId(1));
        self.machine.read(ticket, handle, start..start + 1, self.now, Timestamp::FAR_FUTURE);
    }

    pub fn piece(&self, index: u32) -> PieceIndex {
        self.info.geometry.piece(index).unwrap()
    }

    pub fn step(&mut self) {
        self.machine.plan(self.now);
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Request(key, block) => {
                    self.asked.insert((key, block));
                    *self.times.entry(block).or_default() += 1;
                }
                Output::Cancel(key, block) => drop(self.asked.remove(&(key, block))),
                Output::Send(key, message) => self.sent.push((key, message)),
                other => self.others.push(other),
            }
        }
    }

    pub fn asked_of(&self, key: PeerKey) -> Vec<Block> {
        self.asked.iter().filter(|(k, _)| *k == key).map(|(_, b)| *b).collect()
    }

    pub fn age(&self, key: PeerKey, block: Block) -> Option<Duration> {
        self.machine.peers.get(&key)?.window.age_of(block, self.now)
    }

    pub fn give(&mut self, key: PeerKey, block: Block) {
        self.asked.remove(&(key, block));
        self.machine.block_arrived(key, block, true, self.now);
    }

    pub fn give_all(&mut self, key: PeerKey) {
        for block in self.asked_of(key) {
            self.give(key, block);
        }
    }

    pub fn gone(&mut self, key: PeerKey) {
        self.asked.retain(|(k, _)| *k != key);
        self.machine.peer_disconnected(key, self.now);
    }

    /// Steps through `time`, letting `act` happen each time, until it is true.
    pub fn within(&mut self, time: Duration, mut act: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + time;
        while self.now < end {
            self.step();
            if act(self) {
                return true;
            }
            self.now = self.now + Duration::from_millis(100);
        }
        false
    }

    pub fn verifies(&self, piece: u32) -> usize {
        let is = |o: &&Output| matches!(o, Output::Verify { piece: p, .. } if p.get() == piece);
        self.others.iter().filter(is).count()
    }
}

pub(super) const MINUTE: Duration = Duration::from_secs(60);
