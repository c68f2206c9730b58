//! The simulated DHT in small.

use std::collections::BTreeSet;

use super::network::{Kind, Network, head};
use super::*;
use crate::proto::dht::{Contact, K, NodeId};

fn plan(nodes: usize) -> DhtPlan {
    DhtPlan { nodes, lookups: 40, lookers: 4, ..DhtPlan::default() }
}

fn crowd(networks: u32, fitting: bool) -> Option<Sybils> {
    Some(Sybils { count: 300, networks, bits: 21, fitting })
}

fn id(byte: u8) -> NodeId {
    NodeId::new([byte; 20])
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_seed_another() {
    let report = |seed| run(&DhtPlan { seed, ..plan(1_000) });
    assert_eq!(report(1), report(1));
    assert_ne!(report(1).done_ms, report(2).done_ms);
}

#[test]
fn all_contacts_differ_fit_their_addresses_and_are_found_again() {
    let network = Network::new(&plan(2_000), 0);
    let contacts: BTreeSet<Contact> = (0..network.len()).map(|at| network.contact(at)).collect();
    assert_eq!(contacts.len(), network.len());
    for at in 0..network.len() {
        let contact = network.contact(at);
        assert!(contact.id.fits(contact.addr.ip()));
        assert_eq!(network.find(&contact), Some(at));
    }
    assert_eq!(network.find(&Contact { id: id(7), ..network.contact(0) }), None);
}

#[test]
fn the_dead_and_those_that_died_are_as_many_as_was_said() {
    let network = Network::new(&DhtPlan { churn: 0.2, ..plan(7_000) }, 0);
    let share = |kind| {
        let such = (0..network.len()).filter(|at| network.kind(*at) == kind).count();
        such as f64 / network.len() as f64
    };
    assert!((share(Kind::Dead) - 0.3).abs() < 0.02);
    assert!((share(Kind::Died) - 0.14).abs() < 0.02);
}

#[test]
fn the_median_round_trip_is_as_was_said() {
    let network = Network::new(&plan(4_000), 0);
    let mut all: Vec<_> = (0..network.len()).map(|at| network.round_trip(at)).collect();
    all.sort();
    let (median, ninth) = (all[all.len() / 2].as_millis(), all[all.len() * 9 / 10].as_millis());
    assert!((83..92).contains(&median), "{median}");
    // e^(0.4 · 1.28) times the median.
    assert!((138..153).contains(&ninth), "{ninth}");
}

#[test]
fn a_node_names_k_of_the_bucket_and_always_the_same() {
    let network = Network::new(&plan(5_000), 0);
    let (own, target) = (network.contact(77).id, id(0xc3));
    let shared = own.distance(&target).shared_bits();
    let named = network.answer(77, &target);
    assert_eq!(named, network.answer(77, &target));
    assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), K);
    for at in named {
        assert!(network.contact(at).id.distance(&target).shared_bits() > shared);
    }
}

#[test]
fn where_nodes_are_few_a_node_knows_all_around_it() {
    let network = Network::new(&plan(500), 0);
    for at in [0, 100, 300] {
        let target = network.contact(at).id.flipped(30);
        let others = |found: Vec<usize>| found.into_iter().filter(|i| *i != at).collect::<Vec<_>>();
        let closest = others(network.closest(&target, 4, |_| true));
        let named = others(network.answer(at, &target));
        assert_eq!(named[..3], closest[..3]);
    }
}

#[test]
fn the_closest_are_those_that_a_search_through_all_finds() {
    let network = Network::new(&plan(1_000), 0);
    for byte in [0, 0x12, 0x80, 0xff] {
        let target = head(&id(byte));
        let distance = |at: &usize| head(&network.contact(*at).id) ^ target;
        let mut all: Vec<_> =
            (0..network.len()).filter(|at| network.kind(*at) == Kind::Alive).collect();
        all.sort_by_key(distance);
        assert_eq!(network.closest(&id(byte), 20, |kind| kind == Kind::Alive), all[..20]);
    }
}

#[test]
fn lookups_find_who_announced_and_the_closest_nodes_in_few_hops() {
    for (nodes, hops) in [(1_000, 3.2), (10_000, 4.0)] {
        let report = run(&plan(nodes));
        assert_eq!(report.found, 1.0, "{report}");
        assert!(report.recall > 0.95, "{report}");
        assert!(report.done_rtt.p50 < 6.5 && report.done_rtt.p95 < 11.0, "{report}");
        assert!(report.queries.p50 <= 36.0, "{report}");
        assert!(report.hops.mean < hops, "{report}");
        assert!(report.first_ms.p50 < report.done_ms.p50, "{report}");
    }
}

#[test]
fn the_size_of_the_network_is_estimated() {
    let report = run(&plan(10_000));
    assert!((7_000.0..14_000.0).contains(&report.size.mean), "{report}");
}

#[test]
fn lookups_end_well_also_with_loss_and_churn() {
    let report = run(&DhtPlan { loss: 0.05, churn: 0.2, ..plan(5_000) });
    assert_eq!(report.found, 1.0, "{report}");
    assert!(report.recall > 0.85, "{report}");
    assert!(report.done_rtt.p95 < 14.0, "{report}");
}

#[test]
fn when_nobody_is_dead_nothing_is_missed_and_it_is_quicker() {
    let report = run(&DhtPlan { dead: 0.0, ..plan(5_000) });
    assert!(report.recall > 0.97, "{report}");
    assert!(report.done_ms.p50 < run(&plan(5_000)).done_ms.p50, "{report}");
}

#[test]
fn a_crowd_around_the_hash_does_not_hide_who_announced() {
    for sybils in [crowd(1, false), crowd(300, false), crowd(300, true)] {
        let report = run(&DhtPlan { sybils, ..plan(3_000) });
        assert_eq!(report.found, 1.0, "{report}");
    }
}

#[test]
fn the_crowd_is_where_it_was_put_and_names_only_itself() {
    let plan = DhtPlan { sybils: crowd(100, true), ..plan(3_000) };
    let network = Network::new(&plan, head(&id(0x5a)));
    let closest = network.closest(&id(0x5a), 300, |_| true);
    assert!(closest.iter().all(|at| network.kind(*at) == Kind::Sybil));
    let contacts = closest.iter().map(|at| network.contact(*at));
    assert!(contacts.clone().all(|c| c.id.fits(c.addr.ip())));
    let networks: BTreeSet<_> = contacts.map(|c| c.addr.ip()).collect();
    assert_eq!(networks.len(), 100);
    assert_eq!(network.accomplices(&id(0x5a), K), closest[..K]);
}
