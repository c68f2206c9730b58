//! What peers do wrong must cost nobody else.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::lone::{BUDGET, Lone, MINUTE};
use super::tests::info;
use super::*;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::BLOCK_LEN;
use crate::proto::swarm::{PeerSource, Priority};
use crate::proto::wire::extended::{self, ExtendedHandshake, MetadataMessage};

#[test]
fn a_suspicious_piece_outlives_the_peer_it_was_asked_of() {
    let mut lone = Lone::on_demand(3, 40);
    let (a, b) = (lone.seed(), lone.seed());
    lone.read(0);
    let failed = lone.within(MINUTE, |l| {
        l.give_all(a);
        l.give_all(b);
        l.verifies(0) == 1
    });
    assert!(failed);
    let digests = vec![[0; 20]; 40];
    lone.machine.piece_failed(lone.piece(0), digests, lone.now);
    lone.step();
    let (sole, other) = if lone.asked_of(a).is_empty() { (b, a) } else { (a, b) };
    assert!(lone.asked_of(other).is_empty(), "one peer at a time");
    lone.give_all(sole);
    lone.gone(sole);
    let whole = lone.within(MINUTE, |l| {
        l.give_all(other);
        l.verifies(0) == 2
    });
    assert!(whole);
}

#[test]
fn a_suspicious_piece_outlives_a_choke() {
    let mut lone = Lone::on_demand(3, 40);
    let (a, b) = (lone.seed(), lone.seed());
    lone.read(0);
    lone.within(MINUTE, |l| {
        l.give_all(a);
        l.give_all(b);
        l.verifies(0) == 1
    });
    lone.machine.piece_failed(lone.piece(0), vec![[0; 20]; 40], lone.now);
    lone.step();
    let (sole, other) = if lone.asked_of(a).is_empty() { (b, a) } else { (a, b) };
    lone.give_all(sole);
    lone.say(sole, Message::Choke);
    let whole = lone.within(MINUTE, |l| {
        l.give_all(other);
        l.verifies(0) == 2
    });
    assert!(whole);
}

#[test]
fn a_peer_that_refused_a_piece_is_asked_for_it_again_later() {
    let mut lone = Lone::on_demand(3, 8);
    let seed = lone.seed();
    lone.read(0);
    lone.step();
    for block in lone.asked_of(seed) {
        lone.asked.remove(&(seed, block));
        lone.say(seed, Message::Reject(block.into()));
    }
    let whole = lone.within(2 * MINUTE, |l| {
        l.give_all(seed);
        l.verifies(0) == 1
    });
    assert!(whole);
}

#[test]
fn a_peer_that_refuses_everything_is_not_asked_in_a_loop() {
    let mut lone = Lone::on_demand(3, 8);
    let seed = lone.seed();
    lone.read(0);
    let mut refused = 0;
    lone.within(MINUTE, |l| {
        for block in l.asked_of(seed) {
            l.asked.remove(&(seed, block));
            l.say(seed, Message::Reject(block.into()));
            refused += 1;
        }
        false
    });
    assert!(refused < 100, "{refused}");
}

#[test]
fn a_block_that_a_busy_peer_forgot_is_asked_for_again() {
    let mut lone = Lone::new(2_000, 4, |_| true);
    let seed = lone.seed();
    lone.read(0);
    lone.step();
    let forgotten = lone.info.geometry.block(lone.piece(0), 2).unwrap();
    let asked_again = lone.within(MINUTE, |l| {
        for block in l.asked_of(seed) {
            if block != forgotten {
                l.give(seed, block);
            }
        }
        for output in std::mem::take(&mut l.others) {
            match output {
                Output::Verify { piece, .. } => l.machine.piece_verified(piece, None, l.now),
                Output::Write(piece) => l.machine.piece_written(piece, l.now),
                _ => {}
            }
        }
        assert!(!l.machine.active.as_ref().unwrap().unfinished.is_empty());
        l.times.get(&forgotten) == Some(&2)
    });
    assert!(asked_again);
}

#[test]
fn what_is_asked_twice_for_no_reader_is_not_counted_against_readers() {
    let mut lone = Lone::new(1, 16, |_| true);
    lone.seed();
    let other = lone.seed();
    let whole = lone.within(MINUTE, |l| {
        l.give_all(other);
        l.verifies(0) == 1
    });
    assert!(whole && lone.times.values().any(|n| *n > 1));
    assert_eq!(lone.machine.active.as_ref().unwrap().hedged_bytes, 0);
}

