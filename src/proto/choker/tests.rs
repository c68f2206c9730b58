use std::collections::BTreeMap;

use super::*;

const PIECE: u64 = 1 << 20;

/// Nothing is sent, and nothing more can be.
const BUSY: Option<f64> = Some(0.0);

/// Nothing is sent, although it could be.
const IDLE: Option<f64> = Some(1e6);

fn candidate(n: u64, gives: f64, seeding: bool) -> Candidate {
    Candidate {
        who: (1, PeerKey(n)),
        gives,
        takes: 0.0,
        taken: 0,
        last_taken: late(),
        free_rides: false,
        seeding,
        snubbed: false,
        busy: true,
        since: Timestamp::ZERO,
        slot_ended: Timestamp::ZERO,
        piece: PIECE,
    }
}

fn candidates(count: u64, seeding: bool) -> Vec<Candidate> {
    (0..count).map(|n| candidate(n, 0.0, seeding)).collect()
}

fn late() -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(1_000)
}

fn who(n: u64) -> Who {
    (1, PeerKey(n))
}

#[test]
fn the_three_best_givers_and_one_other_are_unchoked() {
    let peers: Vec<_> = (0..10).map(|n| candidate(n, (n * 100) as f64, false)).collect();
    let unchoked = Choker::new(1).round(&peers, BUSY, late());
    assert_eq!(unchoked[..3], [who(9), who(8), who(7)]);
    assert_eq!(unchoked.len(), 4);
    assert!(unchoked[3].1.0 < 7);
}

#[test]
fn the_optimistic_slot_rotates_after_three_rounds_and_reaches_everyone() {
    let peers: Vec<_> = (0..8).map(|n| candidate(n, (n * 100) as f64, false)).collect();
    let mut choker = Choker::new(2);
    let mut seen: BTreeMap<Who, u32> = BTreeMap::new();
    for _ in 0..300 {
        *seen.entry(choker.round(&peers, BUSY, late())[3]).or_default() += 1;
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.values().all(|n| n % 3 == 0), "{seen:?}");
}

#[test]
fn a_snubbing_peer_gets_no_regular_slot() {
    let mut peers: Vec<_> = (0..5).map(|n| candidate(n, 100.0, false)).collect();
    peers[0].gives = 1e9;
    peers[0].snubbed = true;
    let unchoked = Choker::new(3).round(&peers, BUSY, late());
    assert!(!unchoked[..3].contains(&peers[0].who));
}

#[test]
fn a_slot_that_nobody_uses_is_given_to_somebody_else_too() {
    let mut peers: Vec<_> = (0..10).map(|n| candidate(n, (n * 100) as f64, false)).collect();
    peers[9].busy = false;
    peers[8].busy = false;
    let mut choker = Choker::new(1);
    assert_eq!(choker.round(&peers, BUSY, late()).len(), 4);
    let unchoked = choker.fill(&peers, late() + SETTLING);
    assert!([9, 8, 7, 6, 5].iter().all(|n| unchoked.contains(&who(*n))), "{unchoked:?}");
}

#[test]
fn who_was_just_unchoked_is_given_time_to_ask() {
    let mut peers = candidates(10, false);
    peers.iter_mut().for_each(|p| p.busy = false);
    let mut choker = Choker::new(1);
    let before = choker.round(&peers, BUSY, late());
    assert_eq!(choker.fill(&peers, late() + SETTLING / 2), before);
}

#[test]
fn however_many_ask_for_nothing_there_is_a_bound() {
    let mut peers = candidates(500, false);
    peers.iter_mut().for_each(|p| p.busy = false);
    let mut choker = Choker::new(1);
    let mut unchoked = choker.round(&peers, IDLE, late());
    for n in 1..100 {
        unchoked = choker.fill(&peers, late() + SETTLING * n);
    }
    assert_eq!(unchoked.len(), MAX_UNCHOKED);
}

#[test]
fn at_a_complete_torrent_everyone_has_a_turn_before_anyone_has_two() {
    let mut peers = candidates(12, true);
    let mut choker = Choker::new(4);
    let (mut now, mut held) = (late(), choker.round(&peers, BUSY, late()));
    let mut turns: BTreeMap<Who, u32> = held[..3].iter().map(|who| (*who, 1)).collect();
    for _ in 0..3 {
        now = now + TURN;
        peers.iter_mut().filter(|p| held.contains(&p.who)).for_each(|p| p.taken += PIECE);
        let next = choker.fill(&peers, now);
        for peer in peers.iter_mut().filter(|p| held.contains(&p.who) && !next.contains(&p.who)) {
            peer.slot_ended = now;
        }
        for who in next[..3].iter().filter(|who| !held.contains(who)) {
            *turns.entry(*who).or_default() += 1;
        }
        held = next;
    }
    assert!(turns.len() >= 9, "{turns:?}");
    assert!(turns.values().all(|n| *n == 1), "{turns:?}");
}

