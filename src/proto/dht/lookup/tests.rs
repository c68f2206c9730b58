//! The lookup, step by step, and against any network that answers as it likes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;

const TARGET: NodeId = NodeId::new([0; 20]);
const RTT: Duration = Duration::from_millis(80);

fn ms(ms: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(ms)
}

/// A node at this distance, alone in its network.
fn node(distance: u16) -> Contact {
    in_network(distance, distance)
}

fn in_network(distance: u16, network: u16) -> Contact {
    let mut id = [0; 20];
    id[..2].copy_from_slice(&distance.to_be_bytes());
    let bits = 0x2001_0db8u128 << 96 | u128::from(network) << 64 | 1;
    let addr = SocketAddr::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), 6881);
    Contact { id: NodeId::new(id), addr }
}

fn lookup(start: &[Contact]) -> Lookup {
    let start: Vec<_> = start.iter().map(|contact| (*contact, None)).collect();
    Lookup::new(TARGET, &start, LookupOptions::default(), ms(0))
}

/// Everyone whom it asks now.
fn asked(lookup: &mut Lookup, now: Timestamp) -> Vec<Contact> {
    std::iter::from_fn(|| lookup.next(now)).map(|ask| ask.to).collect()
}

/// What was asked of a node first.
fn first(to: Contact) -> Ask {
    Ask { to, target: TARGET, again: false }
}

#[test]
fn a_lookup_that_knows_nobody_is_at_its_end() {
    let lookup = lookup(&[]);
    assert!(lookup.is_finished());
    assert_eq!(lookup.poll_timeout(), None);
    assert_eq!(lookup.closest_answering(), []);
}

#[test]
fn far_from_the_target_a_few_are_asked_the_closest_first() {
    let start: Vec<_> = (0..8).map(|i| node(0x8000 + i)).collect();
    let mut lookup = lookup(&start);
    assert_eq!(asked(&mut lookup, ms(0)), start[..4]);
    assert!(!lookup.is_finished());
}

#[test]
fn closer_nodes_are_asked_at_once_and_stragglers_are_not_waited_for() {
    let start: Vec<_> = (0..8).map(|i| node(0x8000 + i)).collect();
    let mut lookup = lookup(&start);
    let begun = asked(&mut lookup, ms(0));
    let closer: Vec<_> = (0..8).map(|i| node(0x100 + i)).collect();
    lookup.answered(first(begun[0]), &closer, RTT, ms(80));
    assert_eq!(asked(&mut lookup, ms(80)), closer[..4]);
}

#[test]
fn whoever_is_silent_frees_its_place_and_may_still_answer() {
    let start: Vec<_> = (0..8).map(|i| node(0x8000 + i)).collect();
    let mut lookup = lookup(&start);
    let begun = asked(&mut lookup, ms(0));
    assert_eq!(asked(&mut lookup, ms(10)), []);
    assert_ne!(asked(&mut lookup, ms(400)), []);
    lookup.answered(first(begun[3]), &[], RTT, ms(450));
    assert_eq!(lookup.closest_answering(), [begun[3]]);
}

#[test]
fn the_only_node_may_take_far_longer_than_before() {
    let trip = RoundTrip::first(Duration::from_micros(300));
    let (only, next) = (node(0x8000), node(0x100));
    let mut lookup = Lookup::new(TARGET, &[(only, Some(trip))], LookupOptions::default(), ms(0));
    assert_eq!(asked(&mut lookup, ms(0)), [only]);
    lookup.handle_timeout(ms(900));
    assert!(!lookup.is_finished());
    lookup.answered(first(only), &[next], Duration::from_millis(900), ms(900));
    assert_eq!(asked(&mut lookup, ms(900)), [next]);
    lookup.handle_timeout(ms(1_900));
    assert!(lookup.is_finished(), "whoever is silent is not waited for without end");
    assert_eq!(lookup.closest_answering(), [only]);
}

