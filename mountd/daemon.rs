//! What all mounts and seeds of the daemon share: the session, its settings, and who uses which
//! torrent.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use p2pfs::engine::{
    AddProgress, AddTorrent, DataPlace, DhtConfig, Limits, RateLimits, Session, SessionConfig,
    Torrent, disk_size, resolve,
};
use p2pfs::proto::ids::InfoHash;
use p2pfs::rpc::{
    CacheRequest, DhtNodes, DhtStatus, ErrorKind, NO_PLACES, Outcome, Places, Progress, Response,
    RpcError, Settings, ShareStatus, SourceRequest, care, size,
};
use p2pfs::store::Store;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use crate::idle::{Activity, Linger};
use crate::mounts::Mounts;
use crate::seeds::Seeds;
use crate::use_data::mounted_torrents;

/// How long the mounts may take to end when the daemon stops, and then the session. Together they
/// stay below the 3 seconds in which the daemon promises to be gone.
const UNMOUNT_WITHIN: Duration = Duration::from_millis(1300);
const SESSION_WITHIN: Duration = Duration::from_millis(1500);

/// Where events of a request go.
pub type Events = mpsc::Sender<Response>;

/// The daemon.
pub struct Daemon {
    leases: Arc<Leases>,
    settings: Settings,
    pub mounts: Mounts,
    pub seeds: Seeds,
    pub activity: Activity,
    linger: Linger,
    stop: Notify,
    problem: Mutex<Option<String>>,
}

impl Daemon {
    /// Opens the cache and the port.
    pub async fn start(mut settings: Settings, linger: Linger) -> Result<Self> {
        let cache = match settings.data_dir.take() {
            Some(dir) => dir.0,
            None => Places::of_this_user().context(NO_PLACES)?.cache,
        };
        let unusable = || format!("{}: cannot be used as the cache", cache.display());
        let folder = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&cache);
        let cache = folder.and_then(|()| cache.canonicalize()).with_context(unusable)?;
        settings.listen.sort();
        settings.dht_bootstrap.sort();
        let session = Session::start(SessionConfig {
            cache_dir: cache.clone(),
            cache_limits: limits(&settings, &cache).with_context(unusable)?,
            listen: settings.listen.clone(),
            port: settings.port,
            limits: settings.limits(),
            lsd: settings.no_lsd != Some(true),
            pex: settings.no_pex != Some(true),
            dht: (settings.no_dht != Some(true))
                .then(|| DhtConfig { bootstrap: settings.dht_bootstrap.clone() }),
        })
        .await?;
        settings.data_dir = Some(cache.into());
        settings.port = Some(session.port());
        let activity = Activity::default();
        let leases = Leases {
            session,
            activity: activity.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        Ok(Self {
            leases: Arc::new(leases),
            settings,
            mounts: Mounts::default(),
            seeds: Seeds::default(),
            activity,
            linger,
            stop: Notify::new(),
            problem: Mutex::default(),
        })
    }

    /// The port that peers reach us at.
    pub fn port(&self) -> u16 {
        self.leases.session.port()
    }

    /// How much may be sent and received by all torrents together.
    pub fn limits(&self) -> RateLimits {
        self.leases.session.limits()
    }

