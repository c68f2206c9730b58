//! Two sessions of the engine over loopback: what one seeds the other reads.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use p2pfs::engine::source::Source;
use p2pfs::engine::{
    AddTorrent, DataPlace, RateLimits, ReadHandle, Session, SessionConfig, Torrent,
};
use p2pfs::proto::ids::{InfoHash, PeerId};
use p2pfs::proto::metainfo::{BuildOptions, Builder, FileEntry, Magnet, Metainfo};
use p2pfs::proto::wire::handshake::{HANDSHAKE_LEN, Handshake, Reserved};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// Longer than anything here takes; a wait that ends by it has failed.
const BOUND: Duration = Duration::from_secs(60);

fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

fn config(dir: &Path) -> SessionConfig {
    SessionConfig {
        cache_dir: dir.to_owned(),
        cache_limits: Default::default(),
        listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        port: Some(0),
        limits: RateLimits::default(),
        lsd: false,
        pex: true,
        dht: None,
    }
}

async fn session(dir: &Path) -> Session {
    Session::start(config(dir)).await.unwrap()
}

fn add(source: Source, peers: Vec<SocketAddr>, data: DataPlace) -> AddTorrent {
    AddTorrent {
        source,
        peers,
        trackers: Vec::new(),
        on_demand: false,
        upload: true,
        select: Vec::new(),
        data,
        metadata_timeout: BOUND,
        progress: watch::Sender::default(),
    }
}

/// A torrent of one file, its bytes in `dir`.
fn torrent_of(data: &[u8], piece_length: u32, dir: &Path) -> Metainfo {
    std::fs::write(dir.join("data.bin"), data).unwrap();
    let options = BuildOptions { piece_length: Some(piece_length), ..BuildOptions::default() };
    let file = FileEntry {
        path: Vec::new(),
        offset: 0,
        length: data.len() as u64,
        executable: false,
        pad: false,
        hidden: false,
        symlink: None,
        mtime: None,
    };
    let mut builder = Builder::new("data.bin", vec![file], options).unwrap();
    for piece in data.chunks(piece_length as usize) {
        builder.push_piece(Sha1::digest(piece).into());
    }
    builder.finish().unwrap()
}

fn local(session: &Session) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, session.port()))
}

async fn read(torrent: &Torrent, offset: u64, length: usize) -> Vec<u8> {
    let (done, ended) = tokio::sync::oneshot::channel();
    torrent.read_later(
        ReadHandle(1),
        0,
        offset,
        length,
        None,
        Box::new(move |result| {
            let _ = done.send(result);
        }),
    );
    tokio::time::timeout(BOUND, ended).await.unwrap().unwrap().unwrap();
    let torrent = torrent.clone();
    tokio::task::spawn_blocking(move || {
        torrent.read_now(0, offset, length, |bytes| bytes.to_vec()).unwrap()
    })
    .await
    .unwrap()
}

/// Says hello from `ip` with the peer id `ours`; the connection and the other side's peer id.
async fn greet(to: SocketAddr, ip: [u8; 4], hash: InfoHash, ours: PeerId) -> (TcpStream, PeerId) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let ours = Handshake { reserved: Reserved::ours(), info_hash: hash, peer_id: ours };
    stream.write_all(&ours.encode()).await.unwrap();
    let mut theirs = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut theirs).await.unwrap();
    (stream, Handshake::decode(&theirs).unwrap().peer_id)
}

