//! Scenarios in small, run to their end.

use super::*;

fn plan(name: &str, seed: u64) -> Plan {
    let size = Some(16 << 20);
    Plan::scenario(name, Settings { seed, size, ..Settings::default() }).unwrap()
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
    for (name, _) in SCENARIOS {
        let report = sound(plan(name, 1));
        assert!(report.last_s.is_some(), "{report}");
    }
}

#[test]
fn without_the_gate_wrong_bytes_show_up() {
    let ungated = Plan { gate: false, ..plan("liars", 3) };
    let report = run(ungated).unwrap();
    assert!(report.wrong_bytes > 0, "{report}");
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
fn lost_datagrams_keep_nobody_from_the_tracker() {
    for seed in 0..3 {
        let report = sound(plan("lossy", seed));
        assert!(report.last_s.is_some(), "{report}");
        assert!(report.datagrams_lost * 5 > report.datagrams, "{report}");
        assert!(report.announces >= 11, "{report}");
    }
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
fn an_unknown_scenario_is_named_with_those_there_are() {
    let error = Plan::scenario("nonsense", Settings::default()).unwrap_err();
    assert!(error.to_string().contains("flash-crowd"));
}

#[test]
fn the_plot_has_a_curve_for_each_peer() {
    let report = run(plan("worked-example", 1)).unwrap();
    assert_eq!(report.plot().matches("<polyline").count(), 3);
}