    /// Has these limits hold from now on.
    pub fn set_limits(&self, limits: RateLimits) {
        self.leases.session.set_limits(limits);
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Store> {
        self.leases.session.store()
    }

    /// The node of the DHT; `None` without it.
    pub fn dht(&self) -> Option<DhtStatus> {
        let node = self.leases.session.dht()?;
        Some(DhtStatus::new(std::process::id(), node.local_addrs(), &node.stats()))
    }

    /// The DHT's nodes that are known; `None` without it.
    pub fn dht_nodes(&self) -> Option<DhtNodes> {
        let [v4, v6] = self.leases.session.dht()?.stats().nodes;
        Some(DhtNodes { v4, v6 })
    }

    /// Describes all mounts and seeds.
    pub fn shares(&self) -> Vec<ShareStatus> {
        self.mount_status().into_iter().chain(self.seed_status()).collect()
    }

    /// Refuses settings that are not ours: they are one for all mounts.
    pub fn check_settings(&self, asked: &Settings) -> Result<(), RpcError> {
        let addresses = |listen: &[std::net::IpAddr]| match listen {
            [] => "all addresses".into(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let amount = |amount: Option<size::Amount>| amount.map_or("none".into(), |a| a.to_string());
        let dir = |dir: Option<&Path>| dir.map(|d| d.display().to_string()).unwrap_or_default();
        let (own, limits) = (&self.settings, self.limits());
        let mut listen = asked.listen.clone();
        listen.sort();
        let mut bootstrap = asked.dht_bootstrap.clone();
        bootstrap.sort();
        let nodes = |names: &[String]| match names {
            [] => "the default".into(),
            some => some.join(", "),
        };
        let differs = |asked: Option<bool>, own: Option<bool>| {
            asked.is_some_and(|asked| asked != own.unwrap_or(false))
        };
        let on = |off: Option<bool>| if off == Some(true) { "off" } else { "on" }.to_owned();
        let metrics = |addr: Option<SocketAddr>| addr.map_or("none".into(), |a| a.to_string());
        let (what, has, wants) = if asked.port.is_some() && asked.port != own.port {
            ("port", self.port().to_string(), asked.port.unwrap_or_default().to_string())
        } else if !listen.is_empty() && listen != own.listen {
            ("listen address", addresses(&own.listen), addresses(&listen))
        } else if !same_dir(asked.data_dir.as_deref(), own.data_dir.as_deref()) {
            ("cache", dir(own.data_dir.as_deref()), dir(asked.data_dir.as_deref()))
        } else if asked.cache_size.is_some() && asked.cache_size != own.cache_size {
            ("cache size", amount(own.cache_size), amount(asked.cache_size))
        } else if asked.cache_free.is_some() && asked.cache_free != own.cache_free {
            let free = |free: Option<u64>| amount(free.map(size::Amount::Bytes));
            ("space to leave free", free(own.cache_free), free(asked.cache_free))
        } else if asked.upload_limit.is_some() && asked.upload_limit != limits.up {
            ("upload limit", size::limit(limits.up), size::limit(asked.upload_limit))
        } else if asked.download_limit.is_some() && asked.download_limit != limits.down {
            ("download limit", size::limit(limits.down), size::limit(asked.download_limit))
        } else if asked.metrics.is_some() && asked.metrics != own.metrics {
            ("address for metrics", metrics(own.metrics), metrics(asked.metrics))
        } else if asked.log.is_some() && asked.log != own.log {
            let log = |log: &Option<String>| log.clone().unwrap_or("the default".into());
            ("log", log(&own.log), log(&asked.log))
        } else if differs(asked.no_lsd, own.no_lsd) {
            ("local discovery", on(own.no_lsd), on(asked.no_lsd))
        } else if differs(asked.no_pex, own.no_pex) {
            ("peer exchange", on(own.no_pex), on(asked.no_pex))
        } else if differs(asked.no_dht, own.no_dht) {
            ("DHT", on(own.no_dht), on(asked.no_dht))
        } else if own.no_dht == Some(true) && !bootstrap.is_empty() {
            ("DHT", "off".into(), "on".into())
        } else if !bootstrap.is_empty() && bootstrap != own.dht_bootstrap {
            ("DHT bootstrap", nodes(&own.dht_bootstrap), nodes(&bootstrap))
        } else {
            return Ok(());
        };
        Err(RpcError::new(
            ErrorKind::Settings,
            format_args!(
                "the running daemon's {what} is {has}, not {wants}, and it has one for all mounts: \
                 unmount those first, or name another daemon with --socket"
            ),
        ))
    }

    /// Whether it stays only because a client may need it soon, and serves nobody but the one who asks.
    pub fn is_spare(&self) -> bool {
        self.linger == Linger::Minute && self.activity.is_alone()
    }

    /// Adds a torrent to the session, telling `events` how far it is. Dropping the future ends it.
    pub async fn add(
        &self,
        request: &SourceRequest,
        how: Adding,
        events: &Events,
    ) -> Result<Lease, RpcError> {
        self.check_settings(&request.settings)?;
        let data = match &request.use_data {
            Some(path) => DataPlace::Beside {
                path: path.0.clone(),
                needed: !how.one_of_several,
                refused: mounted_torrents().map_err(RpcError::failed)?,
            },
            None => how.data,
        };
        let checking = matches!(data, DataPlace::InPlace(_));
        let patience = Duration::from_secs(request.timeout);
        let source = timeout(patience, resolve(&request.source)).await.map_err(|_| {
            RpcError::failed(format_args!(
                "{}: not downloaded within {} s; check the address, or give it longer with --timeout",
                request.source, request.timeout
            ))
        })?;
        let source = source.map_err(RpcError::failed)?;
        let (progress, mut told) = watch::channel(AddProgress::default());
        let add = self.leases.session.add(AddTorrent {
            source,
            peers: request.peers.clone(),
            trackers: request.trackers.clone(),
            on_demand: how.on_demand,
            upload: how.upload,
            select: how.select,
            data,
            metadata_timeout: patience,
            progress,
        });
        tokio::pin!(add);
        let torrent = loop {
            tokio::select! {
                biased;
                added = &mut add => break added.map_err(RpcError::failed)?,
                Ok(()) = told.changed() => {
                    let at = told.borrow_and_update().clone();
                    // A client that is too slow misses some of it.
                    let _ = events.try_send(Response::Progress(shown(&at, checking)));
                }
            }
        };
        Ok(Lease::new(torrent, Arc::clone(&self.leases)))
    }

    /// Looks after the cache, if it is the one that is meant.
    pub async fn care(
        self: &Arc<Self>,
        dir: &Path,
        what: CacheRequest,
        events: Events,
    ) -> Result<Outcome, RpcError> {
        if !same_dir(Some(dir), self.settings.data_dir.as_deref()) {
            let message = format!("{}: no cache of this daemon", dir.display());
            return Err(RpcError::not_here(message));
        }
        let (store, daemon) = (Arc::clone(self.cache()), Arc::clone(self));
        let say = move |event| {
            if let Response::CacheChecked(checked) = &event {
                daemon.mounts.forget_bad(checked);
            }
            match event {
                // A client that is too slow misses some of it.
                Response::Progress(_) => drop(events.try_send(event)),
                event => drop(events.blocking_send(event)),
            }
            // One that has left waits for nothing.
            if events.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let done = tokio::task::spawn_blocking(move || care(&store, &what, say)).await;
        Ok(done.map_err(RpcError::failed)??.unwrap_or_default())
    }

    /// When the cache first had this torrent's metadata: the same at every mount, so that what
    /// compares times (rsync, make) sees that nothing changed.
    pub fn known_since(&self, info_hash: InfoHash) -> Option<SystemTime> {
        let cache = self.settings.data_dir.as_deref()?;
        let info = cache.join(info_hash.to_string()).join("info");
        info.metadata().and_then(|info| info.modified()).ok()
    }

    /// Completes when nothing needs the daemon any more.
    pub async fn idle(&self) {
        self.activity.idle(self.linger).await;
    }

    /// Completes when a client wants the daemon to stop.
    pub async fn told_to_stop(&self) {
        self.stop.notified().await;
    }

    /// Has [`Self::told_to_stop`] complete.
    pub fn tell_to_stop(&self) {
        self.stop.notify_one();
    }

    /// Ends reads, mounts, seeds and the session, within 3 seconds.
    pub async fn shutdown(&self) {
        if timeout(UNMOUNT_WITHIN, self.mounts.end_all()).await.is_err() {
            tracing::warn!("a mount did not end in time; it ends with this process");
        }
        self.seeds.end_all();
        if timeout(SESSION_WITHIN, self.leases.session.shutdown()).await.is_err() {
            tracing::warn!("the session did not stop in time");
        }
    }

    /// What went wrong after a request was answered, for a daemon in the foreground to say.
    pub fn problem(&self) -> Option<String> {
        locked(&self.problem).clone()
    }

    /// Notes what went wrong after the request was answered; the end of a daemon in the foreground.
    pub fn note_problem(&self, problem: &str) {
        locked(&self.problem).get_or_insert_with(|| problem.to_owned());
        if self.linger == Linger::Not {
            self.tell_to_stop();
        } else {
            tracing::error!("{problem}");
        }
    }
}

/// How a torrent is added.
#[derive(Clone)]
pub struct Adding {
    pub on_demand: bool,
    pub upload: bool,
    pub select: Vec<String>,
    pub data: DataPlace,
    /// Data of another client need not have all of several torrents.
    pub one_of_several: bool,
}

/// What a lease is of.
struct Leases {
    session: Session,
    activity: Activity,
    runtime: tokio::runtime::Handle,
}

/// A use of a torrent; the last one takes it out of the session.
pub struct Lease {
    torrent: Torrent,
    leases: Arc<Leases>,
    /// Lives as long as the torrent is in use for this.
    in_use: watch::Sender<()>,
}

impl Lease {
    fn new(torrent: Torrent, leases: Arc<Leases>) -> Self {
        Self { torrent, leases, in_use: watch::Sender::new(()) }
    }

    /// Changes no more when it was dropped and, if it was the last, nobody has the torrent open.
    pub fn in_use(&self) -> watch::Receiver<()> {
        self.in_use.subscribe()
    }

    /// The torrent.
    pub fn torrent(&self) -> &Torrent {
        &self.torrent
    }

    /// What is told about it once it is here.
    pub fn outcome(&self) -> Outcome {
        let info = self.torrent.info();
        let files = || info.files.iter().filter(|file| !file.pad && file.symlink.is_none());
        Outcome {
            name: String::from_utf8_lossy(&info.name).into_owned(),
            files: files().count() as u64,
            bytes: files().map(|file| file.length).sum(),
            lent: self.torrent.lent_at().map(|_| self.torrent.lent_bytes()),
            ..Outcome::default()
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (session, torrent) = (self.leases.session.clone(), self.torrent.clone());
        // The daemon stays until peers have got what was sent to them.
        let busy = self.leases.activity.request();
        let in_use = self.in_use.clone();
        self.leases.runtime.spawn(async move {
            session.remove(torrent, move || drop(in_use)).await;
            drop(busy);
        });
    }
}

/// Locks what stays consistent even when a thread panicked with it locked.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the cache may take.
fn limits(settings: &Settings, cache: &Path) -> std::io::Result<Limits> {
    let disk = disk_size(cache)?;
    let size = settings.cache_size.map(|size| size.of(disk));
    Ok(Limits { size, free: settings.cache_free })
}

/// Whether the folder asked for, if any, is our own.
fn same_dir(asked: Option<&Path>, own: Option<&Path>) -> bool {
    let Some(asked) = asked else { return true };
    Some(asked) == own || asked.canonicalize().as_deref().ok() == own
}

fn shown(at: &AddProgress, checking: bool) -> Progress {
    if checking || at.checked_pieces > 0 {
        return Progress::Checking { done: at.checked_pieces, of: at.pieces };
    }
    Progress::Metadata {
        peers: at.peers,
        nobody: at.nobody.map(str::to_owned),
        bytes: at.metadata_bytes,
        size: at.metadata_size,
    }
}
