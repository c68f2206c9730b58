//! How long the decisions take: the picker over 100,000 pieces and 200 peers, the choker, a swarm of
//! whole machines, an event at a time, and a DHT node, a datagram at a time.
#![allow(clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use p2pfs::proto::bitfield::Bitfield;
use p2pfs::proto::choker::{Candidate, Choker};
use p2pfs::proto::dht::krpc::{Message, Method};
use p2pfs::proto::dht::{Config, Dht, GetPeers, NodeId, Output};
use p2pfs::proto::geometry::{Geometry, PieceIndex};
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::swarm::{Holds, PeerKey, Picker, Priority};
use p2pfs::proto::time::Timestamp;
use p2pfs::sim::{Plan, Settings};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PIECES: u64 = 100_000;
const PEERS: u64 = 200;

/// Pieces of 256 KiB, in 16 blocks each.
const PIECE_LENGTH: u64 = 256 << 10;

/// A torrent of which every peer has half, and the picker of somebody who has nothing.
struct Swarm {
    geometry: Geometry,
    picker: Picker,
    peers: Vec<Holds>,
    rng: ChaCha8Rng,
}

fn swarm() -> Swarm {
    let geometry = Geometry::new(PIECES * PIECE_LENGTH, PIECE_LENGTH).expect("a torrent");
    let none = Bitfield::empty(geometry.piece_count());
    let mut picker = Picker::new(geometry.clone(), &none, Priority::Normal);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let peers: Vec<_> = (0..PEERS)
        .map(|_| {
            let mut bits = Bitfield::empty(geometry.piece_count());
            geometry.pieces().filter(|_| rng.random()).for_each(|piece| {
                bits.insert(piece);
            });
            Holds::Some(bits)
        })
        .collect();
    peers.iter().for_each(|holds| picker.peer_came(holds));
    // The first pieces are picked at random; this is about what comes after them.
    for piece in geometry.pieces().take(4) {
        picker.verified(piece);
    }
    Swarm { geometry, picker, peers, rng }
}

fn piece(swarm: &mut Swarm) -> PieceIndex {
    let index = swarm.rng.random_range(0..PIECES as u32);
    swarm.geometry.piece(index).expect("a piece of the torrent")
}

/// Everything that happens to the picker for one piece: it is picked, its blocks are asked for and
/// come, and it is verified.
fn download(swarm: &mut Swarm, peer: usize) {
    let (key, holds) = (PeerKey(peer as u64), &swarm.peers[peer]);
    let Some(piece) = swarm.picker.pick_new(holds, &mut swarm.rng, |_| true) else { return };
    while let Some(block) = swarm.picker.take_from(piece, 0..u32::MAX, key) {
        black_box(swarm.picker.arrived(block, key));
    }
    swarm.picker.verified(piece);
}

fn picker(c: &mut Criterion) {
    let mut group = c.benchmark_group("picker, 100,000 pieces and 200 peers");
    let mut world = swarm();
    group.bench_function("a peer has one more piece", |b| {
        b.iter(|| {
            let piece = piece(&mut world);
            world.picker.peer_got(piece);
            world.picker.peer_lost(piece);
        });
    });
    group.bench_function("the rarest piece of a peer", |b| {
        let mut peer = 0;
        b.iter(|| {
            peer = (peer + 1) % world.peers.len();
            black_box(world.picker.pick_new(&world.peers[peer], &mut world.rng, |_| true));
        });
    });
    group.bench_function("a peer comes and leaves", |b| {
        b.iter(|| {
            world.picker.peer_came(&world.peers[0]);
            world.picker.peer_left(&world.peers[0]);
        });
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1,000 pieces from beginning to end", |b| {
        let download_all = |mut world: Swarm| {
            (0..1_000).for_each(|n| download(&mut world, n % PEERS as usize));
            world
        };
        b.iter_batched(swarm, download_all, BatchSize::LargeInput);
    });
    group.finish();
}

