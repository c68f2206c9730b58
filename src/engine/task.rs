//! The task in which one torrent lives: it feeds the machine what happens and carries out what the
//! machine says.

mod connections;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connections::{Arrival, Rival};
use super::blocks::hash_blocks;
use super::peer::{self, ConnectError, Event, Events, PeerLink};
use super::rates::Throttle;
use super::session::Shared;
use super::torrent::{ReadError, ReadHandle, Waiting};
use super::tracker::AnnounceStats;
use crate::proto::bitfield::Bitfield;
use crate::proto::choker::Candidate;
use crate::proto::geometry::PieceIndex;
use crate::proto::ids::InfoHash;
use crate::proto::merkle::{Hash, Trusted};
use crate::proto::metainfo::{Info, PieceLayers};
use crate::proto::swarm::{PeerKey, PeerSource, Priority};
use crate::proto::time::Timestamp;
use crate::proto::torrent::{HandleId, Output, ReadEnd, Stats, Ticket, Torrent as Machine, View};
use crate::proto::wire::handshake::Handshake;
use crate::store::{PieceBuffer, TorrentStore, Verdict, VerifiedRange, is_no_room};

/// Events of connections that may wait for the torrent; a connection then waits in turn.
const MAX_EVENTS: usize = 256;

/// What is said of a hybrid torrent whose halves do not belong together.
const CONTRADICTION: &str = "the v1 and v2 parts of the hybrid torrent describe different data, so \
     neither can be trusted; get the torrent from somewhere else";

/// What was learnt is published this often at most.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// The store is told this often how many peers have what, if it may have to let something go.
const COPIES_INTERVAL: Duration = Duration::from_secs(5);

/// What the torrent is told from outside.
pub(crate) enum Command {
    Read {
        handle: ReadHandle,
        range: Range<u64>,
        timeout: Option<Duration>,
        waiting: Waiting,
    },
    ReadAhead(ReadHandle, Range<u64>),
    Flushed(ReadHandle),
    Closed(ReadHandle),
    Prefetch(Vec<usize>),
    Peers(Vec<SocketAddr>, PeerSource),
    Incoming(TcpStream, SocketAddr, Handshake),
    /// The cache is open: from here on there are pieces.
    Activate {
        info: Arc<Info>,
        store: Arc<TorrentStore>,
        /// Of a torrent with a v2 half, as far as they are known.
        layers: Arc<PieceLayers>,
        wanted: Bitfield,
    },
    /// Memory for incoming pieces, in bytes.
    BufferBudget(u64),
    /// Connections that there may be.
    Connections(usize),
    /// More is wanted in the background.
    Want(Bitfield),
    Candidates(u64, oneshot::Sender<Vec<Candidate>>),
    Unchoked(Vec<PeerKey>),
    View(oneshot::Sender<View>),
}

/// What the torrent tells the outside.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub stats: Stats,
    /// Everything wanted is verified and at rest.
    pub complete: bool,
    pub wanted: Bitfield,
    /// The info dictionary, from the moment it came from peers.
    pub metadata: Option<Arc<Vec<u8>>>,
    pub error: Option<String>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let (stats, wanted) = (Stats::default(), Bitfield::empty(0));
        Self { stats, complete: false, wanted, metadata: None, error: None }
    }
}

/// What happened outside the task's own connections.
enum Internal {
    Connected(SocketAddr, Result<Arrival, ConnectError>),
    Verdict(PieceIndex, Verdict),
    Written(PieceIndex, std::io::Result<()>),
    Checked(PieceIndex, bool),
    Lost(PieceIndex, Option<u32>),
    BlocksJudged { buffer: Arc<PieceBuffer>, good: Vec<u32>, bad: Vec<u32> },
    BlocksHashed(PieceIndex, Option<Arc<[Hash]>>),
}

