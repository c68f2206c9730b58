//! What a seed gives to whom, on one machine whose peers are played by hand.

use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::torrent::lone::Lone;

/// A machine that has these pieces.
fn machine(pieces: u32, blocks: u32, has: impl Fn(u32) -> bool) -> Lone {
    let mut lone = Lone::new(pieces, blocks, |_| true);
    let mut have = Bitfield::empty(pieces);
    let all: Vec<_> = lone.info.geometry.pieces().collect();
    for piece in all.iter().filter(|p| has(p.get())) {
        have.insert(*piece);
    }
    lone.machine.activate(lone.info.clone(), have, &Bitfield::full(pieces), lone.now);
    for piece in all.into_iter().filter(|p| has(p.get())) {
        lone.machine.checked_at_rest(piece, true, lone.now);
    }
    lone.step();
    lone
}

/// A machine that has everything.
fn complete(pieces: u32, blocks: u32) -> Lone {
    machine(pieces, blocks, |_| true)
}

/// A peer that has nothing and wants everything.
fn empty_peer(lone: &mut Lone) -> PeerKey {
    let key = lone.connect(false, true);
    lone.say(key, Message::HaveNone);
    lone.say(key, Message::Interested);
    key
}

/// Has a peer ask for these blocks (piece and number), and what it is given sent; how many that were.
fn taken(lone: &mut Lone, key: PeerKey, blocks: impl Iterator<Item = (u32, u32)>) -> usize {
    let mut sent = 0;
    for (piece, block) in blocks {
        let raw = RawBlock { piece, begin: block * BLOCK_LEN, length: BLOCK_LEN };
        lone.say(key, Message::Request(raw));
        lone.step();
        for output in std::mem::take(&mut lone.others) {
            if let Output::Upload(key, raw) = output {
                sent += 1;
                lone.machine.uploaded(key, raw, true, lone.now);
            }
        }
    }
    sent
}

/// A peer is unchoked, asks for the first blocks of these pieces, and is choked.
fn turn(lone: &mut Lone, key: PeerKey, pieces: std::ops::Range<u32>) {
    lone.machine.set_unchoked(&[key], lone.now);
    let count = pieces.len();
    assert_eq!(taken(lone, key, pieces.map(|p| (p, 0))), count);
    lone.machine.set_unchoked(&[], lone.now);
}

#[test]
fn who_was_sent_parts_of_many_pieces_may_finish_two_of_them_when_choked() {
    let mut lone = complete(32, 16);
    let key = empty_peer(&mut lone);
    turn(&mut lone, key, 0..8);
    let rest = (0..8).flat_map(|p| (1..16).map(move |b| (p, b)));
    assert_eq!(taken(&mut lone, key, rest), 2 * 15);
}

#[test]
fn it_is_the_most_sent_pieces_that_a_choked_peer_may_finish() {
    let mut lone = complete(32, 16);
    let key = empty_peer(&mut lone);
    lone.machine.set_unchoked(&[key], lone.now);
    let blocks = [(3, 0), (4, 0), (4, 1), (5, 0), (6, 0), (6, 1)];
    assert_eq!(taken(&mut lone, key, blocks.into_iter()), blocks.len());
    lone.machine.set_unchoked(&[], lone.now);
    assert_eq!(taken(&mut lone, key, [(4, 2), (6, 2)].into_iter()), 2);
    assert_eq!(taken(&mut lone, key, [(3, 1), (5, 1)].into_iter()), 0);
}

#[test]
fn a_choked_peer_is_not_sent_one_block_for_ever() {
    let mut lone = complete(32, 16);
    let key = empty_peer(&mut lone);
    (0..4).for_each(|n| turn(&mut lone, key, 8 * n..8 * n + 8));
    let again = (0..32).flat_map(|p| std::iter::repeat_n((p, 0), 1_000));
    assert!(taken(&mut lone, key, again) <= 2 * 16);
}

#[test]
fn who_says_it_has_a_piece_is_not_sent_the_rest_of_it_while_choked() {
    let mut lone = complete(32, 16);
    let key = empty_peer(&mut lone);
    turn(&mut lone, key, 0..1);
    lone.say(key, Message::Have(0));
    assert_eq!(taken(&mut lone, key, std::iter::once((0, 1))), 0);
}

