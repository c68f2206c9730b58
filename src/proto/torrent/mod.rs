//! One torrent: the composition of swarm, demand and cache bookkeeping that decides everything.
//!
//! The engine feeds it what happened (`peer_connected`, `message`, `block_arrived`, `verdict`,
//! `read`, …), calls [`Torrent::plan`] after each batch, and carries out what
//! [`Torrent::poll_output`] says until it says nothing more; [`Torrent::poll_timeout`] tells when
//! to come back without a cause. Payload never comes here: a block is known by its name, and its
//! bytes wait in a buffer of the store until the gate has judged them.
//!
//! A piece's way: missing → partial (blocks asked for) → verifying → readable (verified, answered
//! to readers) → announced (written, told to peers, uploaded). A piece that the cache's index
//! claims from an earlier run is *hinted*: announced, but hashed again before its first use.

mod active;
mod connections;
mod dht;
#[cfg(test)]
mod eviction;
mod exchange;
mod first_copies;
mod hashes;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod lone;
mod messages;
mod metadata;
mod pieces;
mod requests;
mod stats;
#[cfg(test)]
mod tests;
mod uploads;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::active::Active;
use crate::proto::geometry::{Block, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::merkle::{Hash, Trusted};
use crate::proto::metainfo::Info;
use crate::proto::peer::{Disconnect, PeerSession};
use crate::proto::rate::Tokens;
use crate::proto::swarm::{ExternalAddress, PeerKey, PeerList};
use crate::proto::time::Timestamp;
use crate::proto::wire::metadata::MetadataFetch;
use crate::proto::wire::{Message, RawBlock};

pub use crate::proto::demand::{HandleId, Ticket};
pub use connections::{MAX_PEERS, Second};
pub use hashes::Trees;
pub use stats::Stats;
pub use view::{PeerView, ReadView, View};

/// Silence after which a connection is closed (BEP 3: keep-alives come every two minutes).
const SILENCE: Duration = Duration::from_secs(150);

/// We say something at least this often.
const KEEP_ALIVE: Duration = Duration::from_secs(100);

/// The machine looks around this often: stalled peers, keep-alives, new connections.
const TICK: Duration = Duration::from_secs(1);

/// The same while a reader waits, so that a slow peer's block is asked of another one soon.
const TICK_WAITING: Duration = Duration::from_millis(100);

/// The same while there is nobody to look after: hundreds of torrents of a daemon then let the
/// processor sleep.
const TICK_ALONE: Duration = Duration::from_secs(10);

/// How a waiting read ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// All bytes are verified and readable.
    Ready,
    /// Its time is over.
    TimedOut,
    /// Its handle was closed, or there is no torrent to read from.
    Aborted,
}

/// What the engine has to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message.
    Send(PeerKey, Message),
    /// Ask for a block, and put its bytes into the piece's buffer when they come.
    Request(PeerKey, Block),
    /// Withdraw a request.
    Cancel(PeerKey, Block),
    /// Send these verified bytes, then call [`Torrent::uploaded`].
    Upload(PeerKey, RawBlock),
    /// Close a connection, then call nothing more about it.
    Disconnect(PeerKey, Disconnect),
    /// Open a connection; answer with `peer_connected` or `connect_failed`.
    Connect(SocketAddr),
    /// The info dictionary came, its hash checked; answer with [`Torrent::activate`].
    Metadata(Vec<u8>),
    /// The piece is whole: have the gate judge it; `digests` of its blocks are wanted even when it
    /// passes.
    Verify {
        /// Which piece.
        piece: PieceIndex,
        /// Whether block digests are wanted.
        digests: bool,
        /// The root of its tree, where there is a v2 half and it is known.
        root: Option<Trusted>,
    },
    /// Have the gate judge these blocks of a piece that is not whole, each by its hash; answer with
    /// [`Torrent::blocks_judged`].
    VerifyBlocks(PieceIndex, Vec<(u32, Trusted)>),
    /// A block in the piece's buffer is wrong: another copy may take its place.
    Refuse(PieceIndex, u32),
    /// Hash a hinted piece that is at rest; with the root of its tree, where there is a v2 half and it
    /// is known.
    CheckAtRest(PieceIndex, Option<Trusted>),
    /// Hash the blocks of a piece that is here, because peers asked for their hashes; answer with
    /// [`Torrent::blocks_hashed`].
    HashBlocks(PieceIndex),
    /// The piece layer of a file is known now.
    KeepLayer(usize, Vec<Hash>),
    /// The v1 and the v2 half of the torrent contradict each other: nothing more is fetched or served.
    Contradiction,
    /// Write a verified piece to the cache; again, if that failed before.
    Write(PieceIndex),
    /// Drop the buffer of a piece that was begun.
    Discard(PieceIndex),
    /// A read ends.
    Reply(Ticket, ReadEnd),
    /// There may be a node of the DHT (BEP 5, PORT).
    DhtNode(SocketAddr),
    /// A peer sees us at this address (BEP 10, `yourip`).
    SeenAt {
        /// The peer.
        by: IpAddr,
        /// We.
        ours: IpAddr,
    },
    /// There may be an upload slot for somebody: a peer became interested, the uplink ran dry, or
    /// it is time for others' turn at a complete torrent.
    WantsUnchoke,
    /// Everything wanted is verified and at rest.
    Complete,
}

