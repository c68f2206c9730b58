//! Several machines in one process, in virtual time: what one sends reaches the other after a
//! delay, blocks are good or bad by who sent them, and the gate tells.

mod readers;
mod ticks;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{BLOCK_LEN, Geometry};
use crate::proto::metainfo::{FileEntry, Info};
use crate::proto::swarm::PeerSource;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
enum Happens {
    Message(Message),
    Block { raw: RawBlock, good: bool },
    Connect(SocketAddr),
    Disconnect,
    Tick,
}

struct Node {
    machine: Torrent,
    /// Sends bad bytes instead of good ones.
    lies: bool,
    /// Accepts requests and never answers.
    silent: bool,
    /// Sends a block in this time, one after the other.
    pace: Duration,
    busy_until: Timestamp,
    /// Limits what it sends as libtorrent does.
    ticks: Option<ticks::Ticks>,
    links: BTreeMap<PeerKey, (usize, PeerKey)>,
    requested: BTreeSet<(PeerKey, Block)>,
    blocks: BTreeMap<PieceIndex, BTreeMap<u32, bool>>,
    readable: BTreeSet<PieceIndex>,
    at_rest_is_good: bool,
    replies: BTreeMap<Ticket, (ReadEnd, Timestamp)>,
    disconnects: Vec<Disconnect>,
    complete: bool,
    sent_blocks: u64,
    peak_memory: u64,
}

struct World {
    now: Timestamp,
    info: Arc<Info>,
    nodes: Vec<Node>,
    queue: BinaryHeap<std::cmp::Reverse<(Timestamp, u64)>>,
    events: BTreeMap<u64, (usize, PeerKey, Happens)>,
    sequence: u64,
    latency: Duration,
    /// What a block takes on the line of a node with ticks.
    wire: Duration,
}

pub(super) fn info(pieces: u32, piece_length: u32) -> Arc<Info> {
    let total = u64::from(pieces) * u64::from(piece_length) - 5;
    let file = FileEntry {
        path: vec![b"f".to_vec()],
        offset: 0,
        length: total,
        executable: false,
        pad: false,
        hidden: false,
        symlink: None,
        mtime: None,
    };
    Arc::new(Info {
        info_hash: InfoHash::new([7; 20]),
        raw: vec![b'x'; 40_000],
        name: b"f".to_vec(),
        geometry: Geometry::new(total, piece_length.into()).unwrap(),
        piece_hashes: vec![[0; 20]; pieces as usize],
        files: vec![file],
        single_file: true,
        v2: None,
        private: false,
    })
}

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8 + 1], 6881))
}

