//! `p2pfs sim`: the same command gives the same bytes, and the one that a report names is the same.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn sim(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
    command.current_dir(dir).arg("sim").args(arguments).output().unwrap()
}

/// What a run of a small churn writes to its trace and to standard output.
fn churn(seed: &str) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let small = ["churn", "--peers", "6", "--size", "4M", "--json", "--trace", "trace"];
    let output = sim(dir.path(), &[&small[..], &["--seed", seed]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (std::fs::read(dir.path().join("trace")).unwrap(), output.stdout)
}

#[test]
fn a_seed_gives_the_same_trace_and_report_byte_for_byte() {
    let (first, again, other) = (churn("5"), churn("5"), churn("6"));
    assert!(first == again);
    assert!(first.0 != other.0 && first.1 != other.1);
}

#[test]
fn the_command_in_a_report_gives_the_same_report() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["worked-example", "--json", "--seed", "9"][..],
        &["lossy", "--json", "--peers", "4", "--size", "1M"],
    ] {
        let first = sim(dir.path(), arguments).stdout;
        let report: serde_json::Value = serde_json::from_slice(&first).unwrap();
        let command = report["replay"].as_str().unwrap().strip_prefix("p2pfs sim ").unwrap();
        let again: Vec<_> = command.split(' ').chain(["--json"]).collect();
        assert!(first == sim(dir.path(), &again).stdout, "{command}");
    }
}

#[test]
fn the_trace_has_a_line_for_each_event() {
    let (trace, report) = churn("7");
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let lines = String::from_utf8(trace).unwrap();
    assert_eq!(lines.lines().count() as u64, report["events"].as_u64().unwrap());
    let time = |line: &str| line.split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(lines.lines().map(time).is_sorted());
    for event in ["join 0", "datagram 127.0.0.1:6881 to ", "request ", "block ", "judged "] {
        assert!(lines.contains(event), "{event}");
    }
}

#[test]
fn the_list_tells_what_each_scenario_shows() {
    let dir = tempfile::tempdir().unwrap();
    let list = String::from_utf8(sim(dir.path(), &["--list"]).stdout).unwrap();
    let help = String::from_utf8(sim(dir.path(), &["--help"]).stdout).unwrap();
    for scenario in p2pfs::sim::SCENARIOS {
        for text in [scenario.name, scenario.shows] {
            assert!(list.contains(text) && help.contains(text), "{text}");
        }
    }
}

#[test]
fn what_cannot_be_simulated_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, code, named) in [
        (&["nonsense"][..], 1, "`nonsense`"),
        (&["flash-crowd", "--peers", "0"], 1, "--peers"),
        (&["flash-crowd", "--trace", "no/such/place"], 1, "no/such/place"),
        (&[], 2, "SCENARIO"),
    ] {
        let output = sim(dir.path(), arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(named), "{said}");
    }
}

#[test]
fn the_dht_gives_the_same_report_byte_for_byte_and_finds_who_announced() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [&["--nodes", "2000"][..], &["--nodes", "200", "--machines"]] {
        let small = ["dht", "--lookups", "20", "--json", "--seed", "3"];
        let arguments = [&small[..], kind].concat();
        let first = sim(dir.path(), &arguments);
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        assert!(first.stdout == sim(dir.path(), &arguments).stdout, "{kind:?}");
        let report: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
        assert_eq!(report["found"].as_f64(), Some(1.0), "{report}");
        assert_eq!(report["lookups"].as_u64(), Some(20), "{report}");
    }
}

#[test]
fn the_report_of_the_dht_names_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["dht", "--nodes", "500", "--lookups", "10"];
    let text = String::from_utf8(sim(dir.path(), &small).stdout).unwrap();
    for named in ["p50", "p95", "first, ms", "done, RTT", "queries", "hops", "recall", "memory"] {
        assert!(text.contains(named), "{named}: {text}");
    }
}

#[test]
fn a_dht_that_cannot_be_is_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, code, named) in [
        (&["dht", "--nodes", "3"][..], 1, "--nodes"),
        (&["dht", "--dead", "1.5"], 2, "--dead"),
        (&["dht", "--lookups", "0"], 1, "--lookups"),
        (&["dht", "--bits", "3"], 2, "--sybils"),
    ] {
        let output = sim(dir.path(), arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(named), "{said}");
    }
}
