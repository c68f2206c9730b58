//! Adding a torrent: from what the user named to a torrent that is ready.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::data::{self, DataPlace};
use super::dht::{Node, Seeking};
use super::rates::Rates;
use super::select;
use super::session::Session;
use super::source::Source;
use super::status::Informants;
use super::task::{Command, Progress};
use super::torrent::{Inner, Torrent};
use super::tracker::{AnnounceStats, TrackerConfig, Trackers};
use crate::proto::bitfield::Bitfield;
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::layout::Layout;
use crate::proto::metainfo::{Info, InfoError, Magnet, Metainfo};
use crate::proto::swarm::PeerSource;
use crate::store::StoreError;

/// DHT nodes that are taken from one .torrent file: it must not crowd out those of the user.
const MAX_TORRENT_NODES: usize = 8;

/// How long the DHT has to find its first node before it is said that it has none.
const DHT_GRACE: Duration = Duration::from_secs(5);

/// How often it is looked whether there is somebody to ask by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How far an [`Session::add`] has come.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct AddProgress {
    /// Connected peers.
    pub peers: usize,
    /// Known addresses.
    pub known_peers: usize,
    /// What to say when no peer is known and there is nobody who could name one.
    pub nobody: Option<&'static str>,
    /// Bytes of the info dictionary here.
    pub metadata_bytes: u32,
    /// Bytes of the info dictionary in all; 0 while unknown.
    pub metadata_size: u32,
    /// Pieces of data outside the cache that were checked.
    pub checked_pieces: u32,
    /// How many are to be checked; 0 while unknown.
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
    /// Data in place cannot be checked without the hashes of its pieces.
    #[error(
        "{0}: the torrent file has no piece layers, without which the data cannot be checked; use the \
         one that the torrent's maker gave out"
    )]
    NoLayers(String),
    /// The info dictionary is that of the v1 hash but not of the v2 hash of the magnet link.
    #[error("{0}: the two info hashes of the magnet link are not of one torrent; do not trust it")]
    OtherV2Hash(String),
    /// The cache or the data cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data in place is not that of the torrent.
    #[error(
        "{file}: {bad} of {pieces} pieces of the torrent do not match, this file has the first; \
         check that the path and the torrent belong together; p2pfs mount --use-data uses what is good"
    )]
    DataMismatch {
        /// The first file that has wrong bytes.
        file: String,
        /// Pieces that do not match.
        bad: usize,
        /// Pieces in all.
        pieces: u32,
    },
    /// It runs already, without this data.
    #[error(
        "{0}: the torrent is mounted already without this data: unmount it first, then mount it with \
         --use-data"
    )]
    RunsWithout(String),
    /// `--select` names nothing, or is malformed.
    #[error("--select {0}")]
    Select(String),
    /// The session is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// The info hashes of a torrent: that by which it is known here, and where there are two halves the
/// other, by which peers may know it too (BEP 52).
pub(super) fn info_hashes(source: &Source) -> (InfoHash, Option<InfoHash>) {
    let (hash, v2) = match source {
        Source::Metainfo(metainfo) => (metainfo.info.info_hash, metainfo.info.info_hash_v2()),
        Source::Magnet(magnet) => (magnet.info_hash, magnet.info_hash_v2),
    };
    (hash, v2.map(|v2| v2.truncated()).filter(|v2| *v2 != hash))
}

/// The hashes by which peers may know a torrent whose description is known.
pub(super) fn both_hashes(info: &Info) -> impl Iterator<Item = InfoHash> {
    let v2 = info.info_hash_v2().map(|v2| v2.truncated());
    [info.info_hash_v1(), v2].into_iter().flatten()
}

/// A torrent on its way to being ready; dropping it on the way removes it again.
pub(super) struct Starting<'a> {
    pub session: &'a Session,
    pub hash: InfoHash,
    /// The torrent's other info hash, where it has two.
    pub also: Option<InfoHash>,
    pub id: u64,
    /// The torrent's own limits.
    pub rates: Arc<Rates>,
    pub cancel: CancellationToken,
    /// Ends what the DHT is asked and told.
    pub dht: CancellationToken,
    pub done: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.cancel.cancel();
            self.session.shared.forget(&self.hash, self.id);
        }
    }
}