impl World {
    fn new(pieces: u32, piece_length: u32) -> Self {
        Self {
            now: Timestamp::ZERO + Duration::from_secs(1),
            info: info(pieces, piece_length),
            nodes: Vec::new(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            latency: 10 * MS,
            wire: Duration::ZERO,
        }
    }

    fn all(&self) -> Bitfield {
        Bitfield::full(self.info.geometry.piece_count())
    }

    fn none(&self) -> Bitfield {
        Bitfield::empty(self.info.geometry.piece_count())
    }

    /// A node that has the pieces of `have` and wants everything (on demand: nothing).
    fn add(&mut self, have: Bitfield, on_demand: bool) -> usize {
        let options = Options {
            on_demand,
            upload: true,
            buffer_budget: 1 << 20,
            port: 6881,
            pex: true,
            dht: None,
        };
        let seed = self.nodes.len() as u64;
        let mut machine = Torrent::new(self.info.info_hash, options, seed);
        let wanted = if on_demand { self.none() } else { self.all() };
        let checked: Vec<_> = have.iter(&self.info.geometry).collect();
        machine.activate(self.info.clone(), have, &wanted, self.now);
        for piece in &checked {
            machine.checked_at_rest(*piece, true, self.now);
        }
        self.nodes.push(Node {
            machine,
            lies: false,
            silent: false,
            pace: Duration::ZERO,
            busy_until: Timestamp::ZERO,
            ticks: None,
            links: BTreeMap::new(),
            requested: BTreeSet::new(),
            blocks: BTreeMap::new(),
            readable: checked.into_iter().collect(),
            at_rest_is_good: true,
            replies: BTreeMap::new(),
            disconnects: Vec::new(),
            complete: false,
            sent_blocks: 0,
            peak_memory: 0,
        });
        self.nodes.len() - 1
    }

    fn seed(&mut self) -> usize {
        self.add(self.all(), false)
    }

    fn leech(&mut self) -> usize {
        self.add(self.none(), false)
    }

    fn know(&mut self, node: usize, other: usize) {
        self.nodes[node].machine.peers_found(&[addr(other)], PeerSource::Manual);
    }

    fn later(&mut self, after: Duration, node: usize, key: PeerKey, happens: Happens) {
        self.sequence += 1;
        self.queue.push(std::cmp::Reverse((self.now + after, self.sequence)));
        self.events.insert(self.sequence, (node, key, happens));
    }

    fn connect(&mut self, from: usize, to: usize) {
        self.sequence += 2;
        let keys = (PeerKey(self.sequence - 1), PeerKey(self.sequence));
        self.nodes[from].links.insert(keys.0, (to, keys.1));
        self.nodes[to].links.insert(keys.1, (from, keys.0));
        let session = |other, out| PeerSession::new(addr(other), out, true, true, self.now);
        let (there, here) = (session(to, true), session(from, false));
        self.nodes[from].machine.peer_connected(keys.0, there, self.now);
        self.nodes[to].machine.peer_connected(keys.1, here, self.now);
        self.settle(from);
        self.settle(to);
    }

    /// Carries out what the machine of `node` says.
    fn settle(&mut self, node: usize) {
        self.nodes[node].machine.plan(self.now);
        while let Some(output) = self.nodes[node].machine.poll_output() {
            self.carry_out(node, output);
            self.nodes[node].machine.plan(self.now);
        }
        let n = &mut self.nodes[node];
        let buffered = n.machine.active.as_ref().map_or(0, |a| a.buffered_bytes);
        n.peak_memory = n.peak_memory.max(buffered);
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        let now = self.now;
        let latency = self.latency;
        let there = |n: &Node, key| n.links.get(&key).copied();
        let me = &mut self.nodes[node];
        match output {
            Output::Send(key, message) => {
                if let Some((to, at)) = there(me, key) {
                    self.later(latency, to, at, Happens::Message(message));
                }
            }
            Output::Request(key, block) => {
                assert!(me.requested.insert((key, block)), "asked twice of one peer");
                if let Some((to, at)) = there(me, key) {
                    self.later(latency, to, at, Happens::Message(Message::Request(block.into())));
                }
            }
            Output::Cancel(key, block) => {
                if me.requested.remove(&(key, block))
                    && let Some((to, at)) = there(me, key)
                {
                    self.later(latency, to, at, Happens::Message(Message::Cancel(block.into())));
                }
            }
            Output::Upload(key, raw) => {
                let piece = self.info.geometry.piece(raw.piece).unwrap();
                assert!(me.readable.contains(&piece), "an unverified byte would leave");
                let good = !me.lies;
                if me.silent {
                    return;
                }
                me.sent_blocks += 1;
                if let Some(ticks) = &mut me.ticks {
                    ticks.queue.push_back((key, raw));
                    self.pump(node);
                    return;
                }
                me.busy_until = me.busy_until.max(now) + me.pace;
                let takes = me.busy_until.since(now) + latency + MS;
                if let Some((to, at)) = there(me, key) {
                    self.later(takes, to, at, Happens::Block { raw, good });
                }
                self.nodes[node].machine.uploaded(key, raw, true, now);
            }
            Output::Disconnect(key, reason) => {
                me.disconnects.push(reason);
                if let Some((to, at)) = me.links.remove(&key) {
                    self.later(latency, to, at, Happens::Disconnect);
                }
            }
            Output::Connect(to) => self.later(latency, node, PeerKey(0), Happens::Connect(to)),
            Output::Metadata(_) => panic!("known from the start"),
            Output::DhtNode(_) | Output::SeenAt { .. } => {}
            Output::Verify { piece, .. } => {
                let blocks = me.blocks.remove(&piece).unwrap();
                assert_eq!(blocks.len() as u32, self.info.geometry.block_count(piece));
                let digests: Vec<_> = blocks.values().map(|&good| [u8::from(good); 20]).collect();
                if blocks.values().all(|good| *good) {
                    me.readable.insert(piece);
                    me.machine.piece_verified(piece, Some(&digests), now);
                } else {
                    me.machine.piece_failed(piece, digests, now);
                }
            }
            Output::Write(piece) => me.machine.piece_written(piece, now),
            Output::CheckAtRest(piece, _) => {
                if me.at_rest_is_good {
                    me.readable.insert(piece);
                }
                me.machine.checked_at_rest(piece, me.at_rest_is_good, now);
            }
            Output::Discard(piece) => drop(me.blocks.remove(&piece)),
            Output::Reply(ticket, end) => drop(me.replies.insert(ticket, (end, now))),
            Output::WantsUnchoke => {
                let keys: Vec<_> = me.links.keys().copied().collect();
                me.machine.set_unchoked(&keys, now);
            }
            Output::Complete => me.complete = true,
            Output::VerifyBlocks(..)
            | Output::Refuse(..)
            | Output::HashBlocks(..)
            | Output::KeepLayer(..)
            | Output::Contradiction => panic!("there is no v2 half"),
        }
    }

    fn happen(&mut self, node: usize, key: PeerKey, happens: Happens) {
        let now = self.now;
        match happens {
            Happens::Connect(to) => {
                let other = usize::from(match to.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets()[3] - 1,
                    std::net::IpAddr::V6(_) => unreachable!(),
                });
                let target = self.nodes.get_mut(other);
                let accepted = target.is_some_and(|o| o.machine.accepts(addr(node), now));
                if accepted {
                    self.connect(node, other);
                } else {
                    self.nodes[node].machine.connect_failed(to, false, now);
                }
            }
            Happens::Tick => self.tick(node),
            Happens::Disconnect => {
                self.nodes[node].links.remove(&key);
                self.nodes[node].machine.peer_disconnected(key, now);
            }
            Happens::Message(message) => {
                if let Message::Reject(raw) = &message {
                    let block = self.info.geometry.block_at(raw.piece, raw.begin, raw.length);
                    self.nodes[node].requested.remove(&(key, block.unwrap()));
                }
                if let (Message::Cancel(raw), Some(ticks)) = (&message, &mut self.nodes[node].ticks)
                    && let Some(at) = ticks.queue.iter().position(|q| *q == (key, *raw))
                {
                    ticks.queue.remove(at);
                    self.nodes[node].machine.uploaded(key, *raw, false, now);
                }
                self.nodes[node].machine.message(key, message, now);
            }
            Happens::Block { raw, good } => {
                let n = &mut self.nodes[node];
                let block = self.info.geometry.block_at(raw.piece, raw.begin, raw.length).unwrap();
                if n.requested.remove(&(key, block)) {
                    let blocks = n.blocks.entry(block.piece).or_default();
                    let wanted =
                        n.machine.active.as_ref().unwrap().buffered.contains_key(&block.piece);
                    let kept = wanted && !blocks.contains_key(&block.index);
                    if kept {
                        blocks.insert(block.index, good);
                    }
                    n.machine.block_arrived(key, block, kept, now);
                } else {
                    n.machine.block_unasked(key, raw.length, now);
                }
            }
        }
        self.settle(node);
    }

