//! Floods.

use super::*;

fn ping(id: u8) -> Vec<u8> {
    Message::query(b"t1".to_vec(), NodeId::new([id; 20]), Method::Ping).encode()
}

#[test]
fn one_site_gets_only_so_many_answers() {
    let mut net = Net::of(1);
    let answered = (0..1_000).filter(|_| net.say(local(8), local(0), &ping(9)).is_some()).count();
    assert_eq!(answered, 100);
    assert!(net.say(local(9), local(0), &ping(8)).is_some());
    net.now = net.now + secs(4);
    assert!(net.say(local(8), local(0), &ping(9)).is_some());
}

#[test]
fn a_flood_from_everywhere_gets_only_so_many_answers() {
    let mut net = Net::of(1);
    let flood = |net: &mut Net| {
        (0..20_000).filter(|n| net.say(local(1_000 + n), local(0), &ping(9)).is_some()).count()
    };
    assert!(flood(&mut net) <= 1_000);
    net.now = net.now + secs(1);
    assert!(flood(&mut net) <= 250);
}

#[test]
fn a_flood_from_false_addresses_leaves_answers_to_those_we_know() {
    let mut net = Net::of(40);
    let pings = |net: &mut Net, from: usize| {
        (0..20).filter(|_| net.say(local(from), local(3), &ping(9)).is_some()).count()
    };
    for n in 0..20_000 {
        net.say(local(1_000 + n), local(3), &ping(9));
    }
    let known = net.nodes[&local(3)].contacts(true).next().unwrap().addr;
    let known = (0..40).find(|n| local(*n) == known).unwrap();
    assert_eq!((pings(&mut net, known), pings(&mut net, 999)), (20, 0));
}

#[test]
fn garbage_costs_no_answer_and_no_memory() {
    let mut net = Net::of(20);
    let before = net.nodes[&local(0)].stats();
    for n in 0..100_000usize {
        let bytes = [b"d1:t2:aa1:y1:q", &n.to_be_bytes()[..], b"e"].concat();
        net.with(local(0), |dht, now| dht.handle_datagram(local(1_000 + n), &bytes, now));
    }
    let after = net.nodes[&local(0)].stats();
    assert_eq!(after.traffic.sent, before.traffic.sent);
    assert_eq!(after.traffic.dropped, before.traffic.dropped + 100_000);
    assert_eq!((after.nodes, after.pending), (before.nodes, before.pending));
}

#[test]
fn a_flood_of_questions_does_not_hold_up_our_own_lookups() {
    let mut net = Net::of(40);
    net.announce(local(7), hash(1), false);
    for n in 0..20_000 {
        net.say(local(1_000 + n), local(3), &ping(9));
    }
    let (peers, _) = net.find(local(3), hash(1), GetPeers::default());
    assert_eq!(peers.len(), 1);
}

#[test]
fn an_address_that_is_named_again_and_again_is_not_flooded() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(2));
    let victim = |n: u8| {
        let addr = SocketAddr::new(local(66).ip(), 1_000 + u16::from(n));
        let mut id = [0; 20];
        (id[0], id[1]) = (n, 1);
        Contact { id: NodeId::new(id), addr }
    };
    let mut count = 0u8;
    net.scripts.insert(
        local(2),
        Box::new(move |_, datagram| {
            let Some((transaction, _)) = question(datagram) else { return Vec::new() };
            let mut answer = Answer::new(NodeId::new([7; 20]));
            count = count.wrapping_add(16);
            answer.nodes = Some((0..16).map(|n| victim(count.wrapping_add(n))).collect());
            vec![answer_to(transaction, answer)]
        }),
    );
    let began = net.now;
    let mut sent = BTreeSet::new();
    for n in 0..30 {
        net.with(local(1), |dht, now| dht.get_peers(hash(n), GetPeers::default(), now));
        let end = net.now + Duration::from_millis(50);
        while net.step(end) {
            let to_victim = net.under_way.iter().filter(|(_, w)| w.1.ip() == local(66).ip());
            sent.extend(to_victim.map(|(key, _)| *key));
        }
    }
    assert!(net.now.since(began) < secs(4));
    assert!(!sent.is_empty() && sent.len() <= 400, "{}", sent.len());
}
