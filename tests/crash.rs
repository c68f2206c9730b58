//! A few rounds of `make crash`: killed at random moments, on a disk that is full or fails, and after a
//! power cut, the daemon never gives out a wrong byte and loses little.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::Path;
use std::process::Command;

use harness::*;

fn rounds(fault: &str, rounds: u32) {
    let scratch = Scratch::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/crash.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(env!("CARGO_BIN_EXE_p2pfs")).args(["--faults", fault]);
    command.args(["--rounds", &rounds.to_string()]).env("TMPDIR", scratch.root());
    let said = run(&scratch, &mut command, 3 * PATIENCE).success().stdout();
    assert!(said.contains("without a wrong byte"), "{said}");
    eprintln!("{said}");
}

#[test]
fn killed_at_random_moments_it_gives_out_no_wrong_byte() {
    rounds("kill", 2);
}

#[test]
fn with_errors_of_the_disk_and_a_damaged_index_it_gives_out_no_wrong_byte() {
    rounds("eio,torn", 1);
}

#[test]
fn on_disks_that_are_full_or_become_read_only_it_gives_out_no_wrong_byte() {
    if can_make_disks() {
        rounds("full,readonly", 1);
    }
}

#[test]
fn after_a_power_cut_what_was_verified_five_seconds_before_is_there() {
    if can_make_disks() {
        rounds("power", 1);
    }
}

/// Only root may, where the kernel has loop devices.
fn can_make_disks() -> bool {
    let can = nix::unistd::Uid::effective().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        eprintln!("not tried: there are no loop devices, or they are not ours");
    }
    can
}