/// The task of one torrent.
pub(super) struct Task {
    machine: Machine,
    /// The torrent's other info hash, if the source names two.
    also: Option<InfoHash>,
    shared: Arc<Shared>,
    limits: Throttle,
    cancel: CancellationToken,
    commands: mpsc::UnboundedReceiver<Command>,
    events: (mpsc::Sender<Events>, mpsc::Receiver<Events>),
    /// Unbounded: each message answers something the machine asked for, and it asks for little.
    internal: (mpsc::UnboundedSender<Internal>, mpsc::UnboundedReceiver<Internal>),
    store: watch::Sender<Option<Arc<TorrentStore>>>,
    links: BTreeMap<PeerKey, PeerLink>,
    /// Second connections, by the key of the first.
    rivals: BTreeMap<PeerKey, Rival>,
    /// Connections that are not closed yet.
    open: TaskTracker,
    last_key: u64,
    buffers: HashMap<PieceIndex, Arc<PieceBuffer>>,
    /// Pieces to be written. One that the disk refused stays until it is written after all, or
    /// the store gives it up.
    verified: HashMap<PieceIndex, VerifiedRange>,
    reads: HashMap<Ticket, Waiting>,
    last_ticket: u64,
    progress: watch::Sender<Progress>,
    announce: watch::Sender<AnnounceStats>,
    /// When what was learnt was last published.
    published: Option<Timestamp>,
    /// Something may have changed since.
    unpublished: bool,
    /// When the store was last told how many peers have what.
    told_copies: Option<Timestamp>,
}

impl Task {
    pub(super) fn new(
        machine: Machine,
        also: Option<InfoHash>,
        shared: Arc<Shared>,
        limits: Throttle,
        cancel: CancellationToken,
        commands: mpsc::UnboundedReceiver<Command>,
        (progress, announce): (watch::Sender<Progress>, watch::Sender<AnnounceStats>),
    ) -> Self {
        Self {
            machine,
            also,
            shared,
            limits,
            cancel,
            commands,
            events: mpsc::channel(MAX_EVENTS),
            internal: mpsc::unbounded_channel(),
            store: watch::Sender::new(None),
            links: BTreeMap::new(),
            rivals: BTreeMap::new(),
            open: TaskTracker::new(),
            last_key: 0,
            buffers: HashMap::new(),
            verified: HashMap::new(),
            reads: HashMap::new(),
            last_ticket: 0,
            progress,
            announce,
            published: None,
            unpublished: true,
            told_copies: None,
        }
    }

    /// Runs until cancelled. Reads that wait then end with [`ReadError::Gone`], connections close
    /// when they have delivered what they were given; at once when the session ends.
    pub(super) async fn run(mut self) {
        let clock = self.shared.clock;
        let mut network = self.shared.network.subscribe();
        let mut events = Vec::new();
        loop {
            let mut next = self.machine.poll_timeout();
            next = next.min(self.next_rival_ends().unwrap_or(Timestamp::FAR_FUTURE));
            if let Some(published) = self.published.filter(|_| self.unpublished) {
                next = next.min(published + PUBLISH_INTERVAL);
            }
            tokio::select! {
                () = self.cancel.cancelled() => return self.end().await,
                Some(command) = self.commands.recv() => {
                    self.command(command);
                    while let Ok(command) = self.commands.try_recv() {
                        self.command(command);
                    }
                }
                _ = self.events.1.recv_many(&mut events, 64) => {
                    for (key, batch) in events.drain(..) {
                        self.peer_events(key, batch);
                    }
                }
                Some(message) = self.internal.1.recv() => {
                    self.internal(message);
                    while let Ok(message) = self.internal.1.try_recv() {
                        self.internal(message);
                    }
                }
                Ok(()) = network.changed() => {
                    self.machine.network_changed();
                    self.links.values().for_each(PeerLink::probe);
                }
                () = tokio::time::sleep_until(clock.instant(next)) => {}
            }
            self.expire_rivals();
            let room = self.store.borrow().as_ref().and_then(|store| store.background_room());
            self.machine.set_cache_room(room);
            self.machine.plan(clock.now());
            while let Some(output) = self.machine.poll_output() {
                self.carry_out(output);
            }
            self.publish();
        }
    }

    async fn end(self) {
        let (open, session) = (self.open.clone(), self.shared.cancel.clone());
        drop(self);
        open.close();
        tokio::select! {
            () = open.wait() => {}
            () = session.cancelled() => {}
        }
    }

    // ---- what happens