#[test]
fn no_more_is_asked_of_a_peer_than_it_queues() {
    let mut lone = Lone::on_demand(3, 60);
    let seed = lone.seed();
    let theirs = ExtendedHandshake { reqq: Some(20), ..ExtendedHandshake::ours(false) };
    lone.say(seed, Message::Extended(extended::HANDSHAKE_ID, theirs.encode()));
    lone.read(0);
    let most = std::cell::Cell::new(0);
    lone.within(MINUTE, |l| {
        most.set(most.get().max(l.asked.len()));
        l.give_all(seed);
        l.verifies(0) == 1
    });
    assert!(most.get() > 10 && most.get() <= 20, "{}", most.get());
}

#[test]
fn memory_of_a_reader_that_went_away_is_free_for_the_background() {
    let mut lone = Lone::new(20, 16, |p| p >= 8);
    lone.holder(true, |p| p < 4);
    for p in 0..4 {
        lone.read(p);
        lone.step();
    }
    lone.within(MINUTE, |_| false);
    lone.machine.closed(HandleId(1));
    let other = lone.holder(true, |p| p >= 8);
    let goes_on = lone.within(MINUTE, |l| !l.asked_of(other).is_empty());
    assert!(goes_on);
}

#[test]
fn a_piece_whose_holder_chokes_does_not_keep_the_memory() {
    let mut lone = Lone::new(20, 32, |_| true);
    let first = lone.holder(true, |p| p == 0);
    lone.step();
    lone.give_all(first);
    lone.say(first, Message::Choke);
    let other = lone.holder(true, |p| p > 0);
    assert!(lone.within(MINUTE, |l| !l.asked_of(other).is_empty()));
}

#[test]
fn a_piece_that_the_disk_refused_is_written_when_there_is_room() {
    let mut lone = Lone::new(2, 1, |_| true);
    let seed = lone.seed();
    lone.within(MINUTE, |l| {
        l.give_all(seed);
        l.verifies(0) + l.verifies(1) == 2
    });
    for piece in 0..2 {
        lone.machine.piece_verified(lone.piece(piece), None, lone.now);
        lone.machine.write_failed(lone.piece(piece), lone.now);
    }
    lone.step();
    lone.others.clear();
    let complete = lone.within(2 * MINUTE, |l| {
        for output in std::mem::take(&mut l.others) {
            match output {
                Output::Write(piece) => l.machine.piece_written(piece, l.now),
                Output::Complete => return true,
                _ => {}
            }
        }
        false
    });
    assert!(complete);
}

#[test]
fn nothing_is_downloaded_for_a_disk_that_is_full() {
    let mut lone = Lone::new(500, 1, |_| true);
    let seed = lone.seed();
    let mut fetched = 0;
    lone.within(5 * MINUTE, |l| {
        l.give_all(seed);
        for output in std::mem::take(&mut l.others) {
            match output {
                Output::Verify { piece, .. } => {
                    fetched += 1;
                    l.machine.piece_verified(piece, None, l.now);
                }
                Output::Write(piece) => l.machine.write_failed(piece, l.now),
                _ => {}
            }
        }
        false
    });
    assert!(fetched <= 64, "{fetched}");
}

#[test]
fn a_choke_without_the_fast_extension_withdraws_all_requests() {
    let mut lone = Lone::new(10, 16, |_| true);
    let seed = lone.holder(false, |_| true);
    lone.step();
    assert!(!lone.asked_of(seed).is_empty());
    lone.say(seed, Message::Choke);
    lone.step();
    assert_eq!(lone.asked_of(seed), []);
}

#[test]
fn incoming_connections_leave_room_to_connect() {
    let mut lone = Lone::new(10, 16, |_| true);
    while lone.machine.accepts(SocketAddr::from(([192, 0, 2, 1], 1)), lone.now) {
        lone.connect(false, true);
    }
    let known = SocketAddr::from(([192, 0, 2, 3], 1));
    lone.machine.peers_found(&[known], PeerSource::Tracker);
    lone.step();
    let connects = |o: &Output| matches!(o, Output::Connect(a) if *a == known);
    assert!(lone.others.iter().any(connects));
}

#[test]
fn peers_that_never_give_anything_make_room_for_others() {
    let mut lone = Lone::new(10, 16, |_| true);
    let peers: Vec<_> = (0..MAX_PEERS).map(|_| lone.connect(true, true)).collect();
    let known = SocketAddr::from(([192, 0, 2, 3], 1));
    lone.machine.peers_found(&[known], PeerSource::Tracker);
    let connects = |o: &Output| matches!(o, Output::Connect(a) if *a == known);
    let connected = lone.within(10 * MINUTE, |l| {
        peers.iter().for_each(|p| l.say(*p, Message::KeepAlive));
        l.others.iter().any(connects)
    });
    assert!(connected);
}

