//! From knowing nobody to having a place.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

#[test]
fn nodes_that_know_one_router_find_each_other() {
    let net = Net::of(60);
    for (addr, dht) in &net.nodes {
        let known = dht.stats().nodes[0];
        assert!(known >= 2 * K, "{addr} knows {known}");
    }
}

#[test]
fn a_node_knows_those_near_to_it_who_came_after_it() {
    let net = Net::of(200);
    let ids: Vec<_> = net.nodes.values().map(|dht| dht.stats().ids[0].unwrap()).collect();
    let mut known = 0;
    for dht in net.nodes.values() {
        let own = dht.stats().ids[0].unwrap();
        let mut near: Vec<_> = ids.iter().filter(|id| **id != own).collect();
        near.sort_by_key(|id| own.distance(id));
        known += near[..K].iter().filter(|id| dht.contacts(true).any(|c| c.id == ***id)).count();
    }
    assert!(known >= 200 * K * 97 / 100, "{known} of {}", 200 * K);
}

#[test]
fn a_lookup_begun_before_anybody_is_known_begins_with_the_first_answer() {
    let mut net = Net::of(60);
    net.announce(local(7), hash(1), false);
    net.join(local(99), CONFIG, local(99));
    let began = net.now;
    let lookup = net.with(local(99), |dht, now| dht.get_peers(hash(1), GetPeers::default(), now));
    net.with(local(99), |dht, now| dht.add_node(local(0), now));
    net.outcome(local(99), lookup);
    assert_eq!(net.peers(local(99)), [SocketAddr::new(local(7).ip(), 7_000)]);
    let first = net.said.iter().find(|(.., o)| matches!(o, Output::Peers { .. })).unwrap().0;
    assert!(first.since(began) <= Duration::from_millis(200), "{:?}", first.since(began));
}

#[test]
fn a_router_that_does_not_answer_is_asked_again() {
    let mut net = Net::of(20);
    net.dead.insert(local(0));
    net.join(local(99), CONFIG, local(0));
    net.run(secs(5));
    assert_eq!(net.nodes[&local(99)].stats().nodes[0], 0);
    net.dead.clear();
    net.run(secs(10));
    assert!(net.nodes[&local(99)].stats().nodes[0] >= K);
}

#[test]
fn a_lookup_without_anybody_ends() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(1));
    let (peers, outcome) = net.find(local(1), hash(1), GetPeers::default());
    assert_eq!((peers, outcome), (Vec::new(), Outcome::NoNodes));
    assert!(net.nodes[&local(1)].poll_timeout().is_none());
}

#[test]
fn a_saved_table_makes_a_start_without_routers() {
    let mut net = Net::of(40);
    net.announce(local(7), hash(1), false);
    let saved = net.nodes[&local(3)].save();
    let id = net.nodes[&local(3)].stats().ids[0];
    net.leave(local(3));
    net.join(local(99), CONFIG, local(99));
    net.with(local(99), |dht, now| dht.restore(&saved, now));
    let began = net.now;
    let (peers, _) = net.find(local(99), hash(1), GetPeers::default());
    assert_eq!(peers, [SocketAddr::new(local(7).ip(), 7_000)]);
    assert!(net.said[0].0.since(began) <= Duration::from_millis(200));
    assert_eq!(net.nodes[&local(99)].stats().ids[0], id);
}

#[test]
fn a_broken_saved_table_is_ignored() {
    let mut net = Net::of(1);
    for saved in [&b""[..], b"le", b"d5:nodesi1ee", b"d2:id3:abc5:nodes3:abce"] {
        net.with(local(0), |dht, now| dht.restore(saved, now));
    }
    assert_eq!(net.nodes[&local(0)].stats().nodes, [0, 0]);
}

#[test]
fn after_an_outage_a_node_finds_its_way_back() {
    let mut net = Net::of(30);
    let all: Vec<_> = net.nodes.keys().copied().filter(|addr| *addr != local(5)).collect();
    net.dead.extend(all);
    for n in 0..40 {
        let target = NodeId::new([6 * n; 20]);
        let lookup = net.with(local(5), |dht, now| dht.find_node(target, now));
        net.outcome(local(5), lookup);
    }
    net.dead.clear();
    net.run(secs(70));
    net.announce(local(7), hash(1), false);
    let (peers, _) = net.find(local(5), hash(1), GetPeers::default());
    assert_eq!(peers.len(), 1);
}

