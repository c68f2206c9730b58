//! Many peers at once.

use std::cmp::Reverse;

use super::late::OVERLONG;
use super::*;
use crate::proto::demand::HandleId;
use crate::proto::torrent::lone::Lone;
use crate::proto::wire::extended::{self, ExtendedHandshake};

#[test]
fn what_is_asked_of_many_peers_together_is_what_our_downlink_brings_soon() {
    let mut lone = Lone::new(400, 16, |_| true);
    lone.machine.set_buffer_budget(1 << 30);
    let seeds: Vec<_> = (0..40).map(|_| lone.seed()).collect();
    lone.step();
    assert!(lone.asked.len() <= 64 + seeds.len(), "{}", lone.asked.len());
    assert!(seeds.iter().all(|key| !lone.asked_of(*key).is_empty()), "each is tried");
    // 30 blocks a second come, whoever was asked.
    for _ in 0..300 {
        let mut oldest: Vec<_> = lone.asked.iter().copied().collect();
        oldest.sort_by_key(|(key, block)| Reverse(lone.age(*key, *block)));
        for (key, block) in oldest.into_iter().take(3) {
            lone.give(key, block);
        }
        lone.now = lone.now + Duration::from_millis(100);
        lone.step();
    }
    assert!(lone.asked.len() <= 64 + seeds.len(), "{}", lone.asked.len());
    assert!(lone.times.values().all(|times| *times == 1), "nothing was asked for twice");
}

#[test]
fn a_torrent_that_was_just_mounted_is_left_to_its_first_reader_for_a_moment() {
    for read in [true, false] {
        let mut lone = Lone::new(400, 16, |_| true);
        lone.now = Timestamp::ZERO + Duration::from_millis(20);
        lone.seed();
        lone.step();
        assert!(lone.asked.is_empty());
        if read {
            lone.read(7);
            lone.step();
            assert!(lone.asked.iter().all(|(_, block)| block.piece.get() == 7));
            assert_eq!(lone.asked.len(), 16);
            lone.now = lone.now + Duration::from_millis(100);
            lone.step();
            assert!(lone.machine.poll_timeout() > lone.now);
        } else {
            assert!(lone.machine.poll_timeout() <= Timestamp::ZERO + Duration::from_millis(100));
            lone.now = lone.machine.poll_timeout();
            lone.step();
            assert_eq!(lone.asked.len(), 16);
        }
    }
}

/// What `key` was asked for again so that what comes before leaves at once.
fn tails(lone: &Lone, key: PeerKey) -> Vec<RawBlock> {
    let tail = |(to, message): &(PeerKey, Message)| match message {
        Message::Request(raw) if *to == key && raw.length == TAIL => Some(*raw),
        _ => None,
    };
    lone.sent.iter().filter_map(tail).collect()
}

