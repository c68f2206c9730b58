//! The session: what all torrents of a daemon share.

use std::collections::{BTreeSet, HashMap};
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
use tracing::Instrument;

use super::add::{AddError, AddTorrent, Starting, info_hashes, resolve_peers, wanted};
use super::clock::Clock;
use super::data::DataPlace;
use super::dht::{Node, NodeConfig, public_routers};
use super::rates::{RateLimits, Rates, Throttle};
use super::source::Source;
use super::task::{Command, Progress, Task};
use super::torrent::Torrent;
use super::tracker::AnnounceStats;
use super::{listen, lsd, network};
use crate::proto::choker::{CHOKE_INTERVAL, Choker};
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::shares::fair_shares;
use crate::proto::swarm::{PeerKey, PeerSource};
use crate::proto::torrent::{MAX_PEERS, Options, Torrent as Machine};
use crate::proto::wire::handshake::Handshake;
use crate::store::{Limits, Store, StoreError};

/// Memory for unverified and unwritten pieces of one torrent, in bytes.
const BUFFER_BUDGET: u64 = 32 << 20;

/// The same for all torrents together, in equal shares; but a torrent may always hold the few
/// pieces that it needs to go on.
const BUFFER_BUDGET_ALL: u64 = 128 << 20;

/// Connections of all torrents together: each takes a descriptor and up to 256 KiB for what it
/// receives. Attempts to connect are bounded by the same number.
const MAX_CONNECTIONS: usize = 500;

/// Of these, what a torrent may always have: a second one finds what the first has not.
const MIN_CONNECTIONS: usize = 2;

/// The choker looks for somebody to unchoke at most this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The disk is looked at this often, if the cache is to leave some of it free.
const DISK_LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the end of the session may take: trackers hear that we stop.
const FAREWELL: Duration = Duration::from_secs(3);

/// What a session is started with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The cache, which is ours alone.
    pub cache_dir: PathBuf,
    /// What the cache may take.
    pub cache_limits: Limits,
    /// Addresses to listen on; empty for all of IPv4 and IPv6.
    pub listen: Vec<IpAddr>,
    /// The TCP port; one is chosen when absent.
    pub port: Option<u16>,
    /// How much may be sent and received, until [`Session::set_limits`].
    pub limits: RateLimits,
    /// Find peers on the local network, and be found there (BEP 14).
    pub lsd: bool,
    /// Exchange addresses with peers (BEP 11); private torrents never do.
    pub pex: bool,
    /// Find peers in the DHT, and be found there (BEP 5); private torrents never are. `None` for no.
    pub dht: Option<DhtConfig>,
}

/// How the DHT is begun with.
#[derive(Clone, Debug, Default)]
pub struct DhtConfig {
    /// Nodes to begin with, as `host:port`. When empty, the public routers, unless we listen on
    /// loopback addresses only.
    pub bootstrap: Vec<String>,
}

/// Why a session cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The cache cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The port cannot be opened.
    #[error("cannot listen on {at}: {error}; name another --port or --listen address")]
    Listen {
        /// The address and port, or just the port where all addresses were meant.
        at: String,
        /// The system's reason.
        error: io::Error,
    },
}

/// What the session's tasks share.
pub(super) struct Shared {
    pub clock: Clock,
    pub peer_id: PeerId,
    pub rates: Arc<Rates>,
    pub wants_unchoke: Notify,
    pub cancel: CancellationToken,
    pub port: u16,
    pub pex: bool,
    pub dht: Option<Node>,
    pub store: Arc<Store>,
    /// How often the network has become another one.
    pub network: watch::Sender<u64>,
    /// There is another torrent to announce on the local network.
    pub local_changed: Notify,
    torrents: Mutex<HashMap<InfoHash, Entry>>,
    /// Held while a torrent is being added, so that a second add of it waits for the first.
    adding: Mutex<HashMap<InfoHash, Arc<tokio::sync::Mutex<()>>>>,
    last_id: AtomicU64,
}

/// A torrent that runs.
struct Entry {
    id: u64,
    /// The torrent's other info hash, where it has two.
    also: Option<InfoHash>,
    commands: mpsc::UnboundedSender<Command>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
    /// Connections that it may have, as it was told.
    connections: usize,
    /// It may be announced on the local network.
    local: bool,
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

    /// There is a peer of it on the local network.
    pub(super) fn neighbour(&self, addr: SocketAddr) {
        let _ = self.0.send(Command::Peers(vec![addr], PeerSource::Lsd));
    }
}

