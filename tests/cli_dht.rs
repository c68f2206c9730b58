//! `p2pfs dht` and what `p2pfs scrape` says of the DHT, with nodes on loopback.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::net::{SocketAddr, UdpSocket};

use harness::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use serde_json::Value;

const HASH: &str = "0123456789abcdef0123456789abcdef01234567";

/// Runs `p2pfs VERB ARGUMENTS…` without a daemon.
#[track_caller]
fn p2pfs(scratch: &Scratch, verb: &str, arguments: &[&str]) -> Finished {
    let p2pfs = P2pfs::new(scratch);
    run(scratch, p2pfs.command_alone(verb).args(arguments), PATIENCE)
}

/// Has peers announced by nodes that go away at once.
#[track_caller]
fn announce(scratch: &Scratch, hash: &str, port: &str, bootstrap: &str) {
    let arguments = ["get-peers", hash, "--announce", port, "--dht-bootstrap", bootstrap];
    p2pfs(scratch, "dht", &arguments).success();
}

/// The one line on stderr of something that failed.
#[track_caller]
fn complaint(finished: Finished) -> String {
    let finished = finished.failure();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    finished.stderr
}

fn json(finished: Finished) -> Value {
    serde_json::from_str(&finished.success().stdout()).unwrap()
}

#[test]
fn a_ping_says_who_is_there_and_from_where_it_sees_us() {
    let scratch = Scratch::new();
    let node = DhtNode::start(&scratch, &[]);
    let pong = json(p2pfs(&scratch, "dht", &["ping", &node.bootstrap(), "--json"]));
    assert_eq!(pong["id"].as_str().map(str::len), Some(40), "{pong}");
    assert_eq!(pong["id_fits_address"], true, "{pong}");
    assert!(pong["our_address"].as_str().unwrap().starts_with("127.0.0.1:"), "{pong}");
    assert!(pong["round_trip_ms"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 60e3), "{pong}");
    let text = p2pfs(&scratch, "dht", &["ping", &node.bootstrap()]).success().stdout();
    assert!(text.starts_with(pong["id"].as_str().unwrap()), "{text}");
}

#[test]
fn a_ping_that_nobody_answers_is_one_line_and_a_failure() {
    let scratch = Scratch::new();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let said = complaint(p2pfs(&scratch, "dht", &["ping", &address, "--timeout", "2"]));
    assert!(said.contains("no answer within 2 s"), "{said}");
    drop(silent);
    let said = complaint(p2pfs(&scratch, "dht", &["ping", &address]));
    assert!(said.contains("nobody is there"), "{said}");
}

#[test]
fn what_one_announces_another_finds() {
    let scratch = Scratch::new();
    let nodes = DhtNodes::start([[127, 0, 0, 1].into(); 12]);
    announce(&scratch, HASH, "7001", &nodes.bootstrap());
    let get = ["get-peers", HASH, "--dht-bootstrap", &nodes.bootstrap()];
    let found = p2pfs(&scratch, "dht", &get).success();
    assert_eq!(found.stdout(), "127.0.0.1:7001\n");
    assert!(found.stderr.contains("1 peer, the first after 0."), "{}", found.stderr);
    let found = json(p2pfs(&scratch, "dht", &[&get[..], &["--json"]].concat()));
    assert_eq!(found["peers"], Value::from(vec!["127.0.0.1:7001"]), "{found}");
    assert!(found["nodes"].as_u64().is_some_and(|nodes| nodes >= 8), "{found}");
    assert!(found["first_after"].as_f64() <= found["seconds"].as_f64(), "{found}");
}

#[test]
fn a_hash_that_nobody_has_is_one_line_and_a_failure() {
    let scratch = Scratch::new();
    let nodes = DhtNodes::start([[127, 0, 0, 1].into(); 3]);
    let get = ["get-peers", HASH, "--dht-bootstrap", &nodes.bootstrap()];
    let said = complaint(p2pfs(&scratch, "dht", &get));
    assert!(said.contains(HASH) && said.contains("3 nodes asked, nobody knows"), "{said}");
}