#[test]
fn who_is_asked_again_may_still_answer_the_first_question() {
    let expected = Some(TARGET.distance(&node(0x100).id));
    let start: Vec<_> = (0..8).map(|i| (node(0x40 + i), None)).collect();
    let options = LookupOptions { expected, ..LookupOptions::default() };
    let mut lookup = Lookup::new(TARGET, &start, options, ms(0));
    let begun = asked(&mut lookup, ms(0));
    assert_eq!(begun.len(), 8);
    begun[4..].iter().for_each(|to| lookup.answered(first(*to), &[], RTT, ms(80)));
    let late = first(begun[0]);
    let mut now = 80;
    let again = loop {
        let asks: Vec<_> = std::iter::from_fn(|| lookup.next(ms(now))).collect();
        if let Some(ask) = asks.into_iter().find(|ask| ask.to == late.to) {
            break ask;
        }
        now += 10;
        lookup.handle_timeout(ms(now));
        assert!(now < 2_000, "{lookup:?}");
    };
    assert_eq!(again, Ask { again: true, ..late });
    let candidate = &lookup.candidates[0];
    assert!(matches!(candidate.state, State::Again(at, _) if at == ms(0)));
    let hope = lookup.options.answers.hope(None, Duration::from_millis(now));
    assert!(lookup.worth(candidate, ms(now)) >= hope && hope > 0.0);
    lookup.answered(late, &[], RTT, ms(now));
    assert_eq!(lookup.closest_answering()[0], late.to);
}

#[test]
fn it_ends_with_the_k_closest_that_answer() {
    let all: Vec<_> = (0..24).map(|i| node(0x100 + i)).collect();
    let mut lookup = lookup(&all[..8]);
    let mut now = 0;
    while !lookup.is_finished() {
        now += 80;
        for contact in asked(&mut lookup, ms(now)) {
            // Every third one is dead.
            if contact.id.as_bytes()[1] % 3 != 0 {
                lookup.answered(first(contact), &all, RTT, ms(now));
            }
        }
        lookup.handle_timeout(ms(now));
        assert!(now < 3_000, "{lookup:?}");
    }
    let living: Vec<_> = all.into_iter().filter(|c| c.id.as_bytes()[1] % 3 != 0).take(K).collect();
    assert_eq!(lookup.closest_answering(), living);
    assert_eq!(lookup.next(ms(now)), None);
}

#[test]
fn the_end_comes_when_nobody_ever_answers() {
    let start: Vec<_> = (0..8).map(|i| node(0x100 + i)).collect();
    let mut lookup = lookup(&start);
    let mut asked_in_all = 0;
    while let Some(at) = lookup.poll_timeout() {
        asked_in_all += asked(&mut lookup, at).len();
        lookup.handle_timeout(at);
        assert!(at <= ms(10_100));
    }
    assert_eq!(asked_in_all, 8);
    assert_eq!(lookup.closest_answering(), []);
}

#[test]
fn one_network_has_two_candidates_at_most_and_one_id_two_addresses() {
    let crowd: Vec<_> = (1..200).map(|i| in_network(i, 7)).collect();
    assert_eq!(lookup(&crowd).candidates.len(), MAX_PER_BLOCK);
    let names: Vec<_> = (1..200).map(|i| in_network(1, i)).collect();
    assert_eq!(lookup(&names).candidates.len(), MAX_PER_ID);
}

#[test]
fn answers_of_others_and_second_answers_count_for_nothing() {
    let mut lookup = lookup(&[node(1), node(2)]);
    lookup.answered(first(node(1)), &[node(3)], RTT, ms(0));
    assert_eq!(lookup.closest_answering(), [], "it was not asked");
    asked(&mut lookup, ms(0));
    lookup.answered(first(node(1)), &[], RTT, ms(1));
    lookup.answered(first(node(1)), &[node(3)], RTT, ms(2));
    lookup.answered(first(in_network(2, 9)), &[node(3)], RTT, ms(3));
    assert_eq!(lookup.candidates.len(), 2);
}

#[test]
fn with_a_distance_to_reach_everyone_within_it_is_asked_and_announced_to() {
    let all: Vec<_> = (1..40).map(node).collect();
    let start: Vec<_> = all.iter().map(|contact| (*contact, None)).collect();
    let beyond = Some(TARGET.distance(&node(20).id));
    let options = LookupOptions { beyond, ..LookupOptions::default() };
    let mut lookup = Lookup::new(TARGET, &start, options, ms(0));
    let mut now = 0;
    while !lookup.is_finished() {
        now += 80;
        for contact in asked(&mut lookup, ms(now)) {
            lookup.answered(first(contact), &[], RTT, ms(now));
        }
        lookup.handle_timeout(ms(now));
    }
    assert_eq!(lookup.announce_to(), all[..20]);
    assert_eq!(lookup.closest_answering(), all[..K]);
}