impl Shared {
    pub(super) fn find(&self, hash: &InfoHash) -> Option<Found> {
        let torrents = self.torrents();
        let also = || torrents.values().find(|e| e.also == Some(*hash));
        torrents.get(hash).or_else(also).map(|e| Found(e.commands.clone()))
    }

    /// Says by which other hash peers may know a torrent.
    pub(super) fn set_also(&self, hash: &InfoHash, id: u64, also: Option<InfoHash>) {
        if let Some(entry) = self.torrents().get_mut(hash).filter(|e| e.id == id) {
            entry.also = also;
        }
    }

    /// Removes a torrent that did not become ready, unless another one has taken its place.
    pub(super) fn forget(&self, hash: &InfoHash, id: u64) {
        let mut torrents = self.torrents();
        if torrents.get(hash).is_some_and(|e| e.id == id) {
            torrents.remove(hash);
        }
    }

    /// Says whether a torrent may be announced on the local network.
    pub(super) fn set_local(&self, hash: &InfoHash, id: u64, local: bool) {
        if let Some(entry) = self.torrents().get_mut(hash).filter(|e| e.id == id) {
            entry.local = local;
        }
        self.local_changed.notify_one();
    }

    /// The torrents that may be announced on the local network.
    pub(super) fn local_torrents(&self) -> BTreeSet<InfoHash> {
        let torrents = self.torrents();
        let local = torrents.iter().filter(|(_, e)| e.local);
        local.flat_map(|(hash, e)| [Some(*hash), e.also]).flatten().collect()
    }

    /// Divides the memory for incoming pieces among the torrents there are.
    fn share_memory(&self) {
        let torrents = self.torrents();
        let share = BUFFER_BUDGET_ALL / (torrents.len() as u64).max(1);
        for entry in torrents.values() {
            let _ = entry.commands.send(Command::BufferBudget(share.min(BUFFER_BUDGET)));
        }
    }