#[test]
fn when_no_node_answers_that_is_one_line_and_a_failure() {
    let scratch = Scratch::new();
    let get = ["get-peers", HASH, "--dht-bootstrap", "127.0.0.1:1", "--timeout", "1"];
    let said = complaint(p2pfs(&scratch, "dht", &get));
    assert!(said.contains("no node of the DHT answered"), "{said}");
}

#[test]
fn a_node_ends_by_a_signal_and_starts_warm() {
    let scratch = Scratch::new();
    let first = DhtNode::start(&scratch, &[]);
    let data = scratch.path("nodes");
    let kept = ["--data", data.to_str().unwrap()];
    let mut node =
        DhtNode::start(&scratch, &[&kept[..], &["--dht-bootstrap", &first.bootstrap()]].concat());
    announce(&scratch, HASH, "7001", &first.bootstrap());
    let finds = |node: &DhtNode| {
        let get = ["get-peers", HASH, "--dht-bootstrap", &node.bootstrap()];
        p2pfs(&scratch, "dht", &get).status.success()
    };
    wait_until("it knows the first", PATIENCE, || finds(&node));
    kill(node.process.pid(), Signal::SIGTERM).unwrap();
    assert!(node.process.wait(PATIENCE).expect("it ends").success());
    let warm = DhtNode::start(&scratch, &kept);
    wait_until("it knows the first from before", PATIENCE, || finds(&warm));
}

#[test]
fn a_node_does_not_take_another_port_than_was_asked_for() {
    let scratch = Scratch::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let node = ["node", "--listen", "127.0.0.1", "--port", &port];
    let said = complaint(p2pfs(&scratch, "dht", &node));
    assert!(said.contains(&port) && said.contains("is taken"), "{said}");
}

#[test]
fn the_daemons_node_describes_itself() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let nodes = DhtNodes::start([[127, 0, 0, 1].into(); 9]);
    let p2pfs = P2pfs::new(&scratch).with_dht(&nodes.addresses()[..1]);
    p2pfs.seed(&torrent, &[]);
    let stats = || json(p2pfs.run("dht", &["stats", "--json"]))[0].clone();
    wait_until("it knows the network", PATIENCE, || stats()["v4"]["nodes"].as_u64() >= Some(9));
    let node = stats();
    assert_eq!(node["v4"]["id"].as_str().map(str::len), Some(40), "{node}");
    assert_eq!(node["read_only"], false, "{node}");
    assert!(node["sent"].as_u64() > Some(8) && node["answered"].as_u64() >= Some(8), "{node}");
    let text = p2pfs.run("dht", &["stats"]).success().stdout();
    assert!(text.contains("IPv4: 9 nodes known"), "{text}");
}

#[test]
fn without_a_daemon_there_are_no_stats() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    assert!(complaint(p2pfs.run("dht", &["stats"])).contains("no daemon"));
    assert_eq!(json(p2pfs.run("dht", &["stats", "--json"])), Value::from(Vec::<Value>::new()));
}

#[test]
fn a_scrape_counts_the_peers_in_the_dht() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let nodes = DhtNodes::start([[127, 0, 0, 1].into(); 9]);
    announce(&scratch, &torrent.info_hash, "7001", &nodes.bootstrap());
    let arguments = [&torrent.info_hash, "--dht-bootstrap", &nodes.bootstrap(), "--json"];
    let found = json(p2pfs(&scratch, "scrape", &arguments));
    let dht = &found["sources"][0];
    assert_eq!((&dht["source"], &dht["seeders"]), (&"dht".into(), &0.into()), "{found}");
    assert_eq!((&dht["leechers"], &dht["downloads"]), (&1.into(), &Value::Null), "{found}");
}

#[test]
fn a_dht_without_an_answer_is_named() {
    let scratch = Scratch::new();
    let arguments = [HASH, "--dht-bootstrap", "127.0.0.1:1", "--timeout", "1"];
    let said = complaint(p2pfs(&scratch, "scrape", &arguments));
    assert!(said.contains("the DHT asked, none gave numbers; dht says: no answer"), "{said}");
}

