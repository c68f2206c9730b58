//! Scenarios in small, run to their end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::datagram::Datagram;
use super::world::{self, World};
use super::*;
use crate::proto::time::Timestamp;

fn plan(name: &str, seed: u64) -> Plan {
    let size = Some(16 << 20);
    Plan::scenario(name, Settings { seed, size, ..Settings::default() }).unwrap()
}

/// A seed and three empty peers share four pieces.
fn worked_example(seed: u64) -> Plan {
    Plan::scenario("worked-example", Settings { seed, ..Settings::default() }).unwrap()
}

fn sound(plan: Plan) -> Report {
    let report = run(plan).unwrap();
    assert!(report.violations.is_empty(), "{report}");
    assert_eq!(report.wrong_bytes, 0, "{report}");
    assert_eq!(report.banned_honest, 0, "{report}");
    report
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let (a, b, c) = (plan("churn", 5), plan("churn", 5), plan("churn", 6));
    let (a, b, c) = (run(a).unwrap(), run(b).unwrap(), run(c).unwrap());
    assert_eq!(a, b);
    assert_ne!(a.trace, c.trace);
}

#[test]
fn nothing_forbidden_happens_in_any_scenario() {
    for scenario in SCENARIOS {
        let report = sound(plan(scenario.name, 1));
        assert!(report.last_s.is_some(), "{report}");
    }
}

#[test]
fn every_liar_is_banned() {
    for seed in 0..3 {
        let report = sound(plan("liars", seed));
        assert_eq!(report.unbanned_liars, 0, "{report}");
    }
}

#[test]
fn the_seed_may_leave_after_one_copy() {
    let report = sound(plan("seed-leaves", 2));
    assert!(report.last_s.is_some(), "{report}");
}

#[test]
fn in_the_worked_example_all_finish_also_when_the_seed_leaves_after_one_copy() {
    for seed in 0..10 {
        for leaves in [Leave::Never, Leave::AfterOneCopy] {
            let mut plan = worked_example(seed);
            plan.nodes[0].leaves = leaves;
            let report = sound(plan);
            assert!(report.last_s.is_some(), "{report}");
        }
    }
}

#[test]
fn in_the_worked_example_three_pieces_go_out_first_and_each_leaves_the_seed_once() {
    for seed in 0..10 {
        let report = sound(worked_example(seed));
        let mut pieces: Vec<_> = report.seed_sent.iter().map(|(piece, _)| *piece).collect();
        let first: BTreeSet<_> = pieces.iter().take(3).collect();
        assert_eq!(first.len(), 3, "seed {seed}: {pieces:?}");
        pieces.sort();
        assert_eq!(pieces, [0, 1, 2, 3], "seed {seed}");
        assert!(report.last_s.is_some(), "{report}");
    }
}

#[test]
fn of_what_many_read_at_once_little_more_than_one_copy_leaves_the_seed() {
    let settings = Settings { seed: 1, size: Some(32 << 20), ..Settings::default() };
    let report = sound(Plan::scenario("many-readers", settings).unwrap());
    assert!(report.seed_copies < 1.5, "{report}");
    assert!(report.readers.iter().all(|reader| reader.done_s.is_some()), "{report}");
}

/// A scenario in which no choker knows what its uplink can send.
fn without_limits(name: &str, seed: u64) -> Report {
    let settings = Settings { seed, size: Some(64 << 20), ..Settings::default() };
    let plan = Plan::scenario(name, settings).unwrap();
    sound(Plan { upload_limits: false, ..plan })
}

#[test]
fn without_upload_limits_a_crowd_is_as_fast_and_free_riders_come_last() {
    for seed in 1..3 {
        let report = without_limits("flash-crowd", seed);
        assert!(report.ratio.is_some_and(|ratio| ratio < 1.2), "{report}");
        assert!(report.seed_copies < 1.1, "{report}");
        let report = without_limits("free-riders", seed);
        assert_eq!(report.free_rider_last, Some(true), "{report}");
    }
}

