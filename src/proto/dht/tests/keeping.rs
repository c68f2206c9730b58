//! Items (BEP 44), and nodes that answer nothing (BEP 43).

use super::*;

const SECRET: [u8; 32] = [5; 32];

fn mutable(seq: i64, value: &str) -> Item {
    Item::mutable(&SECRET, b"name", seq, format!("{}:{value}", value.len()).into_bytes())
}

fn put(net: &mut Net, at: usize, item: &Item, cas: Option<i64>) -> (usize, Option<i64>) {
    let item = item.clone();
    let lookup = net.with(local(at), |dht, now| dht.put_item(item, cas, now));
    match net.outcome(local(at), lookup) {
        Outcome::Put { stored, refusal } => (stored, refusal.map(|error| error.code)),
        other => panic!("{other:?}"),
    }
}

fn get(net: &mut Net, at: usize, target: NodeId, salt: &[u8]) -> Option<Item> {
    let lookup = net.with(local(at), |dht, now| dht.get_item(target, salt, None, now));
    match net.outcome(local(at), lookup) {
        Outcome::Item(item) => item,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_immutable_item_is_put_and_got() {
    let mut net = Net::of(40);
    let item = Item::immutable(b"d1:ai1ee".to_vec());
    let (stored, refusal) = put(&mut net, 3, &item, None);
    assert!(stored >= K && refusal.is_none());
    assert_eq!(get(&mut net, 30, item.target(), b""), Some(item));
    assert_eq!(get(&mut net, 30, NodeId::new([1; 20]), b""), None);
}

#[test]
fn of_a_mutable_item_the_newest_is_got() {
    let mut net = Net::of(40);
    let (old, new) = (mutable(1, "old"), mutable(2, "new"));
    put(&mut net, 3, &old, None);
    assert_eq!(get(&mut net, 30, old.target(), b"name"), Some(old.clone()));
    put(&mut net, 4, &new, None);
    assert_eq!(get(&mut net, 30, old.target(), b"name"), Some(new.clone()));
    assert_eq!(put(&mut net, 5, &old, None), (0, Some(KrpcError::SEQ_TOO_LOW)));
    assert_eq!(get(&mut net, 30, old.target(), b"another name"), None);
}

#[test]
fn an_item_that_is_no_news_is_not_sent() {
    let mut net = Net::of(20);
    let item = mutable(4, "x");
    put(&mut net, 3, &item, None);
    let target = item.target();
    for (newer_than, there) in [(3, true), (4, false)] {
        let ask = Method::Get { target, seq: Some(newer_than), want: None };
        let answers: Vec<_> =
            (0..20).map(|n| answer_of(net.ask(local(200), local(n), ask.clone()))).collect();
        assert!(answers.iter().any(|answer| answer.seq == Some(4)));
        assert_eq!(answers.iter().any(|answer| answer.value.is_some()), there);
    }
}

#[test]
fn compare_and_swap_keeps_two_writers_apart() {
    let mut net = Net::of(40);
    assert!(put(&mut net, 3, &mutable(1, "a"), Some(77)).0 >= K);
    assert!(put(&mut net, 4, &mutable(2, "b"), Some(1)).0 >= K);
    let (stored, refusal) = put(&mut net, 5, &mutable(3, "c"), Some(1));
    assert_eq!(refusal, Some(KrpcError::CAS_MISMATCH));
    assert_eq!(stored, 0);
    assert_eq!(get(&mut net, 30, mutable(1, "a").target(), b"name"), Some(mutable(2, "b")));
}

#[test]
fn what_is_no_item_is_not_put() {
    let mut net = Net::of(2);
    let mut forged = mutable(1, "a");
    forged.value = b"1:b".to_vec();
    let lookup = net.with(local(0), |dht, now| dht.put_item(forged, None, now));
    assert_eq!(net.outcome(local(0), lookup), Outcome::Refused);
}

#[test]
fn an_item_that_does_not_belong_there_is_not_taken() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(2));
    let lie = mutable(9, "lie");
    let (id, target) = (NodeId::new([7; 20]), mutable(1, "a").target());
    net.scripts.insert(
        local(2),
        Box::new(move |_, datagram| {
            let Some((transaction, _)) = question(datagram) else { return Vec::new() };
            let mut answer = Answer::new(id);
            answer.value = Some(b"5:wrong".to_vec());
            answer.signed = lie.signed.clone();
            vec![answer_to(transaction, answer)]
        }),
    );
    net.run(secs(1));
    let lookup = net.with(local(1), |dht, now| dht.get_item(target, b"name", None, now));
    assert_eq!(net.outcome(local(1), lookup), Outcome::Item(None));
}

#[test]
fn a_read_only_node_finds_but_answers_nothing_and_is_in_no_table() {
    let mut net = Net::of(30);
    net.announce(local(1), hash(1), false);
    net.join(local(99), Config { read_only: true, ..CONFIG }, local(0));
    net.run(secs(10));
    let (peers, _) = net.find(local(99), hash(1), GetPeers::default());
    assert_eq!(peers.len(), 1);
    assert_eq!(net.ask(local(200), local(99), Method::Ping), None);
    for (addr, dht) in net.nodes.iter().filter(|(addr, _)| **addr != local(99)) {
        let saved = dht.save();
        let at = [10, 77, 0, 99];
        assert!(!saved.windows(4).any(|window| window == at), "{addr} knows it");
    }
}

#[test]
fn who_is_reached_by_nobody_becomes_read_only_and_full_again_when_reached() {
    let mut net = Net::of(30);
    net.join(local(99), CONFIG, local(0));
    net.behind_nat.insert(local(99), BTreeMap::from([(local(0).ip(), net.now)]));
    for n in 0..40 {
        let target = NodeId::new([n * 6; 20]);
        net.with(local(99), |dht, now| dht.find_node(target, now));
        net.run(secs(60));
    }
    assert!(net.nodes[&local(99)].is_read_only());
    assert!(!net.nodes[&local(5)].is_read_only());
    net.ask(local(200), local(99), Method::Ping);
    assert!(!net.nodes[&local(99)].is_read_only());
}
