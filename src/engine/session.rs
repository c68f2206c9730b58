//! The session: what all torrents of a daemon share.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::source::Source;
use super::task::{Command, Progress, Task};
use super::torrent::{Inner, Torrent};
use super::tracker::{AnnounceStats, TrackerConfig, Trackers};
use super::{listen, peer, select};
use crate::proto::bitfield::Bitfield;
use crate::proto::choker::{CHOKE_INTERVAL, Choker};
use crate::proto::geometry::PieceIndex;
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::metainfo::layout::Layout;
use crate::proto::metainfo::{Info, InfoError, Magnet};
use crate::proto::rate::TokenBucket;
use crate::proto::swarm::{PeerKey, PeerSource};
use crate::proto::torrent::{Options, Torrent as Machine};
use crate::proto::wire::handshake::Handshake;
use crate::store::{Store, StoreError, TorrentStore};

/// Memory for unverified and unwritten pieces of one torrent, in bytes.
const BUFFER_BUDGET: u64 = 32 << 20;

/// The choker looks for somebody to unchoke at most this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long trackers are given to hear that we stop.
const FAREWELL: Duration = Duration::from_secs(3);

/// What a session is started with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The cache, which is ours alone.
    pub cache_dir: PathBuf,
    /// Addresses to listen on; empty for all of IPv4 and IPv6.
    pub listen: Vec<IpAddr>,
    /// The TCP port; one is chosen when absent.
    pub port: Option<u16>,
    /// Payload sent a second, in bytes.
    pub upload_limit: Option<u64>,
    /// Bytes received a second.
    pub download_limit: Option<u64>,
}

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The cache cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port cannot be opened.
    #[error("cannot listen on port {port}: {error}; name another one with --port")]
    Listen {
        /// The port that was asked for, 0 for any.
        port: u16,
        /// The system's reason.
        error: io::Error,
    },
}

/// Where a torrent's bytes are.
#[derive(Clone, Debug)]
pub enum DataPlace {
    /// In the cache.
    Cache,
    /// With the user: only ever read.
    InPlace(PathBuf),
}

/// How far an [`Session::add`] has come.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct AddProgress {
    /// Connected peers.
    pub peers: usize,
    /// Known addresses.
    pub known_peers: usize,
    /// Bytes of the info dictionary here.
    pub metadata_bytes: u32,
    /// Bytes of the info dictionary in all; 0 while unknown.
    pub metadata_size: u32,
    /// Pieces of data in place that were checked.
    pub checked_pieces: u32,
    /// Pieces in all; 0 while unknown.
    pub pieces: u32,
}

/// A torrent to add.
#[derive(Debug)]
pub struct AddTorrent {
    /// Which.
    pub source: Source,
    /// Peers to begin with.
    pub peers: Vec<SocketAddr>,
    /// Trackers beside its own.
    pub trackers: Vec<String>,
    /// Fetch only what is read.
    pub on_demand: bool,
    /// Serve others.
    pub upload: bool,
    /// Globs of the files that are wanted; empty for all.
    pub select: Vec<String>,
    /// Where the bytes are.
    pub data: DataPlace,
    /// How long the metadata may take to come.
    pub metadata_timeout: Duration,
    /// Told how far it is.
    pub progress: watch::Sender<AddProgress>,
}

/// Why a torrent cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Nobody had the metadata in time.
    #[error("no metadata for {name} within {seconds} s: {cause}")]
    NoMetadata {
        /// The torrent.
        name: String,
        /// The time that was given.
        seconds: u64,
        /// What is known of the cause, and what to do.
        cause: String,
    },
    /// The info dictionary has the right hash but makes no sense to us.
    #[error("{name}: {error}")]
    Info {
        /// The torrent.
        name: String,
        /// What is wrong.
        error: InfoError,
    },
    /// The cache or the data cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data in place is not that of the torrent.
    #[error(
        "{file}: {bad} of {pieces} pieces of the torrent do not match, this file has the first; \
         check that the path and the torrent belong together"
    )]
    DataMismatch {
        /// The first file that has wrong bytes.
        file: String,
        /// Pieces that do not match.
        bad: usize,
        /// Pieces in all.
        pieces: u32,
    },
    /// `--select` names nothing, or is malformed.
    #[error("--select {0}")]
    Select(String),
    /// The session is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What the session's tasks share.
