//! The fetch against simulated peers, in virtual time.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

/// How a simulated peer answers requests.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    /// Right, after this many milliseconds.
    Honest(u64),
    /// Wrong bytes of the right length, after this many milliseconds.
    Corrupt(u64),
    /// Claims another length and answers as if it were so, after this many milliseconds.
    OtherSize(u32, u64),
    /// Claims another length and answers at once, but never gives the last piece.
    Hoarding(u32),
    /// Data that is one byte short.
    Short,
    /// Refuses everything.
    Rejecting,
    /// Never answers.
    Silent,
    /// Right, but leaves after its first answer.
    Leaving,
}

struct Swarm {
    info: Vec<u8>,
    fetch: MetadataFetch,
    now: Timestamp,
    peers: BTreeMap<u64, Behaviour>,
    /// Answers on their way, by time of arrival.
    wire: BTreeMap<(Timestamp, usize), (u64, MetadataMessage)>,
    requests: Vec<(u64, u32)>,
    banned: Vec<u64>,
    done: bool,
}

fn ms(n: u64) -> Timestamp {
    Timestamp::from_nanos(n * 1_000_000)
}

/// Bytes that differ everywhere.
fn info(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn data(piece: u32, bytes: Vec<u8>) -> MetadataMessage {
    MetadataMessage::Data { piece, total_size: 0, data: Bytes::from(bytes) }
}

impl Swarm {
    fn new(length: usize, peers: &[Behaviour]) -> Self {
        let info = info(length);
        let fetch = MetadataFetch::new(InfoHash::of(&info), 1);
        let mut swarm = Self {
            info,
            fetch,
            now: Timestamp::ZERO,
            peers: BTreeMap::new(),
            wire: BTreeMap::new(),
            requests: Vec::new(),
            banned: Vec::new(),
            done: false,
        };
        peers.iter().zip(0..).for_each(|(b, id)| swarm.join(id, *b));
        swarm
    }

    fn join(&mut self, id: u64, behaviour: Behaviour) {
        let size = match behaviour {
            Behaviour::OtherSize(size, _) | Behaviour::Hoarding(size) => size,
            _ => self.info.len() as u32,
        };
        self.peers.insert(id, behaviour);
        self.fetch.peer_ready(id, size, self.now);
    }

    fn leave(&mut self, id: u64) {
        self.peers.remove(&id);
        self.wire.retain(|_, (peer, _)| *peer != id);
        self.fetch.peer_gone(id);
    }

    /// What a peer sends back for a request, and after how many milliseconds.
    fn answer(&self, id: u64, piece: u32) -> Option<(u64, MetadataMessage)> {
        let right = || MetadataMessage::answer(Some(&self.info), piece);
        let length = piece_len(self.info.len() as u32, piece);
        match *self.peers.get(&id)? {
            Behaviour::Honest(delay) => Some((delay, right())),
            Behaviour::Corrupt(delay) => Some((delay, data(piece, vec![0xee; length]))),
            Behaviour::OtherSize(size, delay) => {
                Some((delay, data(piece, vec![0xdd; piece_len(size, piece)])))
            }
            Behaviour::Hoarding(size) => (piece + 1 < piece_count(size))
                .then(|| (20, data(piece, vec![0xcc; piece_len(size, piece)]))),
            Behaviour::Short => Some((50, data(piece, vec![0; length - 1]))),
            Behaviour::Rejecting => Some((50, MetadataMessage::Reject { piece })),
            Behaviour::Silent => None,
            Behaviour::Leaving => Some((50, right())),
        }
    }

    /// Carries out what the machine wants now.
    fn settle(&mut self) {
        while let Some(output) = self.fetch.poll() {
            match output {
                MetadataOutput::Request { peer, piece } => {
                    self.requests.push((peer, piece));
                    if let Some((delay, message)) = self.answer(peer, piece) {
                        let at = self.now + Duration::from_millis(delay);
                        self.wire.insert((at, self.requests.len()), (peer, message));
                    }
                }
                MetadataOutput::Misbehaved { peer } => {
                    self.banned.push(peer);
                    self.leave(peer);
                }
                MetadataOutput::Done(info) => {
                    assert!(info == self.info && !self.done);
                    self.done = true;
                }
            }
            let held: usize = self.fetch.assemblies.values().map(BTreeMap::len).sum();
            assert!(held <= MAX_HELD);
        }
    }

    /// Goes to the next moment at which something happens; whether there is one.
    fn step(&mut self) -> bool {
        self.settle();
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timeout = self.fetch.poll_timeout();
        if timeout.is_some_and(|at| arrival.is_none_or(|arrival| at < arrival)) {
            let at = timeout.unwrap();
            assert!(at > self.now, "a timeout that has passed would be a busy loop");
            self.now = at;
            self.fetch.handle_timeout(at);
        } else if let Some(((at, _), (peer, message))) = self.wire.pop_first() {
            self.now = at;
            self.fetch.on_message(peer, message, at);
            if matches!(self.peers.get(&peer), Some(Behaviour::Leaving)) {
                self.leave(peer);
            }
        } else {
            return false;
        }
        true
    }

    /// Runs until the dictionary is there or `limit` has passed.
    fn run(&mut self, limit: Timestamp) {
        self.settle();
        while !self.done && self.now < limit && self.step() {
            self.settle();
        }
    }

    fn asked_of(&self, peer: u64) -> Vec<u32> {
        self.requests.iter().filter(|(id, _)| *id == peer).map(|(_, piece)| *piece).collect()
    }
}

const PIECE: usize = METADATA_PIECE_LEN as usize;

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        (1u64..9_000).prop_map(Behaviour::Honest),
        (1u64..9_000).prop_map(Behaviour::Corrupt),
        (1u32..300_000, 1u64..9_000).prop_map(|(size, ms)| Behaviour::OtherSize(size, ms)),
        Just(Behaviour::Short),
        Just(Behaviour::Rejecting),
        Just(Behaviour::Silent),
        Just(Behaviour::Leaving),
    ]
}