    fn command(&mut self, command: Command) {
        let now = self.shared.clock.now();
        match command {
            Command::Read { handle, range, timeout, waiting } => {
                self.last_ticket += 1;
                let ticket = Ticket(self.last_ticket);
                tracing::debug!(read = ticket.0, handle = handle.0, ?range, "a read waits");
                self.reads.insert(ticket, waiting);
                let expires = timeout.map_or(Timestamp::FAR_FUTURE, |t| now + t);
                self.machine.read(ticket, HandleId(handle.0), range, now, expires);
            }
            Command::ReadAhead(handle, range) => {
                self.machine.read_ahead(HandleId(handle.0), range);
            }
            Command::Flushed(handle) => self.machine.flushed(HandleId(handle.0)),
            Command::Closed(handle) => self.machine.closed(HandleId(handle.0)),
            Command::Prefetch(files) => {
                if let Some(info) = self.machine.info() {
                    self.want(super::select::pieces_of(info, &files), Priority::Prefetch);
                }
            }
            Command::Connections(limit) => self.machine.set_connection_limit(limit, now),
            Command::BufferBudget(bytes) => self.machine.set_buffer_budget(bytes),
            Command::Want(pieces) => self.want(pieces, Priority::Normal),
            Command::Peers(addrs, source) => self.machine.peers_found(&addrs, source),
            Command::Incoming(stream, addr, handshake) => {
                self.arrived(Arrival { stream, addr, theirs: handshake, said: None });
            }
            Command::Activate { info, store, layers, wanted } => {
                self.activate(info, store, &layers, wanted);
            }
            Command::Candidates(torrent, answer) => {
                let _ = answer.send(self.machine.candidates(torrent, now));
            }
            Command::Unchoked(keys) => self.machine.set_unchoked(&keys, now),
            Command::View(answer) => drop(answer.send(self.machine.view(now))),
        }
    }

    fn activate(
        &mut self,
        info: Arc<Info>,
        store: Arc<TorrentStore>,
        layers: &PieceLayers,
        wanted: Bitfield,
    ) {
        let now = self.shared.clock.now();
        let name = String::from_utf8_lossy(&info.name);
        tracing::Span::current().record("name", tracing::field::debug(name));
        let lost = self.internal.0.clone();
        let tell = move |piece, block| drop(lost.send(Internal::Lost(piece, block)));
        store.set_on_lost(Box::new(tell));
        let mut at_rest = store.hinted();
        let is_on_disk = |p: &PieceIndex| store.is_at_rest(*p) || store.is_lent(*p);
        let checked: Vec<_> = info.geometry.pieces().filter(is_on_disk).collect();
        for piece in &checked {
            at_rest.insert(*piece);
        }
        self.machine.activate(info, at_rest, &wanted, now);
        self.machine.know_layers(layers);
        for piece in checked {
            self.machine.checked_at_rest(piece, true, now);
        }
        self.store.send_replace(Some(store));
        self.progress.send_modify(|p| p.wanted = wanted);
        // Whoever added the torrent waits to hear how much is left.
        self.published = None;
    }

    fn want(&mut self, pieces: Bitfield, priority: Priority) {
        let Some(info) = self.machine.info().cloned() else { return };
        self.progress.send_modify(|p| {
            for piece in pieces.iter(&info.geometry) {
                p.wanted.insert(piece);
            }
            p.complete = false;
        });
        self.machine.raise_priority(pieces.iter(&info.geometry), priority);
    }

    fn peer_events(&mut self, key: PeerKey, batch: Vec<Event>) {
        let now = self.shared.clock.now();
        for event in batch {
            match event {
                Event::Message(message) => self.machine.message(key, message, now),
                Event::Block { block, kept_in } => {
                    // A buffer that was given up meanwhile is another one than that of the piece.
                    let kept = kept_in.is_some_and(|kept_in| {
                        self.buffers.get(&block.piece).is_some_and(|b| Arc::ptr_eq(b, &kept_in))
                    });
                    self.machine.block_arrived(key, block, kept, now);
                }
                Event::Unasked(bytes) => self.machine.block_unasked(key, bytes, now),
                Event::Uploaded { raw, sent } => self.machine.uploaded(key, raw, sent, now),
                Event::Closed(why) => {
                    tracing::debug!(peer = ?self.addr(key), why, "connection closed");
                    self.link_ended(key);
                }
            }
        }
    }