pub(super) struct Shared {
    pub clock: Clock,
    pub peer_id: PeerId,
    pub limits: peer::Limits,
    pub wants_unchoke: Notify,
    pub cancel: CancellationToken,
    pub port: u16,
    store: Arc<Store>,
    torrents: Mutex<HashMap<InfoHash, Entry>>,
    /// Held while a torrent is being added, so that a second add of it waits for the first.
    adding: Mutex<HashMap<InfoHash, Arc<tokio::sync::Mutex<()>>>>,
    last_id: AtomicU64,
}

/// A torrent that runs.
struct Entry {
    id: u64,
    commands: mpsc::UnboundedSender<Command>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    /// Set once the torrent is ready.
    torrent: Option<Torrent>,
    users: usize,
}

/// A torrent that may want incoming connections.
pub(super) struct Found(mpsc::UnboundedSender<Command>);

impl Found {
    pub(super) fn incoming(&self, stream: TcpStream, addr: SocketAddr, handshake: Handshake) {
        let _ = self.0.send(Command::Incoming(stream, addr, handshake));
    }
}

impl Shared {
    pub(super) fn find(&self, hash: &InfoHash) -> Option<Found> {
        self.torrents().get(hash).map(|e| Found(e.commands.clone()))
    }

    async fn adding(&self, hash: InfoHash) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
            adding.retain(|_, lock| Arc::strong_count(lock) > 1);
            adding.entry(hash).or_default().clone()
        };
        lock.lock_owned().await
    }

    fn torrents(&self) -> std::sync::MutexGuard<'_, HashMap<InfoHash, Entry>> {
        self.torrents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All torrents of a daemon. Cheap to clone; [`Self::shutdown`] ends it.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Opens the cache and the port.
    pub async fn start(config: SessionConfig) -> Result<Self, SessionError> {
        let listen_error = |error| SessionError::Listen { port: config.port.unwrap_or(0), error };
        let (port, listeners) = listen::open(&config.listen, config.port).map_err(listen_error)?;
        let store = Store::open(&config.cache_dir)?;
        let clock = Clock::start();
        let bucket = |limit: Option<u64>| {
            limit.map(|rate| Arc::new(Mutex::new(TokenBucket::new(rate, clock.now()))))
        };
        let shared = Arc::new(Shared {
            clock,
            peer_id: PeerId::ours(rand::rng().random()),
            limits: peer::Limits {
                clock,
                down: bucket(config.download_limit),
                up: bucket(config.upload_limit),
            },
            wants_unchoke: Notify::new(),
            cancel: CancellationToken::new(),
            port,
            store,
            torrents: Mutex::default(),
            adding: Mutex::default(),
            last_id: AtomicU64::new(0),
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener).map_err(listen_error)?;
            tokio::spawn(listen::run(listener, shared.clone()));
        }
        tokio::spawn(choke(shared.clone(), config.upload_limit));
        Ok(Self { shared })
    }

    /// The port that peers connect to.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Adds a torrent; returns once its metadata is known, its cache open and, for data in place,
    /// every byte checked. A torrent that runs already is given out again.
    pub async fn add(&self, add: AddTorrent) -> Result<Torrent, AddError> {
        let hash = info_hash(&add.source);
        let _adding = self.shared.adding(hash).await;
        if let Some(torrent) = self.running(&hash) {
            let wanted = wanted(&add, torrent.info(), torrent.layout())?;
            // Unless its last user has given it back meanwhile.
            if self.join(&hash) {
                torrent.tell(Command::Want(wanted));
                torrent.tell(Command::Peers(add.peers, PeerSource::Manual));
                return Ok(torrent);
            }
        }
        let (commands, commands_rx) = mpsc::unbounded_channel();
        let cancel = self.shared.cancel.child_token();
        let progress = watch::Sender::new(Progress::new());
        let announce =
            watch::Sender::new(AnnounceStats { wants_peers: true, ..Default::default() });
        let machine = Machine::new(
            hash,
            Options {
                on_demand: add.on_demand,
                upload: add.upload,
                buffer_budget: BUFFER_BUDGET,
                port: self.shared.port,
            },
            rand::rng().random(),
        );
        let watcher = progress.subscribe();
        let announce_rx = announce.subscribe();
        let shared = self.shared.clone();
        let task = Task::new(machine, shared, cancel.clone(), commands_rx, progress, announce);
        let id = self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Entry {
            id,
            commands: commands.clone(),
            cancel: cancel.clone(),
            task: tokio::spawn(task.run()),
            torrent: None,
            users: 1,
        };
        self.shared.torrents().insert(hash, entry);
        let starting = Starting { session: self, hash, id, cancel: cancel.clone(), done: false };
        let torrent = starting.start(add, commands, watcher, announce_rx).await?;
        if let Some(entry) = self.shared.torrents().get_mut(&hash).filter(|e| e.id == id) {
            entry.torrent = Some(torrent.clone());
        }
        Ok(torrent)
    }

    fn running(&self, hash: &InfoHash) -> Option<Torrent> {
        self.shared.torrents().get(hash)?.torrent.clone()
    }

    /// Counts one more user of a torrent that runs.
    fn join(&self, hash: &InfoHash) -> bool {
        let mut torrents = self.shared.torrents();
        let entry = torrents.get_mut(hash);
        entry.map(|e| e.users += 1).is_some()
    }

    /// Gives a torrent back; the last user's doing so ends it. Reads that wait end with an error.
    pub async fn remove(&self, torrent: &Torrent) {
        let hash = torrent.info().info_hash;
        let entry = {
            let mut torrents = self.shared.torrents();
            let Some(entry) = torrents.get_mut(&hash) else { return };
            entry.users -= 1;
            if entry.users > 0 {
                return;
            }
            torrents.remove(&hash)
        };
        if let Some(entry) = entry {
            end(vec![entry]).await;
        }
    }

    /// Ends everything, within about three seconds.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        let entries = self.shared.torrents().drain().map(|(_, e)| e).collect();
        end(entries).await;
    }
}

