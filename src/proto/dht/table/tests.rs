//! The routing table, node by node and against what must hold for any.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;

const OWN: NodeId = NodeId::new([0; 20]);
const RTT: Option<Duration> = Some(Duration::from_millis(80));

fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(secs)
}

/// A node whose id begins so, alone in its network.
fn node(first: u8, number: u16) -> Contact {
    let mut id = [0; 20];
    (id[0], id[18], id[19]) = (first, (number >> 8) as u8, number as u8);
    let bits = 0x2001_0db8u128 << 96 | u128::from(number) << 64 | u128::from(first) << 80 | 1;
    let ip = IpAddr::V6(Ipv6Addr::from_bits(bits));
    Contact { id: NodeId::new(id), addr: SocketAddr::new(ip, 6881) }
}

fn table() -> Table {
    Table::new(OWN, false, Timestamp::ZERO)
}

/// A table in which these have answered.
fn with(nodes: impl IntoIterator<Item = Contact>) -> Table {
    let mut table = table();
    for contact in nodes {
        table.seen(contact, RTT, true, Timestamp::ZERO);
    }
    table
}

#[test]
fn who_has_not_answered_is_pinged_and_not_used() {
    let mut table = table();
    let new = node(0x80, 1);
    assert_eq!(table.seen(new, None, false, at(0)), Some(new));
    assert!(table.is_empty());
    assert_eq!(table.seen(new, RTT, true, at(1)), None);
    assert_eq!(table.closest(&OWN, K, at(1)), [new]);
}

#[test]
fn a_bucket_holds_as_many_as_it_may_and_the_range_of_our_own_id_is_divided() {
    for (bit, capacity) in [(0, 128), (1, 64), (2, 32), (3, 16), (4, 8), (7, 8)] {
        let table = with((0..200).map(|i| node(0x80 >> bit, i)));
        assert_eq!(table.len(), capacity, "{bit}");
    }
    let all = with((0..8).flat_map(|bit| (0..50).map(move |i| node(0x80 >> bit, i))));
    assert_eq!(all.len(), 50 + 50 + 32 + 16 + 4 * K);
}

#[test]
fn the_closest_are_the_closest_and_good_ones_come_first() {
    let mut table = with([node(0x80, 1), node(0x40, 2), node(0x20, 3)]);
    assert_eq!(table.closest(&OWN, 2, at(0)), [node(0x20, 3), node(0x40, 2)]);
    let start: Vec<_> = table.start(&OWN, 2).into_iter().map(|(contact, _)| contact).collect();
    assert_eq!(start, [node(0x20, 3), node(0x40, 2)]);
    table.failed(node(0x20, 3), at(1));
    assert_eq!(table.closest(&OWN, 3, at(1)), [node(0x40, 2), node(0x80, 1), node(0x20, 3)]);
    table.failed(node(0x20, 3), at(2));
    assert_eq!(table.closest(&OWN, 3, at(2)), [node(0x40, 2), node(0x80, 1)]);
}

#[test]
fn a_lookup_starts_at_a_few_only_of_those_that_are_closer_than_chance_has_it() {
    let target = node(0x80, 0).id;
    let crowd = (0..30).map(|i| node(0x80, i));
    let others = (1..9).map(|i| node(0x80 | i, i.into()));
    let start = with(crowd.chain(others)).start(&target, 2 * K);
    let near = start.iter().filter(|(c, _)| target.distance(&c.id).shared_bits() > 100).count();
    assert_eq!((near, start.len()), (MAX_STRANGE, MAX_STRANGE + 8));
}

#[test]
fn a_node_that_fails_gives_its_place_to_one_that_waits() {
    let mut table = with((0..9).map(|i| node(0x08, i)));
    let waits = |table: &Table| !table.contacts().any(|c| c == node(0x08, 8));
    assert_eq!(table.failed(node(0x08, 0), at(1)), None);
    assert!(waits(&table));
    assert_eq!(table.failed(node(0x08, 0), at(2)), None);
    assert!(!waits(&table));
    assert_eq!(table.len(), K);
}