    /// Divides the connections that there may be among the torrents there are: those who want few
    /// leave the more to the others.
    fn share_connections(&self) {
        let mut torrents = self.torrents();
        let wanted = |e: &Entry| match e.progress.borrow().stats.wanted_connections {
            // It has only just been added.
            0 => MAX_PEERS,
            wanted => wanted,
        };
        let wants: Vec<_> = torrents.values().map(wanted).collect();
        for (entry, limit) in torrents.values_mut().zip(connection_limits(&wants)) {
            if std::mem::replace(&mut entry.connections, limit) != limit {
                let _ = entry.commands.send(Command::Connections(limit));
            }
        }
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

/// How many connections each torrent may have that wants so many. What nobody wants now is given out
/// as well: a torrent need not ask first.
fn connection_limits(wants: &[usize]) -> Vec<usize> {
    let shares = fair_shares(MAX_CONNECTIONS, wants);
    let spare = MAX_CONNECTIONS.saturating_sub(shares.iter().sum()) / wants.len().max(1);
    shares.into_iter().map(|share| (share + spare).clamp(MIN_CONNECTIONS, MAX_PEERS)).collect()
}

/// All torrents of a daemon. Cheap to clone; [`Self::shutdown`] ends it.
#[derive(Clone)]
pub struct Session {
    pub(super) shared: Arc<Shared>,
}

impl Session {
    /// Opens the cache and the port.
    pub async fn start(config: SessionConfig) -> Result<Self, SessionError> {
        let (port, listeners) = listen::open(&config.listen, config.port)
            .map_err(|(at, error)| SessionError::Listen { at, error })?;
        let store = Store::open_limited(&config.cache_dir, config.cache_limits)?;
        let clock = Clock::start();
        let shared = Arc::new(Shared {
            clock,
            peer_id: PeerId::ours(rand::rng().random()),
            rates: Rates::new(config.limits, clock),
            wants_unchoke: Notify::new(),
            cancel: CancellationToken::new(),
            port,
            pex: config.pex,
            dht: config.dht.as_ref().and_then(|dht| start_dht(&config, dht, port)),
            store,
            network: watch::Sender::new(0),
            local_changed: Notify::new(),
            torrents: Mutex::default(),
            adding: Mutex::default(),
            last_id: AtomicU64::new(0),
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener)
                .map_err(|error| SessionError::Listen { at: format!("port {port}"), error })?;
            tokio::spawn(listen::run(listener, shared.clone()));
        }
        tokio::spawn(choke(shared.clone()));
        if config.cache_limits.free.is_some() {
            tokio::spawn(leave_free(shared.clone()));
        }
        // Who listens on loopback addresses only is nowhere else than before.
        if config.listen.is_empty() || !config.listen.iter().all(IpAddr::is_loopback) {
            tokio::spawn(network::watch(shared.clone()));
        }
        if config.lsd {
            tokio::spawn(lsd::run(shared.clone(), config.listen));
        }
        Ok(Self { shared })
    }

    /// The port that peers connect to.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// How much may be sent and received by all torrents together.
    pub fn limits(&self) -> RateLimits {
        self.shared.rates.get()
    }

    /// Has these limits hold from now on.
    pub fn set_limits(&self, limits: RateLimits) {
        self.shared.rates.set(limits);
    }

    /// The cache.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// The DHT node, unless there is none.
    pub fn dht(&self) -> Option<&Node> {
        self.shared.dht.as_ref()
    }

    /// Adds a torrent; returns once its metadata is known, its cache open and, for data in place,
    /// every byte checked. A torrent that runs already is given out again.
    pub async fn add(&self, add: AddTorrent) -> Result<Torrent, AddError> {
        let (hash, also) = info_hashes(&add.source);
        let hash = self.key_of(hash, also);
        let _adding = self.shared.adding(hash).await;
        if let Some(torrent) = self.running(&hash) {
            if let DataPlace::Beside { path, needed: true, .. } = &add.data
                && torrent.lent_at().as_ref() != Some(path)
            {
                let name = String::from_utf8_lossy(&torrent.info().name).into_owned();
                return Err(AddError::RunsWithout(name));
            }
            let wanted = wanted(&add, torrent.info(), torrent.layout())?;
            // Unless its last user has given it back meanwhile.
            if let Some(commands) = self.join(&hash) {
                torrent.tell(Command::Want(wanted));
                torrent.tell(Command::Peers(add.peers, PeerSource::Manual));
                if let Source::Magnet(magnet) = add.source {
                    resolve_peers(magnet.peers, commands);
                }
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
                pex: self.shared.pex,
                dht: self.shared.dht.as_ref().map(Node::port),
            },
            rand::rng().random(),
        );
        let watcher = progress.subscribe();
        let shown = progress.subscribe();
        let announce_rx = announce.subscribe();
        let shared = self.shared.clone();
        let rates = Rates::new(RateLimits::default(), shared.clock);
        let limits = Throttle([shared.rates.clone(), rates.clone()]);
        let tell = (progress, announce);
        let task = Task::new(machine, also, shared, limits, cancel.clone(), commands_rx, tell);
        // What is logged of it says which torrent it is about, at all levels.
        let span = tracing::error_span!("torrent", %hash, name = tracing::field::Empty);
        let id = self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Entry {
            id,
            also,
            commands: commands.clone(),
            cancel: cancel.clone(),
            task: tokio::spawn(task.run().instrument(span.clone())),
            progress: shown,
            connections: MAX_PEERS,
            local: false,
            torrent: None,
            users: 1,
        };
        self.shared.torrents().insert(hash, entry);
        self.shared.share_memory();
        self.shared.share_connections();
        let dht = cancel.child_token();
        let starting = Starting {
            session: self,
            hash,
            also,
            id,
            rates,
            cancel: cancel.clone(),
            dht,
            done: false,
        };
        let torrent = starting.start(add, commands, watcher, announce_rx).instrument(span).await?;
        if let Some(entry) = self.shared.torrents().get_mut(&hash).filter(|e| e.id == id) {
            entry.torrent = Some(torrent.clone());
        }
        Ok(torrent)
    }

    /// The hash by which a torrent with one of these hashes runs already, or else the first.
    fn key_of(&self, hash: InfoHash, also: Option<InfoHash>) -> InfoHash {
        let torrents = self.shared.torrents();
        let is_it = |key: &InfoHash, entry: &Entry| {
            Some(*key) == also || entry.also == Some(hash) || (also.is_some() && entry.also == also)
        };
        match torrents.contains_key(&hash) {
            true => hash,
            false => torrents.iter().find(|(k, e)| is_it(k, e)).map_or(hash, |(key, _)| *key),
        }
    }

    fn running(&self, hash: &InfoHash) -> Option<Torrent> {
        self.shared.torrents().get(hash)?.torrent.clone()
    }

    /// Counts one more user of a torrent that runs, and says where it takes commands.
    fn join(&self, hash: &InfoHash) -> Option<mpsc::UnboundedSender<Command>> {
        let mut torrents = self.shared.torrents();
        let entry = torrents.get_mut(hash)?;
        entry.users += 1;
        Some(entry.commands.clone())
    }

    /// Gives a torrent back; the last user's doing so ends it. Reads that wait end with an error.
    /// Returns when its connections have delivered what they had to, 30 s later at most, and its
    /// trackers have been told, within 3 s. `released` is called when nobody has its data open any
    /// more, or at once if there are other users.
    pub async fn remove(&self, torrent: Torrent, released: impl FnOnce() + Send + 'static) {
        let entry = {
            let mut torrents = self.shared.torrents();
            // Not by its hash: the two of a hybrid may run as two.
            let is_it = |entry: &Entry| entry.commands.same_channel(&torrent.inner.commands);
            let Some((&hash, entry)) = torrents.iter_mut().find(|(_, entry)| is_it(entry)) else {
                return;
            };
            entry.users -= 1;
            if entry.users > 0 {
                return released();
            }
            torrents.remove(&hash)
        };
        torrent.inner.store.on_close(Box::new(released));
        drop(torrent);
        self.shared.share_memory();
        self.shared.share_connections();
        if let Some(entry) = entry {
            end(vec![entry]).await;
        }
    }

    /// Ends everything, within about three seconds.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        let entries = self.shared.torrents().drain().map(|(_, e)| e).collect();
        let save = async {
            if let Some(node) = &self.shared.dht {
                node.shutdown().await;
            }
        };
        let all = async { tokio::join!(end(entries), save) };
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }
}

/// Without sockets there is no DHT, and nothing else is missing.
fn start_dht(config: &SessionConfig, dht: &DhtConfig, port: u16) -> Option<Node> {
    let bootstrap = match dht.bootstrap.is_empty() {
        true => public_routers(&config.listen),
        false => dht.bootstrap.clone(),
    };
    let node = Node::start(NodeConfig {
        listen: config.listen.clone(),
        port,
        bootstrap,
        saved: Some(config.cache_dir.join("dht")),
        ..NodeConfig::default()
    });
    node.inspect_err(|error| tracing::warn!(%error, "there is no DHT")).ok()
}

/// Ends torrents and says farewell to their trackers.
async fn end(entries: Vec<Entry>) {
    for entry in &entries {
        entry.cancel.cancel();
    }
    for entry in entries {
        let _ = entry.task.await;
        // The cache has the torrent back before its trackers have answered.
        let swarms = entry.torrent.map(|torrent| Arc::clone(&torrent.inner.swarms));
        for trackers in swarms.iter().flat_map(|swarms| swarms.iter()) {
            trackers.join().await;
        }
    }
}

/// Looks whether others have filled the disk, of which the cache is to leave some free.
async fn leave_free(shared: Arc<Shared>) {
    let mut looks = tokio::time::interval(DISK_LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            _ = looks.tick() => {}
        }
        let store = shared.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.trim()).await;
    }
}

