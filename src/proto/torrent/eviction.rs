//! A cache that has no room for all of a torrent, or no longer has what it had.

use super::lone::{Lone, MINUTE};
use super::*;
use crate::proto::geometry::BLOCK_LEN;
use crate::proto::wire::extended::{self, ExtendedHandshake};

/// Verifies and writes what has come, as an engine does; how many pieces that were.
fn keep(lone: &mut Lone) -> u64 {
    let mut written = 0;
    for output in std::mem::take(&mut lone.others) {
        match output {
            Output::Verify { piece, .. } => lone.machine.piece_verified(piece, None, lone.now),
            Output::Write(piece) => {
                lone.machine.piece_written(piece, lone.now);
                written += 1;
            }
            _ => {}
        }
    }
    written
}

fn bytes(pieces: u64) -> Option<u64> {
    Some(pieces * 4 * u64::from(BLOCK_LEN))
}

#[test]
fn the_background_stops_where_the_room_ends_and_goes_on_when_there_is_more() {
    let mut lone = Lone::new(100, 4, |_| true);
    let seed = lone.seed();
    let mut kept = 0;
    let mut fetch = |lone: &mut Lone, room: u64| {
        lone.machine.set_cache_room(bytes(room - kept));
        lone.within(MINUTE, |l| {
            l.give_all(seed);
            kept += keep(l);
            l.machine.set_cache_room(bytes(room - kept));
            false
        });
        kept
    };
    assert_eq!(fetch(&mut lone, 10), 10);
    assert!(lone.machine.stats(lone.now).cache_full);
    assert_eq!(fetch(&mut lone, 25), 25);
    lone.machine.set_cache_room(bytes(0));
    let unread =
        (0..100).find(|i| !lone.machine.active.as_ref().unwrap().picker.has(lone.piece(*i)));
    lone.read(unread.unwrap());
    let answered = |o: &Output| matches!(o, Output::Reply(_, ReadEnd::Ready));
    let read = lone.within(MINUTE, |l| {
        l.give_all(seed);
        let ready = l.others.iter().any(answered);
        keep(l);
        ready
    });
    assert!(read, "readers need no room");
    lone.machine.set_cache_room(None);
    let complete = lone.within(MINUTE, |l| {
        l.give_all(seed);
        keep(l);
        l.machine.is_complete()
    });
    assert!(complete && !lone.machine.stats(lone.now).cache_full);
}

#[test]
fn peers_are_told_what_was_let_go_and_it_is_fetched_again_when_it_is_read() {
    let mut lone = Lone::on_demand(4, 1);
    let (seed, leecher) = (lone.seed(), lone.connect(false, true));
    let handshake = ExtendedHandshake { donthave: Some(9), ..ExtendedHandshake::default() };
    lone.say(leecher, Message::Extended(0, handshake.encode()));
    lone.say(leecher, Message::Interested);
    lone.read(2);
    lone.within(MINUTE, |l| {
        l.give_all(seed);
        keep(l) > 0
    });
    lone.machine.set_unchoked(&[leecher], lone.now);
    lone.sent.clear();
    lone.machine.piece_lost(lone.piece(2), lone.now);
    let raw = RawBlock { piece: 2, begin: 0, length: BLOCK_LEN };
    lone.say(leecher, Message::Request(raw));
    lone.step();
    let told = |message: Message| lone.sent.contains(&(leecher, message));
    assert!(told(Message::Extended(9, extended::encode_donthave(2))), "{:?}", lone.sent);
    assert!(told(Message::Reject(raw)));
    assert!(lone.asked_of(seed).is_empty(), "nobody wants it");
    lone.read(2);
    lone.step();
    assert_eq!(lone.asked_of(seed).len(), 1);
}

#[test]
fn while_the_cache_takes_nothing_only_what_is_waited_for_is_fetched() {
    let mut lone = Lone::on_demand(50, 4);
    let seed = lone.seed();
    lone.machine.read_ahead(HandleId(1), 0..lone.info.geometry.total());
    lone.within(MINUTE, |l| {
        l.give_all(seed);
        for output in std::mem::take(&mut l.others) {
            match output {
                Output::Verify { piece, .. } => l.machine.piece_verified(piece, None, l.now),
                Output::Write(piece) => l.machine.no_room(piece, l.now),
                _ => {}
            }
        }
        false
    });
    let fetched = lone.times.len();
    // What its memory holds, and no more.
    assert!(fetched <= 64, "{fetched} blocks are read ahead for a cache that takes none");
    lone.read(49);
    lone.step();
    assert!(lone.asked_of(seed).iter().all(|block| block.piece.get() == 49));
    assert!(!lone.asked_of(seed).is_empty());
}
