//! Downloads a torrent with the library alone and prints how fast it went.
//!
//! `cargo run --release --example download -- SOURCE CACHE_DIR [PEER]…`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use p2pfs::engine::{
    AddTorrent, DataPlace, DhtConfig, RateLimits, Session, SessionConfig, resolve,
};
use tokio::sync::watch;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let source = args.next().context("usage: download SOURCE CACHE_DIR [PEER]…")?;
    let cache_dir = PathBuf::from(args.next().context("a directory for the cache is missing")?);
    let peers = args.map(|a| a.parse()).collect::<Result<Vec<_>, _>>()?;
    let session = Session::start(SessionConfig {
        cache_dir,
        cache_limits: Default::default(),
        listen: Vec::new(),
        port: None,
        limits: RateLimits::default(),
        lsd: true,
        pex: true,
        dht: Some(DhtConfig::default()),
    })
    .await?;
    let began = Instant::now();
    let torrent = session
        .add(AddTorrent {
            source: resolve(&source).await?,
            peers,
            trackers: Vec::new(),
            on_demand: false,
            upload: true,
            select: Vec::new(),
            data: DataPlace::Cache,
            metadata_timeout: Duration::from_secs(120),
            progress: watch::Sender::default(),
        })
        .await?;
    println!("metadata after {:.3} s", began.elapsed().as_secs_f64());
    torrent.wait_complete().await?;
    let (seconds, total) = (began.elapsed().as_secs_f64(), torrent.info().geometry.total());
    println!("{total} bytes in {seconds:.2} s: {:.1} MB/s", total as f64 / seconds / 1e6);
    println!("{:?}", torrent.status());
    session.shutdown().await;
    Ok(())
}
