use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::proto::geometry::BLOCK_LEN;

const PIECES: u32 = 12;

/// Any block.
const ALL: Range<u32> = 0..u32::MAX;

fn geometry() -> Geometry {
    Geometry::new(u64::from(PIECES * 2 * BLOCK_LEN) - 100, (2 * BLOCK_LEN).into()).unwrap()
}

fn picker() -> Picker {
    Picker::new(geometry(), &Bitfield::empty(PIECES), Priority::Normal)
}

fn holds(pieces: &[u32]) -> Holds {
    let mut bits = Bitfield::empty(PIECES);
    for i in pieces {
        bits.insert(geometry().piece(i % PIECES).unwrap());
    }
    Holds::Some(bits)
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

/// Every missing wanted piece lies in the one bucket it belongs to, at the place it says.
fn check(picker: &Picker) {
    let mut filed = 0;
    for piece in picker.geometry.pieces() {
        let slot = picker.slots[piece.index()];
        if let Some((class, availability)) = picker.bucket_of(piece) {
            let bucket = &picker.buckets[class][availability];
            assert_eq!(bucket.get(slot.position as usize), Some(&piece.get()));
            filed += 1;
        }
        assert_eq!(
            picker.partials.contains_key(&piece),
            matches!(slot.state, State::Partial | State::Verifying)
        );
    }
    assert_eq!(picker.buckets.iter().flatten().map(Vec::len).sum::<usize>(), filed);
    for (piece, partial) in &picker.partials {
        let count = |is: fn(&BlockSlot) -> bool| partial.blocks.iter().filter(|b| is(b)).count();
        assert_eq!(count(BlockSlot::is_free) as u32, partial.free);
        assert_eq!(count(BlockSlot::is_here) as u32, partial.arrived);
        assert_eq!(picker.open.contains(piece), partial.free > 0 && picker.is_partial(*piece));
        assert!(partial.blocks.iter().all(|b| !b.is_here() || b.requesters.is_empty()));
        assert!(!picker.at_rest.contains_key(piece));
    }
    for (piece, proven) in &picker.at_rest {
        assert!(picker.is_missing(*piece) && proven.is_sorted() && !proven.is_empty());
        assert!(proven.len() < picker.geometry.block_count(*piece) as usize);
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_books_are_right(steps: Vec<(u8, u32, u8)>) {
        let mut picker = picker();
        let (mut rng, mut asked, mut peers) = (rng(), Vec::new(), Vec::<Holds>::new());
        for (what, index, peer) in steps {
            let piece = geometry().piece(index % PIECES).unwrap();
            let peer = PeerKey(u64::from(peer % 4));
            let block = index / PIECES % 2;
            match what % 16 {
                0 => {
                    let new = if index % 5 == 0 { Holds::All } else { holds(&[index, index / 7, index / 31]) };
                    picker.peer_came(&new);
                    peers.push(new);
                }
                1 => if let Some(old) = peers.pop() { picker.peer_left(&old) },
                2 | 3 => if let Some(block) = picker.take_from(piece, ALL, peer) { asked.push((block, peer)) },
                4 => if let Some(p) = picker.pick_new(&Holds::All, &mut rng, |_| true) {
                    asked.extend(picker.take_from(p, ALL, peer).map(|b| (b, peer)));
                },
                5 => if let Some(block) = picker.take_duplicate(piece, &ALL, peer, |_, _| true) { asked.push((block, peer)) },
                6 | 7 => if let Some((block, peer)) = asked.pop() { picker.arrived(block, peer); },
                8 => if let Some((block, peer)) = asked.pop() { picker.released(block, peer) },
                9 => if picker.slots[piece.index()].state == State::Verifying { picker.verified(piece) },
                10 => if picker.slots[piece.index()].state == State::Verifying { picker.failed(piece) },
                11 => for block in picker.unproven(piece, ALL) { picker.checking(piece, block) },
                12 => { picker.proven(piece, block); }
                13 => { picker.refused(piece, block); }
                14 => match picker.slots[piece.index()].state {
                    State::Verifying => drop(picker.reopen(piece)),
                    State::Partial if picker.partials[&piece].arrived == 2 => picker.judged_again(piece),
                    _ => {}
                },
                _ => match index % 4 {
                    0 => picker.lost(piece),
                    1 => picker.abandon(piece),
                    2 => picker.set_priority(piece, Priority::None),
                    _ => picker.set_priority(piece, Priority::Prefetch),
                },
            }
            check(&picker);
        }
    }
}

#[test]
fn the_rarest_piece_is_picked_once_a_few_are_here() {
    let mut picker = picker();
    for i in 0..4 {
        picker.verified(geometry().piece(i).unwrap());
    }
    let all: Vec<u32> = (0..PIECES).collect();
    picker.peer_came(&holds(&all));
    let rarest: Vec<u32> = (0..PIECES).filter(|i| *i != 9).collect();
    picker.peer_came(&holds(&rarest));
    let picked = picker.pick_new(&Holds::All, &mut rng(), |_| true);
    assert_eq!(picked, geometry().piece(9));
}

#[test]
fn ties_are_broken_at_random() {
    let picker = picker();
    let picked: BTreeSet<_> = (0..50)
        .filter_map(|seed| {
            picker.pick_new(&Holds::All, &mut ChaCha8Rng::seed_from_u64(seed), |_| true)
        })
        .collect();
    assert!(picked.len() > 5, "{picked:?}");
}

#[test]
fn a_piece_that_failed_is_asked_of_one_peer_only() {
    let mut picker = picker();
    let piece = geometry().piece(3).unwrap();
    for peer in [PeerKey(1), PeerKey(2)] {
        let block = picker.take_from(piece, ALL, peer).unwrap();
        picker.arrived(block, peer);
    }
    assert_eq!(picker.sources(piece), [PeerKey(1), PeerKey(2)]);
    picker.failed(piece);
    assert!(picker.take_from(piece, ALL, PeerKey(5)).is_some());
    assert!(picker.take_from(piece, ALL, PeerKey(6)).is_none());
    assert!(!picker.is_open_to(piece, &ALL, PeerKey(6)));
    assert!(picker.take_from(piece, ALL, PeerKey(5)).is_some());
}

#[test]
fn when_the_only_source_leaves_another_may_take_its_place() {
    let mut picker = picker();
    let piece = geometry().piece(3).unwrap();
    picker.suspicious.insert(piece);
    let block = picker.take_from(piece, ALL, PeerKey(1)).unwrap();
    picker.released(block, PeerKey(1));
    assert!(picker.take_from(piece, ALL, PeerKey(2)).is_some());
}

#[test]
fn in_endgame_a_block_is_asked_of_several_and_the_others_are_cancelled() {
    let mut picker = picker();
    for piece in geometry().pieces() {
        while picker.take_from(piece, ALL, PeerKey(1)).is_some() {}
    }
    assert!(picker.is_endgame());
    let piece = geometry().piece(0).unwrap();
    let block = picker.take_duplicate(piece, &ALL, PeerKey(2), |_, _| true).unwrap();
    assert_eq!(picker.arrived(block, PeerKey(2)), Some((vec![PeerKey(1)], false)));
}

#[test]
fn a_seed_may_have_rarer_pieces_than_the_begun_one_and_others_may_not() {
    let mut picker = picker();
    for i in 0..4 {
        picker.verified(geometry().piece(i).unwrap());
    }
    let begun = geometry().piece(5).unwrap();
    picker.take_from(begun, ALL, PeerKey(1)).unwrap();
    assert!(!picker.has_rarer(begun, &Holds::All));
    picker.peer_came(&holds(&[5]));
    assert!(picker.has_rarer(begun, &Holds::All));
    assert!(!picker.has_rarer(begun, &holds(&[5, 6])));
}

#[test]
fn a_piece_whose_requests_were_all_refused_is_as_good_as_any_other_again() {
    let mut picker = picker();
    let piece = geometry().piece(1).unwrap();
    let (first, second) = (PeerKey(1), PeerKey(2));
    let refused = picker.take_from(piece, ALL, first).unwrap();
    let came = picker.take_from(piece, ALL, second).unwrap();
    picker.released(refused, first);
    assert!(picker.is_partial(piece));
    picker.arrived(came, second).unwrap();
    let again = picker.take_from(piece, ALL, first).unwrap();
    picker.released(again, first);
    assert!(picker.is_partial(piece), "a block of it is here");
    let other = geometry().piece(2).unwrap();
    let refused = picker.take_from(other, ALL, first).unwrap();
    picker.released(refused, first);
    assert!(picker.is_missing(other));
}