    /// Runs until `until` holds; panics after `limit` of virtual time.
    fn run(&mut self, limit: Duration, until: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        for node in 0..self.nodes.len() {
            self.settle(node);
        }
        while !until(self) {
            let timer = (0..self.nodes.len())
                .map(|n| (self.nodes[n].machine.poll_timeout(), n))
                .min()
                .unwrap();
            let event = self.queue.peek().map(|e| e.0.0);
            if event.is_some_and(|at| at <= timer.0) {
                let std::cmp::Reverse((at, id)) = self.queue.pop().unwrap();
                self.now = self.now.max(at);
                let (node, key, happens) = self.events.remove(&id).unwrap();
                self.happen(node, key, happens);
            } else {
                self.now = self.now.max(timer.0);
                self.settle(timer.1);
            }
            assert!(self.now < end, "not done after {limit:?} of virtual time");
        }
    }

    fn read(&mut self, node: usize, ticket: u64, range: std::ops::Range<u64>) {
        let (ticket, handle) = (Ticket(ticket), HandleId(1));
        self.nodes[node].machine.read(ticket, handle, range, self.now, Timestamp::FAR_FUTURE);
        self.settle(node);
    }

    /// A sequential read of everything, a piece at a time and two at once, all of it announced as
    /// read ahead; the longest wait. `meanwhile` is called before each piece.
    fn read_all(&mut self, node: usize, mut meanwhile: impl FnMut(&mut Self, u32)) -> Duration {
        let (geometry, mut longest) = (self.info.geometry.clone(), Duration::ZERO);
        self.nodes[node].machine.read_ahead(HandleId(1), 0..geometry.total());
        for piece in geometry.pieces() {
            meanwhile(self, piece.get());
            let began = self.now;
            let start = geometry.piece_range(piece).start;
            let end = (start + 2 * u64::from(geometry.piece_length())).min(geometry.total());
            self.read(node, u64::from(piece.get()), start..end);
            let ticket = Ticket(piece.get().into());
            self.run(LONG, |w| w.nodes[node].replies.contains_key(&ticket));
            longest = longest.max(self.now.since(began));
        }
        longest
    }