#[test]
fn the_end_of_what_a_reader_waits_for_is_pushed_out_unless_more_comes_behind_it() {
    let mut lone = Lone::on_demand(9, 4);
    let seed = lone.seed();
    lone.read(3);
    lone.step();
    let last = lone.asked_of(seed).into_iter().max().unwrap();
    // A moment later, so that it is not answered before what it shall push.
    assert_eq!(tails(&lone, seed), []);
    assert_eq!(lone.machine.poll_timeout(), lone.now + TAIL_AFTER);
    for _ in 0..3 {
        lone.now = lone.now + TAIL_AFTER;
        lone.step();
        assert_eq!(tails(&lone, seed), [RawBlock { length: TAIL, ..last.into() }]);
    }
    // It is thrown away: it is not asked for in its own right.
    assert_eq!(lone.asked.len(), 4);
    // Nor is anything else pushed when the answers come in another order.
    for block in lone.asked_of(seed).into_iter().rev() {
        lone.give(seed, block);
        lone.step();
    }
    assert_eq!((tails(&lone, seed).len(), lone.asked.len()), (1, 0));

    // p2pfs sends without being pushed.
    let mut lone = Lone::on_demand(9, 4);
    let seed = lone.seed();
    let ours =
        ExtendedHandshake { client: Some("p2pfs 9.9".into()), ..ExtendedHandshake::ours(false) };
    lone.say(seed, Message::Extended(extended::HANDSHAKE_ID, ours.encode()));
    lone.read(3);
    lone.step();
    lone.now = lone.now + TAIL_AFTER;
    lone.step();
    assert_eq!((tails(&lone, seed), lone.asked.len()), (vec![], 4));

    // What was asked for in the background pushes it.
    let mut lone = Lone::new(9, 4, |_| true);
    let seed = lone.seed();
    lone.now = lone.now + Duration::from_secs(1);
    lone.step();
    assert!(!lone.asked.is_empty());
    let free = lone.info.geometry.pieces().find(|p| lone.asked.iter().all(|(_, b)| b.piece != *p));
    lone.read(free.unwrap().get());
    lone.step();
    lone.now = lone.now + TAIL_AFTER;
    lone.step();
    assert!(lone.asked.iter().any(|(_, b)| Some(b.piece) == free) && tails(&lone, seed).is_empty());
}

#[test]
fn only_what_is_not_read_in_order_goes_in_front_of_a_full_window() {
    for streams in [true, false] {
        let mut lone = Lone::on_demand(20, 16);
        lone.machine.set_buffer_budget(1 << 30);
        let seed = lone.seed();
        let window = lone.info.geometry.piece_range(lone.piece(0)).start..16 * 16 * 16 * 1024;
        lone.machine.read_ahead(HandleId(2), window.clone());
        if streams {
            lone.machine.read_ahead(HandleId(1), window);
        }
        lone.step();
        let full = lone.asked.len();
        lone.read(18);
        lone.step();
        let more = lone.asked_of(seed).iter().filter(|b| b.piece.get() == 18).count();
        assert_eq!((more > 0, lone.asked.len() > full), (!streams, !streams));
    }
}

#[test]
fn whoever_is_silent_is_replaced_however_much_was_asked_for_twice() {
    for silent in [true, false] {
        let mut lone = Lone::new(2_000, 4, |_| true);
        let seed = lone.seed();
        lone.read(3);
        lone.step();
        let mut owed = lone.asked_of(seed);
        owed.retain(|block| block.piece.get() == 3);
        assert_eq!(owed.len(), 4);
        lone.machine.active.as_mut().unwrap().hedged_bytes = u64::MAX / 2;
        let other = lone.seed();
        let replaced = lone.within(OVERLONG, |l| {
            if !silent && let Some(peer) = l.machine.peers.get_mut(&seed) {
                peer.window.heard(l.now);
            }
            let replaced = l.asked_of(other).iter().any(|block| owed.contains(block));
            l.give_all(other);
            replaced
        });
        assert_eq!(replaced, silent);
    }
}

#[test]
fn what_is_read_ahead_leaves_memory_for_a_read() {
    let mut lone = Lone::on_demand(20, 1_024);
    for piece in 0..3 {
        lone.holder(true, |p| p == piece);
    }
    let seed = lone.seed();
    let ahead = lone.info.geometry.piece_range(lone.piece(0)).start
        ..lone.info.geometry.piece_range(lone.piece(2)).end;
    lone.machine.read_ahead(HandleId(2), ahead);
    lone.step();
    lone.read(10);
    lone.step();
    assert!(lone.asked_of(seed).iter().any(|block| block.piece.get() == 10));
}

#[test]
fn who_chokes_us_is_asked_for_what_it_allows_all_the_same() {
    let mut lone = Lone::new(20, 4, |_| true);
    let seed = lone.seed();
    lone.say(seed, Message::Choke);
    lone.say(seed, Message::AllowedFast(7));
    lone.now = lone.now + Duration::from_secs(1);
    lone.step();
    let asked: BTreeSet<_> = lone.asked_of(seed).iter().map(|b| b.piece.get()).collect();
    assert_eq!((asked, lone.asked.len()), (BTreeSet::from([7]), 4));
}

