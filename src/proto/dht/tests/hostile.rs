//! What a stranger may try.

use proptest::prelude::*;

use super::*;
use crate::proto::dht::krpc::{MAX_ANSWER, MAX_DATAGRAM, MAX_ITEM_ANSWER, PutItem, Want};

/// Nodes of which a script's answers tell.
fn answers(id: NodeId, change: impl Fn(&mut Answer) + 'static) -> Script {
    Box::new(move |_, datagram| {
        let Some((transaction, _)) = question(datagram) else { return Vec::new() };
        let mut answer = Answer::new(id);
        change(&mut answer);
        vec![answer_to(transaction, answer)]
    })
}

#[test]
fn a_token_is_needed_and_bound_to_an_address() {
    let mut net = Net::of(1);
    let get = Method::GetPeers { info_hash: hash(1), want: None, no_seed: false, scrape: false };
    let token = answer_of(net.ask(local(8), local(0), get)).token.unwrap();
    let announce = |token: &[u8]| Method::AnnouncePeer {
        info_hash: hash(1),
        port: 1,
        implied_port: false,
        seed: false,
        token: token.to_vec(),
    };
    for (from, token) in [(local(9), &token[..]), (local(8), b""), (local(8), b"12345678")] {
        assert_eq!(error_of(net.ask(from, local(0), announce(token))), KrpcError::PROTOCOL);
    }
    answer_of(net.ask(local(8), local(0), announce(&token)));
    assert_eq!(net.nodes[&local(0)].stats().stored, (1, 1));
    let item = PutItem { value: b"i1e".to_vec(), mutable: None, cas: None };
    let put = Method::Put { item, token: b"12345678".to_vec() };
    assert_eq!(error_of(net.ask(local(8), local(0), put)), KrpcError::PROTOCOL);
}

#[test]
fn a_question_nobody_knows_is_refused() {
    let mut net = Net::of(1);
    let fly = b"d1:ad2:id20:abcdefghij0123456789e1:q3:fly1:t2:t11:y1:qe";
    assert_eq!(error_of(net.say(local(8), local(0), fly)), KrpcError::UNKNOWN_METHOD);
    let nobody = b"d1:ade1:q4:ping1:t2:t11:y1:qe";
    assert_eq!(error_of(net.say(local(8), local(0), nobody)), KrpcError::PROTOCOL);
}

#[test]
fn a_node_that_answers_with_errors_only_loses_its_place() {
    let mut net = Net::of(1);
    let (useless, id) = (local(66), NodeId::new([0x66; 20]));
    net.scripts.insert(useless, answers(id, |_| {}));
    let look = |net: &mut Net| {
        let lookup = net.with(local(0), |dht, now| dht.find_node(id, now));
        net.outcome(local(0), lookup);
        net.nodes[&local(0)].contacts(true).any(|contact| contact.id == id)
    };
    net.with(local(0), |dht, now| dht.ping(useless, now));
    net.run(secs(1));
    assert!(look(&mut net));
    let error = |transaction| Message {
        transaction,
        read_only: false,
        ip: None,
        body: Body::Error(KrpcError::new(KrpcError::UNKNOWN_METHOD, "no")),
    };
    let refuses = move |_, datagram: &[u8]| {
        question(datagram).map(|(transaction, _)| error(transaction).encode()).into_iter().collect()
    };
    net.scripts.insert(useless, Box::new(refuses));
    look(&mut net);
    assert!(!look(&mut net));
}

#[test]
fn an_answer_from_elsewhere_or_to_nothing_is_dropped() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(2));
    let (_, (_, _, datagram)) = net.under_way.pop_first().unwrap();
    let (transaction, _) = question(&datagram).unwrap();
    let answer = answer_to(transaction.clone(), Answer::new(NodeId::new([7; 20])));
    let wrong = answer_to(vec![1, 2, 3, 4], Answer::new(NodeId::new([7; 20])));
    let other_port = SocketAddr::new(local(2).ip(), 1);
    for (from, bytes) in [(local(3), &answer), (other_port, &answer), (local(2), &wrong)] {
        net.say(from, local(1), bytes);
        assert_eq!(net.nodes[&local(1)].stats().nodes[0], 0);
    }
    net.say(local(2), local(1), &answer);
    assert_eq!(net.nodes[&local(1)].stats().nodes[0], 1);
    net.say(local(2), local(1), &answer);
    assert_eq!(net.nodes[&local(1)].stats().traffic.dropped, 4);
}

#[test]
fn transactions_are_not_repeated_and_not_in_a_row() {
    let mut net = Net::of(40);
    net.with(local(1), |dht, now| dht.get_peers(hash(1), GetPeers::default(), now));
    net.with(local(1), |dht, now| dht.get_peers(hash(2), GetPeers::default(), now));
    let ids: BTreeSet<_> =
        net.under_way.values().filter_map(|(_, _, d)| Some(question(d)?.0)).collect();
    assert!(ids.len() > 3 && ids.iter().all(|id| id.len() == 4));
    let numbers: Vec<_> =
        ids.iter().map(|id| u32::from_be_bytes(id[..].try_into().unwrap())).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] - pair[0] > 1_000));
}