proptest! {
    #[test]
    fn one_honest_peer_is_enough(
        length in 1usize..250_000,
        mut peers in prop::collection::vec(behaviour(), 0..12),
        (at, delay) in any::<prop::sample::Index>().prop_flat_map(|at| (Just(at), 1u64..9_000)),
    ) {
        peers.insert(at.index(peers.len() + 1), Behaviour::Honest(delay));
        let mut swarm = Swarm::new(length, &peers);
        swarm.run(ms(900_000));
        prop_assert!(swarm.done);
        for id in swarm.banned {
            prop_assert!(!matches!(peers[id as usize], Behaviour::Honest(_) | Behaviour::Leaving));
        }
    }

    #[test]
    fn any_messages_at_any_time_are_survived(
        inputs in prop::collection::vec((0u64..4, 0u32..6, 0usize..40_000, 0u8..6), 0..200),
    ) {
        let mut fetch = MetadataFetch::new(InfoHash::of(b"x"), 1);
        for (at, (peer, piece, length, kind)) in inputs.into_iter().enumerate() {
            let now = ms(at as u64 * 300);
            fetch.handle_timeout(now);
            match kind {
                0 => fetch.peer_ready(peer, length as u32, now),
                1 => fetch.peer_gone(peer),
                2 => fetch.on_message(peer, MetadataMessage::Reject { piece }, now),
                3 => fetch.on_message(peer, MetadataMessage::Request { piece }, now),
                4 => fetch.on_message(peer, data(piece, vec![0; length]), now),
                _ => while fetch.poll().is_some() {},
            }
            prop_assert!(fetch.poll_timeout().is_none_or(|at| at > now));
        }
    }
}

#[test]
fn a_single_peer_is_asked_for_all_pieces_at_once() {
    let mut swarm = Swarm::new(5 * PIECE, &[Behaviour::Honest(100)]);
    swarm.run(ms(10_000));
    assert_eq!((swarm.now, swarm.requests.len()), (ms(100), 5));
    let mut swarm = Swarm::new(100 * PIECE, &[Behaviour::Honest(100)]);
    swarm.settle();
    assert_eq!(swarm.asked_of(0), (0..WINDOW as u32).collect::<Vec<_>>());
}

#[test]
fn several_peers_share_the_pieces() {
    let mut swarm = Swarm::new(16 * PIECE, &[Behaviour::Honest(100), Behaviour::Honest(100)]);
    swarm.run(ms(10_000));
    assert_eq!((swarm.now, swarm.requests.len()), (ms(100), 16));
    assert_eq!((swarm.asked_of(0).len(), swarm.asked_of(1).len()), (8, 8));
}

#[test]
fn an_idle_peer_is_asked_for_what_another_owes() {
    let mut swarm = Swarm::new(5 * PIECE, &[Behaviour::Silent, Behaviour::Honest(100)]);
    swarm.run(ms(10_000));
    assert!(swarm.done);
    assert_eq!(swarm.now, ms(0) + HEDGE + Duration::from_millis(100));
}

#[test]
fn copies_are_asked_for_one_by_one_while_a_piece_is_late() {
    let mut swarm = Swarm::new(5 * PIECE, &[Behaviour::Silent; 5]);
    let mut copies = Vec::new();
    while swarm.now < ms(0) + HEDGE * 3 {
        swarm.settle();
        copies.push((swarm.now, swarm.requests.len()));
        assert!(swarm.step());
    }
    assert_eq!(
        copies,
        (0..3).map(|n| (ms(0) + HEDGE * n, 5 * (n as usize + 1))).collect::<Vec<_>>()
    );
}

#[test]
fn a_short_dictionary_comes_from_the_fastest() {
    let peers = [900, 700, 500, 300].map(Behaviour::Honest);
    let mut swarm = Swarm::new(4 * PIECE, &peers);
    swarm.run(ms(10_000));
    assert_eq!((swarm.done, swarm.now, swarm.requests.len()), (true, ms(300), 16));
    let mut swarm = Swarm::new(PIECE, &[Behaviour::Silent; 6]);
    swarm.run(ms(0) + HEDGE);
    assert_eq!(swarm.requests.len(), 5);
}