#[test]
fn a_peer_that_falls_silent_keeps_its_requests_unless_others_would_answer() {
    for others in [false, true] {
        let mut lone = Lone::new(2_000, 16, |_| true);
        lone.machine.set_buffer_budget(1 << 30);
        let seed = lone.seed();
        lone.step();
        let asked = lone.asked_of(seed);
        assert!(asked.len() > 1);
        if others {
            lone.seed();
        }
        let other = PeerKey(seed.0 + 1);
        let kept = |lone: &Lone| lone.asked_of(seed).len() == asked.len();
        let mut lost_within = |time| {
            lone.within(Duration::from_secs(time), |l| {
                l.give_all(other);
                !kept(l)
            })
        };
        // What comes late after all is of use.
        assert_eq!(lost_within(7), others);
        assert!(lost_within(30));
    }
}

#[test]
fn what_a_reader_waits_for_is_asked_of_another_too_before_it_is_taken_from_whoever_stalls() {
    let mut lone = Lone::new(2_000, 2, |_| true);
    lone.machine.set_buffer_budget(1 << 30);
    let seed = lone.seed();
    lone.read(3);
    lone.step();
    let waited = lone.piece(3);
    let owed = |l: &Lone, key| {
        l.asked_of(key).into_iter().filter(|b| b.piece == waited).collect::<Vec<_>>()
    };
    let first = owed(&lone, seed);
    assert!(first.len() > 1 && lone.asked_of(seed).len() > first.len());
    let other = lone.seed();
    let give_the_rest = |l: &mut Lone| {
        let blocks = l.asked_of(other).into_iter().filter(|block| block.piece != waited);
        blocks.collect::<Vec<_>>().into_iter().for_each(|block| l.give(other, block));
    };
    assert!(lone.within(Duration::from_secs(5), |l| {
        give_the_rest(l);
        l.asked_of(seed).len() == first.len()
    }));
    assert_eq!(owed(&lone, seed), first);
    let asked_too = |l: &Lone| first.iter().all(|block| l.asked_of(other).contains(block));
    assert!(lone.within(Duration::from_secs(1), |l| {
        give_the_rest(l);
        asked_too(l)
    }));
    // When it is found stalled again, it loses that as well.
    assert!(lone.within(Duration::from_secs(10), |l| {
        give_the_rest(l);
        owed(l, seed).is_empty()
    }));
}

#[test]
fn of_peers_that_are_all_stalled_each_has_its_turn() {
    let mut lone = Lone::on_demand(20, 1);
    let seeds = [lone.seed(), lone.seed()];
    lone.read(3);
    assert!(!lone.within(Duration::from_secs(20), |_| false));
    let from = lone.now;
    for seed in seeds {
        let anew = |l: &Lone| {
            let ages = l.asked_of(seed).into_iter().filter_map(|block| l.age(seed, block));
            ages.min().is_some_and(|age| age < l.now.since(from))
        };
        assert!(lone.within(Duration::from_secs(20), |l| anew(l)), "{seed:?}");
    }
}

#[test]
fn while_nobody_answers_no_block_is_asked_of_all_in_endgame() {
    let mut lone = Lone::new(1, 4, |_| true);
    (0..12).for_each(|_| _ = lone.seed());
    assert!(!lone.within(Duration::from_millis(3_900), |_| false));
    assert_eq!(lone.times.len(), 4);
    assert!(lone.times.values().all(|times| *times <= 3), "{:?}", lone.times);
}

