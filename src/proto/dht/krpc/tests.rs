//! What is written is read again, in the one form of bencode; what is not a message is refused.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::decode::is_canonical;
use super::*;
use crate::proto::bencode::{DictWriter, Value};

fn id(byte: u8) -> NodeId {
    NodeId::new([byte; 20])
}

fn parsed(text: &[u8]) -> Message {
    Message::parse(text).unwrap()
}

/// The code of the error that a question brings.
fn refused(text: &[u8]) -> i64 {
    match Message::parse(text) {
        Err(NoMessage::Refused { error, .. }) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_questions_of_bep_5_are_read() {
    let asker = NodeId::new(*b"abcdefghij0123456789");
    let other = *b"mnopqrstuvwxyz123456";
    for (text, method) in [
        (&b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"[..], Method::Ping),
        (
            b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe",
            Method::FindNode { target: NodeId::new(other), want: None },
        ),
        (
            b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe",
            Method::GetPeers {
                info_hash: InfoHash::new(other),
                want: None,
                no_seed: false,
                scrape: false,
            },
        ),
        (
            b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe",
            Method::AnnouncePeer {
                info_hash: InfoHash::new(other),
                port: 6881,
                implied_port: true,
                seed: false,
                token: b"aoeusnth".to_vec(),
            },
        ),
    ] {
        assert_eq!(parsed(text), Message::query(b"aa".to_vec(), asker, method));
    }
}

#[test]
fn the_answers_of_bep_5_are_read() {
    let text = b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re";
    let Body::Answer(answer) = parsed(text).body else { panic!() };
    assert_eq!(answer.token.as_deref(), Some(&b"aoeusnth"[..]));
    let peers: [SocketAddr; 2] =
        ["97.120.106.101:11893".parse().unwrap(), "105.100.104.116:28269".parse().unwrap()];
    assert_eq!(answer.values, peers);
    let text = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee";
    assert_eq!(parsed(text).body, Body::Error(KrpcError::new(201, "A Generic Error Ocurred")));
}

#[test]
fn a_question_that_makes_no_sense_is_answered_with_the_error_it_deserves() {
    let ask = |name: &str, args: &DictWriter| {
        let mut dict = DictWriter::new();
        dict.raw(b"a", args.finish()).bytes(b"q", name.as_bytes());
        dict.bytes(b"t", b"aa").bytes(b"y", b"q").finish()
    };
    let mut args = DictWriter::new();
    assert_eq!(refused(&ask("ping", &args)), KrpcError::PROTOCOL);
    args.bytes(b"id", &[1; 20]);
    assert_eq!(refused(&ask("fly", &args)), KrpcError::UNKNOWN_METHOD);
    assert_eq!(refused(&ask("find_node", &args)), KrpcError::PROTOCOL);
    args.bytes(b"token", b"t").raw(b"v", vec![b'i'; 0]);
    args.bytes(b"v", &[0; 997]);
    assert_eq!(refused(&ask("put", &args)), KrpcError::TOO_BIG);
    args.bytes(b"v", &[0; 996]).bytes(b"salt", &[0; 65]);
    assert_eq!(refused(&ask("put", &args)), KrpcError::SALT_TOO_BIG);
    args.raw(b"v", *b"d1:bi1e1:ai1ee").bytes(b"salt", b"");
    assert_eq!(refused(&ask("put", &args)), KrpcError::PROTOCOL);
}

#[test]
fn without_a_transaction_there_is_nobody_to_answer() {
    for text in [
        &b"d1:y1:qe"[..],
        b"d1:t0:1:y1:qe",
        b"d1:t33:0123456789012345678901234567890121:y1:qe",
        b"d1:ti1e1:y1:qe",
        b"d1:t2:aa1:y1:ze",
        b"d1:t2:aa1:y1:re",
        b"d1:rd2:id19:0123456789012345678e1:t2:aa1:y1:re",
        b"le",
        b"",
    ] {
        assert_eq!(Message::parse(text), Err(NoMessage::Garbage));
    }
}

#[test]
fn a_datagram_longer_than_a_frame_is_not_read() {
    let with = |padding: usize| {
        let mut dict = DictWriter::new();
        dict.bytes(b"pad", &vec![0; padding]).bytes(b"t", b"aa").bytes(b"y", b"e");
        dict.raw(b"e", *b"li201e0:e").finish()
    };
    let rest = with(1_000).len() - 1_000;
    assert!(Message::parse(&with(MAX_DATAGRAM - rest)).is_ok());
    assert_eq!(Message::parse(&with(MAX_DATAGRAM - rest + 1)), Err(NoMessage::Garbage));
}

#[test]
fn addresses_that_nobody_has_are_left_out() {
    let mut nodes = Vec::new();
    for addr in ["192.0.2.1:0", "0.0.0.0:1", "224.0.0.1:1", "192.0.2.1:1"] {
        write_contacts(&mut nodes, &[Contact { id: id(1), addr: addr.parse().unwrap() }]);
    }
    nodes.push(0);
    let read: Vec<_> = read_contacts(&nodes, false, 16).map(|c| c.addr).collect();
    assert_eq!(read, ["192.0.2.1:1".parse().unwrap()]);
    assert!(!usable(&"[::ffff:192.0.2.1]:1".parse().unwrap()));
}

#[test]
fn more_nodes_or_peers_than_one_answer_should_have_are_left_out() {
    let contact = Contact { id: id(1), addr: "192.0.2.1:1".parse().unwrap() };
    let mut nodes = Vec::new();
    write_contacts(&mut nodes, &[contact; 40]);
    assert_eq!(read_contacts(&nodes, false, MAX_NODES).count(), MAX_NODES);
    let mut answer = Answer::new(id(1));
    answer.values = vec![contact.addr; 150];
    let message = Message {
        transaction: vec![1],
        read_only: false,
        ip: None,
        body: Body::Answer(Box::new(answer)),
    };
    let Body::Answer(read) = parsed(&message.encode()).body else { panic!() };
    assert_eq!(read.values.len(), MAX_VALUES);
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![v4(), v6()]
}

fn v4() -> impl Strategy<Value = SocketAddr> {
    (0x0100_0000u32..0xdfff_ffff, 1u16..)
        .prop_map(|(ip, port)| (Ipv4Addr::from_bits(ip), port).into())
}

fn v6() -> impl Strategy<Value = SocketAddr> {
    (any::<u64>(), 1u16..).prop_map(|(low, port)| {
        let ip = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(low));
        (ip, port).into()
    })
}

fn node_id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 20]>().prop_map(NodeId::new)
}

