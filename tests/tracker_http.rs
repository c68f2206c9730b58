//! The tracker driver against HTTP servers that are friendly, hostile or not trackers at all.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tracker_server;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use p2pfs::engine::tracker::{AnnounceStats, TrackerConfig, TrackerStatus, Trackers};
use p2pfs::proto::ids::{InfoHash, PeerId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracker_server::{Behaviour, Server};

struct Client {
    trackers: Trackers,
    peers: mpsc::Receiver<Vec<SocketAddr>>,
    cancel: CancellationToken,
    _stats: watch::Sender<AnnounceStats>,
}

fn announce_to(tiers: Vec<Vec<String>>) -> Client {
    let config = TrackerConfig {
        info_hash: InfoHash::new([1; 20]),
        peer_id: PeerId::ours([7; 12]),
        port: 6881,
        tiers,
        key: 9,
    };
    let stats = AnnounceStats { wants_peers: true, ..AnnounceStats::default() };
    let (stats, receiver) = watch::channel(stats);
    let (sender, peers) = mpsc::channel(8);
    let cancel = CancellationToken::new();
    let trackers = Trackers::spawn(config, receiver, watch::channel(0).1, sender, cancel.clone());
    Client { trackers, peers, cancel, _stats: stats }
}

/// The status of the only tracker once it fulfils `is`, and how long that took.
async fn status_when(
    client: &Client,
    is: impl Fn(&TrackerStatus) -> bool,
) -> (TrackerStatus, Duration) {
    let began = Instant::now();
    let mut poll = tokio::time::interval(Duration::from_millis(10));
    loop {
        poll.tick().await;
        let status = client.trackers.status().remove(0);
        if is(&status) {
            return (status, began.elapsed());
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{status:?}");
    }
}

/// What a tracker's behaviour is reported as, within `bound`.
async fn error_of(behaviour: Behaviour, bound: Duration) -> String {
    let server = Server::start(behaviour).await;
    let client = announce_to(vec![vec![server.url("/announce")]]);
    let (status, took) = status_when(&client, |s| s.error.is_some()).await;
    assert!(took < bound, "{took:?}");
    assert!(status.next_announce.is_some_and(|s| s > 5));
    client.cancel.cancel();
    client.trackers.join().await;
    status.error.unwrap()
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn peers_come_out_of_the_answer() {
    let body = b"d8:completei3e8:intervali1800e5:peers6:\xc0\x00\x02\x01\x1a\xe1e";
    let server = Server::start(Behaviour::body("200 OK", body)).await;
    let mut client = announce_to(vec![vec![server.url("/announce")]]);
    assert_eq!(client.peers.recv().await.unwrap(), ["192.0.2.1:6881".parse().unwrap()]);
    let (status, _) = status_when(&client, |s| s.peers == Some(1)).await;
    assert_eq!((status.seeders, status.error), (Some(3), None));
    client.cancel.cancel();
    client.trackers.join().await;
    assert_eq!(server.requests(), 2, "started and stopped");
}

/// The answer of a server that packs what it sends, whether asked to or not.
fn packed(bytes: &str) -> Behaviour {
    let command = format!("{bytes} | gzip -c");
    let packed = std::process::Command::new("sh").args(["-c", &command]).output().unwrap().stdout;
    let head = format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len());
    Behaviour::Sends([b"HTTP/1.1 200 OK\r\n", head.as_bytes(), &packed].concat())
}

#[tokio::test]
async fn a_packed_answer_is_read_and_bounded() {
    let body = packed(r"printf 'd8:intervali1800e5:peers6:\300\000\002\001\032\341e'");
    let server = Server::start(body).await;
    let mut client = announce_to(vec![vec![server.url("/announce")]]);
    assert_eq!(client.peers.recv().await.unwrap(), ["192.0.2.1:6881".parse().unwrap()]);
    let error = error_of(packed("head -c 200M /dev/zero"), SOON).await;
    assert!(error.contains("too long"), "{error}");
}

#[tokio::test]
async fn a_dead_tier_does_not_delay_the_peers() {
    let silent = Server::start(Behaviour::Silent).await;
    let body = b"d5:peers6:\xc0\x00\x02\x01\x1a\xe1e";
    let live = Server::start(Behaviour::body("200 OK", body)).await;
    let began = Instant::now();
    let mut client = announce_to(vec![
        vec![silent.url("/announce")],
        vec![silent.url("/2/announce"), "ws://127.0.0.1:1/".into(), live.url("/announce")],
    ]);
    assert_eq!(client.peers.recv().await.unwrap().len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5));
    client.cancel.cancel();
    client.trackers.join().await;
    assert!(began.elapsed() < Duration::from_secs(8), "the farewell is bounded");
}

#[tokio::test]
async fn a_tracker_that_ignores_the_farewell_is_left_after_3_seconds() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let client = announce_to(vec![vec![url]]);
    let (mut first, _) = listener.accept().await.unwrap();
    assert!(first.read(&mut [0; 4096]).await.unwrap() > 0);
    first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nd5:peers0:e").await.unwrap();
    drop(first);
    status_when(&client, |s| s.peers == Some(0)).await;
    let began = Instant::now();
    client.cancel.cancel();
    let _held = listener.accept().await.unwrap();
    client.trackers.join().await;
    assert!((2..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_refusal_is_shown_also_with_an_error_status() {
    let body = b"d14:failure reason12:unregisterede";
    for status in ["200 OK", "403 Forbidden"] {
        let error = error_of(Behaviour::body(status, body), SOON).await;
        assert_eq!(error, "refused: unregistered");
    }
}

#[tokio::test]
async fn an_error_status_is_shown() {
    let error = error_of(Behaviour::body("404 Not Found", b"<html>"), SOON).await;
    assert_eq!(error, "HTTP status 404 Not Found");
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let error = error_of(Behaviour::body("200 OK", b"<html>hello</html>"), SOON).await;
    assert!(error.contains("makes no sense"), "{error}");
    error_of(Behaviour::Sends(b"\x00\xff\x16\x03 not http".to_vec()), SOON).await;
    error_of(Behaviour::Sends(Vec::new()), SOON).await;
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let error = error_of(Behaviour::Endless, SOON).await;
    assert!(error.contains("too long"), "{error}");
}

#[tokio::test]
async fn a_huge_announced_length_is_refused() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nd".to_vec();
    let error = error_of(Behaviour::Sends(head), SOON).await;
    assert!(error.contains("too long"), "{error}");
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let error = error_of(Behaviour::body("200 OK", &[b'l'; 500_000]), SOON).await;
    assert!(error.contains("makes no sense"), "{error}");
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let server = Server::start(Behaviour::RedirectsToItself).await;
    let client = announce_to(vec![vec![server.url("/announce")]]);
    let (status, _) = status_when(&client, |s| s.error.is_some()).await;
    assert_eq!(status.error.unwrap(), "too many redirects");
    assert_eq!(server.requests(), 6);
}

#[tokio::test]
async fn a_dribbling_body_ends_in_its_time() {
    let error = error_of(Behaviour::Dribbles, Duration::from_secs(25)).await;
    assert_eq!(error, "no answer in time");
}

#[tokio::test]
async fn other_services_of_this_machine_are_not_asked() {
    let server = Server::start(Behaviour::body("200 OK", b"de")).await;
    let client = announce_to(vec![vec![server.url("/shutdown?now=1")]]);
    status_when(&client, |s| s.error.is_some()).await;
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_closed_port_is_named() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = gone.local_addr().unwrap();
    drop(gone);
    for url in [format!("http://{addr}/announce"), format!("udp://{addr}/announce")] {
        let client = announce_to(vec![vec![url]]);
        let (status, took) = status_when(&client, |s| s.error.is_some()).await;
        assert!(status.error.unwrap().contains("Connection refused"));
        assert!(took < SOON);
    }
}
