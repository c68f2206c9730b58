//! Connections between two ends of this process.

use std::os::fd::AsFd;

use super::super::blocks::testing::Lender;
use super::super::clock::Clock;
use super::super::rates::{RateLimits, Rates};
use super::*;

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let opened = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (opened, listener.accept().await.unwrap().0)
}

fn unlimited() -> Throttle {
    let clock = Clock::start();
    Throttle([(); 2].map(|()| Rates::new(RateLimits::default(), clock)))
}

fn run(stream: TcpStream) -> (PeerLink, mpsc::Receiver<Events>) {
    run_with(stream, None)
}

fn run_with(
    stream: TcpStream,
    store: Option<Arc<TorrentStore>>,
) -> (PeerLink, mpsc::Receiver<Events>) {
    let (events, received) = mpsc::channel(4);
    let (peer_id, addr) = (PeerId::new([b'x'; 20]), stream.peer_addr().unwrap());
    let link = spawn(
        Connection { key: PeerKey(1), stream, peer_id, addr, greeting: None },
        unlimited(),
        Lines {
            events,
            store: tokio::sync::watch::channel(store).1,
            ended: CancellationToken::new(),
            open: TaskTracker::new(),
        },
    );
    (link, received)
}

#[tokio::test]
async fn small_messages_are_not_held_back_whoever_opened_the_connection() {
    let (opened, accepted) = pair().await;
    for stream in [opened, accepted] {
        let same = stream.as_fd().try_clone_to_owned().unwrap();
        let _running = run(stream);
        assert!(SockRef::from(&same).tcp_nodelay().unwrap());
    }
}

#[tokio::test]
async fn who_takes_no_answers_is_left_before_they_fill_the_memory() {
    let (_silent, stream) = pair().await;
    let (link, _received) = run(stream);
    let answer = || Command::Message(Message::Extended(1, vec![0; 16 << 10].into()));
    let told = std::iter::repeat_with(answer).take_while(|_| !link.cancel.is_cancelled());
    let told = told.map(|answer| link.tell(answer)).take(MAX_COMMANDS).count();
    assert!(told * (16 << 10) <= MAX_QUEUED + (8 << 20), "{told} answers were kept");
}

#[tokio::test]
async fn a_flood_of_messages_comes_in_small_batches() {
    let (mut flood, stream) = pair().await;
    let (_link, mut received) = run(stream);
    tokio::spawn(async move { flood.write_all(&[0; 4 * 100_000]).await });
    let mut messages = 0;
    while messages < 100_000 {
        let (_, batch) = received.recv().await.unwrap();
        assert!(batch.len() <= MAX_BATCH, "{}", batch.len());
        messages += batch.len();
    }
}

#[tokio::test]
async fn messages_do_not_wait_for_data_of_somebody_else() {
    let (mut peer, stream) = pair().await;
    let lender = Lender::new();
    let stuck = lender.stick();
    let (link, mut received) = run_with(stream, Some(lender.store.clone()));
    let raw = RawBlock { piece: 0, begin: 0, length: 100 };
    link.tell(Command::Upload(raw));
    link.tell(Command::Message(Message::Interested));
    let mut message = [0; 5];
    peer.read_exact(&mut message).await.unwrap();
    drop(stuck);
    let (_, events) = received.recv().await.unwrap();
    assert!(matches!(events[..], [Event::Uploaded { sent: true, .. }]), "the message came first");
    let mut block = [0; 13 + 100];
    peer.read_exact(&mut block).await.unwrap();
    assert_eq!(block[13..], [7; 100]);
}
