//! `p2pfs scrape`: what real, dead and hostile trackers say, and what is made of it.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
mod tracker_server;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use harness::*;
use p2pfs::proto::ids::InfoHash;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tracker_server::{Behaviour, Server};

/// Nobody listens there.
const DEAD: [&str; 2] = ["http://127.0.0.1:1/announce", "udp://127.0.0.1:1/announce"];

/// Runs `p2pfs scrape` with these arguments. The DHT has tests of its own (`cli_dht.rs`).
fn scrape(arguments: &[&str]) -> Finished {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let finished =
        run(&scratch, p2pfs.command_alone("scrape").arg("--no-dht").args(arguments), PATIENCE);
    assert_eq!(scratch.processes(), [], "a daemon was started");
    finished
}

/// The same where a server of this test answers.
async fn scrape_later(arguments: Vec<String>) -> Finished {
    let run = move || scrape(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    spawn_blocking(run).await.unwrap()
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout()).unwrap()
}

fn numbers(value: &Value) -> [Option<u64>; 3] {
    ["seeders", "leechers", "downloads"].map(|name| value[name].as_u64())
}

/// Announces to a tracker until it knows the torrent.
fn announce(url: &str, torrent: &Torrent, port: u16, left: u32, event: &str) {
    let address = url.trim_start_matches("http://").trim_end_matches("/announce");
    let bytes = (0..40).step_by(2).map(|at| format!("%{}", &torrent.info_hash[at..at + 2]));
    let hash: String = bytes.collect();
    wait_until("the tracker takes the announce", PATIENCE, || {
        let mut stream = TcpStream::connect(address).unwrap();
        let query = format!("info_hash={hash}&port={port}&left={left}&event={event}&compact=1");
        stream.write_all(format!("GET /announce?{query} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).contains("8:interval")
    });
}

#[test]
fn a_real_tracker_gives_numbers_over_http_and_udp() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let tracker = Opentracker::start(&scratch, &[&torrent.info_hash]);
    announce(&tracker.http(), &torrent, 7_001, 0, "started");
    announce(&tracker.http(), &torrent, 7_002, 1, "started");
    announce(&tracker.http(), &torrent, 7_003, 1, "started");
    announce(&tracker.http(), &torrent, 7_004, 1, "started");
    announce(&tracker.http(), &torrent, 7_002, 0, "completed");
    let magnet = torrent.magnet_with_trackers(&[&tracker.http(), &tracker.udp()]);
    let found = json(&scrape(&[&magnet, "--json"]).success());
    let expected = [Some(2), Some(2), Some(1)];
    assert_eq!(found["info_hash"], torrent.info_hash.as_str());
    for (at, url) in [tracker.http(), tracker.udp()].into_iter().enumerate() {
        let source = &found["sources"][at];
        assert_eq!((numbers(source), &source["source"]), (expected, &Value::from(url)), "{found}");
    }
    assert_eq!(numbers(&found["most"]), expected, "{found}");
    let text = scrape(&[&magnet]).success().stdout();
    let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words.len(), 4, "{text}");
    assert_eq!(words[1][..], ["2", "2", "1", &tracker.http()], "{text}");
    assert_eq!(words[2][..], ["2", "2", "1", &tracker.udp()], "{text}");
    assert_eq!(words[3][..3], ["2", "2", "1"], "{text}");
}

#[test]
fn a_torrent_file_and_a_bare_info_hash_are_sources_too() {
    let scratch = Scratch::new();
    let content = Content::album();
    let plain = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&plain.info_hash]);
    announce(&tracker.http(), &plain, 7_001, 0, "started");
    let torrent = Torrent::with_trackers(&scratch, &content, &[&tracker.udp(), DEAD[0]]);
    let by_file = json(&scrape(&[torrent.file.to_str().unwrap(), "--json"]).success());
    let by_hash = [torrent.info_hash.as_str(), "--tracker", &tracker.udp(), "--json"];
    let by_hash = json(&scrape(&by_hash).success());
    for found in [by_file, by_hash] {
        assert_eq!(numbers(&found["most"]), [Some(1), Some(0), Some(0)], "{found}");
    }
}

#[test]
fn a_dead_tracker_is_named_and_the_others_count() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let tracker = Opentracker::start(&scratch, &[&torrent.info_hash]);
    announce(&tracker.http(), &torrent, 7_001, 0, "started");
    let magnet = torrent.magnet_with_trackers(&[DEAD[0], &tracker.http(), DEAD[1]]);
    let found = json(&scrape(&[&magnet, "--json"]).success());
    assert_eq!(numbers(&found["most"]), [Some(1), Some(0), Some(0)], "{found}");
    for at in [0, 2] {
        assert!(found["sources"][at]["error"].as_str().is_some_and(|e| !e.is_empty()), "{found}");
    }
}

#[test]
fn when_nobody_answers_that_is_one_line_and_a_failure() {
    let hash = "01".repeat(20);
    let said = scrape(&[&hash, "--tracker", DEAD[0], "--tracker", DEAD[1]]).failure();
    assert_eq!(said.status.code(), Some(1));
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("2 trackers") && said.stderr.contains(DEAD[0]), "{}", said.stderr);
    assert!(said.stdout().contains(DEAD[1]), "{}", said.stdout());
}