    fn all_complete(&self) -> bool {
        self.nodes.iter().all(|n| n.complete)
    }
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_seeder_sees_who_keeps_to_itself_what_it_gets() {
    let mut world = World::new(40, BLOCK_LEN);
    let (seed, keeper, other) = (world.seed(), world.leech(), world.leech());
    world.connect(seed, keeper);
    world.connect(seed, other);
    let key = |world: &World, who| {
        let found = world.nodes[seed].links.iter().find(|(_, link)| link.0 == who);
        *found.unwrap().0
    };
    let (keeper, other) = (key(&world, keeper), key(&world, other));
    let now = world.now;
    let machine = &mut world.nodes[seed].machine;
    let block = |piece| RawBlock { piece, begin: 0, length: BLOCK_LEN };
    let kept = |machine: &Torrent| machine.peers[&keeper].first_copies.are_kept();
    for piece in 0..20 {
        machine.uploaded(keeper, block(piece), true, now);
        machine.message(keeper, Message::Have(piece), now);
    }
    assert!(kept(machine));
    // Others get some of them, but from us.
    for piece in 0..10 {
        machine.uploaded(other, block(piece), true, now);
        machine.message(other, Message::Have(piece), now);
    }
    assert!(kept(machine));
    // And then some from the peer itself.
    for piece in 10..20 {
        machine.message(other, Message::Have(piece), now);
    }
    assert!(!kept(machine));
}

#[test]
fn three_leechers_trade_so_that_the_seed_need_not_send_three_copies() {
    let mut world = World::new(40, 2 * BLOCK_LEN);
    let seed = world.seed();
    world.nodes[seed].pace = 5 * MS;
    for _ in 0..3 {
        let leech = world.leech();
        (0..leech).for_each(|other| world.know(leech, other));
    }
    world.run(LONG, World::all_complete);
    let copies = world.nodes[seed].sent_blocks as f64 / 80.0;
    assert!(copies < 2.9, "{copies}");
}

#[test]
fn a_liar_is_banned_and_an_honest_peer_is_not() {
    let mut world = World::new(30, 4 * BLOCK_LEN);
    let (honest, liar) = (world.seed(), world.seed());
    world.nodes[liar].lies = true;
    let leech = world.leech();
    world.know(leech, honest);
    world.know(leech, liar);
    world.run(LONG, |w| w.nodes[leech].complete);
    assert_eq!(world.nodes[leech].machine.list.banned(), 1);
    assert!(world.nodes[leech].machine.list.is_banned(addr(liar)));
    assert_eq!(world.nodes[leech].disconnects, [Disconnect::BadData, Disconnect::BothSeeds]);
}

#[test]
fn a_lone_liar_ends_banned_and_nothing_becomes_readable() {
    let mut world = World::new(4, 2 * BLOCK_LEN);
    let liar = world.seed();
    world.nodes[liar].lies = true;
    let leech = world.leech();
    world.know(leech, liar);
    world.run(LONG, |w| w.nodes[leech].machine.list.banned() == 1);
    assert!(world.nodes[leech].readable.is_empty());
}

#[test]
fn memory_stays_within_the_budget() {
    let mut world = World::new(200, 8 * BLOCK_LEN);
    let seeds: Vec<_> = (0..4).map(|_| world.seed()).collect();
    let leech = world.leech();
    seeds.iter().for_each(|s| world.know(leech, *s));
    world.run(LONG, |w| w.nodes[leech].complete);
    assert!(world.nodes[leech].peak_memory <= 1 << 20, "{}", world.nodes[leech].peak_memory);
}

#[test]
fn hints_that_are_wrong_are_fetched_again() {
    let mut world = World::new(10, 2 * BLOCK_LEN);
    let seed = world.seed();
    let leech = world.leech();
    let hinted = world.all();
    let wanted = world.all();
    let node = &mut world.nodes[leech];
    node.at_rest_is_good = false;
    node.machine.activate(world.info.clone(), hinted, &wanted, world.now);
    world.know(leech, seed);
    world.run(LONG, |w| w.nodes[leech].complete);
    assert_eq!(world.nodes[leech].readable.len(), 10);
}

#[test]
fn a_seed_that_leaves_in_the_middle_costs_only_what_was_under_way() {
    let mut world = World::new(60, 4 * BLOCK_LEN);
    let (first, second) = (world.seed(), world.seed());
    let leech = world.leech();
    world.know(leech, first);
    world.know(leech, second);
    world.run(LONG, |w| w.nodes[leech].readable.len() > 20);
    let links: Vec<_> =
        world.nodes[leech].links.iter().filter(|(_, l)| l.0 == first).map(|(k, _)| *k).collect();
    for key in links {
        world.happen(leech, key, Happens::Disconnect);
    }
    world.run(LONG, |w| w.nodes[leech].complete);
}

#[test]
fn a_silent_peer_does_not_hold_up_a_torrent_of_large_pieces() {
    let mut world = World::new(20, 32 * BLOCK_LEN);
    let (good, silent) = (world.seed(), world.seed());
    world.nodes[silent].silent = true;
    let leech = world.leech();
    world.know(leech, good);
    world.know(leech, silent);
    let began = world.now;
    world.run(LONG, |w| w.nodes[leech].complete);
    assert!(world.now.since(began) < Duration::from_secs(60), "{:?}", world.now.since(began));
}
