//! Peers: announced, found, counted.

use super::*;

#[test]
fn who_announces_is_found_from_everywhere() {
    let mut net = Net::of(60);
    assert!(net.announce(local(7), hash(1), false) >= K);
    for n in [0, 20, 59] {
        let (peers, outcome) = net.find(local(n), hash(1), GetPeers::default());
        assert_eq!(peers, [SocketAddr::new(local(7).ip(), 7_000)]);
        assert!(matches!(outcome, Outcome::Peers { peers: 1, announced: 0, .. }), "{outcome:?}");
    }
}

#[test]
fn peers_come_with_the_answers_and_each_once() {
    let mut net = Net::of(60);
    for n in 1..20 {
        net.announce(local(n), hash(1), false);
    }
    let began = net.now;
    let (mut peers, _) = net.find(local(50), hash(1), GetPeers::default());
    let (first, ..) = net.said.first().unwrap();
    let given = net.said.iter().filter(|(.., output)| matches!(output, Output::Peers { .. }));
    assert!(first.since(began) <= 3 * 2 * DELAY && given.count() > 1);
    peers.sort();
    let expected: Vec<_> = (1..20).map(|n| SocketAddr::new(local(n).ip(), 7_000)).collect();
    assert_eq!(peers, expected);
}

#[test]
fn an_implied_port_is_the_one_that_is_asked_from() {
    let mut net = Net::of(20);
    let announce = Some(Announce { port: 1, implied: true, seed: false });
    let options = GetPeers { announce, ..GetPeers::default() };
    net.find(local(3), hash(1), options);
    let (peers, _) = net.find(local(9), hash(1), GetPeers::default());
    assert_eq!(peers, [local(3)]);
}

#[test]
fn seeds_are_not_found_by_those_that_have_no_use_for_them() {
    let mut net = Net::of(30);
    net.announce(local(1), hash(1), true);
    net.announce(local(2), hash(1), false);
    let options = GetPeers { no_seed: true, ..GetPeers::default() };
    let (peers, _) = net.find(local(9), hash(1), options);
    assert_eq!(peers, [SocketAddr::new(local(2).ip(), 7_000)]);
}

#[test]
fn a_scrape_counts_seeds_and_others_of_all_nodes_together() {
    let mut net = Net::of(60);
    for n in 1..41 {
        net.announce(local(n), hash(1), n < 11);
    }
    let options = GetPeers { scrape: true, ..GetPeers::default() };
    let (_, outcome) = net.find(local(50), hash(1), options);
    let Outcome::Peers { scrape: Some(Scrape { seeds, peers }), .. } = outcome else { panic!() };
    assert!((9..=11).contains(&seeds) && (28..=32).contains(&peers), "{seeds} {peers}");
}

#[test]
fn peers_that_announced_to_ourselves_are_found_at_once() {
    let mut net = Net::of(2);
    net.announce(local(1), hash(1), false);
    net.with(local(0), |dht, now| dht.get_peers(hash(1), GetPeers::default(), now));
    assert_eq!(net.peers(local(0)), [SocketAddr::new(local(1).ip(), 7_000)]);
}

#[test]
fn the_closest_nodes_are_found() {
    let mut net = Net::of(80);
    let target = NodeId::new([0x5a; 20]);
    let lookup = net.with(local(4), |dht, now| dht.find_node(target, now));
    let Outcome::Nodes(found) = net.outcome(local(4), lookup) else { panic!() };
    let mut all: Vec<_> = net
        .nodes
        .iter()
        .filter(|(addr, _)| **addr != local(4))
        .map(|(addr, dht)| Contact { id: dht.stats().ids[0].unwrap(), addr: *addr })
        .collect();
    all.sort_by_key(|contact| target.distance(&contact.id));
    assert_eq!(found, all[..K]);
}

#[test]
fn the_number_of_nodes_is_estimated() {
    let net = Net::of(100);
    let estimates: Vec<_> = net.nodes.values().filter_map(|dht| dht.stats().network[0]).collect();
    assert!(estimates.len() > 90);
    let right = estimates.iter().filter(|n| (30..300).contains(*n)).count();
    assert!(right > 80, "{estimates:?}");
}

#[test]
fn more_lookups_than_at_once_wait_for_their_turn() {
    let mut net = Net::of(30);
    let looking = |dht: &mut Dht, n: usize, now| {
        dht.get_peers(InfoHash::of(&n.to_be_bytes()), GetPeers::default(), now)
    };
    let lookups: Vec<_> =
        (0..100).map(|n| net.with(local(4), |dht, now| looking(dht, n, now))).collect();
    assert_eq!(net.nodes[&local(4)].stats().lookups, [MAX_LOOKUPS, 100 - MAX_LOOKUPS]);
    for lookup in lookups {
        assert!(matches!(net.outcome(local(4), lookup), Outcome::Peers { .. }));
    }
    for n in 0..MAX_LOOKUPS + MAX_QUEUED {
        net.with(local(4), |dht, now| looking(dht, n, now));
    }
    let one_more = net.with(local(4), |dht, now| looking(dht, 9_999, now));
    assert_eq!(net.outcome(local(4), one_more), Outcome::Refused);
}

#[test]
fn a_cancelled_lookup_says_nothing_more_and_makes_room() {
    let mut net = Net::of(30);
    net.announce(local(1), hash(1), false);
    let all: Vec<_> = (0..MAX_LOOKUPS + 1)
        .map(|_| net.with(local(4), |dht, now| dht.get_peers(hash(1), GetPeers::default(), now)))
        .collect();
    let (last, first) = (all[MAX_LOOKUPS], &all[..MAX_LOOKUPS]);
    net.said.clear();
    for lookup in first {
        net.with(local(4), |dht, now| dht.cancel(*lookup, now));
    }
    net.outcome(local(4), last);
    let of_last = |output: &Output| match output {
        Output::Peers { lookup, .. } | Output::Finished { lookup, .. } => *lookup == last,
        Output::Transmit { .. } => true,
    };
    assert!(net.said.iter().all(|(_, _, output)| of_last(output)), "{:?}", net.said);
}

#[test]
fn a_ping_says_who_is_there_and_how_far() {
    let mut net = Net::of(2);
    let ping = net.with(local(0), |dht, now| dht.ping(local(1), now));
    let id = net.nodes[&local(1)].stats().ids[0].unwrap();
    let contact = Contact { id, addr: local(1) };
    assert_eq!(net.outcome(local(0), ping), Outcome::Pong { contact, rtt: 2 * DELAY });
    let ping = net.with(local(0), |dht, now| dht.ping(local(77), now));
    assert_eq!(net.outcome(local(0), ping), Outcome::NoAnswer);
}

#[test]
fn a_sample_has_what_a_node_keeps() {
    let mut net = Net::of(2);
    for n in 1..4 {
        net.announce(local(1), hash(n), false);
    }
    let lookup = net.with(local(1), |dht, now| dht.sample(local(0), NodeId::new([0; 20]), now));
    let Outcome::Samples { samples: Some(mut samples), .. } = net.outcome(local(1), lookup) else {
        panic!()
    };
    samples.hashes.sort();
    assert_eq!(samples.hashes, [hash(1), hash(2), hash(3)]);
    assert_eq!((samples.count, samples.interval), (3, 300));
}

#[test]
fn the_same_seeds_give_the_same_run() {
    let run = || {
        let mut net = Net::of(20);
        let (peers, outcome) = net.find(local(5), hash(1), GetPeers::default());
        (net.sent, net.now, peers, outcome)
    };
    assert_eq!(run(), run());
}