/// The choker's task: a round every ten seconds, and a look whenever somebody becomes interested.
async fn choke(shared: Arc<Shared>) {
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
        if round {
            shared.share_connections();
        }
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
            choker.round(&candidates, shared.rates.get().up.map(|limit| limit as f64), now)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_torrents_have_as_many_connections_as_they_may() {
        assert_eq!(connection_limits(&[5, 5, 50]), [MAX_PEERS; 3]);
    }

    #[test]
    fn hundreds_of_torrents_share_and_the_idle_ones_leave_theirs_to_the_busy() {
        let wants: Vec<_> = (0..300).map(|n| if n < 10 { 50 } else { 1 }).collect();
        let limits = connection_limits(&wants);
        assert!(limits[..10].iter().all(|limit| *limit >= 20), "{limits:?}");
        let all: usize = limits.iter().sum();
        assert!(all <= MAX_CONNECTIONS + MIN_CONNECTIONS * 300, "{all}");
    }

    #[test]
    fn however_many_want_all_they_get_stays_within_the_bound() {
        for count in [1, 9, 10, 11, 100, 250] {
            let all: usize = connection_limits(&vec![MAX_PEERS; count]).iter().sum();
            assert!(all <= MAX_CONNECTIONS, "{count} torrents have {all}");
        }
    }
}