#[test]
fn pieces_of_a_former_run_are_checked_a_few_at_a_time() {
    let info = info(100, BLOCK_LEN);
    let mut lone = Lone::on_demand(100, 1);
    let options = Options {
        on_demand: true,
        upload: true,
        buffer_budget: BUDGET,
        port: 0,
        pex: true,
        dht: None,
    };
    lone.machine = Torrent::new(info.info_hash, options, 1);
    lone.machine.activate(info, Bitfield::full(100), &Bitfield::empty(100), lone.now);
    lone.step();
    lone.others.clear();
    let all: Vec<_> = lone.info.geometry.pieces().collect();
    lone.machine.raise_priority(all.into_iter(), Priority::Normal);
    let mut checked = 0;
    let complete = lone.within(MINUTE, |l| {
        let outputs = std::mem::take(&mut l.others);
        let done = outputs.iter().any(|o| matches!(o, Output::Complete));
        let checks: Vec<_> = outputs
            .iter()
            .filter_map(|o| if let Output::CheckAtRest(p, _) = o { Some(*p) } else { None })
            .collect();
        assert!(checks.len() <= 4, "{}", checks.len());
        checked += checks.len();
        checks.into_iter().for_each(|p| l.machine.checked_at_rest(p, true, l.now));
        done
    });
    assert!(complete && checked == 100, "{checked}");
}

#[test]
fn saying_again_and_again_what_one_has_is_a_violation() {
    let mut lone = Lone::new(10, 1, |_| true);
    let key = lone.connect(false, true);
    (0..100).for_each(|_| lone.say(key, Message::HaveNone));
    lone.step();
    assert!(lone.others.iter().any(|o| matches!(o, Output::Disconnect(k, _) if *k == key)));
}

#[test]
fn the_metadata_is_sent_a_few_times_and_no_more() {
    let mut lone = Lone::new(10, 1, |_| true);
    let key = lone.connect(false, true);
    let theirs = ExtendedHandshake::ours(false);
    lone.say(key, Message::Extended(extended::HANDSHAKE_ID, theirs.encode()));
    let request = MetadataMessage::Request { piece: 0 }.encode();
    for _ in 0..1_000 {
        lone.say(key, Message::Extended(extended::UT_METADATA_ID, request.clone()));
    }
    lone.step();
    let is_long = |(_, m): &&(PeerKey, Message)| matches!(m, Message::Extended(_, payload) if payload.len() > 16_000);
    let answers = lone.sent.iter().filter(is_long).count();
    assert!((3..=20).contains(&answers), "{answers}");
}

#[test]
fn a_peer_whose_extended_handshake_is_unreadable_is_kept() {
    let mut lone = Lone::new(10, 1, |_| true);
    let seed = lone.seed();
    let readable = ExtendedHandshake { reqq: Some(3), ..ExtendedHandshake::ours(false) }.encode();
    let trailing = [&readable[..], b"\n"].concat();
    for said in [trailing.as_slice(), b"d4:reqqi9e4:reqqi9ee", b"d4:reqqi-0ee", b"le", b""] {
        lone.say(seed, Message::Extended(extended::HANDSHAKE_ID, Bytes::copy_from_slice(said)));
    }
    lone.step();
    assert_eq!(lone.asked_of(seed).len(), 3, "what could be read counts");
    assert!(!lone.others.iter().any(|o| matches!(o, Output::Disconnect(..))));
}

#[test]
fn becoming_interested_counts_once() {
    let mut lone = Lone::new(10, 1, |_| true);
    let key = lone.connect(false, true);
    (0..100).for_each(|_| lone.say(key, Message::Interested));
    lone.step();
    let wants = lone.others.iter().filter(|o| matches!(o, Output::WantsUnchoke)).count();
    assert_eq!(wants, 1);
}

#[test]
fn a_peer_that_changes_its_mind_about_a_piece_is_cheap() {
    // With a walk over all pieces each time this takes minutes.
    let mut lone = Lone::new(500_000, 1, |_| true);
    let key = lone.connect(false, true);
    lone.say(key, Message::HaveAll);
    for _ in 0..2_000 {
        let lacks = extended::encode_donthave(7);
        lone.say(key, Message::Extended(extended::LT_DONTHAVE_ID, lacks));
        let picker = &lone.machine.active.as_ref().unwrap().picker;
        assert_eq!(picker.availability(lone.piece(7)), 0);
        lone.say(key, Message::Have(7));
    }
    let picker = &lone.machine.active.as_ref().unwrap().picker;
    assert_eq!(picker.availability(lone.piece(7)), 1);
    lone.gone(key);
    let picker = &lone.machine.active.as_ref().unwrap().picker;
    assert!(lone.info.geometry.pieces().all(|p| picker.availability(p) == 0));
}