#[test]
fn what_is_allowed_to_a_choked_newcomer_it_may_have_once() {
    let mut lone = machine(32, 16, |p| p != 31);
    let key = empty_peer(&mut lone);
    let allowed = |(to, m): &(PeerKey, Message)| match m {
        Message::AllowedFast(piece) if *to == key => Some(*piece),
        _ => None,
    };
    lone.step();
    let pieces: Vec<_> = lone.sent.iter().filter_map(allowed).collect();
    assert!(!pieces.is_empty());
    let again = pieces.iter().flat_map(|p| std::iter::repeat_n((*p, 0), 1_000));
    assert_eq!(taken(&mut lone, key, again), pieces.len() * 16);
}

/// Has a peer be sent these pieces of one block each, and say that it has them.
fn gets(lone: &mut Lone, key: PeerKey, pieces: std::ops::Range<u32>) {
    for piece in pieces {
        taken(lone, key, std::iter::once((piece, 0)));
        lone.say(key, Message::Have(piece));
    }
}

fn free_riders(lone: &mut Lone) -> Vec<PeerKey> {
    let candidates = lone.machine.candidates(0, lone.now);
    candidates.into_iter().filter(|c| c.free_rides).map(|c| c.who.1).collect()
}

#[test]
fn who_had_nobody_to_pass_anything_on_to_is_no_free_rider() {
    let mut lone = complete(200, 1);
    let alone = empty_peer(&mut lone);
    lone.machine.set_unchoked(&[alone], lone.now);
    gets(&mut lone, alone, 0..50);
    let (other, third) = (empty_peer(&mut lone), empty_peer(&mut lone));
    lone.machine.set_unchoked(&[alone, other], lone.now);
    gets(&mut lone, other, 50..62);
    (50..62).for_each(|piece| lone.say(third, Message::Have(piece)));
    assert_eq!(free_riders(&mut lone), []);
}

#[test]
fn who_keeps_what_it_got_is_a_free_rider_once_somebody_else_has_passed_on() {
    let mut lone = complete(200, 1);
    let (keeps, passes, third) =
        (empty_peer(&mut lone), empty_peer(&mut lone), empty_peer(&mut lone));
    lone.machine.set_unchoked(&[keeps, passes], lone.now);
    gets(&mut lone, keeps, 0..50);
    assert_eq!(free_riders(&mut lone), [], "nobody has shown that it is possible");
    gets(&mut lone, passes, 50..62);
    (50..62).for_each(|piece| lone.say(third, Message::Have(piece)));
    assert_eq!(free_riders(&mut lone), [keeps]);
}

/// How many pieces are suggested to `peer` when its turn begins.
fn suggested(lone: &mut Lone, peer: PeerKey) -> usize {
    lone.sent.clear();
    lone.machine.set_unchoked(&[], lone.now);
    lone.machine.set_unchoked(&[peer], lone.now);
    lone.step();
    lone.sent.iter().filter(|(_, m)| matches!(m, Message::Suggest(_))).count()
}

#[test]
fn what_one_that_is_gone_said_it_has_is_handed_out_again() {
    let mut lone = complete(100, 1);
    let (peer, liar) = (empty_peer(&mut lone), empty_peer(&mut lone));
    (1..100).for_each(|piece| lone.say(liar, Message::Have(piece)));
    assert_eq!(suggested(&mut lone, peer), 1);
    taken(&mut lone, peer, std::iter::once((0, 0)));
    assert_eq!(suggested(&mut lone, peer), 0);
    lone.gone(liar);
    assert!(suggested(&mut lone, peer) > 0);
}

#[test]
fn suggestions_go_on_after_pieces_that_were_asked_for_in_part() {
    let mut lone = complete(100, 4);
    let peer = empty_peer(&mut lone);
    let mut told_of = suggested(&mut lone, peer);
    for _ in 0..20 {
        lone.step();
        let suggestions = std::mem::take(&mut lone.sent).into_iter().filter_map(|(_, m)| match m {
            Message::Suggest(piece) => Some(piece),
            _ => None,
        });
        for piece in suggestions.collect::<Vec<_>>() {
            // It has got the rest from somebody else.
            taken(&mut lone, peer, std::iter::once((piece, 0)));
            lone.say(peer, Message::Have(piece));
            taken(&mut lone, peer, std::iter::once((piece, 1)));
        }
        lone.step();
        told_of += lone.sent.iter().filter(|(_, m)| matches!(m, Message::Suggest(_))).count();
    }
    assert!(told_of >= 20, "{told_of}");
}
