//! Runs in which a rule is broken or a bound is too tight: each checker must notice.

use std::time::Duration;

use super::world::World;
use super::*;

fn plan(name: &str, peers: usize) -> Plan {
    let settings = Settings { seed: 1, peers: Some(peers), size: Some(16 << 20) };
    Plan::scenario(name, settings).unwrap()
}

/// Whether something of this kind is found, and whether it is told how to see it again.
fn finds(plan: Plan, what: &str) {
    let report = run(plan).unwrap();
    assert!(report.violations.iter().any(|v| v.contains(what)), "{what}: {report}");
    assert!(report.to_string().contains("replay with  p2pfs sim"), "{report}");
}

fn broken(name: &str, rule: Rule, what: &str) {
    finds(Plan { breaks: Some(rule), ..plan(name, 10) }, what);
}

fn bounded(change: impl FnOnce(&mut Bounds), what: &str) {
    let mut plan = plan("flash-crowd", 10);
    change(&mut plan.bounds);
    finds(plan, what);
}

#[test]
fn without_the_gate_wrong_bytes_show_up() {
    broken("liars", Rule::Gate, "wrong bytes became readable");
}

#[test]
fn an_upload_of_what_was_not_verified_is_found() {
    broken("flash-crowd", Rule::Keep, "would send piece");
}

#[test]
fn a_torrent_that_is_complete_and_lacks_something_is_found() {
    let mut plan = plan("flash-crowd", 1);
    plan.breaks = Some(Rule::Keep);
    finds(plan, "is complete and lacks 64 pieces");
}

#[test]
fn a_read_that_ends_without_verified_bytes_is_found() {
    let mut plan = plan("reader", 1);
    plan.breaks = Some(Rule::Keep);
    finds(plan, "unverified bytes: true");
}

#[test]
fn a_block_asked_twice_of_one_peer_is_found() {
    broken("flash-crowd", Rule::AskOnce, "asks twice for");
}

#[test]
fn a_block_asked_for_although_it_is_here_is_found() {
    broken("flash-crowd", Rule::AskForMissing, "which it has");
}

#[test]
fn a_block_asked_of_two_peers_too_early_is_found() {
    broken("flash-crowd", Rule::AskOne, "asks a second peer");
}

#[test]
fn a_reader_may_not_have_everything_asked_of_two_peers() {
    broken("reader", Rule::AskOne, "asks a second peer");
}

#[test]
fn a_read_that_nobody_answers_though_they_could_is_found() {
    broken("reader", Rule::Serve, "though an honest peer serves it");
}

#[test]
fn a_read_that_is_not_answered_when_its_bytes_are_there_is_found() {
    broken("reader", Rule::Reply, "reads wait on 1 nodes that have everything");
}

#[test]
fn a_read_for_which_nobody_is_unchoked_is_found() {
    broken("reader", Rule::Unchoke, "though somebody has the bytes");
}

#[test]
fn a_ban_of_who_did_not_lie_is_found() {
    let mut world = World::new(plan("flash-crowd", 3)).unwrap();
    world.bans.insert((1, 2));
    world.check_blame();
    assert!(world.violations[0].contains("honest nodes banned 1 that did not lie"));
}

#[test]
fn who_never_gets_what_others_have_is_found() {
    broken("flash-crowd", Rule::Serve, "lack pieces that honest nodes have");
}

#[test]
fn too_many_connections_are_found() {
    bounded(|bounds| bounds.connections = 9, "has 10 connections, of at most 9");
}

#[test]
fn too_many_attempts_to_connect_are_found() {
    bounded(|bounds| bounds.connecting = 2, "has 3 attempts to connect");
}

#[test]
fn too_many_blocks_asked_of_one_peer_are_found() {
    bounded(|bounds| bounds.outstanding = 10, "has 11 blocks asked of one peer");
}

#[test]
fn too_long_an_upload_queue_is_found() {
    bounded(|bounds| bounds.uploads = 4, "has 5 unanswered requests of one peer");
}

#[test]
fn too_many_known_peers_are_found() {
    bounded(|bounds| bounds.known_peers = 9, "has 10 known peers");
}

#[test]
fn too_many_unchoked_peers_are_found() {
    bounded(|bounds| bounds.unchoked = 3, "has 4 unchoked peers");
}

#[test]
fn too_long_a_datagram_is_found() {
    bounded(|bounds| bounds.datagram = 97, "bytes in a datagram, of at most 97");
}

#[test]
fn too_much_memory_is_found() {
    bounded(|bounds| bounds.memory = 0, "bytes of pieces on their way, of at most 786432");
}

#[test]
fn too_long_a_wait_for_a_read_is_found() {
    let mut plan = plan("reader", 10);
    plan.nodes.iter_mut().for_each(|node| node.up /= 100.0);
    plan.bounds.read_wait = Duration::from_secs(5);
    finds(plan, "though an honest peer serves it");
}

#[test]
fn a_connection_of_which_the_machine_does_not_know_is_found() {
    let mut world = World::new(plan("flash-crowd", 3)).unwrap();
    while world.nodes[0].links.len() < 3 {
        assert!(world.step());
    }
    world.check_machine(0);
    assert_eq!(world.violations, [""; 0]);
    world.node(0).links.pop_first();
    world.check_machine(0);
    assert!(world.violations[0].contains("node 0 knows 3 of 2 connections"));
}