/// How a torrent is to behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fetch only what readers want.
    pub on_demand: bool,
    /// Serve other peers.
    pub upload: bool,
    /// Bytes that unverified and unwritten pieces may take (two pieces always may, and three of
    /// up to 32 MiB).
    pub buffer_budget: u64,
    /// Our listening port, told to peers (BEP 10 `p`).
    pub port: u16,
    /// Exchange addresses with peers (BEP 11), unless the torrent is private.
    pub pex: bool,
    /// The UDP port of our DHT node, told to peers (BEP 5) unless the torrent is private.
    pub dht: Option<u16>,
}

/// The machine of one torrent.
pub struct Torrent {
    info_hash: InfoHash,
    options: Options,
    rng: ChaCha8Rng,
    peers: BTreeMap<PeerKey, PeerSession>,
    list: PeerList,
    external: ExternalAddress,
    /// How our connections changed, for those who are told.
    changes: exchange::Changes,
    /// Connections that there may be.
    limit: usize,
    /// Attempts to connect that may be made.
    attempts: Tokens,
    /// Somebody who came was refused for want of room.
    refused: bool,
    fetch: Option<MetadataFetch>,
    active: Option<Active>,
    /// Bytes that the cache has for the background download; `None` for any number.
    room: Option<u64>,
    /// It contradicts itself: nobody is connected to any more.
    given_up: bool,
    outputs: VecDeque<Output>,
    /// The peers that may be asked for something; `None` when they have to be looked for anew.
    askable: Option<Vec<PeerKey>>,
    /// When a peer may be asked for more whose window is not full.
    paced: Option<Timestamp>,
    /// When a peer is to be asked for something behind its last block.
    tail_due: Option<Timestamp>,
    /// Until then every plan looks for blocks to ask for twice for the sake of readers.
    hedging: Timestamp,
    last_tick: Timestamp,
    /// When somebody was last looked for who has use for the uplink.
    last_look: Timestamp,
    last_turnover: Timestamp,
    last_replacement: Timestamp,
    /// The peer list changed, or time has passed.
    look_for_peers: bool,
    /// When it last changed, nothing was left that time alone would change.
    still: bool,
    totals: stats::Totals,
}

impl Torrent {
    /// A torrent known by its hash; its metadata is fetched from peers unless
    /// [`Self::activate`] is called.
    pub fn new(info_hash: InfoHash, options: Options, seed: u64) -> Self {
        Self {
            info_hash,
            options,
            rng: ChaCha8Rng::seed_from_u64(seed),
            peers: BTreeMap::new(),
            list: PeerList::new(seed),
            external: ExternalAddress::default(),
            changes: exchange::Changes::default(),
            limit: MAX_PEERS,
            attempts: Tokens::new(connections::ATTEMPTS_AT_ONCE, Timestamp::ZERO),
            refused: false,
            fetch: Some(MetadataFetch::new(info_hash, seed)),
            active: None,
            room: None,
            given_up: false,
            outputs: VecDeque::new(),
            askable: None,
            paced: None,
            tail_due: None,
            hedging: Timestamp::ZERO,
            last_tick: Timestamp::ZERO,
            last_look: Timestamp::ZERO,
            last_turnover: Timestamp::ZERO,
            last_replacement: Timestamp::ZERO,
            look_for_peers: false,
            still: false,
            totals: stats::Totals::default(),
        }
    }

    /// The info dictionary, once known.
    pub fn info(&self) -> Option<&Arc<Info>> {
        self.active.as_ref().map(|a| &a.info)
    }

    /// Bytes that unverified and unwritten pieces may take from now on.
    pub fn set_buffer_budget(&mut self, bytes: u64) {
        self.options.buffer_budget = bytes;
    }

    /// Bytes that the cache has from now on for what is fetched in the background, what is on its way
    /// included; `None` for any number.
    pub fn set_cache_room(&mut self, room: Option<u64>) {
        let before = self.may_begin();
        self.room = room;
        if let Some(active) = self.active.as_mut().filter(|_| !before) {
            // There may be something to ask for again.
            active.memory_epoch += u64::from(active.fits(room));
        }
    }