#[test]
fn a_peer_that_refuses_is_asked_again_ever_later() {
    let mut swarm = Swarm::new(PIECE, &[Behaviour::Rejecting]);
    let mut at = Vec::new();
    while at.len() < 8 {
        let before = swarm.requests.len();
        swarm.settle();
        at.extend((swarm.requests.len() > before).then_some(swarm.now.as_nanos() / 1_000_000));
        assert!(swarm.step());
    }
    let gaps: Vec<_> = at.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(gaps, [1_050, 2_050, 4_050, 8_050, 16_050, 32_050, 32_050]);
}

#[test]
fn a_window_refused_is_one_refusal() {
    let mut swarm = Swarm::new(WINDOW * PIECE, &[Behaviour::Rejecting]);
    while swarm.requests.len() <= WINDOW {
        assert!(swarm.step());
        swarm.settle();
    }
    assert_eq!((swarm.now, swarm.requests.len()), (ms(1_050), WINDOW + 1));
}

#[test]
fn a_late_answer_is_taken() {
    let mut swarm = Swarm::new(2 * PIECE, &[Behaviour::Honest(20_000)]);
    swarm.run(ms(60_000));
    assert_eq!((swarm.done, swarm.now), (true, ms(20_000)));
    assert!(swarm.banned.is_empty());
}

#[test]
fn a_lone_corrupter_is_proven() {
    let mut swarm = Swarm::new(3 * PIECE, &[Behaviour::Corrupt(10)]);
    swarm.run(ms(60_000));
    assert_eq!((swarm.done, swarm.banned), (false, vec![0]));
}

#[test]
fn a_corrupter_among_honest_peers_is_found() {
    let peers = [Behaviour::Honest(500), Behaviour::Corrupt(50), Behaviour::Honest(500)];
    let mut swarm = Swarm::new(20 * PIECE, &peers);
    swarm.run(ms(60_000));
    assert_eq!((swarm.done, swarm.banned), (true, vec![1]));
}

#[test]
fn a_liar_about_the_length_delays_nobody() {
    let peers = [Behaviour::OtherSize(MAX_METADATA_LEN, 100), Behaviour::Honest(100)];
    let mut swarm = Swarm::new(3 * PIECE, &peers);
    swarm.run(ms(60_000));
    assert_eq!((swarm.done, swarm.now), (true, ms(100)));
}

#[test]
fn data_nobody_asked_for_is_misbehaviour() {
    let mut swarm = Swarm::new(20 * PIECE, &[Behaviour::Silent, Behaviour::Silent]);
    swarm.settle();
    let piece = (0..20).find(|piece| !swarm.asked_of(0).contains(piece)).unwrap();
    swarm.fetch.on_message(0, data(piece, vec![0; PIECE]), ms(1));
    swarm.settle();
    assert_eq!(swarm.banned, [0]);
}

#[test]
fn data_of_a_wrong_length_is_misbehaviour() {
    let mut swarm = Swarm::new(3 * PIECE - 1, &[Behaviour::Short]);
    swarm.run(ms(1_000));
    assert_eq!(swarm.banned, [0]);
}

#[test]
fn impossible_lengths_are_ignored() {
    let mut fetch = MetadataFetch::new(InfoHash::of(b""), 1);
    fetch.peer_ready(1, 0, ms(0));
    fetch.peer_ready(2, MAX_METADATA_LEN + 1, ms(0));
    assert_eq!((fetch.poll(), fetch.poll_timeout()), (None, None));
}

#[test]
fn what_a_peer_gave_stays_when_it_leaves() {
    let mut swarm = Swarm::new(2 * PIECE, &[Behaviour::Leaving]);
    swarm.run(ms(1_000));
    swarm.join(1, Behaviour::Honest(100));
    swarm.run(ms(2_000));
    assert_eq!((swarm.asked_of(1), swarm.done), (vec![1], true));
}

#[test]
fn done_is_the_last_output() {
    let mut swarm = Swarm::new(PIECE, &[Behaviour::Honest(1), Behaviour::Honest(2)]);
    swarm.run(ms(1_000));
    assert!(std::mem::take(&mut swarm.done));
    while swarm.step() {}
    swarm.join(7, Behaviour::Honest(1));
    swarm.settle();
    assert_eq!((swarm.done, swarm.fetch.poll_timeout()), (false, None));
}

#[test]
fn liars_that_fill_the_room_do_not_stop_the_fetch() {
    let mut peers: Vec<_> = (0..3).map(|i| Behaviour::Hoarding(MAX_METADATA_LEN - i)).collect();
    peers.push(Behaviour::Honest(300));
    let mut swarm = Swarm::new(110 * PIECE, &peers);
    swarm.run(ms(900_000));
    assert!(swarm.done && swarm.banned.is_empty());
    assert!(swarm.fetch.favourite.key.is_some(), "the room was never short");
}