#[test]
fn a_turn_is_not_over_before_a_piece_was_taken_unless_that_takes_too_long() {
    let mut peers = candidates(12, true);
    let mut choker = Choker::new(4);
    let before = choker.round(&peers, BUSY, late());
    for secs in 2..30 {
        peers.iter_mut().for_each(|p| p.last_taken = late() + TURN * secs);
        assert_eq!(choker.fill(&peers, late() + TURN * secs)[..3], before[..3]);
    }
    assert_ne!(choker.fill(&peers, late() + LONGEST_TURN)[..3], before[..3]);
}

#[test]
fn a_free_rider_gets_what_chance_gives_it_and_no_more() {
    let mut peers = candidates(6, false);
    peers[0].free_rides = true;
    peers[0].gives = 1e6;
    let mut choker = Choker::new(4);
    let mut rounds = 0;
    for _ in 0..3_000 {
        let unchoked = choker.round(&peers, BUSY, late());
        assert!(!unchoked[..3].contains(&peers[0].who));
        rounds += u32::from(unchoked.contains(&peers[0].who));
    }
    // One weight against four for each of two others.
    assert!((200..500).contains(&rounds), "{rounds}");
}

#[test]
fn a_free_rider_at_a_complete_torrent_gets_what_nobody_else_wants() {
    let mut peers = candidates(3, true);
    peers[0].free_rides = true;
    let mut choker = Choker::new(4);
    for _ in 0..100 {
        assert!(!choker.round(&peers, BUSY, late()).contains(&peers[0].who));
    }
    choker.round(&peers, IDLE, late());
    assert!(choker.fill(&peers, late()).contains(&peers[0].who));
}

#[test]
fn free_riders_alone_do_not_have_a_slot_all_the_time() {
    let mut peers = candidates(4, false);
    peers.iter_mut().for_each(|p| p.free_rides = true);
    let mut choker = Choker::new(4);
    let served = (0..3_000).filter(|_| !choker.round(&peers, BUSY, late()).is_empty()).count();
    assert!((1_000..2_000).contains(&served), "{served}");
}

#[test]
fn who_gives_comes_before_who_only_takes() {
    let mut peers = candidates(4, true);
    peers.push(candidate(9, 1.0, false));
    assert_eq!(Choker::new(4).round(&peers, BUSY, late())[0], who(9));
}

#[test]
fn chokers_do_not_all_favour_the_same_newcomers() {
    let peers = candidates(30, false);
    let firsts: std::collections::BTreeSet<_> =
        (0..20).map(|seed| Choker::new(seed).round(&peers, BUSY, late())[0]).collect();
    assert!(firsts.len() > 10, "{firsts:?}");
}

#[test]
fn a_newcomer_takes_a_free_slot_and_nobodys_slot() {
    let mut choker = Choker::new(6);
    let mut peers = candidates(2, false);
    let before = choker.round(&peers, BUSY, late());
    assert_eq!(before.len(), 2);
    peers.push(candidate(3, 0.0, false));
    assert_eq!(choker.fill(&peers, late()).len(), 3);
    peers.extend((4..20).map(|n| candidate(n, 1e6, false)));
    let after = choker.fill(&peers, late());
    assert_eq!(after.len(), 4);
    assert!(before.iter().all(|who| after.contains(who)));
}

#[test]
fn idle_capacity_opens_slots_and_load_closes_them() {
    let peers = candidates(30, false);
    let mut choker = Choker::new(5);
    for _ in 0..10 {
        choker.round(&peers, IDLE, late());
    }
    assert_eq!(choker.fill(&peers, late()).len(), 14);
    choker.round(&peers, BUSY, late());
    assert_eq!(choker.fill(&peers, late()).len(), 9);
}

/// Rounds without an upload limit, in which an uplink sends `capacity` bytes a second and a peer
/// takes no more than `each`; how many extra slots there were in each of the rounds.
fn climb(capacity: f64, each: f64, rounds: usize) -> Vec<usize> {
    let mut peers = candidates(30, true);
    let mut choker = Choker::new(5);
    let round = |_| {
        let unchoked = choker.round(&peers, None, late());
        let share = each.min(capacity / unchoked.len() as f64);
        peers
            .iter_mut()
            .for_each(|p| p.takes = if unchoked.contains(&p.who) { share } else { 0.0 });
        choker.extra
    };
    (0..rounds).map(round).collect()
}