fn choker(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let now = Timestamp::ZERO + Duration::from_secs(1_000);
    let mut group = c.benchmark_group("choker");
    for count in [50, 200, 2_000] {
        let candidates: Vec<_> = (0..count)
            .map(|n| Candidate {
                who: (n % 7, PeerKey(n)),
                gives: rng.random_range(0.0..1e6),
                takes: rng.random_range(0.0..1e6),
                taken: rng.random_range(0..1 << 30),
                free_rides: rng.random_bool(0.1),
                seeding: n % 7 == 0,
                snubbed: rng.random_bool(0.1),
                busy: rng.random(),
                since: Timestamp::ZERO,
                last_taken: now,
                slot_ended: Timestamp::ZERO,
                piece: PIECE_LENGTH,
            })
            .collect();
        let mut choker = Choker::new(3);
        group.bench_function(format!("a round with {count} peers"), |b| {
            b.iter(|| black_box(choker.round(&candidates, Some(0.0), now)));
        });
        group.bench_function(format!("a look between rounds with {count} peers"), |b| {
            b.iter(|| black_box(choker.fill(&candidates, now)));
        });
    }
    group.finish();
}

/// A whole swarm; what is measured is the time of one event.
fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("a swarm's event");
    group.sample_size(10);
    for (peers, size) in [(10, 64 << 20), (100, 8 << 20)] {
        group.bench_function(format!("{peers} peers"), |b| {
            b.iter_custom(|events| {
                let (mut seed, mut done, mut took) = (0, 0, Duration::ZERO);
                while done < events {
                    seed += 1;
                    let settings = Settings { seed, peers: Some(peers), size: Some(size) };
                    let plan = Plan::scenario("flash-crowd", settings).expect("a scenario");
                    let started = Instant::now();
                    let report = p2pfs::sim::run(plan).expect("a torrent");
                    took += started.elapsed();
                    done += report.events;
                }
                took.mul_f64(events as f64 / done as f64)
            });
        });
    }
    group.finish();
}

/// A hundred nodes on one host that know each other; datagrams take no time.
struct Nodes {
    nodes: Vec<Dht>,
    now: Timestamp,
}

fn address(node: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 10_000 + node as u16).into()
}

impl Nodes {
    fn new(count: usize) -> Self {
        let now = Timestamp::ZERO;
        let config = Config { v6: false, ..Config::default() };
        let nodes = (0..count).map(|n| Dht::new(config, n as u64, now)).collect();
        let mut all = Self { nodes, now };
        for node in 1..count {
            all.nodes[node].add_node(address(0), now);
            all.settle(node);
        }
        all
    }

    /// Delivers what `node` sends, what others send because of it, and so on.
    fn settle(&mut self, node: usize) {
        let mut active = vec![node];
        while let Some(node) = active.pop() {
            while let Some(output) = self.nodes[node].poll_output() {
                let Output::Transmit { to, datagram } = output else { continue };
                let other = usize::from(to.port()) - 10_000;
                self.nodes[other].handle_datagram(address(node), &datagram, self.now);
                active.extend([node, other]);
            }
        }
    }
}

fn dht(c: &mut Criterion) {
    let mut all = Nodes::new(100);
    let now = all.now;
    let mut group = c.benchmark_group("dht");
    group.throughput(Throughput::Elements(1));
    let asker = NodeId::new([7; 20]);
    let info_hash = InfoHash::new([9; 20]);
    let get = Method::GetPeers { info_hash, want: None, no_seed: false, scrape: false };
    let mut question = Message::query(vec![1, 2, 3, 4], asker, get);
    question.read_only = true;
    let question = question.encode();
    for (name, datagram) in [
        ("get_peers is answered", question.clone()),
        ("garbage: bytes", vec![0x55; 100]),
        ("garbage: cut short", question[..question.len() - 2].to_vec()),
        (
            "garbage: an answer to nothing",
            b"d1:rd2:id20:abcdefghij0123456789e1:t4:abcd1:y1:re".to_vec(),
        ),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                all.nodes[0].handle_datagram(address(99), black_box(&datagram), now);
                while let Some(output) = all.nodes[0].poll_output() {
                    black_box(output);
                }
            });
        });
    }
    let mut n = 0u64;
    group.bench_function("a lookup among a hundred", |b| {
        b.iter(|| {
            n += 1;
            let info_hash = InfoHash::of(&n.to_be_bytes());
            all.nodes[5].get_peers(info_hash, GetPeers::default(), now);
            all.settle(5);
        });
    });
    group.finish();
}

criterion_group!(machines, picker, choker, events, dht);
criterion_main!(machines);
