//! A node among strangers: whatever they send, in whatever order, it stays within its bounds, and
//! time goes on. Answers get the transaction of a question that was really asked, so that what is
//! behind that check is reached.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::dht::krpc::{Body, Message, Method};
use p2pfs::proto::dht::{
    Announce, Config, Dht, GetPeers, Item, MAX_LOOKUPS, MAX_PENDING, NodeId, Output,
};
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::time::Timestamp;

/// Datagrams that one datagram or one step in time may bring about: a step of all lookups.
const MOST: usize = MAX_LOOKUPS * 300;

/// What has been asked, the latest last.
type Asked = Vec<(SocketAddr, Vec<u8>)>;

fn drain(dht: &mut Dht, asked: &mut Asked) {
    let mut sent = 0;
    while let Some(output) = dht.poll_output() {
        if let Output::Transmit { to, datagram } = output {
            sent += 1;
            assert!(datagram.len() <= 1_500 && to.port() != 0);
            if let Ok(message) = Message::parse(&datagram) {
                asked.push((to, message.transaction));
            }
        }
    }
    assert!(sent <= MOST);
    let old = asked.len().saturating_sub(64);
    asked.drain(..old);
}

fn wish(dht: &mut Dht, which: u8, n: u8, now: Timestamp) {
    let target = NodeId::new([n; 20]);
    match which % 8 {
        0 => dht.add_node(stranger(n), now),
        1 => drop(dht.find_node(target, now)),
        2 => {
            let announce = Some(Announce { port: 1, implied: n & 1 == 1, seed: n & 2 == 2 });
            let options = GetPeers { announce, scrape: n & 4 == 4, no_seed: n & 8 == 8 };
            dht.get_peers(InfoHash::new([n; 20]), options, now);
        }
        3 => drop(dht.get_item(target, &[], None, now)),
        4 => drop(dht.put_item(Item::immutable(format!("i{n}e").into_bytes()), None, now)),
        5 => drop(dht.ping(stranger(n), now)),
        6 => drop(dht.sample(stranger(n), target, now)),
        _ => {
            let saved = dht.save();
            dht.restore(&saved, now);
        }
    }
}

/// Half of them by IPv6.
fn stranger(n: u8) -> SocketAddr {
    match n % 2 {
        0 => (Ipv4Addr::new(203, 0, 113, n), 6881).into(),
        _ => (Ipv6Addr::new(0x2001, 0xdb8, n.into(), 0, 0, 0, 0, 1), 6881).into(),
    }
}

/// An announce or a put of the fuzzer's, with a token that is good: what it asked for before.
fn with_token(dht: &mut Dht, from: SocketAddr, bytes: &[u8], now: Timestamp) -> Option<Vec<u8>> {
    let mut message = Message::parse(bytes).ok()?;
    let Body::Query(query) = &mut message.body else { return None };
    let (Method::AnnouncePeer { token, .. } | Method::Put { token, .. }) = &mut query.method else {
        return None;
    };
    let ask = Method::Get { target: NodeId::new([1; 20]), seq: None, want: None };
    let ask = Message::query(b"ask".to_vec(), NodeId::new([2; 20]), ask).encode();
    dht.handle_datagram(from, &ask, now);
    while let Some(output) = dht.poll_output() {
        if let Output::Transmit { datagram, .. } = output
            && let Ok(Message { body: Body::Answer(answer), .. }) = Message::parse(&datagram)
            && let Some(given) = answer.token
        {
            *token = given;
        }
    }
    Some(message.encode())
}

/// An answer of the fuzzer's with the transaction of a question.
fn with_transaction(bytes: &[u8], transaction: &[u8]) -> Vec<u8> {
    match Message::parse(bytes) {
        Ok(message) => Message { transaction: transaction.to_vec(), ..message }.encode(),
        Err(_) => bytes.to_vec(),
    }
}

fuzz_target!(|steps: Vec<(u8, u8, Vec<u8>)>| {
    let mut now = Timestamp::ZERO;
    let config = Config { restrict: false, ..Config::default() };
    let (mut dht, mut asked) = (Dht::new(config, 1, now), Asked::new());
    for (kind, n, bytes) in steps {
        match kind % 4 {
            0 => {
                let from = stranger(n);
                let good = with_token(&mut dht, from, &bytes, now).filter(|_| kind & 4 == 4);
                dht.handle_datagram(from, good.as_deref().unwrap_or(&bytes), now);
            }
            1 => {
                if let Some((to, transaction)) = asked.get(usize::from(n) % asked.len().max(1)) {
                    dht.handle_datagram(*to, &with_transaction(&bytes, transaction), now);
                }
            }
            2 => wish(&mut dht, kind / 4, n, now),
            _ => {
                now = now + Duration::from_millis(u64::from(n) * u64::from(kind));
                dht.handle_timeout(now);
            }
        }
        drain(&mut dht, &mut asked);
        let stats = dht.stats();
        assert!(stats.pending <= MAX_PENDING && stats.lookups[0] <= MAX_LOOKUPS + 2);
    }
    // What is due is done: the next time is a later one.
    for _ in 0..40 {
        let Some(at) = dht.poll_timeout() else { break };
        now = now.max(at);
        dht.handle_timeout(now);
        drain(&mut dht, &mut asked);
    }
});
