//! Two sessions of the engine over loopback: what one seeds the other reads.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use p2pfs::engine::source::Source;
use p2pfs::engine::{AddTorrent, DataPlace, ReadHandle, Session, SessionConfig, Torrent};
use p2pfs::proto::metainfo::{BuildOptions, Builder, FileEntry, Magnet, Metainfo};
use sha1::{Digest, Sha1};
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

async fn session(dir: &Path) -> Session {
    let config = SessionConfig {
        cache_dir: dir.to_owned(),
        listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        port: Some(0),
        upload_limit: None,
        download_limit: None,
    };
    Session::start(config).await.unwrap()
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