fn contacts(
    addr: impl Strategy<Value = SocketAddr>,
) -> impl Strategy<Value = Option<Vec<Contact>>> {
    let contact = (node_id(), addr).prop_map(|(id, addr)| Contact { id, addr });
    proptest::option::of(prop::collection::vec(contact, 0..9))
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
        .prop_map(|bytes| [format!("{}:", bytes.len()).as_bytes(), &bytes].concat())
}

fn signed() -> impl Strategy<Value = Signed> {
    (any::<[u8; 32]>(), any::<[[u8; 32]; 2]>(), 0..i64::MAX).prop_map(|(key, halves, seq)| {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&halves[0]);
        signature[32..].copy_from_slice(&halves[1]);
        Signed { key, signature, seq, salt: Vec::new() }
    })
}

fn method() -> impl Strategy<Value = Method> {
    let want = || proptest::option::of(any::<(bool, bool)>().prop_map(|(v4, v6)| Want { v4, v6 }));
    let token = || prop::collection::vec(any::<u8>(), 0..20);
    let hash = || any::<[u8; 20]>().prop_map(InfoHash::new);
    prop_oneof![
        Just(Method::Ping),
        (node_id(), want()).prop_map(|(target, want)| Method::FindNode { target, want }),
        (hash(), want(), any::<(bool, bool)>()).prop_map(|(info_hash, want, (no_seed, scrape))| {
            Method::GetPeers { info_hash, want, no_seed, scrape }
        }),
        (hash(), 1u16.., any::<(bool, bool)>(), token()).prop_map(
            |(info_hash, port, (implied_port, seed), token)| Method::AnnouncePeer {
                info_hash,
                port,
                implied_port,
                seed,
                token
            }
        ),
        (node_id(), any::<Option<i64>>(), want()).prop_map(|(target, seq, want)| Method::Get {
            target,
            seq,
            want
        }),
        (value(), proptest::option::of((signed(), token())), any::<Option<i64>>(), token())
            .prop_map(|(value, signed, cas, token)| {
                let mutable = signed.map(|(signed, salt)| Signed { salt, ..signed });
                Method::Put { item: PutItem { value, mutable, cas }, token }
            }),
        (node_id(), want()).prop_map(|(target, want)| Method::SampleInfohashes { target, want }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let token = proptest::option::of(prop::collection::vec(any::<u8>(), 1..=MAX_TOKEN));
    let hashes = prop::collection::vec(any::<[u8; 20]>().prop_map(InfoHash::new), 0..5);
    let samples = (hashes, 0..1u64 << 60, 0..=21_600u32)
        .prop_map(|(hashes, count, interval)| Samples { hashes, count, interval });
    let item = (proptest::option::of(value()), proptest::option::of(signed()), 0..i64::MAX);
    let bloom = any::<bool>()
        .prop_map(|one| one.then(|| Box::new((Bloom::EMPTY, Bloom::from_bytes([7; 256])))));
    let lists = (contacts(v4()), contacts(v6()), prop::collection::vec(v4(), 0..9));
    (node_id(), token, lists, item, proptest::option::of(samples), bloom).prop_map(
        |(id, token, (nodes, nodes6, values), (value, signed, seq), samples, scrape)| {
            let seq = signed.as_ref().map_or(Some(seq), |signed: &Signed| Some(signed.seq));
            Answer { id, token, nodes, nodes6, values, scrape, value, signed, seq, samples }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let body = prop_oneof![
        (node_id(), method()).prop_map(|(id, method)| Body::Query(Query { id, method })),
        answer().prop_map(|answer| Body::Answer(Box::new(answer))),
        (any::<i64>(), "[ -~]{0,99}")
            .prop_map(|(code, text)| Body::Error(KrpcError { code, text })),
    ];
    let transaction = prop::collection::vec(any::<u8>(), 1..=MAX_TRANSACTION);
    (transaction, any::<bool>(), proptest::option::of(addr()), body)
        .prop_map(|(transaction, read_only, ip, body)| Message { transaction, read_only, ip, body })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(message in message()) {
        let datagram = message.encode();
        let whole = Limits { depth: 16, size: 1 << 16 };
        let value = Value::parse(&datagram, whole).unwrap();
        prop_assert!(is_canonical(value), "{value:?}");
        if datagram.len() <= MAX_DATAGRAM {
            prop_assert_eq!(Message::parse(&datagram), Ok(message));
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_refused(bytes: Vec<u8>) {
        let _ = Message::parse(&bytes);
    }

    /// Whatever byte of a message is broken, what is read is bounded, and written it is read again.
    #[test]
    fn a_broken_message_is_read_or_refused(
        message in message(),
        breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut datagram = message.encode();
        for (at, byte) in breaks {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        if let Ok(Message { body: Body::Answer(answer), .. }) = Message::parse(&datagram) {
            prop_assert!(answer.contacts().count() <= 2 * MAX_NODES);
            prop_assert!(answer.contacts().all(|c| usable(&c.addr)));
            prop_assert!(answer.values.iter().all(usable));
        }
    }
}