impl Starting<'_> {
    /// Finds the metadata and opens the data.
    pub(super) async fn start(
        mut self,
        add: AddTorrent,
        commands: mpsc::UnboundedSender<Command>,
        mut watcher: watch::Receiver<Progress>,
        mut announce: watch::Receiver<AnnounceStats>,
    ) -> Result<Torrent, AddError> {
        let (info, looking) = match self.known_info(&add.source)? {
            Some(info) => (info, None),
            None => {
                // Whether it is private is known only when the metadata is here.
                self.announce_locally(true);
                let swarms = self.find_peers(&add, &commands, announce.clone());
                (self.metadata(&add, &mut watcher, &swarms).await?, Some(swarms))
            }
        };
        let also_known = self.also;
        self.know_hashes(&info);
        if info.private {
            self.announce_locally(false);
            self.dht.cancel();
        }
        let layout = Arc::new(Layout::new(&info));
        let wanted = wanted(&add, &info, &layout)?;
        let (store, layers) =
            data::open(self.session.shared.store.clone(), &add, &info, &layout).await?;
        let activate =
            Command::Activate { info: info.clone(), store: store.clone(), layers, wanted };
        commands.send(activate).map_err(|_| AddError::Stopping)?;
        let swarms = match looking {
            Some(mut swarms) => {
                if let Some(also) = self.also.filter(|_| also_known.is_none()) {
                    swarms.push(self.find_swarm(also, &add, &commands, announce.clone()));
                }
                swarms
            }
            None => {
                // Peers and trackers are told what we have, so it has to be known first.
                let ready = announce.wait_for(|stats| stats.left.is_some()).await;
                drop(ready.map_err(|_| AddError::Stopping)?);
                self.find_peers(&add, &commands, announce.clone())
            }
        };
        self.announce_locally(!info.private);
        let dht = self.session.shared.dht.clone().filter(|_| !info.private);
        self.done = true;
        let waiting = Arc::default();
        let swarms = Arc::new(swarms);
        let inner = Inner {
            info,
            layout,
            store,
            rates: self.rates.clone(),
            commands,
            waiting,
            progress: watcher,
            swarms,
            dht,
        };
        Ok(Torrent { inner: Arc::new(inner) })
    }

    fn announce_locally(&self, yes: bool) {
        self.session.shared.set_local(&self.hash, self.id, yes);
    }

    /// The torrent's two hashes, now that its description is known.
    fn know_hashes(&mut self, info: &Info) {
        self.also = both_hashes(info).find(|hash| *hash != self.hash);
        self.session.shared.set_also(&self.hash, self.id, self.also);
    }

    /// Asks trackers and the DHT, for each swarm of the torrent, and whomever the user and the magnet
    /// name.
    fn find_peers(
        &self,
        add: &AddTorrent,
        commands: &mpsc::UnboundedSender<Command>,
        stats: watch::Receiver<AnnounceStats>,
    ) -> Vec<Trackers> {
        let _ = commands.send(Command::Peers(add.peers.clone(), PeerSource::Manual));
        if let Source::Magnet(magnet) = &add.source {
            resolve_peers(magnet.peers.clone(), commands.clone());
        }
        let hashes = [Some(self.hash), self.also].into_iter().flatten();
        hashes.map(|hash| self.find_swarm(hash, add, commands, stats.clone())).collect()
    }

    /// Asks trackers and the DHT for the peers that know the torrent by one of its hashes.
    fn find_swarm(
        &self,
        hash: InfoHash,
        add: &AddTorrent,
        commands: &mpsc::UnboundedSender<Command>,
        stats: watch::Receiver<AnnounceStats>,
    ) -> Trackers {
        let shared = &self.session.shared;
        let mut tiers = match &add.source {
            Source::Metainfo(metainfo) => metainfo.trackers.clone(),
            Source::Magnet(magnet) => magnet.trackers.iter().map(|t| vec![t.clone()]).collect(),
        };
        tiers.extend(add.trackers.iter().map(|t| vec![t.clone()]));
        let config = TrackerConfig {
            info_hash: hash,
            peer_id: shared.peer_id,
            port: shared.port,
            tiers,
            key: rand::rng().random(),
        };
        if let Some(node) = shared.dht.clone() {
            self.seek(node, hash, &add.source, commands, stats.clone());
        }
        let found = hand_over(commands.clone(), PeerSource::Tracker);
        let network = shared.network.subscribe();
        Trackers::spawn(config, stats, network, found, self.cancel.clone())
    }

    /// Has the DHT asked, unless the torrent is known to be private (BEP 27), and told of the nodes
    /// that the source names.
    fn seek(
        &self,
        node: Node,
        hash: InfoHash,
        source: &Source,
        commands: &mpsc::UnboundedSender<Command>,
        stats: watch::Receiver<AnnounceStats>,
    ) {
        if let Source::Metainfo(metainfo) = source {
            if metainfo.info.private {
                return;
            }
            node.add_names(nodes_of(metainfo));
        }
        let seeking = Seeking {
            node,
            info_hash: hash,
            port: self.session.shared.port,
            stats,
            network: self.session.shared.network.subscribe(),
            found: hand_over(commands.clone(), PeerSource::Dht),
        };
        tokio::spawn(seeking.run(self.dht.clone()).in_current_span());
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
        swarms: &[Trackers],
    ) -> Result<Arc<Info>, AddError> {
        let Source::Magnet(magnet) = &add.source else { return Err(AddError::Stopping) };
        let begun = Instant::now();
        let fetch = async {
            loop {
                let progress = watcher.borrow_and_update().clone();
                if let Some(raw) = progress.metadata {
                    return Some(raw);
                }
                let (metadata_bytes, metadata_size) = progress.stats.metadata;
                let known_peers = progress.stats.known_peers;
                let informants = self.informants(add, magnet);
                let early = informants.dht.is_some() && begun.elapsed() < DHT_GRACE;
                let hopeful = early || names_peers(add, magnet) || known_peers > 0;
                add.progress.send_replace(AddProgress {
                    peers: progress.stats.peers,
                    known_peers,
                    nobody: informants.nobody().filter(|_| !hopeful),
                    metadata_bytes,
                    metadata_size,
                    ..AddProgress::default()
                });
                // The DHT may come to know somebody meanwhile.
                if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, watcher.changed()).await {
                    return None;
                }
            }
        };
        match tokio::time::timeout(add.metadata_timeout, fetch).await {
            Ok(Some(raw)) => parse_info(magnet, &raw),
            Ok(None) => Err(AddError::Stopping),
            Err(_) => Err(AddError::NoMetadata {
                name: name_of(magnet),
                seconds: add.metadata_timeout.as_secs(),
                cause: self.no_metadata(&watcher.borrow(), add, magnet, swarms),
            }),
        }
    }

    /// Who could name peers of a magnet.
    fn informants(&self, add: &AddTorrent, magnet: &Magnet) -> Informants {
        let trackers = magnet.trackers.len() + add.trackers.len() > 0;
        Informants { trackers, dht: self.session.shared.dht.as_ref().map(Node::nodes) }
    }

    /// What is known of why no metadata came, and what the user can do.
    fn no_metadata(
        &self,
        progress: &Progress,
        add: &AddTorrent,
        magnet: &Magnet,
        swarms: &[Trackers],
    ) -> String {
        let informants = self.informants(add, magnet);
        let status = swarms.iter().flat_map(Trackers::status);
        let refusal = status.into_iter().find_map(|t| Some((t.url, t.error?)));
        match (progress.stats.peers, progress.stats.known_peers) {
            (0, 0) => match (informants.nobody(), refusal) {
                (Some(nobody), _) if !names_peers(add, magnet) => {
                    format!("the source names no tracker and no peer: {nobody}")
                }
                (_, Some((url, error))) => format!("no peer was found, {url} says: {error}"),
                _ => format!("{}; try --peer", informants.why_no_peer()),
            },
            (0, known) => match refusal {
                Some((url, error)) => format!("no peer was found, {url} says: {error}"),
                None => format!(
                    "none of {known} known peers could be reached; check the connection or try \
                     --peer"
                ),
            },
            (peers, _) => {
                format!("{peers} connected peers do not have it; try again later or with --peer")
            }
        }
    }
}