#[test]
fn without_trackers_there_is_nobody_to_ask() {
    let said = scrape(&[&"01".repeat(20)]).failure();
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("--tracker"), "{}", said.stderr);
}

#[test]
fn what_is_no_tracker_is_not_asked() {
    let hash = "01".repeat(20);
    // The last would be a request to any service of this machine.
    for url in
        ["wss://t.example/announce", "nonsense", "http://127.0.0.1:1/announce.cgi?press=button"]
    {
        let said = scrape(&[&hash, "--tracker", url]).failure();
        assert!(said.stderr.contains("skipped"), "{}", said.stderr);
    }
}

/// What a tracker that behaves like this makes `p2pfs scrape --json` say is wrong.
async fn complaint(behaviour: Behaviour) -> String {
    let server = Server::start(behaviour).await;
    let began = Instant::now();
    let url = server.url("/announce");
    let hash = "01".repeat(20);
    let arguments = [hash.as_str(), "--timeout", "2", "--json", "--tracker", &url];
    let finished = scrape_later(arguments.map(str::to_owned).to_vec()).await.failure();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(server.requests() > 0, "it was asked");
    let found = json(&finished);
    assert!(found["most"].is_null(), "{found}");
    found["sources"][0]["error"].as_str().unwrap().to_owned()
}

/// An answer to a scrape of one torrent.
fn answer(hash: [u8; 20], numbers: &[u8]) -> Behaviour {
    Behaviour::body("200 OK", &[&b"d5:filesd20:"[..], &hash, b"d", numbers, b"eee"].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_cut_off() {
    assert!(complaint(Behaviour::Endless).await.contains("too long"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_answer_is_not_read() {
    let huge = Behaviour::body("200 OK", &vec![b'd'; 3 << 20]);
    assert!(complaint(huge).await.contains("too long"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_dribbles_or_is_silent_is_not_waited_for() {
    assert!(complaint(Behaviour::Dribbles).await.contains("no answer"));
    assert!(complaint(Behaviour::Silent).await.contains("no answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_another_torrent_are_not_ours() {
    let other = answer([2; 20], b"8:completei9e10:downloadedi9e10:incompletei9e");
    assert!(complaint(other).await.contains("does not know the torrent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_numbers_are_refused() {
    let negative = answer([1; 20], b"8:completei-9e10:downloadedi9e10:incompletei9e");
    assert!(complaint(negative).await.contains("makes no sense"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_without_what_a_terminal_would_obey() {
    let refusal = Behaviour::body("400 Bad Request", b"d14:failure reason8:go\x1b[1maye");
    assert_eq!(complaint(refusal).await, "refused: go[1may");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_is_no_answer() {
    assert!(complaint(Behaviour::body("200 OK", b"<html>")).await.contains("makes no sense"));
    assert!(complaint(Behaviour::body("404 Not Found", b"")).await.contains("404"));
}

/// What a UDP tracker makes of a request: as many datagrams as it likes.
type Answers = fn(&[u8]) -> Vec<Vec<u8>>;

/// What such a tracker makes `p2pfs scrape` say, and its exit code.
fn scrape_udp(answers: Answers) -> (Option<i32>, Value) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", socket.local_addr().unwrap());
    let ended = std::sync::atomic::AtomicBool::new(false);
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2_000];
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                for answer in answers(&buffer[..length]) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        let hash = InfoHash::new([1; 20]).to_string();
        let finished = scrape(&[&hash, "--timeout", "1", "--json", "--tracker", &url]);
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        (finished.status.code(), json(&finished))
    })
}

/// A response to `request`: an action, the request's transaction, and a body.
fn response(action: u8, request: &[u8], body: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, action][..], &request[12..16], body].concat()
}

fn connects(request: &[u8]) -> bool {
    request.len() == 16
}

#[test]
fn a_udp_tracker_that_sends_anything_but_the_answer_is_silent() {
    let (code, found) = scrape_udp(|request| {
        let foreign = |mut answer: Vec<u8>| {
            answer[5] ^= 1;
            answer
        };
        vec![
            Vec::new(),
            vec![0xff; 1_400],
            foreign(response(if connects(request) { 0 } else { 2 }, request, &[7; 12])),
            response(2, request, &[7; 12])[..if connects(request) { 20 } else { 7 }].to_vec(),
        ]
    });
    assert_eq!((code, &found["sources"][0]["error"]), (Some(1), &Value::from("no answer")));
}

#[test]
fn a_udp_tracker_that_says_negative_numbers_makes_no_sense() {
    let (code, found) = scrape_udp(|request| match connects(request) {
        true => vec![response(0, request, &[9; 8])],
        false => vec![response(2, request, &[0xff; 12])],
    });
    let error = found["sources"][0]["error"].as_str().unwrap();
    assert!(code == Some(1) && error.contains("makes no sense"), "{found}");
}

#[test]
fn numbers_that_nobody_asked_a_udp_tracker_for_are_left_out() {
    let (code, found) = scrape_udp(|request| match connects(request) {
        true => vec![response(0, request, &[9; 8])],
        false => vec![response(2, request, &[[0, 0, 0, 5]; 300].concat())],
    });
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(numbers(&found["most"]), [Some(5); 3], "{found}");
}