#[test]
fn lost_datagrams_keep_nobody_from_the_tracker() {
    for seed in 0..3 {
        let report = sound(plan("lossy", seed));
        assert!(report.last_s.is_some(), "{report}");
        assert!(report.datagrams_lost * 5 > report.datagrams, "{report}");
        assert!(report.announces >= 11, "{report}");
    }
}

#[test]
fn peers_of_one_that_crashed_wait_for_it_no_longer_than_they_may() {
    let mut plan = plan("flash-crowd", 1);
    plan.nodes.iter_mut().for_each(|node| node.up /= 20.0);
    plan.nodes[3].leaves = Leave::Crash(Timestamp::ZERO + Duration::from_secs(40));
    let report = sound(plan);
    assert_eq!(report.timeouts, 10, "{report}");
    let others = report.peers.iter().filter(|peer| peer.id != 3);
    assert!(others.clone().all(|peer| peer.done_s.is_some()), "{report}");
}

#[test]
fn a_connection_that_breaks_is_gone_at_both_ends() {
    let mut world = World::new(plan("flash-crowd", 1)).unwrap();
    while world.nodes.iter().map(|n| n.links.len()).sum::<usize>() < 20 {
        assert!(world.step());
    }
    let links = |world: &World| world.nodes.iter().map(|n| n.links.len()).sum::<usize>();
    let before = links(&world);
    world.reset();
    assert_eq!(links(&world), before - 2);
    (0..11).for_each(|id| world.check_machine(id));
    assert_eq!(world.violations, [""; 0]);
}

#[test]
fn connections_to_who_crashed_time_out_in_churn() {
    let settings = Settings { seed: 3, ..Settings::default() };
    let report = sound(Plan::scenario("churn", settings).unwrap());
    assert!(report.timeouts > 0, "{report}");
}

#[test]
fn a_nat_keeps_out_datagrams_from_where_nothing_was_sent() {
    let mut world = World::new(plan("natted", 1)).unwrap();
    while world.tracker.announces < 11 {
        assert!(world.step());
    }
    let from_a_peer =
        |to| Datagram { from: world::addr(4), to: world::addr(to), payload: vec![0; 20] };
    world.datagram(from_a_peer(2));
    assert_eq!(world.filtered, 0);
    world.datagram(from_a_peer(1));
    assert_eq!(world.filtered, 1);
}

#[test]
fn who_is_behind_a_nat_gets_everything_and_gives() {
    let report = sound(plan("natted", 1));
    let natted = report.peers.iter().skip(1).step_by(2);
    for peer in natted {
        assert!(peer.done_s.is_some() && peer.uploaded > 0, "{report}");
    }
}

#[test]
fn when_the_tracker_has_died_peers_find_each_other_through_one_that_they_know() {
    for seed in 0..3 {
        let report = sound(plan("tracker-dies", seed));
        let stayed = report.peers.iter().filter(|peer| peer.id > 1);
        assert!(
            stayed.clone().count() == 9 && stayed.clone().all(|p| p.done_s.is_some()),
            "{report}"
        );
    }
}

#[test]
fn without_peer_exchange_those_who_come_after_the_tracker_has_died_are_lost() {
    let mut plan = plan("tracker-dies", 0);
    plan.pex = false;
    let report = run(plan).unwrap();
    let late = report.peers.iter().filter(|peer| peer.id > 5);
    assert!(late.clone().count() == 5 && late.clone().all(|p| p.done_s.is_none()), "{report}");
}

#[test]
fn an_unknown_scenario_is_named_with_those_there_are() {
    let error = Plan::scenario("nonsense", Settings::default()).unwrap_err();
    assert!(error.to_string().contains("flash-crowd"));
}

#[test]
fn the_plot_has_a_curve_for_each_peer() {
    let report = run(plan("worked-example", 1)).unwrap();
    assert_eq!(report.plot().matches("<polyline").count(), 3);
}