fn name_of(magnet: &Magnet) -> String {
    let hash = || match magnet.info_hash_v2 {
        Some(hash) if magnet.info_hash_v1().is_none() => hash.to_string(),
        _ => magnet.info_hash.to_string(),
    };
    magnet.name.clone().unwrap_or_else(hash)
}

fn parse_info(magnet: &Magnet, raw: &[u8]) -> Result<Arc<Info>, AddError> {
    let info = Info::parse(raw).map_err(|error| AddError::Info { name: name_of(magnet), error })?;
    if magnet.info_hash_v2.is_some_and(|hash| info.info_hash_v2() != Some(hash)) {
        return Err(AddError::OtherV2Hash(name_of(magnet)));
    }
    Ok(Arc::new(info))
}

/// The pieces to fetch in the background.
pub(super) fn wanted(add: &AddTorrent, info: &Info, layout: &Layout) -> Result<Bitfield, AddError> {
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

/// Whether the magnet or the user names a peer.
fn names_peers(add: &AddTorrent, magnet: &Magnet) -> bool {
    !add.peers.is_empty() || !magnet.peers.is_empty()
}

/// The DHT nodes that a .torrent file names, as `host:port`.
fn nodes_of(metainfo: &Metainfo) -> Vec<String> {
    let nodes = metainfo.nodes.iter().take(MAX_TORRENT_NODES);
    nodes.map(|(host, port)| host_and_port(host, *port)).collect()
}

fn host_and_port(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// Where peers go that `source` tells of.
fn hand_over(
    commands: mpsc::UnboundedSender<Command>,
    source: PeerSource,
) -> mpsc::Sender<Vec<SocketAddr>> {
    let (found, mut found_rx) = mpsc::channel::<Vec<SocketAddr>>(16);
    tokio::spawn(async move {
        while let Some(addrs) = found_rx.recv().await {
            let _ = commands.send(Command::Peers(addrs, source));
        }
    });
    found
}

/// Looks up the peers a magnet names (`x.pe`); those that have no address are left out.
pub(super) fn resolve_peers(names: Vec<String>, commands: mpsc::UnboundedSender<Command>) {
    for name in names {
        let commands = commands.clone();
        tokio::spawn(async move {
            if let Ok(addrs) = tokio::net::lookup_host(&name).await {
                let _ = commands.send(Command::Peers(addrs.take(8).collect(), PeerSource::Manual));
            }
        });
    }
}