#[test]
fn the_only_source_of_a_suspicious_piece_is_replaced_when_it_is_silent() {
    let mut lone = Lone::new(2_000, 4, |_| true);
    lone.machine.set_buffer_budget(1 << 30);
    let seeds = [lone.seed(), lone.seed()];
    lone.read(0);
    assert!(lone.within(Duration::from_secs(1), |l| {
        seeds.iter().for_each(|seed| l.give_all(*seed));
        l.verifies(0) == 1
    }));
    let now = lone.now;
    lone.machine.piece_failed(lone.piece(0), vec![[9; 20]; 4], now);
    lone.step();
    let of_it = |l: &Lone, seed| l.asked_of(seed).iter().any(|block| block.piece.get() == 0);
    let (source, other) = match of_it(&lone, seeds[0]) {
        true => (seeds[0], seeds[1]),
        false => (seeds[1], seeds[0]),
    };
    assert!(of_it(&lone, source) && !of_it(&lone, other));
    assert!(lone.within(Duration::from_secs(2), |l| {
        l.give_all(other);
        l.step();
        of_it(l, other)
    }));
}

#[test]
fn nor_is_it_asked_again_when_it_owes_nothing_else() {
    let mut lone = Lone::on_demand(20, 4);
    let seeds = [lone.seed(), lone.seed()];
    lone.read(0);
    assert!(lone.within(Duration::from_secs(1), |l| {
        seeds.iter().for_each(|seed| l.give_all(*seed));
        l.verifies(0) == 1
    }));
    let now = lone.now;
    lone.machine.piece_failed(lone.piece(0), vec![[9; 20]; 4], now);
    // Both gave something.
    lone.machine.peers.values_mut().for_each(|peer| peer.suspected = 1);
    lone.step();
    let [source, other] = match lone.asked_of(seeds[0]).is_empty() {
        false => seeds,
        true => [seeds[1], seeds[0]],
    };
    assert!(lone.asked_of(other).is_empty());
    assert!(lone.within(Duration::from_secs(2), |l| !l.asked_of(other).is_empty()));
    assert!(lone.asked_of(source).is_empty());
}

#[test]
fn what_a_peer_that_is_busy_does_not_send_is_asked_of_another_after_a_while() {
    let mut lone = Lone::new(2_000, 4, |_| true);
    let seed = lone.seed();
    lone.read(3);
    lone.step();
    lone.machine.active.as_mut().unwrap().hedged_bytes = u64::MAX / 2;
    let other = lone.seed();
    assert!(lone.within(OVERLONG * 2, |l| {
        if let Some(peer) = l.machine.peers.get_mut(&seed) {
            peer.window.heard(l.now);
        }
        let asked = l.asked_of(other).iter().any(|block| block.piece.get() == 3);
        l.give_all(other);
        asked
    }));
}

#[test]
fn on_a_slow_line_that_many_share_nobody_counts_as_silent() {
    for peers in [16, 50] {
        let mut lone = Lone::new(400, 16, |_| true);
        lone.machine.set_buffer_budget(1 << 30);
        (0..peers).for_each(|_| _ = lone.seed());
        // A megabit a second: eight blocks, in the order in which they were asked for.
        for round in 0..600 {
            // By then all have answered.
            if round == 200 {
                lone.times.clear();
                let asked: BTreeSet<_> = lone.asked.iter().map(|(_, b)| b.piece.get()).collect();
                (100..).filter(|p| !asked.contains(p)).take(8).for_each(|piece| lone.read(piece));
            }
            lone.step();
            let mut asked: Vec<_> = lone.asked.iter().copied().collect();
            asked.sort_by_key(|(key, block)| Reverse(lone.age(*key, *block)));
            if let Some((key, block)) = asked.first() {
                lone.give(*key, *block);
            }
            lone.now = lone.now + Duration::from_millis(125);
        }
        let asked: u32 = lone.times.values().sum();
        let twice = asked as usize - lone.times.len();
        assert!(twice * 20 < lone.times.len(), "{peers} peers: {twice} of {asked}");
    }
}