#[test]
fn one_that_waits_but_never_answered_is_pinged_before_it_gets_a_place() {
    let mut table = with((0..8).flat_map(|i| [node(0x08, i), node(0x01, i)]));
    assert_eq!(table.seen(node(0x08, 8), None, false, at(1)), None);
    table.failed(node(0x08, 0), at(1));
    assert_eq!(table.failed(node(0x08, 0), at(2)), Some(node(0x08, 8)));
    table.seen(node(0x08, 8), RTT, true, at(3));
    assert!(table.contacts().any(|c| c == node(0x08, 8)));
    assert_eq!(table.contacts().count(), 2 * K);
}

#[test]
fn who_is_near_to_us_is_pinged_although_the_last_bucket_is_full() {
    let mut table = with((0..8).map(|i| node(0x08, i)));
    let near = node(0x04, 1);
    assert_eq!(table.seen(near, None, false, at(1)), Some(near));
    table.seen(near, RTT, true, at(2));
    assert_eq!(table.closest(&OWN, 1, at(2)), [near]);
    assert_eq!(table.len(), K + 1);
}

#[test]
fn buckets_that_have_room_are_named_one_after_the_other() {
    let full = (0..16).map(|i| node(0x10, i));
    let mut table = with(full.chain((0..7).flat_map(|i| [node(0x80, i), node(0x01, i)])));
    let mut named = Vec::new();
    while let Some((index, target)) = table.lacking(named.last().map_or(0, |last| last + 1)) {
        assert_eq!(table.index(&target), index);
        named.push(index);
    }
    // The fourth has as many as it may have.
    assert_eq!(named[..3], [0, 1, 2]);
    assert!(!named.contains(&3) && named.contains(&4));
}

#[test]
fn a_questionable_node_is_pinged_when_somebody_wants_its_place() {
    let mut table = with((0..8).map(|i| node(0x08, i)));
    for i in 1..8 {
        table.seen(node(0x08, i), RTT, true, at(800));
    }
    assert_eq!(table.seen(node(0x08, 8), RTT, true, at(899)), None);
    assert_eq!(table.seen(node(0x08, 9), RTT, true, at(900)), Some(node(0x08, 0)));
    table.seen(node(0x08, 0), RTT, true, at(901));
    assert_eq!(table.seen(node(0x08, 9), RTT, true, at(902)), None);
}

#[test]
fn an_id_whose_node_is_good_keeps_its_address() {
    let mut table = with([node(0x80, 1)]);
    let thief = Contact { id: node(0x80, 1).id, ..node(0x80, 2) };
    assert_eq!(table.seen(thief, RTT, true, at(1)), None);
    assert_eq!(table.closest(&OWN, 1, at(1)), [node(0x80, 1)]);
    // It may have moved once it is silent.
    table.failed(node(0x80, 1), at(2));
    table.seen(thief, RTT, true, at(3));
    assert_eq!(table.closest(&OWN, 1, at(3)), [thief]);
}

#[test]
fn one_network_has_one_place_in_a_bucket_unless_it_is_local() {
    let in_one = |ip: Ipv4Addr| {
        let mut table = Table::new(OWN, true, Timestamp::ZERO);
        for i in 0..K as u8 {
            let [a, b, c, _] = ip.octets();
            let addr = SocketAddr::new(Ipv4Addr::new(a, b, c, i + 1).into(), 6881);
            table.seen(Contact { addr, ..node(0x80, i.into()) }, RTT, true, at(0));
        }
        table.len()
    };
    assert_eq!(in_one(Ipv4Addr::new(192, 0, 2, 0)), 1);
    assert_eq!(in_one(Ipv4Addr::new(127, 0, 0, 0)), K);
}

#[test]
fn an_id_that_fits_its_address_takes_the_place_of_one_that_does_not() {
    let mut table = with((0..8).map(|i| node(0x08, i)));
    let id = |ip| (0..=u8::MAX).map(move |r| NodeId::secured(ip, [r; 20]));
    let fits = (100..).find_map(|number| {
        let addr = node(0x08, number).addr;
        let id = id(addr.ip()).find(|id| OWN.distance(id).shared_bits() == 4)?;
        Some(Contact { id, addr })
    });
    table.seen(fits.unwrap(), RTT, true, at(1));
    assert!(table.contacts().any(|c| Some(c) == fits));
    assert_eq!(table.len(), K);
}

