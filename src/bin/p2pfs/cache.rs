//! `p2pfs cache`

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use p2pfs::proto::ids::InfoHash;
use p2pfs::rpc::{
    CacheRequest, CachedTorrent, CheckedTorrent, Config, ErrorKind, NO_PLACES, Outcome, Places,
    Request, Response, RpcError, WirePath, care, size,
};
use p2pfs::store::{Store, StoreError};

use super::daemon::At;
use super::progress::Shown;
use super::{daemon, places};

/// How often a daemon that has the cache and does not answer yet is asked, and how long between.
const STARTING: usize = 20;
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Look after the cache: what is in it, freeing, pinning and checking it
///
/// If a daemon has the cache, it is asked; otherwise no daemon is needed.
#[derive(Debug, Args)]
pub struct Cache {
    #[command(subcommand)]
    verb: CacheVerb,
    /// Folder of the cache (default: ~/.cache/p2pfs, /var/cache/p2pfs for root)
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum CacheVerb {
    /// List the torrents of the cache, those that were not used for longest first
    Ls {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Free what is not mounted and not pinned
    Gc,
    /// Keep a file or folder in the cache, whatever else is read and after it is unmounted too
    ///
    /// It is not fetched for that; see `prefetch`.
    Pin {
        /// Its path in a mount, or the info hash of a torrent for all of it
        #[arg(value_name = "PATH|INFOHASH")]
        what: PathBuf,
    },
    /// Let a file or folder go again when the cache is full
    Unpin {
        /// Its path in a mount, or the info hash of a torrent for all of it
        #[arg(value_name = "PATH|INFOHASH")]
        what: PathBuf,
    },
    /// Read everything that is in the cache from the disk, and check its hashes
    ///
    /// What is bad is not used any more, and fetched again when it is wanted. The exit code is 1 if
    /// something was bad, unless it is repaired.
    Verify {
        /// Free the room of what is bad, too
        #[arg(long)]
        repair: bool,
    },
}

impl Cache {
    pub async fn run(self, at: At<'_>) -> Result<()> {
        let socket = at.socket;
        let dir = match (&self.data_dir, Config::load(at.config)?.settings()?.data_dir) {
            (Some(dir), _) => places::absolute(dir)?,
            (None, Some(dir)) => dir.0,
            (None, None) => Places::of_this_user().context(NO_PLACES)?.cache,
        };
        match self.verb {
            CacheVerb::Ls { json } => list(socket, &dir, json).await,
            CacheVerb::Gc => {
                let freed = ask(socket, &dir, CacheRequest::Free, |_| {}).await?;
                let (bytes, torrents) =
                    (size::show(freed.bytes), size::count(freed.files, "torrent"));
                eprintln!("p2pfs: {bytes} of {torrents} freed");
                Ok(())
            }
            CacheVerb::Pin { what } => pin(socket, &dir, &what, true).await,
            CacheVerb::Unpin { what } => pin(socket, &dir, &what, false).await,
            CacheVerb::Verify { repair } => verify(socket, &dir, repair).await,
        }
    }
}

/// Has it done by the daemon that has the cache, or here if none has.
async fn ask(
    socket: Option<&Path>,
    dir: &Path,
    what: CacheRequest,
    mut on_event: impl FnMut(Response),
) -> Result<Outcome> {
    // Opening would make it.
    if !dir.is_dir() {
        return match what {
            CacheRequest::Pin { info_hash, .. } => bail!("{info_hash}: not in the cache"),
            _ => Ok(Outcome::default()),
        };
    }
    match Store::open_for_now(dir) {
        Ok(store) => {
            let may_end = matches!(what, CacheRequest::Verify { .. });
            let say = |event| {
                on_event(event);
                match may_end && store.is_wanted() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            if let Some(done) = care(&store, &what, say)? {
                return Ok(done);
            }
            // A daemon has come for the cache: it does all of it again.
            drop(store);
            ask_daemon(socket, dir, what, on_event).await
        }
        Err(StoreError::InUse { .. }) => ask_daemon(socket, dir, what, on_event).await,
        Err(error) => Err(error.into()),
    }
}

/// Has it done by the daemon that has the cache, which may only just be starting.
async fn ask_daemon(
    socket: Option<&Path>,
    dir: &Path,
    what: CacheRequest,
    mut on_event: impl FnMut(Response),
) -> Result<Outcome> {
    let dir = WirePath(places::existing(dir)?);
    let mut tries = 0;
    loop {
        let request = Request::Cache { dir: dir.clone(), what: what.clone() };
        let error = match daemon::ask(socket, request, &mut on_event).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let kind = error.downcast_ref::<RpcError>().map(|error| error.kind);
        tries += 1;
        if kind != Some(ErrorKind::NotHere) || tries > STARTING {
            return Err(error);
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

async fn list(socket: Option<&Path>, dir: &Path, json: bool) -> Result<()> {
    let mut torrents = Vec::new();
    let take = |event| {
        if let Response::Cached(torrent) = event {
            torrents.push(*torrent);
        }
    };
    ask(socket, dir, CacheRequest::List, take).await?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&torrents)?)?;
        return Ok(());
    }
    for torrent in &torrents {
        line(&mut out, torrent)?;
    }
    let all = torrents.iter().map(|torrent| torrent.on_disk).sum();
    let count = size::count(torrents.len() as u64, "torrent");
    writeln!(out, "{} on disk for {count} in {}", size::show(all), dir.display())?;
    Ok(())
}

fn line(out: &mut impl Write, torrent: &CachedTorrent) -> io::Result<()> {
    let CachedTorrent { info_hash, total, here, on_disk, .. } = torrent;
    let name = torrent.name.as_deref().unwrap_or("(its description is damaged)");
    let percent = size::percent(*here, *total);
    write!(out, "{info_hash}  {percent:3} % of {:>8}, ", size::show(*total))?;
    write!(out, "{:>8} on disk, {}", size::show(*on_disk), use_of(torrent))?;
    match torrent.pinned_files {
        0 => {}
        n => write!(out, ", {} pinned", size::count(n as u64, "file"))?,
    }
    writeln!(out, "  {name}")
}

/// Whether a torrent is mounted, or when it was last.
fn use_of(torrent: &CachedTorrent) -> String {
    let used = torrent.last_used.map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at));
    match used.and_then(|used| SystemTime::now().duration_since(used).ok()) {
        _ if torrent.in_use => "mounted".into(),
        None => "used just now".into(),
        Some(ago) => match ago.as_secs() {
            0..3600 => format!("used {} min ago", ago.as_secs() / 60),
            3600..172_800 => format!("used {} h ago", ago.as_secs() / 3600),
            _ => format!("used {} days ago", ago.as_secs() / 86_400),
        },
    }
}

async fn pin(socket: Option<&Path>, dir: &Path, what: &Path, pin: bool) -> Result<()> {
    let hash = what.to_str().and_then(|text| text.parse::<InfoHash>().ok());
    let done = match hash {
        Some(hash) => {
            let info_hash = hash.to_string();
            ask(socket, dir, CacheRequest::Pin { info_hash, pin }, |_| {}).await?
        }
        None => {
            let path = places::existing(what)?.into();
            daemon::ask(socket, Request::Pin { path, pin }, |_| {}).await?
        }
    };
    let kept = if pin { "stay in the cache" } else { "may go when the cache is full" };
    eprintln!("p2pfs: {} {kept}", size::count(done.files, "file"));
    Ok(())
}

async fn verify(socket: Option<&Path>, dir: &Path, repair: bool) -> Result<()> {
    let (mut shown, mut bad, mut told) = (Shown::default(), 0, BTreeSet::new());
    let on_event = |event| match event {
        Response::Progress(progress) if shown.is_due() => shown.show(&progress),
        Response::CacheChecked(checked) if told.insert(checked.info_hash.clone()) => {
            shown.clear();
            bad += checked.bad.len() as u64;
            println!("{}", verdict(&checked));
        }
        _ => {}
    };
    let outcome = ask(socket, dir, CacheRequest::Verify { repair }, on_event).await?;
    let bytes = size::show(outcome.bytes);
    match (bad, repair) {
        (0, _) => {
            eprintln!("p2pfs: {} checked, all good", size::count(told.len() as u64, "torrent"))
        }
        (_, true) => eprintln!("p2pfs: {bytes} were bad and will be fetched again"),
        (_, false) => {
            bail!("{bytes} were bad and are not used any more; --repair frees their room, too")
        }
    }
    Ok(())
}

fn verdict(checked: &CheckedTorrent) -> String {
    let CheckedTorrent { info_hash, name, pieces, .. } = checked;
    let mut found = format!("{info_hash}  {}", size::count((*pieces).into(), "piece"));
    match checked.bad.as_slice() {
        [] => found += ", all good",
        [first, ..] => found += &format!(", {} bad, the first is {first}", checked.bad.len()),
    }
    if checked.unknown > 0 {
        found += &format!(", {} not checked for want of their hashes", checked.unknown);
    }
    format!("{found}  {name}")
}
