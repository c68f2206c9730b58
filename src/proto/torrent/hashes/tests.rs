//! One machine of a torrent with a v2 half, peers that are played by hand, and real hash trees over
//! blocks that are made up: the hash of a block is that of its number in the file.

mod answering;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::lone::{Lone, MINUTE};
use super::super::tests::info;
use super::super::{HandleId, Output, ReadEnd, Ticket};
use super::{MAX_ASKED, PATIENCE};
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{BLOCK_LEN, Block, PieceIndex};
use crate::proto::ids::InfoHashV2;
use crate::proto::merkle::{Hash, HashRange, Shape, Tree, Trusted, block_hash};
use crate::proto::metainfo::{Info, PieceLayers, V2};
use crate::proto::peer::Disconnect;
use crate::proto::swarm::{PeerKey, Priority};
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawHashes};

struct World {
    lone: Lone,
    tree: Tree,
    per_piece: u32,
    /// Blocks that came wrong and are in memory.
    bad: BTreeSet<(PieceIndex, u32)>,
    /// The hashes of the v1 half, where there is one, are those of other data.
    v1_differs: bool,
    /// What is verified by its own hash.
    alone: BTreeSet<(PieceIndex, u32)>,
    verified: Vec<u32>,
    replies: Vec<(Ticket, ReadEnd)>,
    banned: Vec<PeerKey>,
    closed: usize,
    layers: usize,
    reads: Vec<u32>,
    refused: Vec<(u32, u32)>,
}