#[test]
fn our_own_id_in_the_mouth_of_others_is_ignored() {
    let mut net = Net::new();
    let id = NodeId::new([5; 20]);
    net.join(local(1), Config { id: Some(id), ..CONFIG }, local(2));
    net.scripts.insert(local(2), answers(id, |_| ()));
    net.run(secs(20));
    assert_eq!(net.nodes[&local(1)].stats().nodes[0], 0);
    let echo = Message::query(b"t1".to_vec(), id, Method::Ping).encode();
    assert_eq!(net.say(local(3), local(1), &echo), None);
}

#[test]
fn named_nodes_that_cannot_be_are_not_asked() {
    let mut net = Net::new();
    net.join(global(1), Config { restrict: true, v4: true, ..CONFIG6 }, global(2));
    let own = net.nodes[&global(1)].stats().ids[1].unwrap();
    net.scripts.insert(
        global(2),
        answers(NodeId::new([7; 20]), move |answer| {
            let at = |id, addr: &str| Contact { id, addr: addr.parse().unwrap() };
            let id = NodeId::new([8; 20]);
            answer.nodes6 = Some(vec![
                at(own, "[2001:db8:9::1]:1"),
                at(id, "[2001:db8:9::1]:0"),
                at(id, "[::1]:22"),
                at(id, "[fe80::1]:1"),
                at(id, "[ff02::1]:1"),
                at(id, "[::]:1"),
            ]);
            answer.nodes = Some(vec![at(id, "10.77.0.1:1"), at(id, "127.0.0.1:1")]);
            answer.values =
                vec!["[::1]:80".parse().unwrap(), "[2001:db8:5::5]:80".parse().unwrap()];
        }),
    );
    let lookup = net.with(global(1), |dht, now| dht.get_peers(hash(1), GetPeers::default(), now));
    let end = net.now + secs(5);
    let mut asked = BTreeSet::new();
    while net.step(end) {
        asked.extend(net.under_way.values().filter(|(from, ..)| *from == global(1)).map(|w| w.1));
    }
    net.outcome(global(1), lookup);
    assert_eq!(asked, BTreeSet::from([global(2)]));
    assert_eq!(net.peers(global(1)), ["[2001:db8:5::5]:80".parse().unwrap()]);
}

#[test]
fn a_node_that_is_not_who_it_was_said_to_be_brings_no_peers() {
    let mut net = Net::new();
    net.join(local(1), CONFIG, local(2));
    let named = Contact { id: NodeId::new([8; 20]), addr: local(3) };
    net.scripts.insert(
        local(2),
        answers(NodeId::new([7; 20]), move |answer| answer.nodes = Some(vec![named])),
    );
    net.scripts
        .insert(local(3), answers(NodeId::new([9; 20]), |answer| answer.values = vec![local(66)]));
    let (peers, outcome) = net.find(local(1), hash(1), GetPeers::default());
    assert_eq!(peers, []);
    assert!(matches!(outcome, Outcome::Peers { nodes: 1, .. }), "{outcome:?}");
}

#[test]
fn a_stranger_has_us_write_to_nobody_but_itself() {
    let mut net = Net::of(1);
    let dht = net.nodes.get_mut(&local(0)).unwrap();
    for method in [Method::Ping, Method::FindNode { target: NodeId::new([1; 20]), want: None }] {
        let query = Message::query(b"t1".to_vec(), NodeId::new([9; 20]), method).encode();
        dht.handle_datagram(local(8), &query, net.now);
        while let Some(Output::Transmit { to, .. }) = dht.poll_output() {
            assert_eq!(to, local(8));
        }
    }
}

#[test]
fn an_answer_has_a_size_whatever_is_kept() {
    let mut net = Net::grown(60, CONFIG6, global);
    let n = global(0);
    for peer in 100..500 {
        net.now = net.now + Duration::from_millis(20);
        let get =
            Method::GetPeers { info_hash: hash(1), want: None, no_seed: false, scrape: false };
        let token = answer_of(net.ask(global(peer), n, get)).token.unwrap();
        let (implied_port, seed) = (true, peer % 2 == 0);
        let announce =
            Method::AnnouncePeer { info_hash: hash(1), port: 0, implied_port, seed, token };
        answer_of(net.ask(global(peer), n, announce));
    }
    let mut longest = 0;
    for (scrape, want) in [(false, None), (true, None), (true, Some(Want { v4: true, v6: true }))] {
        let method = Method::GetPeers { info_hash: hash(1), want, no_seed: false, scrape };
        let mut query = Message::query(vec![1; 32], NodeId::new([9; 20]), method);
        query.read_only = true;
        let now = net.now;
        let dht = net.nodes.get_mut(&n).unwrap();
        dht.handle_datagram(global(999), &query.encode(), now);
        let Some(Output::Transmit { datagram, .. }) = dht.poll_output() else { panic!() };
        longest = longest.max(datagram.len());
        let Body::Answer(answer) = Message::parse(&datagram).unwrap().body else { panic!() };
        assert!(datagram.len() <= MAX_ANSWER, "{}", datagram.len());
        assert!(!answer.values.is_empty() && answer.nodes6.unwrap().len() == K);
        assert_eq!(answer.scrape.is_some(), scrape);
    }
    assert!(longest > MAX_ANSWER / 2);
}