#[test]
fn without_an_upload_limit_slots_stay_if_more_is_sent_with_them() {
    // Ten peers fill the uplink, one of whom may be the optimistic one.
    let extra = climb(1e6, 1e5, 100);
    assert!(extra[50..].iter().all(|n| (5..=8).contains(n)), "{extra:?}");
    let extra = climb(1e9, 1e5, 100);
    assert!(extra[80..].iter().all(|n| *n >= MAX_EXTRA_SLOTS - 1), "{extra:?}");
}

#[test]
fn without_an_upload_limit_a_full_uplink_opens_no_more_than_one_slot_on_trial() {
    let extra = climb(1e6, 1e6, 100);
    assert!(extra[20..].iter().all(|n| *n <= 1), "{extra:?}");
    let tried = extra[20..].iter().filter(|n| **n == 1).count();
    assert!((5..40).contains(&tried), "{extra:?}");
}

#[test]
fn without_an_upload_limit_slots_that_are_not_needed_any_more_are_closed() {
    let mut choker = Choker::new(5);
    let slots_at = |choker: &mut Choker, each: f64| {
        let mut peers = candidates(30, true);
        for _ in 0..60 {
            let unchoked = choker.round(&peers, None, late());
            let share = each.min(1e6 / unchoked.len() as f64);
            let takes = |who| if unchoked.contains(&who) { share } else { 0.0 };
            peers.iter_mut().for_each(|p| p.takes = takes(p.who));
        }
        choker.extra
    };
    assert!(slots_at(&mut choker, 1e5) >= 5);
    assert!(slots_at(&mut choker, 1e6) <= 1);
}

#[test]
fn a_turn_in_which_nothing_is_taken_for_a_while_is_over() {
    let peers = candidates(12, true);
    let mut choker = Choker::new(4);
    let before = choker.round(&peers, BUSY, late());
    assert_eq!(choker.fill(&peers, late() + STUCK / 2)[..3], before[..3]);
    let after = choker.fill(&peers, late() + STUCK);
    assert!(before[..3].iter().all(|who| !after[..3].contains(who)), "{before:?} {after:?}");
}

#[test]
fn a_slot_whose_holder_takes_nothing_is_given_to_somebody_else_too() {
    let mut peers: Vec<_> = (0..10).map(|n| candidate(n, (n * 100) as f64, false)).collect();
    let mut choker = Choker::new(1);
    choker.round(&peers, BUSY, late());
    let now = late() + STUCK;
    peers[..9].iter_mut().for_each(|p| p.last_taken = now);
    let unchoked = choker.fill(&peers, now);
    assert!([9, 8, 7, 6].iter().all(|n| unchoked.contains(&who(*n))), "{unchoked:?}");
}

#[test]
fn on_a_slow_uplink_who_waits_for_its_turn_is_not_stuck() {
    let mut peers = candidates(12, true);
    peers.iter_mut().take(4).for_each(|p| p.takes = 2_000.0);
    let mut choker = Choker::new(4);
    let before = choker.round(&peers, BUSY, late());
    assert_eq!(choker.fill(&peers, late() + STUCK * 3)[..3], before[..3]);
}

#[test]
fn who_owes_and_gives_something_gets_what_nobody_else_wants() {
    let mut peers = candidates(3, false);
    peers.iter_mut().for_each(|p| p.free_rides = true);
    peers[1].gives = 100.0;
    let mut choker = Choker::new(4);
    let slots = |choker: &Choker| choker.slots.iter().map(|slot| slot.who).collect::<Vec<_>>();
    choker.round(&peers, BUSY, late());
    assert_eq!(slots(&choker), []);
    choker.round(&peers, IDLE, late());
    assert_eq!(slots(&choker), [who(1)]);
}

#[test]
fn a_complete_torrent_has_a_slot_beside_a_busy_download() {
    let mut peers: Vec<_> = (0..6).map(|n| candidate(n, 1e6, false)).collect();
    let mut choker = Choker::new(4);
    let downloads = |unchoked: &[Who]| unchoked[..3].iter().filter(|w| w.1.0 < 6).count();
    assert_eq!(downloads(&choker.round(&peers, BUSY, late())), 3);
    peers.push(candidate(7, 0.0, true));
    let unchoked = choker.round(&peers, BUSY, late());
    assert_eq!(downloads(&unchoked), 2);
    assert!(unchoked[..3].contains(&who(7)));
    peers[6].free_rides = true;
    assert_eq!(downloads(&choker.round(&peers, BUSY, late())), 3);
}