/// Waits for a condition that nothing tells of.
async fn until(holds: impl Fn() -> bool) {
    let looks = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, looks).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_shuts_out_a_seeder_by_using_its_peer_id() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(200_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let hash = metainfo.info.info_hash;
    let source = || Source::Metainfo(Box::new(metainfo.clone()));
    let leech = session(&dir.path().join("leech")).await;
    let torrent = leech.add(add(source(), vec![], DataPlace::Cache)).await.unwrap();
    let anybody = PeerId::new([b'x'; 20]);
    let (_, leech_id) = greet(local(&leech), [127, 0, 0, 1], hash, anybody).await;

    // The greater peer id decides which of two connections stays: here never ours.
    let mut seeders = Vec::new();
    let (seeder, seeder_id) = loop {
        let seeder = session(&dir.path().join(format!("seeder-{}", seeders.len()))).await;
        let place = DataPlace::InPlace(dir.path().join("data.bin"));
        seeder.add(add(source(), vec![], place)).await.unwrap();
        let (_, id) = greet(local(&seeder), [127, 0, 0, 1], hash, anybody).await;
        seeders.push(seeder.clone());
        if id > leech_id {
            break (seeder, id);
        }
    };
    let (_impostor, _) = greet(local(&leech), [127, 0, 0, 2], hash, seeder_id).await;
    leech.add(add(source(), vec![local(&seeder)], DataPlace::Cache)).await.unwrap();
    tokio::time::timeout(BOUND, torrent.wait_complete()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reaches_itself_is_told_so() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(1_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let hash = metainfo.info.info_hash;
    let session = session(&dir.path().join("cache")).await;
    let source = Source::Metainfo(Box::new(metainfo));
    session.add(add(source, vec![], DataPlace::Cache)).await.unwrap();
    let here = [127, 0, 0, 1];
    let (_, own) = greet(local(&session), here, hash, PeerId::new([b'x'; 20])).await;
    // What the outgoing end of a connection to our own address sees: its id comes back.
    let answered = tokio::time::timeout(BOUND, greet(local(&session), here, hash, own)).await;
    let (mut stream, answer) = answered.unwrap();
    assert_eq!(answer, own);
    assert!(is_closed(&mut stream, BOUND).await, "nothing more is to be had of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_the_limit_holds_back_do_not_hold_back_our_requests() {
    const PIECE: usize = 1 << 20;
    let (dir, data) = (tempfile::tempdir().unwrap(), content(2 * PIECE));
    let metainfo = torrent_of(&data, PIECE as u32, dir.path());
    let source = || Source::Metainfo(Box::new(metainfo.clone()));
    let seeder = session(&dir.path().join("seeder")).await;
    let place = DataPlace::InPlace(dir.path().join("data.bin"));
    seeder.add(add(source(), vec![], place)).await.unwrap();
    let on_demand =
        |peers| AddTorrent { on_demand: true, ..add(source(), peers, DataPlace::Cache) };

    let mut slow_config = config(&dir.path().join("slow"));
    slow_config.limits.up = Some(5_000);
    let slow = Session::start(slow_config).await.unwrap();
    let first = slow.add(on_demand(vec![local(&seeder)])).await.unwrap();
    read(&first, 0, 1).await;
    let other = session(&dir.path().join("other")).await;
    let second = other.add(on_demand(vec![local(&seeder)])).await.unwrap();
    read(&second, PIECE as u64, 1).await;
    seeder.shutdown().await;

    // A minute's worth of uploads from the slow one is under way, and it wants something itself.
    other.add(on_demand(vec![local(&slow)])).await.unwrap();
    second.read_later(ReadHandle(2), 0, 0, 1, None, Box::new(|_| ()));
    until(|| first.status().uploaded > 0).await;
    let ten_seconds = Duration::from_secs(10);
    let got = tokio::time::timeout(ten_seconds, read(&first, PIECE as u64, 1)).await.unwrap();
    assert_eq!(got, data[PIECE..=PIECE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_refused_is_written_when_it_takes_it_again() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(300_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let source = || Source::Metainfo(Box::new(metainfo.clone()));
    let seeder = session(&dir.path().join("seeder")).await;
    let place = DataPlace::InPlace(dir.path().join("data.bin"));
    seeder.add(add(source(), vec![], place)).await.unwrap();

    let cache = dir.path().join("cache");
    let in_the_way = cache.join(metainfo.info.info_hash.to_string()).join("files/0");
    // A directory that is not empty is not replaced by the file that should be there.
    std::fs::create_dir_all(in_the_way.join("x")).unwrap();
    let leech = session(&cache).await;
    let torrent = leech.add(add(source(), vec![local(&seeder)], DataPlace::Cache)).await.unwrap();
    assert_eq!(read(&torrent, 0, 100).await, data[..100], "from memory");
    until(|| torrent.status().error.is_some()).await;
    std::fs::remove_dir(in_the_way.join("x")).unwrap();
    tokio::time::timeout(BOUND, torrent.wait_complete()).await.unwrap().unwrap();
    assert_eq!(torrent.status().error, None);
    assert_eq!(read(&torrent, 0, data.len()).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_magnet_is_fetched_read_and_served_on() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(5_000_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let magnet: Magnet = metainfo.magnet();

    let seeder = session(&dir.path().join("a")).await;
    let place = DataPlace::InPlace(dir.path().join("data.bin"));
    seeder.add(add(Source::Metainfo(Box::new(metainfo)), vec![], place)).await.unwrap();

    let first = session(&dir.path().join("b")).await;
    let source = Source::Magnet(magnet.clone());
    let torrent = first.add(add(source, vec![local(&seeder)], DataPlace::Cache)).await.unwrap();
    assert_eq!(read(&torrent, 3_000_000, 100_000).await, data[3_000_000..3_100_000]);
    tokio::time::timeout(BOUND, torrent.wait_complete()).await.unwrap().unwrap();
    assert_eq!(read(&torrent, 0, data.len()).await, data);

    seeder.shutdown().await;
    let second = session(&dir.path().join("c")).await;
    let source = Source::Magnet(magnet);
    let torrent = second.add(add(source, vec![local(&first)], DataPlace::Cache)).await.unwrap();
    tokio::time::timeout(BOUND, torrent.wait_complete()).await.unwrap().unwrap();
    assert_eq!(read(&torrent, 0, data.len()).await, data);
    first.shutdown().await;
    second.shutdown().await;
}

/// Has the system drop all that arrives at this end of a connection, as if the line were cut.
fn cut_off(stream: &TcpStream) {
    const BPF_RET: u16 = 6;
    let drop_all = [socket2::SockFilter::new(BPF_RET, 0, 0, 0)];
    socket2::SockRef::from(stream).attach_filter(&drop_all).unwrap();
}

/// Whether the other side closes the connection, whatever it says before.
async fn is_closed(stream: &mut TcpStream, within: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_connection_died_silently_comes_back_within_seconds() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(100_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let hash = metainfo.info.info_hash;
    let leech = session(&dir.path().join("leech")).await;
    let source = Source::Metainfo(Box::new(metainfo));
    leech.add(add(source, vec![], DataPlace::Cache)).await.unwrap();
    let id = PeerId::new([b'x'; 20]);
    let (first, _) = greet(local(&leech), [127, 0, 0, 1], hash, id).await;
    cut_off(&first);
    let back = greet(local(&leech), [127, 0, 0, 1], hash, id);
    tokio::time::timeout(Duration::from_secs(9), back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lives_and_is_silent_is_not_replaced_by_one_that_says_its_id() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(100_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let hash = metainfo.info.info_hash;
    let leech = session(&dir.path().join("leech")).await;
    let source = Source::Metainfo(Box::new(metainfo));
    leech.add(add(source, vec![], DataPlace::Cache)).await.unwrap();
    let id = PeerId::new([b'x'; 20]);
    let (mut first, _) = greet(local(&leech), [127, 0, 0, 1], hash, id).await;
    let mut second = TcpStream::connect(local(&leech)).await.unwrap();
    let hello = Handshake { reserved: Reserved::ours(), info_hash: hash, peer_id: id };
    second.write_all(&hello.encode()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(BOUND, second.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, [0; 0], "it was taken in");
    assert!(!is_closed(&mut first, Duration::from_secs(1)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_connections_to_one_peer_one_stays() {
    let (dir, data) = (tempfile::tempdir().unwrap(), content(100_000));
    let metainfo = torrent_of(&data, 65_536, dir.path());
    let hash = metainfo.info.info_hash;
    // The greater peer id decides which of two connections that crossed stays: here never ours.
    let hello =
        Handshake { reserved: Reserved::ours(), info_hash: hash, peer_id: PeerId::new([0; 20]) };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let leech = session(&dir.path().join("leech")).await;
    let (source, at) = (Source::Metainfo(Box::new(metainfo)), listener.local_addr().unwrap());
    leech.add(add(source, vec![at], DataPlace::Cache)).await.unwrap();
    let (mut crossing, _) = listener.accept().await.unwrap();
    let (mut first, _) = greet(local(&leech), [127, 0, 0, 1], hash, hello.peer_id).await;
    let mut waiting = TcpStream::connect(local(&leech)).await.unwrap();
    waiting.write_all(&hello.encode()).await.unwrap();
    // It waits once the first has been asked whether it lives.
    while read_message(&mut first).await != [0; 0] {}
    crossing.write_all(&hello.encode()).await.unwrap();
    assert!(is_closed(&mut first, BOUND).await);
    let mut answer = Vec::new();
    tokio::time::timeout(BOUND, waiting.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, [0; 0], "it was taken in");
    assert!(!is_closed(&mut crossing, Duration::from_secs(1)).await);
}

/// The next message, without its length; empty for a keep-alive.
async fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).await.unwrap();
    message
}