#[test]
fn the_largest_item_fits_with_some_nodes() {
    let mut net = Net::of(40);
    let value = [b"996:".to_vec(), vec![b'x'; 996]].concat();
    let item = Item::mutable(&[1; 32], &[2; 64], i64::MAX, value);
    let lookup = net.with(local(3), |dht, now| dht.put_item(item.clone(), None, now));
    assert!(matches!(net.outcome(local(3), lookup), Outcome::Put { stored, .. } if stored >= K));
    let lookup = net.with(local(9), |dht, now| dht.get_item(item.target(), &[2; 64], None, now));
    let end = net.now + secs(5);
    let (mut longest, mut nodes) = (0, usize::MAX);
    while net.step(end) {
        for (_, _, datagram) in net.under_way.values() {
            if let Ok(Message { body: Body::Answer(answer), .. }) = Message::parse(datagram)
                && answer.value.is_some()
            {
                longest = longest.max(datagram.len());
                nodes = nodes.min(answer.nodes.unwrap().len());
            }
        }
    }
    assert_eq!(net.outcome(local(9), lookup), Outcome::Item(Some(item)));
    assert!((1_200..=MAX_ITEM_ANSWER).contains(&longest), "{longest}");
    assert!(nodes >= 3, "{nodes}");
}

#[test]
fn those_who_crowd_around_a_torrent_do_not_hide_it() {
    let mut net = Net::grown(80, CONFIG6, global);
    net.run(secs(60));
    let target = hash(0x77);
    let crowd: Vec<_> = (0..60u8)
        .map(|n| {
            let mut id = [0x77; 20];
            id[18] = n;
            Contact { id: NodeId::new(id), addr: global(1_000 + usize::from(n)) }
        })
        .collect();
    for (n, me) in crowd.iter().enumerate() {
        let others: Vec<_> = (0..8).map(|i| crowd[(n + i + 1) % crowd.len()]).collect();
        net.scripts.insert(
            me.addr,
            answers(me.id, move |answer| {
                answer.nodes6 = Some(others.clone());
                answer.token = Some(vec![1]);
            }),
        );
        // They make themselves known.
        for to in 0..80 {
            let query = Message::query(b"t1".to_vec(), me.id, Method::Ping).encode();
            net.transmit(me.addr, global(to), query);
        }
    }
    net.run(secs(30));
    net.announce(global(7), target, false);
    let mut found = 0;
    for n in 20..40 {
        let (peers, _) = net.find(global(n), target, GetPeers::default());
        found += usize::from(peers.contains(&SocketAddr::new(global(7).ip(), 7_000)));
    }
    assert_eq!(found, 20);
}

#[test]
fn a_datagram_that_is_too_long_is_dropped() {
    let mut net = Net::of(1);
    let before = net.nodes[&local(0)].stats().traffic;
    net.say(local(8), local(0), &vec![b'd'; MAX_DATAGRAM + 1]);
    assert_eq!(net.nodes[&local(0)].stats().traffic.dropped, before.dropped + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, what is written to strangers is little, and time goes on.
    #[test]
    fn any_datagrams_leave_a_node_well(
        datagrams in prop::collection::vec((0usize..20, prop::collection::vec(any::<u8>(), 0..80), 0u8..4), 0..40),
    ) {
        let mut net = Net::of(3);
        for (from, bytes, kind) in datagrams {
            let id = NodeId::new([from as u8 + 1; 20]);
            let datagram = match kind {
                0 => bytes,
                1 => Message::query(b"t1".to_vec(), id, Method::FindNode { target: id, want: None }).encode(),
                2 => {
                    let get = Method::GetPeers { info_hash: hash(1), want: Some(Want { v4: true, v6: true }), no_seed: true, scrape: true };
                    Message::query(bytes, id, get).encode()
                }
                _ => answer_to(bytes, Answer::new(id)),
            };
            let before = net.sent;
            net.with(local(0), |dht, now| dht.handle_datagram(local(100 + from), &datagram, now));
            prop_assert!(net.sent <= before + 2, "an answer and a ping");
        }
        net.run(secs(60));
        prop_assert!(net.nodes[&local(0)].stats().nodes[0] <= 2);
    }
}