#[test]
fn by_ipv6_ids_follow_the_addresses_that_others_see() {
    let net = Net::grown(30, CONFIG6, global);
    for (addr, dht) in &net.nodes {
        let id = dht.stats().ids[1].unwrap();
        assert!(id.fits(addr.ip()), "{addr} is still {id}");
    }
}

#[test]
fn an_id_changes_when_most_see_us_elsewhere_and_contacts_stay() {
    let mut net = Net::of(30);
    let before = net.nodes[&local(5)].stats();
    let ours: IpAddr = "198.51.100.7".parse().unwrap();
    net.with(local(5), |dht, now| dht.voted(global(1).ip(), ours, now));
    assert_eq!(net.nodes[&local(5)].stats().ids, before.ids);
    // More than all the nodes that have seen it at its local address.
    for n in 0..50 {
        let voter = SocketAddr::new(Ipv4Addr::new(203, 0, 113, n).into(), 1);
        net.with(local(5), |dht, now| dht.voted(voter.ip(), ours, now));
    }
    let after = net.nodes[&local(5)].stats();
    assert_ne!(after.ids, before.ids);
    assert!(after.ids[0].unwrap().fits(ours));
    assert_eq!(after.external[0], Some(ours));
    assert!(after.nodes[0] + 4 >= before.nodes[0], "{} {}", after.nodes[0], before.nodes[0]);
}

#[test]
fn two_networks_do_not_move_an_id() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(1));
    let ids = |net: &Net| net.nodes[&local(1)].stats().ids[0];
    let (before, ours) = (ids(&net), [198, 51, 100, 7].into());
    for n in 0..4 {
        assert_eq!(ids(&net), before, "after {n}");
        let voter = Ipv4Addr::new(203, 0, 113, n).into();
        net.with(local(1), |dht, now| dht.voted(voter, ours, now));
    }
    assert!(ids(&net) != before && ids(&net).unwrap().fits(ours));
}

#[test]
fn a_given_id_stays() {
    let mut net = Net::new();
    let id = NodeId::new([3; 20]);
    net.join(local(1), Config { id: Some(id), ..CONFIG }, local(1));
    for n in 0..50 {
        let voter = Ipv4Addr::new(203, 0, 113, n).into();
        net.with(local(1), |dht, now| dht.voted(voter, [198, 51, 100, 7].into(), now));
    }
    assert_eq!(net.nodes[&local(1)].stats().ids[0], Some(id));
}

#[test]
fn a_node_of_both_families_finds_the_other_through_the_first() {
    let both = Config { v6: true, ..CONFIG };
    let mut net = Net::new();
    net.second = BTreeMap::from([(global(0), local(0)), (global(99), local(99))]);
    net.join(global(0), both, global(0));
    for n in 1..12 {
        net.join(global(n), CONFIG6, global(0));
        net.join(local(n), CONFIG, local(0));
    }
    net.run(secs(20));
    net.join(global(99), both, local(0));
    net.run(secs(20));
    let stats = net.nodes[&global(99)].stats();
    assert!(stats.nodes[0] >= K && stats.nodes[1] >= K, "{stats:?}");
}

#[test]
fn a_silent_other_family_is_not_asked_without_end() {
    let both = Config { v6: true, ..CONFIG };
    let mut net = Net::of(20);
    net.join(local(99), both, local(0));
    let hint = Contact { id: NodeId::new([1; 20]), addr: global(1) };
    net.scripts.insert(
        local(98),
        Box::new(move |_, datagram| {
            let Some((transaction, _)) = question(datagram) else { return Vec::new() };
            let mut answer = Answer::new(NodeId::new([2; 20]));
            answer.nodes6 = Some(vec![hint; 8]);
            vec![answer_to(transaction, answer)]
        }),
    );
    let asked = Rc::new(Cell::new(0));
    let counted = asked.clone();
    let count = move |_, _: &[u8]| {
        counted.set(counted.get() + 1);
        Vec::new()
    };
    net.scripts.insert(global(1), Box::new(count));
    for _ in 0..100 {
        net.with(local(99), |dht, now| dht.add_node(local(98), now));
        net.run(secs(1));
    }
    assert!((1..=8 * K).contains(&asked.get()), "{}", asked.get());
}