impl World {
    /// A torrent of one file of `blocks` blocks, a few bytes short of it.
    fn new(blocks: u32, per_piece: u32, hybrid: bool, wanted: impl Fn(u32) -> bool) -> Self {
        let leaves = (0..blocks).map(|i| block_hash(&i.to_be_bytes())).collect();
        let shape = Shape::of(u64::from(blocks * BLOCK_LEN)).unwrap();
        let tree = Tree::new(shape, 0, leaves).unwrap();
        let mut info: Info = (*info(blocks / per_piece, per_piece * BLOCK_LEN)).clone();
        let info_hash = InfoHashV2::new([9; 32]);
        if !hybrid {
            info.info_hash = info_hash.truncated();
        }
        info.v2 = Some(V2 { info_hash, roots: vec![Some(tree.root())] });
        Self {
            lone: Lone::of(Arc::new(info), wanted),
            tree,
            per_piece,
            bad: BTreeSet::new(),
            v1_differs: false,
            alone: BTreeSet::new(),
            verified: Vec::new(),
            replies: Vec::new(),
            banned: Vec::new(),
            closed: 0,
            layers: 0,
            reads: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn on_demand(blocks: u32, per_piece: u32) -> Self {
        Self::new(blocks, per_piece, false, |_| false)
    }

    /// One whose bytes are all here, with its piece layer.
    fn seeding(blocks: u32, per_piece: u32) -> Self {
        let mut world = Self::on_demand(blocks, per_piece);
        let (info, now) = (world.lone.info.clone(), world.lone.now);
        let all = Bitfield::full(info.geometry.piece_count());
        world.lone.machine.activate(info.clone(), all, &Bitfield::empty(all_of(&info)), now);
        world.know_layer();
        for piece in info.geometry.pieces() {
            world.lone.machine.checked_at_rest(piece, true, now);
        }
        world
    }

    fn base(&self) -> u32 {
        self.per_piece.trailing_zeros()
    }

    fn layer(&self) -> Vec<Hash> {
        let count = self.tree.shape().layer_len(self.base());
        (0..count).map(|i| self.tree.hash(self.base(), i).unwrap()).collect()
    }

    fn know_layer(&mut self) {
        let layers = BTreeMap::from([(self.tree.root(), self.layer())]);
        let layers = PieceLayers::checked(layers, &self.lone.info).unwrap();
        self.lone.machine.know_layers(&layers);
    }

    fn v2_seed(&mut self) -> PeerKey {
        self.lone.holder_as(true, true, |_| true)
    }

    fn piece(&self, index: u32) -> PieceIndex {
        self.lone.piece(index)
    }

    /// A reader waits for a byte of a block of the file.
    fn read(&mut self, block: u32) -> Ticket {
        let (start, ticket) = (u64::from(block * BLOCK_LEN), Ticket(block.into()));
        let end = Timestamp::FAR_FUTURE;
        self.lone.machine.read(ticket, HandleId(1), start..start + 1, self.lone.now, end);
        ticket
    }

    /// Lets the machine go on, with the gate and the disk doing their work.
    fn step(&mut self) {
        self.lone.step();
        while !self.lone.others.is_empty() {
            for output in std::mem::take(&mut self.lone.others) {
                self.carry_out(output);
            }
            self.lone.step();
        }
    }

    fn carry_out(&mut self, output: Output) {
        let now = self.lone.now;
        match output {
            Output::VerifyBlocks(piece, blocks) => self.judge_blocks(piece, &blocks),
            Output::Verify { piece, root, .. } => {
                let expected = self.tree.hash(self.base(), piece.get().into());
                assert!(root.is_none_or(|root| Some(*root.get()) == expected));
                let good = !self.bad.iter().any(|(p, _)| *p == piece);
                let machine = &mut self.lone.machine;
                match (good && !self.v1_differs, good) {
                    (true, _) => {
                        self.verified.push(piece.get());
                        machine.piece_verified(piece, None, now);
                    }
                    (false, true) if root.is_some() => machine.contradicted(piece, now),
                    _ => machine.piece_failed(piece, vec![[0; 20]; 2], now),
                }
            }
            Output::Write(piece) => self.lone.machine.piece_written(piece, now),
            Output::Refuse(piece, index) => {
                self.refused.push((piece.get(), index));
                self.bad.remove(&(piece, index));
            }
            Output::Discard(piece) => self.bad.retain(|(p, _)| *p != piece),
            Output::Reply(ticket, end) => self.replies.push((ticket, end)),
            Output::KeepLayer(0, layer) => {
                assert_eq!(layer, self.layer());
                self.layers += 1;
            }
            Output::HashBlocks(piece) => self.reads.push(piece.get()),
            Output::Disconnect(key, reason) => {
                self.closed += 1;
                self.banned.extend((reason == Disconnect::BadData).then_some(key));
            }
            _ => {}
        }
    }

    fn judge_blocks(&mut self, piece: PieceIndex, blocks: &[(u32, Trusted)]) {
        for (index, hash) in blocks {
            let leaf = piece.get() * self.per_piece + index;
            assert_eq!(*hash.get(), block_hash(&leaf.to_be_bytes()));
        }
        let all = blocks.iter().map(|(index, _)| *index);
        let (bad, good): (Vec<u32>, Vec<u32>) =
            all.partition(|index| self.bad.contains(&(piece, *index)));
        self.alone.extend(good.iter().map(|index| (piece, *index)));
        self.lone.machine.blocks_judged(piece, &good, &bad, self.lone.now);
    }

    /// What `key` was asked for hashes since the last time.
    fn questions(&mut self, key: PeerKey) -> Vec<RawHashes> {
        let sent = std::mem::take(&mut self.lone.sent);
        let (own, other): (Vec<_>, Vec<_>) =
            sent.into_iter().partition(|(k, m)| *k == key && matches!(m, Message::HashRequest(_)));
        self.lone.sent = other;
        let raw = |message| match message {
            Message::HashRequest(raw) => Some(raw),
            _ => None,
        };
        own.into_iter().filter_map(|(_, message)| raw(message)).collect()
    }

    /// `key` answers what it was asked. Returns how much that was.
    fn answer(&mut self, key: PeerKey) -> usize {
        let questions = self.questions(key);
        for raw in &questions {
            let hashes = self.tree.answer(HashRange::of(raw).unwrap()).unwrap();
            self.lone.say(key, Message::Hashes(*raw, hashes));
        }
        questions.len()
    }

    /// `key` sends what it was asked for; `bad` says which blocks are wrong.
    fn give(&mut self, key: PeerKey, bad: impl Fn(Block) -> bool) {
        for block in self.lone.asked_of(key) {
            if bad(block) {
                self.bad.insert((block.piece, block.index));
            }
            self.lone.give(key, block);
        }
    }

    /// `key` answers and gives whatever it is asked for, until nothing more is asked.
    fn serve(&mut self, key: PeerKey) {
        self.step();
        while self.answer(key) > 0 || !self.lone.asked_of(key).is_empty() {
            self.give(key, |_| false);
            self.step();
        }
    }

    fn ready(&self, ticket: Ticket) -> bool {
        self.replies.contains(&(ticket, ReadEnd::Ready))
    }

    /// How a question of a peer was answered: how many hashes came, `None` if it was rejected.
    fn answers_to(&mut self, key: PeerKey) -> Vec<Option<usize>> {
        let answer = |(k, message)| match message {
            Message::Hashes(_, hashes) if k == key => Some(Some(hashes.len())),
            Message::HashReject(_) if k == key => Some(None),
            _ => None,
        };
        std::mem::take(&mut self.lone.sent).into_iter().filter_map(answer).collect()
    }

    /// A peer asks for hashes.
    fn ask(&mut self, key: PeerKey, layer: u32, index: u32, length: u32) {
        let raw = RawHashes { root: self.tree.root(), layer, index, length, proof_layers: 0 };
        self.lone.say(key, Message::HashRequest(raw));
    }

    /// The engine has hashed the blocks of a piece.
    fn blocks_hashed(&mut self, piece: u32) {
        let first = u64::from(piece * self.per_piece);
        let blocks: Vec<_> = (first..first + u64::from(self.per_piece))
            .map(|leaf| self.tree.hash(0, leaf).unwrap())
            .collect();
        self.lone.machine.blocks_hashed(self.piece(piece), Some(&blocks), self.lone.now);
    }
}

fn all_of(info: &Info) -> u32 {
    info.geometry.piece_count()
}

#[test]
fn without_layers_the_layer_is_asked_for_and_pieces_wait_for_it() {
    let mut world = World::new(64, 4, false, |_| true);
    let seed = world.v2_seed();
    world.step();
    world.give(seed, |_| false);
    world.step();
    assert!(world.verified.is_empty());
    let questions = world.questions(seed);
    assert!(!questions.is_empty() && questions.iter().all(|raw| raw.layer == 2));
    for raw in questions {
        let hashes = world.tree.answer(HashRange::of(&raw).unwrap()).unwrap();
        world.lone.say(seed, Message::Hashes(raw, hashes));
    }
    world.serve(seed);
    world.verified.sort_unstable();
    assert_eq!(world.verified, Vec::from_iter(0..16));
    assert_eq!(world.layers, 1);
}

#[test]
fn a_reader_of_one_block_gets_it_with_its_hashes_alone() {
    let mut world = World::on_demand(256, 64);
    let seed = world.v2_seed();
    let ticket = world.read(70);
    world.step();
    let asked = world.lone.asked_of(seed);
    assert_eq!(asked.iter().map(|b| (b.piece.get(), b.index)).collect::<Vec<_>>(), [(1, 6)]);
    assert!(world.answer(seed) > 0, "the hashes are asked for together with the block");
    world.give(seed, |_| false);
    world.step();
    assert!(world.ready(ticket) && world.verified.is_empty());
    assert_eq!((world.lone.times.len(), world.alone.len()), (1, 1));
}

#[test]
fn a_block_that_comes_before_its_hashes_waits_for_them() {
    let mut world = World::on_demand(256, 64);
    let seed = world.v2_seed();
    let ticket = world.read(70);
    world.step();
    world.give(seed, |_| false);
    world.step();
    assert!(!world.ready(ticket));
    world.answer(seed);
    world.step();
    assert!(world.ready(ticket));
}

#[test]
fn a_silent_peer_is_not_waited_for() {
    let mut world = World::on_demand(256, 64);
    world.know_layer();
    let (silent, other) = (world.v2_seed(), world.v2_seed());
    let ticket = world.read(70);
    world.step();
    assert_eq!((world.questions(silent).len(), world.questions(other).len()), (1, 0));
    let begun = world.lone.now;
    let asked = world.lone.within(MINUTE, |l| {
        l.sent.iter().any(|(k, m)| *k == other && matches!(m, Message::HashRequest(_)))
    });
    assert!(asked && world.lone.now.since(begun) <= PATIENCE + Duration::from_millis(200));
    world.answer(other);
    world.give(silent, |_| false);
    world.give(other, |_| false);
    world.step();
    assert!(world.ready(ticket));
    // The next question goes to whoever answers.
    world.read(140);
    world.step();
    assert_eq!(world.answer(other), 1);
}

#[test]
fn where_all_who_have_hashes_are_silent_the_whole_piece_is_fetched() {
    let mut world = World::on_demand(256, 64);
    world.know_layer();
    let silent = world.v2_seed();
    let ticket = world.read(70);
    world.step();
    assert_eq!(world.lone.times.len(), 1);
    let ready = (0..40).any(|_| {
        world.give(silent, |_| false);
        world.step();
        world.lone.now = world.lone.now + Duration::from_millis(100);
        world.ready(ticket)
    });
    assert!(ready && world.verified == [1], "{:?}", world.verified);
}

#[test]
fn whoever_refuses_is_not_asked_again_soon() {
    let mut world = World::on_demand(256, 64);
    world.know_layer();
    let (first, second) = (world.v2_seed(), world.v2_seed());
    let ticket = world.read(70);
    world.step();
    let [raw] = world.questions(first)[..] else { panic!("one question to one peer") };
    world.lone.say(first, Message::HashReject(raw));
    world.step();
    assert_eq!(world.answer(second), 1);
    world.give(first, |_| false);
    world.give(second, |_| false);
    world.step();
    assert!(world.ready(ticket));
    world.read(140);
    world.step();
    assert_eq!((world.questions(first).len(), world.questions(second).len()), (0, 1));
}

#[test]
fn wrong_hashes_ban_who_sent_them_and_unasked_ones_change_nothing() {
    let mut world = World::on_demand(256, 64);
    world.know_layer();
    let (liar, other) = (world.v2_seed(), world.v2_seed());
    let ticket = world.read(70);
    world.step();
    let [raw] = world.questions(liar)[..] else { panic!("one question to one peer") };
    let mut hashes = world.tree.answer(HashRange::of(&raw).unwrap()).unwrap();
    world.lone.say(other, Message::Hashes(raw, hashes.clone()));
    hashes[0][0] ^= 1;
    world.lone.say(other, Message::Hashes(raw, hashes.clone()));
    world.step();
    assert!(world.banned.is_empty() && world.questions(other).is_empty());
    world.lone.say(liar, Message::Hashes(raw, hashes));
    world.step();
    assert_eq!(world.banned, [liar]);
    world.serve(other);
    let ready = (0..20).any(|_| {
        world.lone.now = world.lone.now + Duration::from_millis(100);
        world.serve(other);
        world.ready(ticket)
    });
    assert!(ready);
}

/// A piece came from two peers, and one block of one of them is wrong.
fn one_bad_block(hybrid: bool, know_layer: bool) {
    let mut world = World::new(64, 16, hybrid, |piece| piece == 2);
    if know_layer {
        world.know_layer();
    }
    let (a, b) = (world.v2_seed(), world.v2_seed());
    world.step();
    let blocks = [world.lone.asked_of(a), world.lone.asked_of(b)].concat();
    assert_eq!(blocks.len(), 16);
    let wrong = *world.lone.asked_of(a).first().unwrap();
    world.give(a, |block| block == wrong);
    world.give(b, |_| false);
    world.step();
    let verified = (0..40).any(|_| {
        world.answer(a);
        world.answer(b);
        world.step();
        world.give(b, |_| false);
        world.step();
        world.lone.now = world.lone.now + Duration::from_millis(100);
        world.verified == [2]
    });
    assert!(verified);
    assert_eq!(world.banned, [a]);
    assert!(world.lone.times.iter().all(|(block, times)| *times == 1 + u32::from(*block == wrong)));
}

#[test]
fn only_a_flipped_block_is_fetched_again_and_only_its_sender_banned() {
    one_bad_block(false, true);
    one_bad_block(false, false);
}

#[test]
fn so_it_is_in_a_hybrid_torrent_whose_layers_are_not_known() {
    one_bad_block(true, true);
    one_bad_block(true, false);
}

#[test]
fn a_block_that_is_refused_while_the_gate_has_its_piece_can_come_again() {
    let mut world = World::on_demand(64, 4);
    let (a, b) = (world.v2_seed(), world.v2_seed());
    // The hashes of all blocks are known, and all but one of them come.
    let piece = world.piece(1);
    for block in 4..8 {
        world.read(block);
    }
    world.step();
    while world.answer(a) + world.answer(b) > 0 {
        world.step();
    }
    let all = [world.lone.asked_of(a), world.lone.asked_of(b)].concat();
    assert_eq!(all.len(), 4);
    let from = |world: &World, block| {
        if world.lone.asked_of(a).contains(&block) { a } else { b }
    };
    for block in &all {
        let key = from(&world, *block);
        world.lone.give(key, *block);
    }
    // The verdict on one block comes while the gate has the piece, and then that on the piece.
    let now = world.lone.now;
    world.lone.machine.blocks_judged(piece, &[], &[all[0].index], now);
    world.lone.step();
    assert!(world.lone.asked.is_empty(), "nothing is asked for while the gate has the piece");
    world.lone.others.clear();
    world.lone.machine.piece_failed(piece, vec![[0; 20]; 4], now);
    world.step();
    assert!(world.refused.contains(&(1, all[0].index)), "the buffer has to take it again");
    let again = [world.lone.asked_of(a), world.lone.asked_of(b)].concat();
    assert_eq!(again, [all[0]]);
}

#[test]
fn a_piece_of_which_bytes_were_missing_is_fetched_again_but_for_its_proven_blocks() {
    let mut world = World::on_demand(256, 16);
    let seed = world.v2_seed();
    let (lost, kept) = (world.read(20), world.read(25));
    world.serve(seed);
    assert!(world.ready(lost) && world.ready(kept));
    let (now, piece) = (world.lone.now, world.piece(1));
    world.lone.machine.raise_priority([piece].into_iter(), Priority::Normal);
    let whole = |o: &Output| matches!(o, Output::Verify { .. });
    while !world.lone.others.iter().any(whole) {
        world.lone.step();
        world.lone.give_all(seed);
    }
    world.lone.others.clear();
    // The disk lost one of the blocks that were at rest.
    world.lone.machine.block_lost(piece, 4);
    world.lone.machine.piece_failed(piece, Vec::new(), now);
    world.serve(seed);
    assert_eq!(world.verified, [1]);
    let block = |index| world.lone.info.geometry.block(piece, index).unwrap();
    assert_eq!([4, 9].map(|index| world.lone.times[&block(index)]), [2, 1]);
}

#[test]
fn peers_without_hashes_send_whole_pieces() {
    let mut world = World::new(256, 64, true, |_| false);
    world.know_layer();
    // Somebody speaks v2, but has another piece.
    let v2 = world.lone.holder_as(true, true, |piece| piece == 3);
    let v1 = world.lone.seed();
    let ticket = world.read(70);
    world.serve(v1);
    assert!(world.ready(ticket) && world.verified == [1]);
    assert!(world.questions(v2).is_empty() && world.questions(v1).is_empty());
}

#[test]
fn a_piece_of_two_blocks_is_fetched_whole() {
    let mut world = World::on_demand(64, 2);
    world.know_layer();
    let seed = world.v2_seed();
    let ticket = world.read(20);
    world.serve(seed);
    assert!(world.ready(ticket) && world.verified == [10]);
}

#[test]
fn halves_that_contradict_each_other_end_everything() {
    for know_layer in [true, false] {
        let mut world = World::new(64, 16, true, |_| false);
        world.v1_differs = true;
        if know_layer {
            world.know_layer();
        }
        let seed = world.v2_seed();
        world.lone.holder(true, |_| false);
        let later = world.read(60);
        let whole = 0..u64::from(16 * BLOCK_LEN);
        let (now, end) = (world.lone.now, Timestamp::FAR_FUTURE);
        world.lone.machine.read(Ticket(99), HandleId(2), whole, now, end);
        world.step();
        // All of the piece comes before any hashes.
        while !world.lone.asked_of(seed).is_empty() {
            world.give(seed, |_| false);
            world.step();
        }
        world.serve(seed);
        // What the hashes of its blocks prove may have been read before the contradiction is known.
        let end = if know_layer { ReadEnd::Aborted } else { ReadEnd::Ready };
        assert!(world.replies.contains(&(Ticket(99), end)), "{:?}", world.replies);
        assert!(world.replies.iter().any(|(ticket, _)| *ticket == later));
        assert_eq!((world.closed, world.banned.len()), (2, 0));
        world.lone.machine.set_connection_limit(50, world.lone.now);
        assert!(!world.lone.machine.wants_peers());
        world.read(30);
        world.step();
        assert_eq!(world.replies.last(), Some(&(Ticket(30), ReadEnd::Aborted)));
    }
}

#[test]
fn many_open_questions_do_not_keep_others_from_being_asked() {
    let mut world = World::on_demand(256 * 160, 256);
    let silent = world.v2_seed();
    let reads: Vec<_> = (0..2 * MAX_ASKED as u32).map(|i| world.read(i * 256 + 7)).collect();
    world.step();
    assert_eq!(world.questions(silent).len(), MAX_ASKED);
    let other = world.v2_seed();
    world.lone.now = world.lone.now + PATIENCE;
    let done = (0..100).any(|_| {
        world.step();
        world.answer(other);
        world.give(silent, |_| false);
        world.give(other, |_| false);
        world.lone.now = world.lone.now + Duration::from_millis(100);
        reads.iter().all(|ticket| world.ready(*ticket))
    });
    assert!(done, "{} of {}", world.replies.len(), reads.len());
}