    /// Whether a piece may be begun in the background.
    fn may_begin(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.fits(self.room))
    }

    /// The info hash.
    pub fn info_hash(&self) -> InfoHash {
        self.info_hash
    }

    fn send(&mut self, key: PeerKey, message: Message, now: Timestamp) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_sent = now;
            self.outputs.push_back(Output::Send(key, message));
        }
    }

    // ---- readers

    /// A read waits for `range` (bytes of the torrent) until `expires`.
    pub fn read(
        &mut self,
        ticket: Ticket,
        handle: HandleId,
        range: std::ops::Range<u64>,
        now: Timestamp,
        expires: Timestamp,
    ) {
        let Some(active) = &mut self.active else {
            self.outputs.push_back(Output::Reply(ticket, ReadEnd::Aborted));
            return;
        };
        if active.is_here(&range) {
            self.outputs.push_back(Output::Reply(ticket, ReadEnd::Ready));
            return;
        }
        active.demand.wait(ticket, handle, range, now, expires);
        active.demand_came();
    }

    /// What a handle will probably read next.
    pub fn read_ahead(&mut self, handle: HandleId, range: std::ops::Range<u64>) {
        if let Some(active) = &mut self.active {
            active.demand.read_ahead(handle, range);
            active.demand_came();
        }
    }

    /// A descriptor of a handle was closed.
    pub fn flushed(&mut self, handle: HandleId) {
        if let Some(active) = &mut self.active {
            active.demand.flushed(handle);
            active.demand_changed();
        }
    }

    /// A handle is gone, and whatever still waited through it ends.
    pub fn closed(&mut self, handle: HandleId) {
        if let Some(active) = &mut self.active {
            let ended = active.demand.closed(handle);
            active.demand_changed();
            self.outputs.extend(ended.into_iter().map(|t| Output::Reply(t, ReadEnd::Aborted)));
        }
    }

    // ---- time

    /// Decides what to ask for and whom to connect to; call after each batch of inputs.
    pub fn plan(&mut self, now: Timestamp) {
        self.expire_reads(now);
        if now >= self.next_tick() {
            self.last_tick = now;
            self.housekeeping(now);
            if self.hedge(now) {
                self.hedge_soon(now);
            }
        } else if now < self.hedging && self.hedge(now) {
            self.hedge_soon(now);
        }
        self.poll_metadata(now);
        self.look_for_hashes();
        self.plan_requests(now);
        if std::mem::take(&mut self.look_for_peers) {
            self.plan_connections(now);
            // Rates are told until they have come to nothing.
            let rates = [&mut self.totals.down, &mut self.totals.up];
            self.still = rates.into_iter().all(|rate| rate.per_second(now) < 1.0);
        }
    }

    fn next_tick(&self) -> Timestamp {
        let active = self.active.as_ref();
        let busy = active.is_some_and(|a| !a.unwritten.is_empty());
        let alone = self.peers.is_empty() && self.still && !busy;
        let last = self.last_tick;
        match active.is_some_and(|a| a.demand.waiting() > 0) {
            true => last + TICK_WAITING,
            false if alone => self.next_attempt().clamp(last + TICK, last + TICK_ALONE),
            false => last + TICK,
        }
    }

    fn expire_reads(&mut self, now: Timestamp) {
        let Some(active) = &mut self.active else { return };
        let expired = active.demand.expired(now);
        if !expired.is_empty() {
            active.demand_changed();
            self.outputs.extend(expired.into_iter().map(|t| Output::Reply(t, ReadEnd::TimedOut)));
        }
    }

    fn housekeeping(&mut self, now: Timestamp) {
        self.look_for_peers = true;
        let keys: Vec<_> = self.peers.keys().copied().collect();
        let waited = self.waited();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            // Whether a block is worth asking for twice depends on time.
            peer.nothing_at = None;
            peer.first_copies.forgive(now);
            if now.since(peer.last_received) > SILENCE {
                self.disconnect(key, Disconnect::Timeout, now);
                continue;
            }
            if now.since(peer.last_sent) > KEEP_ALIVE {
                self.send(key, Message::KeepAlive, now);
            }
            self.check_stall(key, &waited, now);
            self.forgive_refusals(key, now);
        }
        self.ask_hashes_again(now);
        self.pump_hash_reads(now);
        self.tell_of_peers(now);
        self.free_suspicious(&waited, now);
        self.pass_turns_on();
        self.retry_write(now);
        self.turn_over(now);
    }

    /// When [`Self::plan`] must be called even if nothing happens.
    pub fn poll_timeout(&self) -> Timestamp {
        let expiry = self.active.as_ref().and_then(|a| a.demand.next_expiry());
        let metadata = self.fetch.as_ref().and_then(|f| f.poll_timeout());
        let background = self.active.as_ref().and_then(|a| a.first_chance);
        [Some(self.next_tick()), expiry, metadata, background, self.paced, self.tail_due]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Timestamp::FAR_FUTURE)
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