/// Ends torrents and says farewell to their trackers.
async fn end(entries: Vec<Entry>) {
    for entry in &entries {
        entry.cancel.cancel();
    }
    let farewell = async {
        for entry in entries {
            let trackers = entry.torrent.map(|t| t.inner.trackers.clone());
            let _ = entry.task.await;
            if let Some(trackers) = trackers.and_then(Arc::into_inner) {
                trackers.join().await;
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

fn info_hash(source: &Source) -> InfoHash {
    match source {
        Source::Metainfo(metainfo) => metainfo.info.info_hash,
        Source::Magnet(magnet) => magnet.info_hash,
    }
}

/// A torrent on its way to being ready; dropping it on the way removes it again.
struct Starting<'a> {
    session: &'a Session,
    hash: InfoHash,
    id: u64,
    cancel: CancellationToken,
    done: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.cancel.cancel();
            let mut torrents = self.session.shared.torrents();
            if torrents.get(&self.hash).is_some_and(|e| e.id == self.id) {
                torrents.remove(&self.hash);
            }
        }
    }
}

impl Starting<'_> {
    async fn start(
        mut self,
        add: AddTorrent,
        commands: mpsc::UnboundedSender<Command>,
        mut watcher: watch::Receiver<Progress>,
        mut announce: watch::Receiver<AnnounceStats>,
    ) -> Result<Torrent, AddError> {
        let (info, looking) = match self.known_info(&add.source)? {
            Some(info) => (info, None),
            None => {
                let trackers = self.find_peers(&add, &commands, announce.clone());
                (self.metadata(&add, &mut watcher, &trackers).await?, Some(trackers))
            }
        };
        let layout = Arc::new(Layout::new(&info));
        let wanted = wanted(&add, &info, &layout)?;
        let store = self.open_store(&add, &info, &layout).await?;
        let activate = Command::Activate { info: info.clone(), store: store.clone(), wanted };
        commands.send(activate).map_err(|_| AddError::Stopping)?;
        let trackers = match looking {
            Some(trackers) => trackers,
            None => {
                // Peers and trackers are told what we have, so it has to be known first.
                let ready = announce.wait_for(|stats| stats.left.is_some()).await;
                drop(ready.map_err(|_| AddError::Stopping)?);
                self.find_peers(&add, &commands, announce.clone())
            }
        };
        self.done = true;
        let waiting = Arc::default();
        let trackers = Arc::new(trackers);
        let inner = Inner { info, layout, store, commands, waiting, progress: watcher, trackers };
        Ok(Torrent { inner: Arc::new(inner) })
    }

    /// Asks trackers, and whomever the user and the magnet name.
    fn find_peers(
        &self,
        add: &AddTorrent,
        commands: &mpsc::UnboundedSender<Command>,
        stats: watch::Receiver<AnnounceStats>,
    ) -> Trackers {
        let shared = &self.session.shared;
        let _ = commands.send(Command::Peers(add.peers.clone(), PeerSource::Manual));
        let mut tiers = match &add.source {
            Source::Metainfo(metainfo) => metainfo.trackers.clone(),
            Source::Magnet(magnet) => {
                resolve_peers(magnet.peers.clone(), commands.clone());
                magnet.trackers.iter().map(|t| vec![t.clone()]).collect()
            }
        };
        tiers.extend(add.trackers.iter().map(|t| vec![t.clone()]));
        let config = TrackerConfig {
            info_hash: self.hash,
            peer_id: shared.peer_id,
            port: shared.port,
            tiers,
            key: rand::rng().random(),
        };
        let (found, mut found_rx) = mpsc::channel::<Vec<SocketAddr>>(16);
        let to_task = commands.clone();
        tokio::spawn(async move {
            while let Some(addrs) = found_rx.recv().await {
                let _ = to_task.send(Command::Peers(addrs, PeerSource::Tracker));
            }
        });
        Trackers::spawn(config, stats, found, self.cancel.clone())
    }

    /// The info dictionary, if the source or the cache has it.
    fn known_info(&self, source: &Source) -> Result<Option<Arc<Info>>, AddError> {
        match source {
            Source::Metainfo(metainfo) => Ok(Some(metainfo.info.clone())),
            Source::Magnet(magnet) => {
                let saved = self.session.shared.store.saved_info(&self.hash);
                saved.map(|raw| parse_info(magnet, &raw)).transpose()
            }
        }
    }

    /// The info dictionary, from peers in time.
    async fn metadata(
        &self,
        add: &AddTorrent,
        watcher: &mut watch::Receiver<Progress>,
        trackers: &Trackers,
    ) -> Result<Arc<Info>, AddError> {
        let Source::Magnet(magnet) = &add.source else { return Err(AddError::Stopping) };
        let fetch = async {
            loop {
                let progress = watcher.borrow_and_update().clone();
                if let Some(raw) = progress.metadata {
                    return Some(raw);
                }
                let (metadata_bytes, metadata_size) = progress.stats.metadata;
                add.progress.send_replace(AddProgress {
                    peers: progress.stats.peers,
                    known_peers: progress.stats.known_peers,
                    metadata_bytes,
                    metadata_size,
                    ..AddProgress::default()
                });
                watcher.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(add.metadata_timeout, fetch).await {
            Ok(Some(raw)) => parse_info(magnet, &raw),
            Ok(None) => Err(AddError::Stopping),
            Err(_) => Err(AddError::NoMetadata {
                name: name_of(magnet),
                seconds: add.metadata_timeout.as_secs(),
                cause: no_metadata(&watcher.borrow(), add, magnet, trackers),
            }),
        }
    }

    async fn open_store(
        &self,
        add: &AddTorrent,
        info: &Arc<Info>,
        layout: &Arc<Layout>,
    ) -> Result<Arc<TorrentStore>, AddError> {
        let store = self.session.shared.store.clone();
        let (info, layout, data) = (info.clone(), layout.clone(), add.data.clone());
        let progress = add.progress.clone();
        let open = tokio::task::spawn_blocking(move || match data {
            DataPlace::Cache => Ok(store.torrent(info)?),
            DataPlace::InPlace(path) => {
                let torrent = store.in_place(info.clone(), &layout, &path)?;
                check_all(&torrent, &info, &layout, &progress)?;
                Ok(torrent)
            }
        });
        open.await.unwrap_or(Err(AddError::Stopping))
    }
}

fn name_of(magnet: &Magnet) -> String {
    magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string())
}

fn parse_info(magnet: &Magnet, raw: &[u8]) -> Result<Arc<Info>, AddError> {
    let parsed = Info::parse(raw).map(Arc::new);
    parsed.map_err(|error| AddError::Info { name: name_of(magnet), error })
}

/// Hashes all data in place, on all workers.
fn check_all(
    store: &Arc<TorrentStore>,
    info: &Info,
    layout: &Layout,
    progress: &watch::Sender<AddProgress>,
) -> Result<(), AddError> {
    let (answers, answered) = std::sync::mpsc::channel::<(PieceIndex, bool)>();
    for piece in info.geometry.pieces() {
        let answers = answers.clone();
        store.verify_at_rest(piece, move |good| {
            let _ = answers.send((piece, good));
        });
    }
    drop(answers);
    let (mut bad, pieces) = (Vec::new(), info.geometry.piece_count());
    for (checked, (piece, good)) in answered.iter().enumerate() {
        bad.extend((!good).then_some(piece));
        let checked_pieces = checked as u32 + 1;
        progress.send_replace(AddProgress { checked_pieces, pieces, ..AddProgress::default() });
    }
    let Some(first) = bad.iter().min() else { return Ok(()) };
    let start = info.geometry.piece_range(*first).start;
    let file = info.files.iter().rposition(|f| f.offset <= start && f.length > 0 && !f.pad);
    Err(AddError::DataMismatch { file: path_of(layout, file), bad: bad.len(), pieces })
}

fn path_of(layout: &Layout, file: Option<usize>) -> String {
    use crate::proto::metainfo::layout::EntryKind;
    let entry =
        layout.entries.iter().find(|e| matches!(e.kind, EntryKind::File(i) if Some(i) == file));
    entry.map_or_else(String::new, |e| String::from_utf8_lossy(&e.path.join(&b'/')).into_owned())
}

/// The pieces to fetch in the background.
fn wanted(add: &AddTorrent, info: &Info, layout: &Layout) -> Result<Bitfield, AddError> {
    let matching = select::files_matching(layout, &add.select).map_err(AddError::Select)?;
    if matching.as_ref().is_some_and(Vec::is_empty) {
        let globs = add.select.join(" ");
        return Err(AddError::Select(format!("{globs}: no file matches; see `p2pfs ls`")));
    }
    let from_magnet = match &add.source {
        Source::Magnet(magnet) => select::files_in(info, &magnet.select),
        Source::Metainfo(_) => None,
    };
    let count = info.geometry.piece_count();
    Ok(match matching.or(from_magnet) {
        _ if add.on_demand => Bitfield::empty(count),
        Some(files) => select::pieces_of(info, &files),
        None => Bitfield::full(count),
    })
}

/// What is known of why no metadata came, and what the user can do.
fn no_metadata(
    progress: &Progress,
    add: &AddTorrent,
    magnet: &Magnet,
    trackers: &Trackers,
) -> String {
    let named = add.peers.len() + magnet.peers.len();
    let refusal = trackers.status().into_iter().find_map(|t| Some((t.url, t.error?)));
    match progress.stats.peers {
        0 if named == 0 && magnet.trackers.is_empty() && add.trackers.is_empty() => {
            "the source names no tracker and no peer; give one with --peer".to_owned()
        }
        0 => match refusal {
            Some((url, error)) => format!("no peer was found, {url} says: {error}"),
            None => format!(
                "none of {} known peers could be reached; check the connection or try --peer",
                progress.stats.known_peers
            ),
        },
        peers => format!("{peers} connected peers do not have it; try again later or with --peer"),
    }
}

/// Looks up the peers a magnet names (`x.pe`); those that have no address are left out.
fn resolve_peers(names: Vec<String>, commands: mpsc::UnboundedSender<Command>) {
    for name in names {
        let commands = commands.clone();
        tokio::spawn(async move {
            if let Ok(addrs) = tokio::net::lookup_host(&name).await {
                let _ = commands.send(Command::Peers(addrs.take(8).collect(), PeerSource::Manual));
            }
        });
    }
}

/// The choker's task: a round every ten seconds, and a look whenever somebody becomes interested.
async fn choke(shared: Arc<Shared>, upload_limit: Option<u64>) {
    let mut choker = Choker::new(rand::rng().random());
    let mut rounds = tokio::time::interval(CHOKE_INTERVAL);
    let mut next_look = Instant::now();
    loop {
        let round = tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = rounds.tick() => true,
            () = shared.wants_unchoke.notified() => false,
        };
        // A peer may change its mind as fast as it likes; we look at it only so often.
        tokio::time::sleep_until(next_look).await;
        next_look = Instant::now() + LOOK_INTERVAL;
        let torrents: Vec<_> =
            shared.torrents().values().map(|e| (e.id, e.commands.clone())).collect();
        let mut candidates = Vec::new();
        for (id, commands) in &torrents {
            let (answer, answered) = oneshot::channel();
            let _ = commands.send(Command::Candidates(*id, answer));
            candidates.extend(answered.await.unwrap_or_default());
        }
        let now = shared.clock.now();
        let unchoked = if round {
            let sent: f64 = candidates.iter().map(|c| c.takes).sum();
            let idle = upload_limit.is_none_or(|limit| sent < 0.9 * limit as f64);
            choker.round(&candidates, idle, now)
        } else {
            choker.fill(&candidates, now)
        };
        for (id, commands) in torrents {
            let keys: Vec<PeerKey> =
                unchoked.iter().filter(|(t, _)| *t == id).map(|(_, k)| *k).collect();
            let _ = commands.send(Command::Unchoked(keys));
        }
    }
}