#[test]
fn the_other_family_and_our_own_id_are_left_out() {
    let mut table = table();
    let v4 = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 1);
    table.seen(Contact { addr: v4, ..node(0x80, 1) }, RTT, true, at(0));
    table.seen(Contact { id: OWN, ..node(0x80, 1) }, RTT, true, at(0));
    assert!(table.is_empty());
}

#[test]
fn a_bucket_that_has_not_changed_is_refreshed_once_with_an_id_of_its_range() {
    let mut table = with((0..8).flat_map(|bit| (0..8).map(move |i| node(0x80 >> bit, i))));
    assert_eq!(table.next_refresh(), at(900));
    assert_eq!(table.refresh_due(at(899)), None);
    let mut ranges = BTreeSet::new();
    while let Some(target) = table.refresh_due(at(900)) {
        ranges.insert(OWN.distance(&target).shared_bits().min(7));
    }
    assert_eq!(ranges, (0..8).collect());
    assert_eq!(table.next_refresh(), at(1800));
    let again = std::iter::from_fn(|| table.refresh_due(at(1800))).next();
    assert_ne!(again, None);
}

#[test]
fn with_another_id_of_ours_all_find_their_places_anew() {
    let mut table = with((0..8).flat_map(|bit| (0..8).map(move |i| node(0x80 >> bit, i))));
    let own = NodeId::new([0x80; 20]);
    table.set_own(own, at(1));
    // All but eight are in the far half now.
    assert_eq!(table.len(), 8 * K);
    assert_eq!(table.index(&node(0x01, 1).id), 0);
    assert_eq!(table.own(), own);
    assert!(table.start(&own, 1)[0].1.is_some());
}

/// What may happen to a table.
#[derive(Clone, Debug)]
enum Step {
    Seen(u8, u16, bool),
    Failed(u8, u16),
    Wait(u64),
    Refresh,
    SetOwn(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let byte = || prop_oneof![any::<u8>(), (0u32..8).prop_map(|bit| 1u8 << bit)];
    prop_oneof![
        6 => (byte(), 0u16..12, any::<bool>()).prop_map(|(a, b, c)| Step::Seen(a, b, c)),
        2 => (byte(), 0u16..12).prop_map(|(a, b)| Step::Failed(a, b)),
        1 => (0u64..1_000).prop_map(Step::Wait),
        1 => Just(Step::Refresh),
        1 => byte().prop_map(Step::SetOwn),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_buckets_keep_their_bounds(steps in prop::collection::vec(step(), 0..400)) {
        let (mut table, mut now) = (table(), at(0));
        let mut answered = BTreeSet::new();
        for step in steps {
            match step {
                Step::Seen(first, number, yes) => {
                    answered.extend(yes.then(|| node(first, number)));
                    table.seen(node(first, number), RTT, yes, now);
                }
                Step::Failed(first, number) => drop(table.failed(node(first, number), now)),
                Step::Wait(secs) => now = now + Duration::from_secs(secs),
                Step::Refresh => {
                    let due = table.next_refresh() <= now;
                    prop_assert_eq!(table.refresh_due(now).is_some(), due);
                }
                Step::SetOwn(first) => table.set_own(NodeId::new([first; 20]), now),
            }
            for (bits, bucket) in table.buckets.iter().enumerate() {
                prop_assert!(bucket.nodes.len() <= Table::capacity(bits) && bucket.spare.len() <= K);
                for entry in &bucket.nodes {
                    prop_assert!(answered.contains(&entry.contact));
                    prop_assert_eq!(table.index(&entry.contact.id), bits);
                }
            }
            let ids: BTreeSet<_> = table.contacts().map(|c| c.id).collect();
            prop_assert_eq!(ids.len(), table.contacts().count());
            prop_assert!(!ids.contains(&table.own()));
        }
        for target in [NodeId::new([0x55; 20]), table.own(), table.own().flipped(2)] {
            let mut all: Vec<_> = table.usable().collect();
            all.sort_by_key(|e| (!e.is_good(now), target.distance(&e.contact.id)));
            let all: Vec<_> = all.into_iter().map(|e| e.contact).take(5).collect();
            prop_assert_eq!(table.closest(&target, 5, now), all);
        }
    }
}
