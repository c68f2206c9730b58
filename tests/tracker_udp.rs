//! The tracker driver against a UDP tracker of this file, over IPv6 and among forged datagrams.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::Duration;

use p2pfs::engine::tracker::{AnnounceStats, TrackerConfig, Trackers};
use p2pfs::proto::ids::{InfoHash, PeerId};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Serves one client, which sends nothing but connects and announces; each answer follows
/// datagrams that are not answers to it. Gives the events it saw after the one that ends the visit.
async fn serve(socket: UdpSocket, peers: Vec<u8>) -> Vec<u8> {
    let mut events = Vec::new();
    let mut buffer = [0; 2_048];
    while events.last() != Some(&3) {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let question = &buffer[..length];
        let action = question[11];
        let mut answer = vec![0, 0, 0, action];
        answer.extend_from_slice(&question[12..16]);
        if action == 0 {
            assert_eq!(question[..8], 0x0000_0417_2710_1980_u64.to_be_bytes());
            answer.extend_from_slice(b"connectn");
        } else {
            assert_eq!(&question[..8], b"connectn");
            assert_eq!(&question[98..], b"\x02\x0d/announce?k=v");
            events.push(question[83]);
            answer.extend_from_slice(&[0, 0, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2]);
            answer.extend_from_slice(&peers);
        }
        let mut forged = answer.clone();
        forged[7] ^= 1;
        for noise in [&forged[..], &answer[..9], b"", &[0xff; 1_400]] {
            socket.send_to(noise, from).await.unwrap();
        }
        socket.send_to(&answer, from).await.unwrap();
    }
    events
}

async fn visit(bind: &str, compact: Vec<u8>, expected: &str) {
    let socket = UdpSocket::bind(bind).await.unwrap();
    let url = format!("udp://{}/announce?k=v", socket.local_addr().unwrap());
    let server = tokio::spawn(serve(socket, compact));
    let config = TrackerConfig {
        info_hash: InfoHash::new([1; 20]),
        peer_id: PeerId::ours([7; 12]),
        port: 6881,
        tiers: vec![vec![url]],
        key: 9,
    };
    let wanting = AnnounceStats { wants_peers: true, ..AnnounceStats::default() };
    let (stats, receiver) = watch::channel(wanting);
    let (sender, mut peers) = mpsc::channel(8);
    let cancel = CancellationToken::new();
    let trackers = Trackers::spawn(config, receiver, watch::channel(0).1, sender, cancel.clone());

    let bound = Duration::from_secs(5);
    let expected: SocketAddr = expected.parse().unwrap();
    assert_eq!(timeout(bound, peers.recv()).await.unwrap(), Some(vec![expected]));
    stats.send_modify(|s| (s.complete, s.downloaded) = (true, 5));
    assert_eq!(timeout(bound, peers.recv()).await.unwrap(), Some(vec![expected]));
    cancel.cancel();
    trackers.join().await;
    let started_completed_stopped = vec![2, 1, 3];
    assert_eq!(timeout(bound, server).await.unwrap().unwrap(), started_completed_stopped);
}

#[tokio::test]
async fn peers_come_over_ipv4() {
    visit("127.0.0.1:0", vec![192, 0, 2, 1, 0x1a, 0xe1], "192.0.2.1:6881").await;
}

#[tokio::test]
async fn peers_come_over_ipv6() {
    let mut compact = vec![0x20, 0x01, 0x0d, 0xb8];
    compact.extend([0; 11]);
    compact.extend([1, 0x1a, 0xe1]);
    visit("[::1]:0", compact, "[2001:db8::1]:6881").await;
}