#[test]
fn the_dht_is_not_asked_about_a_private_torrent() {
    let scratch = Scratch::new();
    let content = Content::album();
    let bare = Torrent::new(&scratch, &content);
    let file = std::fs::read(&bare.file).unwrap();
    // The last key of the info dictionary, and of the file.
    let private = [&file[..file.len() - 2], b"7:privatei1eee"].concat();
    let private = scratch.file("private.torrent", &private);
    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let node = listener.local_addr().unwrap().to_string();
    let arguments = ["--dht-bootstrap", &node, "--timeout", "1", "--tracker", "udp://127.0.0.1:1"];
    let arguments = [&[private.to_str().unwrap()][..], &arguments[..]].concat();
    let said = complaint(p2pfs(&scratch, "scrape", &arguments));
    assert!(said.contains("1 tracker asked"), "{said}");
    assert!(listener.recv(&mut [0; 100]).is_err(), "the DHT was asked");
}

/// A question of a node that nobody heard of before.
fn question(method: &str, arguments: &[u8]) -> Vec<u8> {
    let (id, transaction): ([u8; 20], [u8; 4]) = rand::random();
    let method = format!("e1:q{}:{method}1:t4:", method.len());
    let parts = [b"d1:ad2:id20:", &id[..], arguments, method.as_bytes(), &transaction, b"1:y1:qe"];
    parts.concat()
}

/// One datagram of a flood: noise, torn messages, questions, announces with the node's token.
fn nonsense(kind: usize, token: &[u8]) -> Vec<u8> {
    let key: [u8; 20] = rand::random();
    let announce = [b"9:info_hash20:", &key[..], b"4:porti1e5:token8:", token].concat();
    match kind % 5 {
        0 => {
            let mut noise = vec![0; 600];
            rand::rng().fill(&mut noise[..]);
            noise
        }
        1 => question("announce_peer", &announce),
        2 => question("get_peers", &[b"9:info_hash20:", &key[..]].concat()),
        3 => [b"d1:rd2:id20:", &key[..], b"e1:t4:abcd1:y1:re"].concat(),
        _ => {
            let mut torn = question("find_node", &[b"6:target20:", &key[..]].concat());
            torn.truncate(rand::rng().random_range(0..torn.len()));
            torn
        }
    }
}

/// Sends so many; each is read before there are too many for the socket's buffer.
fn flood(to: SocketAddr, count: usize, token: &[u8]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ping = question("ping", b"");
    let mut buffer = [0; 2_048];
    for n in 0..count {
        socket.send_to(&nonsense(n, token), to).unwrap();
        if n % 100 == 99 {
            socket.send_to(&ping, to).unwrap();
            let transaction = &ping[ping.len() - 11..ping.len() - 7];
            // Answers to the questions come before.
            while {
                let length = socket.recv(&mut buffer).unwrap();
                buffer[..length].windows(4).all(|bytes| bytes != transaction)
            } {}
        }
    }
}

/// The token that a node gives to 127.0.0.1.
fn token(of: SocketAddr) -> [u8; 8] {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&question("get_peers", b"9:info_hash20:aaaaaaaaaaaaaaaaaaaa"), of).unwrap();
    let mut buffer = [0; 2_048];
    let answer = socket.recv(&mut buffer).map(|n| &buffer[..n]).unwrap();
    let at = answer.windows(9).position(|w| w == b"5:token8:").unwrap() + 9;
    answer[at..at + 8].try_into().unwrap()
}

/// Memory of a process in bytes.
fn memory(of: Pid) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{of}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

#[test]
fn a_flood_of_nonsense_takes_no_more_memory_however_long_it_lasts() {
    let scratch = Scratch::new();
    let node = DhtNode::start(&scratch, &["--alone"]);
    let token = token(node.address);
    // Then all that is kept for others is full: 10,000 torrents.
    flood(node.address, 60_000, &token);
    let full = memory(node.process.pid());
    flood(node.address, 60_000, &token);
    let grown = memory(node.process.pid()).saturating_sub(full);
    assert!(grown < MIB as u64, "{grown} bytes more than {full}");
    p2pfs(&scratch, "dht", &["ping", &node.bootstrap()]).success();
}