#[test]
fn a_node_that_was_measured_is_late_by_its_own_measure() {
    let quick = (0..9).fold(RoundTrip::first(RTT / 8), |trip, _| trip.then(RTT / 8));
    let start: Vec<_> = (0..8).map(|i| (node(0x8000 + i), Some(quick))).collect();
    let mut lookup = Lookup::new(TARGET, &start, LookupOptions::default(), ms(0));
    asked(&mut lookup, ms(0));
    assert_eq!(asked(&mut lookup, ms(40)), []);
    assert_ne!(asked(&mut lookup, ms(60)), []);
}

#[test]
fn who_is_near_and_names_only_some_is_asked_for_those_beyond() {
    let expected = Some(TARGET.distance(&node(0x100).id));
    let start: Vec<_> = (0..8).map(|i| (node(0x40 + i), None)).collect();
    let options = LookupOptions { expected, ..LookupOptions::default() };
    let mut lookup = Lookup::new(TARGET, &start, options, ms(0));
    let begun = asked(&mut lookup, ms(0));
    let named: Vec<_> = (0x50..0x58).map(node).collect();
    lookup.answered(first(begun[0]), &named, RTT, ms(80));
    // Half way between 0x57 and 0x166: what begins with 0x80 differs from the target in the ninth
    // of sixteen bits.
    let ask = Ask { target: TARGET.flipped(8), ..first(begun[0]) };
    assert_eq!(lookup.next(ms(80)), Some(ask));
    lookup.answered(ask, &[node(0x99)], RTT, ms(160));
    assert!(lookup.candidates.iter().any(|c| c.contact == node(0x99)));
    lookup.answered(ask, &[node(0x9a)], RTT, ms(160));
    assert!(lookup.candidates.iter().all(|c| c.contact != node(0x9a)));
}

proptest! {
    /// Nodes answer with whatever they like, when they like, or never.
    #[test]
    fn any_network_leads_to_an_end_within_the_bounds(
        start in prop::collection::vec(0u16..500, 0..20),
        answers in prop::collection::vec((prop::collection::vec(0u16..500, 0..20), 0u64..4_000), 1..50),
        expected in prop::option::of(0.0f64..0.1),
    ) {
        let start: Vec<_> = start.into_iter().map(|i| (node(i), None)).collect();
        let expected = expected.map(Distance::of_share);
        let options = LookupOptions { expected, beyond: expected, ..LookupOptions::default() };
        let mut lookup = Lookup::new(TARGET, &start, options, ms(0));
        let mut open: BTreeMap<(Timestamp, usize), Ask> = BTreeMap::new();
        let (mut now, mut sent) = (ms(0), 0);
        while !lookup.is_finished() {
            while let Some(ask) = lookup.next(now) {
                let late = answers[sent % answers.len()].1;
                open.insert((now + Duration::from_millis(late), sent), ask);
                sent += 1;
            }
            prop_assert!(lookup.candidates.len() <= MAX_CANDIDATES);
            prop_assert!(lookup.candidates.is_sorted_by_key(|c| c.distance));
            prop_assert!(lookup.is_finished() || lookup.poll_timeout().is_some());
            let Some(wake) = lookup.poll_timeout() else { break };
            let next = open.keys().next().copied().filter(|(at, _)| *at <= wake);
            now = next.map_or(wake, |(at, _)| at);
            match next.and_then(|next| Some((next, open.remove(&next)?))) {
                Some(((_, number), ask)) if number % 3 != 0 => {
                    let nodes: Vec<_> = answers[number % answers.len()].0.iter().copied().map(node).collect();
                    lookup.answered(ask, &nodes, RTT, now);
                }
                Some((_, ask)) => lookup.failed(ask, now),
                None => lookup.handle_timeout(now),
            }
            prop_assert!(now <= ms(10_100));
        }
        prop_assert_eq!(lookup.asked(), sent);
        prop_assert!(lookup.closest_answering().len() <= K);
    }
}