/// A seed that says what it would rather give, and then lets us ask.
fn suggesting_seed(lone: &mut Lone, suggests: u32) -> PeerKey {
    let seed = lone.connect(true, true);
    lone.say(seed, Message::HaveAll);
    lone.say(seed, Message::Suggest(suggests));
    lone.say(seed, Message::Unchoke);
    lone.step();
    seed
}

fn pieces_asked_of(lone: &Lone, key: PeerKey) -> BTreeSet<u32> {
    lone.asked_of(key).iter().map(|block| block.piece.get()).collect()
}

#[test]
fn a_seed_is_asked_for_what_it_suggests_and_for_anything_when_it_stops() {
    let mut lone = Lone::new(20, 2, |_| true);
    let seed = suggesting_seed(&mut lone, 7);
    assert_eq!(pieces_asked_of(&lone, seed), [7].into());
    lone.now = lone.now + Duration::from_secs(2);
    lone.step();
    assert!(pieces_asked_of(&lone, seed).len() > 1);
}

#[test]
fn suggestions_of_what_nobody_wants_hold_nothing_up() {
    let mut lone = Lone::new(20, 2, |piece| piece >= 10);
    let seed = suggesting_seed(&mut lone, 3);
    assert!(pieces_asked_of(&lone, seed).iter().any(|piece| *piece >= 10));
}

#[test]
fn what_was_asked_for_ahead_of_time_comes_before_what_a_seed_suggests() {
    let mut lone = Lone::new(20, 2, |_| true);
    let first = lone.piece(12);
    lone.machine.raise_priority([first].into_iter(), Priority::Prefetch);
    let seed = suggesting_seed(&mut lone, 3);
    assert!(pieces_asked_of(&lone, seed).contains(&12));
}

#[test]
fn what_a_reader_waits_for_is_asked_of_a_seed_that_suggests_something_else() {
    let mut lone = Lone::new(20, 2, |_| true);
    lone.read(12);
    let seed = suggesting_seed(&mut lone, 3);
    assert!(pieces_asked_of(&lone, seed).contains(&12));
}

#[test]
fn a_block_that_was_sent_counts_though_its_peer_has_left() {
    let mut lone = Lone::new(10, 1, |_| true);
    let key = lone.connect(false, true);
    lone.gone(key);
    let raw = RawBlock { piece: 0, begin: 0, length: BLOCK_LEN };
    lone.machine.uploaded(key, raw, true, lone.now);
    lone.machine.uploaded(key, raw, false, lone.now);
    assert_eq!(lone.machine.stats(lone.now).uploaded, u64::from(BLOCK_LEN));
}

#[test]
fn a_suggestion_that_is_no_news_costs_no_search() {
    let mut lone = Lone::new(100, 16, |_| true);
    let (leecher, seed) = (lone.holder(true, |p| p < 2), suggesting_seed(&mut lone, 50));
    lone.within(Duration::from_secs(5), |lone| {
        lone.give_all(leecher);
        false
    });
    let nothing = |lone: &mut Lone, key: PeerKey, piece| {
        lone.machine.peers.get_mut(&key).unwrap().nothing_at = Some(0);
        lone.say(key, Message::Suggest(piece));
        lone.machine.peers[&key].nothing_at.is_some()
    };
    assert!(nothing(&mut lone, leecher, 50), "only seeds hand out");
    assert!(nothing(&mut lone, seed, 50), "it has said so before");
    assert!(!nothing(&mut lone, seed, 51));
}

#[test]
fn what_a_seed_gives_to_others_first_it_is_asked_for_again_soon() {
    let mut lone = Lone::new(3, 8, |_| true);
    let seed = suggesting_seed(&mut lone, 1);
    lone.within(Duration::from_secs(3), |lone| {
        for block in lone.asked_of(seed) {
            match block.piece.get() {
                2 => {
                    lone.asked.remove(&(seed, block));
                    lone.say(seed, Message::Reject(block.into()));
                }
                _ => lone.give(seed, block),
            }
        }
        false
    });
    let given = lone.within(Duration::from_secs(3), |lone| {
        lone.give_all(seed);
        lone.verifies(2) == 1
    });
    assert!(given);
}