    fn internal(&mut self, message: Internal) {
        let now = self.shared.clock.now();
        match message {
            Internal::Connected(_, Ok(arrival)) => self.arrived(arrival),
            Internal::Connected(addr, Err(error)) => {
                tracing::debug!(peer = %addr, %error, "cannot connect");
                match error {
                    ConnectError::TurnedAway => self.machine.found_no_room(addr, now),
                    ConnectError::Ourselves => self.machine.connect_failed(addr, true, now),
                    _ => self.machine.connect_failed(addr, false, now),
                }
            }
            Internal::Verdict(piece, verdict) => match verdict {
                Verdict::Verified { range, block_digests } => {
                    self.buffers.remove(&piece);
                    self.verified.insert(piece, range);
                    self.machine.piece_verified(piece, block_digests.as_deref(), now);
                }
                Verdict::Mismatch { block_digests } => {
                    tracing::info!(piece = piece.get(), "a piece failed its hash");
                    self.machine.piece_failed(piece, block_digests, now);
                }
                Verdict::Contradiction => self.machine.contradicted(piece, now),
            },
            Internal::Written(piece, Ok(())) => {
                self.verified.remove(&piece);
                let passes = |error: &mut String| error.as_str() != CONTRADICTION;
                self.progress.send_if_modified(|p| p.error.take_if(passes).is_some());
                self.machine.piece_written(piece, now);
            }
            Internal::Written(piece, Err(error)) if is_no_room(&error) => {
                self.machine.no_room(piece, now);
            }
            Internal::Written(piece, Err(error)) => {
                let message = format!("the cache cannot be written: {error}");
                if self.progress.borrow().error.is_none() {
                    tracing::error!("{message}; free some space, downloading goes on then");
                }
                self.progress.send_modify(|p| p.error = Some(message));
                self.machine.write_failed(piece, now);
            }
            Internal::Checked(piece, good) => self.machine.checked_at_rest(piece, good, now),
            Internal::Lost(piece, Some(block)) => self.machine.block_lost(piece, block),
            Internal::Lost(piece, None) => {
                self.verified.remove(&piece);
                self.machine.piece_lost(piece, now);
                let complete = self.machine.is_complete();
                self.progress.send_if_modified(|p| {
                    let ended = p.complete && !complete;
                    p.complete &= complete;
                    ended
                });
            }
            Internal::BlocksJudged { buffer, good, bad } => {
                // Another buffer may have taken its place, with other blocks.
                let piece = buffer.piece();
                if self.buffers.get(&piece).is_some_and(|own| Arc::ptr_eq(own, &buffer)) {
                    self.machine.blocks_judged(piece, &good, &bad, now);
                }
            }
            Internal::BlocksHashed(piece, hashes) => {
                self.machine.blocks_hashed(piece, hashes.as_deref(), now);
            }
        }
    }

    // ---- what to do

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(key, message) => self.tell(key, peer::Command::Message(message)),
            Output::Upload(key, raw) => self.tell(key, peer::Command::Upload(raw)),
            Output::Request(key, block) => {
                let store = self.store.borrow().clone();
                if let (Some(link), Some(store)) = (self.links.get(&key), store) {
                    let buffer = self.buffers.entry(block.piece);
                    link.request(
                        block,
                        buffer.or_insert_with(|| store.buffer(block.piece)).clone(),
                    );
                }
            }
            Output::Cancel(key, block) => {
                if let Some(link) = self.links.get(&key) {
                    link.cancel_request(block);
                }
            }
            Output::Disconnect(key, reason) => {
                tracing::debug!(peer = ?self.addr(key), %reason, "disconnecting");
                self.end_link(key);
            }
            Output::Connect(addr) => self.connect(addr),
            Output::Metadata(raw) => {
                self.progress.send_modify(|p| p.metadata = Some(Arc::new(raw)));
            }
            Output::Verify { piece, digests, root } => self.verify(piece, digests, root),
            Output::VerifyBlocks(piece, blocks) => self.verify_blocks(piece, blocks),
            Output::Refuse(piece, index) => {
                self.buffers.get(&piece).iter().for_each(|buffer| buffer.refuse(index));
            }
            Output::CheckAtRest(piece, root) => self.check_at_rest(piece, root),
            Output::HashBlocks(piece) => self.hash_blocks(piece),
            Output::KeepLayer(file, hashes) => self.keep_layer(file, hashes),
            Output::Contradiction => {
                tracing::error!("{CONTRADICTION}");
                self.progress.send_modify(|p| p.error = Some(CONTRADICTION.to_owned()));
                self.published = None;
            }
            Output::Write(piece) => self.write(piece),
            Output::Discard(piece) => {
                if let Some(buffer) = self.buffers.remove(&piece) {
                    buffer.discard();
                }
            }
            Output::Reply(ticket, end) => self.reply(ticket, end),
            Output::DhtNode(addr) => self.shared.dht.iter().for_each(|node| node.met(addr)),
            Output::SeenAt { by, ours } => {
                self.shared.dht.iter().for_each(|node| node.voted(by, ours));
            }
            Output::WantsUnchoke => self.shared.wants_unchoke.notify_one(),
            Output::Complete => {
                if self.progress.borrow().wanted.count() > 0 {
                    tracing::info!("all that is wanted is here");
                }
                self.progress.send_modify(|p| p.complete = true);
                self.published = None;
            }
        }
    }

    /// Where the peer of a connection is.
    fn addr(&self, key: PeerKey) -> Option<SocketAddr> {
        self.links.get(&key).map(|link| link.addr)
    }

    fn tell(&self, key: PeerKey, command: peer::Command) {
        if let Some(link) = self.links.get(&key) {
            link.tell(command);
        }
    }

    fn verify(&mut self, piece: PieceIndex, digests: bool, root: Option<Trusted>) {
        let store = self.store.borrow().clone();
        if let (Some(store), Some(buffer)) = (store, self.buffers.get(&piece)) {
            let answer = self.internal.0.clone();
            store.verify(buffer.clone(), digests, root, move |verdict| {
                let _ = answer.send(Internal::Verdict(piece, verdict));
            });
        }
    }

    fn verify_blocks(&self, piece: PieceIndex, blocks: Vec<(u32, Trusted)>) {
        let store = self.store.borrow().clone();
        if let (Some(store), Some(buffer)) = (store, self.buffers.get(&piece)) {
            let (answer, buffer) = (self.internal.0.clone(), buffer.clone());
            store.verify_blocks(buffer.clone(), blocks, move |good, bad| {
                let (good, bad) = (good.to_vec(), bad.to_vec());
                let _ = answer.send(Internal::BlocksJudged { buffer, good, bad });
            });
        }
    }

    fn hash_blocks(&self, piece: PieceIndex) {
        if let Some(store) = self.store.borrow().clone() {
            let answer = self.internal.0.clone();
            tokio::spawn(async move {
                let hashes = hash_blocks(store, piece).await;
                let _ = answer.send(Internal::BlocksHashed(piece, hashes));
            });
        }
    }

    /// Keeps a piece layer with the torrent, so that after a restart nobody needs to be asked for it.
    fn keep_layer(&self, file: usize, hashes: Vec<Hash>) {
        if let Some(store) = self.store.borrow().clone() {
            tokio::task::spawn_blocking(move || store.keep_layer(file, &hashes));
        }
    }

    fn check_at_rest(&self, piece: PieceIndex, root: Option<Trusted>) {
        if let Some(store) = self.store.borrow().clone() {
            let answer = self.internal.0.clone();
            store.verify_at_rest(piece, root, move |good| {
                let _ = answer.send(Internal::Checked(piece, good));
            });
        }
    }

    fn write(&mut self, piece: PieceIndex) {
        let store = self.store.borrow().clone();
        if let (Some(store), Some(range)) = (store, self.verified.get(&piece).cloned()) {
            let answer = self.internal.0.clone();
            store.write(range, move |result| {
                let _ = answer.send(Internal::Written(piece, result));
            });
        }
    }

    /// The reply copies the bytes to the kernel, which takes a while: off the runtime.
    fn reply(&mut self, ticket: Ticket, end: ReadEnd) {
        let Some(waiting) = self.reads.remove(&ticket) else { return };
        tracing::debug!(read = ticket.0, ?end, "a read has waited");
        let result = match end {
            ReadEnd::Ready => Ok(()),
            ReadEnd::TimedOut => Err(ReadError::TimedOut),
            ReadEnd::Aborted => Err(ReadError::Aborted),
        };
        tokio::task::spawn_blocking(move || waiting.end(result));
    }

    fn tell_copies(&mut self, now: Timestamp) {
        let recent = self.told_copies.is_some_and(|at| now.since(at) < COPIES_INTERVAL);
        if let Some(store) = self.store.borrow().as_ref().filter(|s| s.is_limited() && !recent) {
            store.set_copies(self.machine.copies());
            self.told_copies = Some(now);
        }
    }

    fn publish(&mut self) {
        let now = self.shared.clock.now();
        self.unpublished = self.published.is_some_and(|at| now.since(at) < PUBLISH_INTERVAL);
        if self.unpublished {
            return;
        }
        self.published = Some(now);
        self.tell_copies(now);
        let stats = self.machine.stats(now);
        let left = self.machine.bytes_left();
        let announce = AnnounceStats {
            uploaded: stats.uploaded,
            downloaded: stats.downloaded,
            left,
            wants_peers: self.machine.wants_peers() && stats.peers < 10,
            complete: left == Some(0),
        };
        self.announce.send_if_modified(|old| {
            let changed = *old != announce;
            *old = announce;
            changed
        });
        self.progress.send_if_modified(|p| {
            let changed = p.stats != stats;
            p.stats = stats;
            changed
        });
    }
}
