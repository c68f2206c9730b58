//! What the torrent knows of one connected peer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::{Exchange, HashAllowance, RequestWindow};
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::{Geometry, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::Info;
use crate::proto::rate::Rate;
use crate::proto::swarm::{Holds, MAX_SUGGESTED};
use crate::proto::time::Timestamp;
use crate::proto::wire::handshake::{Handshake, Reserved};
use crate::proto::wire::{RawBlock, RawHashes};

/// Requests of one peer that wait for us; more are rejected.
pub const UPLOAD_QUEUE: usize = 256;

/// The longest block we serve, in bytes: some clients ask for more than 16 KiB.
pub const MAX_SERVED_BLOCK: u32 = 128 * 1024;

/// `have` messages remembered before the metadata is known.
const MAX_EARLY_HAVES: usize = 4_096;

/// Bitfields (or `have all`, `have none`) taken from one peer: one is allowed.
const MAX_OPENINGS: u32 = 4;

/// Unasked blocks beyond those we cancelled, before the peer is dropped.
const MAX_UNASKED: u32 = 64;

/// Bytes that a peer may have from us before it has to give something back, ...
const CREDIT: u64 = 4 << 20;

/// ... or this many pieces, if that is more: what it has a part of it can neither give nor admit.
const CREDIT_PIECES: u64 = 4;

/// ... and how many times what it gave it may have beyond that.
const GENEROSITY: u64 = 4;

/// How long after a suggestion, or a block of a suggested piece, more suggestions are waited for.
const SUGGESTING: Duration = Duration::from_secs(1);

/// Pieces that a peer may have from us alone before others have got them from it: at any time it is
/// receiving some, and has just received others.
const MAX_KEPT: u32 = 8;

/// One first copy out of this many may stay where it went: others may come to us for it because
/// whoever has it is busy.
const KEPT_SHARE: u32 = 4;

/// A kept first copy is forgotten this often.
const FORGIVE: Duration = Duration::from_secs(60);

/// Pieces that we gave to a peer when nobody else had them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstCopies {
    /// All of them.
    pub lent: u32,
    /// Those that no other peer has got from it yet, as far as that is still held against it.
    pub kept: u32,
    forgiven: Timestamp,
}

impl FirstCopies {
    /// Whether the peer does not pass on what it gets.
    pub fn are_kept(self) -> bool {
        self.kept > MAX_KEPT + self.lent / KEPT_SHARE
    }

    /// Whether the peer has shown that it passes on what it gets.
    pub fn are_passed_on(self) -> bool {
        self.lent > MAX_KEPT && !self.are_kept()
    }

    /// Lets one piece be forgotten from time to time: there may be nobody who can get it from there,
    /// and whoever is not given anything cannot show that it has changed.
    pub fn forgive(&mut self, now: Timestamp) {
        if now.since(self.forgiven) >= FORGIVE {
            self.forgiven = now;
            self.kept = self.kept.saturating_sub(1);
        }
    }
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// A message that BEP 3, 6, 9 or 10 does not allow.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// Proven to have sent bad data.
    #[error("sent data that failed its hash")]
    BadData,
    /// Silent for two minutes.
    #[error("silent for too long")]
    Timeout,
    /// Neither has anything for the other.
    #[error("both sides have everything")]
    BothSeeds,
    /// The torrent contradicts itself, and is given up.
    #[error("the torrent contradicts itself")]
    Contradiction,
    /// A second connection to the same peer, or to ourselves.
    #[error("connected already")]
    Duplicate,
    /// The torrent has as many connections as it may.
    #[error("too many connections")]
    TooMany,
}

/// What a peer said of its pieces before we knew how many there are.
#[derive(Clone, Debug, Default)]
struct EarlyHaves {
    all: bool,
    bitfield: Option<Bytes>,
    haves: Vec<u32>,
}

/// One connected peer.
#[derive(Clone, Debug)]
pub struct PeerSession {
    /// The remote end of the connection.
    pub addr: SocketAddr,
    /// We connected to the peer.
    pub outgoing: bool,
    /// Where the peer listens: `addr` when we connected, else what it says (BEP 10 `p`).
    pub listen_addr: Option<SocketAddr>,
    /// Both sides said in their handshakes that they speak BitTorrent v2 (BEP 52), ...
    pub v2: bool,
    /// ... which whoever calls the torrent by its v2 hash does anyway: the hash of its handshake.
    pub info_hash: Option<InfoHash>,
    /// When it last refused hashes, or did not answer.
    pub hashes_refused: Option<Timestamp>,
    /// It has not answered a question for hashes for a while.
    pub hashes_late: bool,
    /// What it may ask hashes for.
    pub hash_allowance: HashAllowance,
    /// Hashes that it asked for and that follow from the bytes of a piece, oldest first.
    pub hash_questions: VecDeque<(PieceIndex, RawHashes)>,
    /// When a piece was last hashed for it.
    pub last_hash_read: Timestamp,
    /// Both sides speak the fast extension (BEP 6).
    pub fast: bool,
    /// Both sides speak the extension protocol (BEP 10).
    pub extended: bool,
    /// It says that it is a node of the DHT (BEP 5).
    pub dht: bool,
    /// It has said at which port.
    pub told_dht_port: bool,
    /// We choke the peer.
    pub am_choking: bool,
    /// We told the peer we are interested.
    pub am_interested: bool,
    /// The peer chokes us.
    pub peer_choking: bool,
    /// The peer is interested.
    pub peer_interested: bool,
    /// What the peer has; `None` until the metadata is known.
    pub holds: Option<Holds>,
    early: EarlyHaves,
    /// The peer's number for ut_metadata (BEP 9), 0 if it does not speak it.
    pub ut_metadata: u8,
    /// The peer's number for lt_donthave (BEP 54), 0 if it does not speak it.
    pub donthave: u8,
    /// What was said about other peers (BEP 11).
    pub exchange: Exchange,
    /// It says that it will not download (BEP 21).
    pub upload_only: bool,
    /// Client name, as the peer says.
    pub client: Option<String>,
    /// What we asked of it.
    pub window: RequestWindow,
    /// What it asked of us and has not been handed to the connection.
    pub uploads: VecDeque<RawBlock>,
    /// Blocks handed to the connection and not sent yet.
    pub uploading: usize,
    /// Pieces it lets us ask for while choked (BEP 6).
    pub allowed_to_us: BTreeSet<PieceIndex>,
    /// Pieces we let it ask for while choked (BEP 6), and how many bytes of each it may still have.
    pub allowed_to_it: BTreeMap<PieceIndex, u32>,
    /// Payload from it.
    pub down: Rate,
    /// Payload to it.
    pub up: Rate,
    /// The picker's epoch at which nothing was found for this peer.
    pub nothing_at: Option<u64>,
    /// When the connection was made.
    pub since: Timestamp,
    /// When we last choked it; when the connection was made, if we never did.
    pub slot_ended: Timestamp,
    /// When anything was last sent.
    pub last_sent: Timestamp,
    /// When payload was last sent.
    pub last_given: Timestamp,
    /// When anything was last received.
    pub last_received: Timestamp,
    /// When payload last arrived from it.
    pub last_block: Timestamp,
    /// Blocks that we let it know of ahead, while we are complete; doubled whenever it runs out.
    pub look_ahead: Option<usize>,
    /// Blocks of suggested pieces that it has not asked for.
    pub told_of: BTreeMap<PieceIndex, u32>,
    /// Bytes we sent of pieces that it has got a part of.
    pub half_sent: BTreeMap<PieceIndex, u32>,
    /// What became of pieces that we gave to it when nobody else had them.
    pub first_copies: FirstCopies,
    /// Pieces of its that failed a check while others had a part in them too.
    pub suspected: u32,
    /// Pieces it refused again and again, and when: taken for missing there for a while.
    pub refused: BTreeMap<PieceIndex, Timestamp>,
    /// Pieces that it would rather have us get from others, and since when.
    pub not_now: BTreeMap<PieceIndex, Timestamp>,
    /// Pieces of the info dictionary that we sent it.
    pub metadata_sent: usize,
    /// What it would rather give us than others (BEP 6), the newest last.
    suggested: VecDeque<PieceIndex>,
    suggested_at: Option<Timestamp>,
    has_suggested: bool,
    openings: u32,
    unasked: u32,
    cancelled: u32,
    rejected: u32,
}

impl PeerSession {
    /// A connection on which `ours` and `theirs` were said, or `ours` is about to be.
    pub fn greeted(
        addr: SocketAddr,
        outgoing: bool,
        ours: Reserved,
        theirs: &Handshake,
        now: Timestamp,
    ) -> Self {
        let Handshake { reserved, info_hash, .. } = *theirs;
        let fast = ours.fast() && reserved.fast();
        let extended = ours.extended() && reserved.extended();
        Self {
            v2: ours.v2() && reserved.v2(),
            info_hash: Some(info_hash),
            dht: reserved.dht(),
            ..Self::new(addr, outgoing, fast, extended, now)
        }
    }

    /// Whether it can be asked for hashes of a torrent's trees (BEP 52). Who was greeted as by a v1
    /// client, since of a magnet link no more than the v1 hash was known, would take the question for
    /// a violation of the protocol.
    pub fn gives_hashes(&self, info: &Info) -> bool {
        let v2 = info.info_hash_v2().map(|hash| hash.truncated());
        v2.is_some() && (self.v2 || self.info_hash == v2) && self.hashes_refused.is_none()
    }

    /// Whether it can, and will probably answer soon.
    pub fn proves_soon(&self, info: &Info) -> bool {
        !self.hashes_late && self.gives_hashes(info)
    }

    /// A fresh connection: both sides choke and nobody is interested (BEP 3).
    pub fn new(
        addr: SocketAddr,
        outgoing: bool,
        fast: bool,
        extended: bool,
        now: Timestamp,
    ) -> Self {
        Self {
            addr,
            outgoing,
            listen_addr: outgoing.then_some(addr),
            v2: false,
            info_hash: None,
            hashes_refused: None,
            hashes_late: false,
            hash_allowance: HashAllowance::new(now),
            hash_questions: VecDeque::new(),
            last_hash_read: Timestamp::ZERO,
            fast,
            extended,
            dht: false,
            told_dht_port: false,
            am_choking: true,
            am_interested: false,
            peer_choking: true,
            peer_interested: false,
            holds: None,
            early: EarlyHaves::default(),
            ut_metadata: 0,
            donthave: 0,
            exchange: Exchange::default(),
            upload_only: false,
            client: None,
            window: RequestWindow::default(),
            uploads: VecDeque::new(),
            uploading: 0,
            allowed_to_us: BTreeSet::new(),
            allowed_to_it: BTreeMap::new(),
            down: Rate::default(),
            up: Rate::default(),
            nothing_at: None,
            since: now,
            slot_ended: now,
            last_sent: now,
            last_given: now,
            last_received: now,
            last_block: now,
            look_ahead: None,
            told_of: BTreeMap::new(),
            half_sent: BTreeMap::new(),
            first_copies: FirstCopies::default(),
            suspected: 0,
            refused: BTreeMap::new(),
            not_now: BTreeMap::new(),
            metadata_sent: 0,
            suggested: VecDeque::new(),
            suggested_at: None,
            has_suggested: false,
            openings: 0,
            unasked: 0,
            cancelled: 0,
            rejected: 0,
        }
    }

    /// The address by which the peer is known to others.
    pub fn known_addr(&self) -> SocketAddr {
        self.listen_addr.unwrap_or(self.addr)
    }

    /// Whether the peer has every piece.
    pub fn is_seed(&self) -> bool {
        self.holds.as_ref().map_or(self.early.all, Holds::is_full)
    }

    /// Whether the peer has `piece`.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.holds.as_ref().is_some_and(|h| h.contains(piece))
    }

    /// Whether `piece` may be asked of this peer now.
    pub fn serves(&self, piece: PieceIndex) -> bool {
        (!self.peer_choking || self.allowed_to_us.contains(&piece))
            && self.has(piece)
            && !self.not_now.contains_key(&piece)
    }

    /// Whether it sends what it is asked for, as far as that can be seen.
    pub fn answers(&self, now: Timestamp) -> bool {
        !self.window.is_stalled() && !self.window.is_silent(now)
    }

    /// Blocks of suggested pieces that it has not asked for.
    pub fn blocks_told_of(&self) -> usize {
        self.told_of.values().map(|blocks| *blocks as usize).sum()
    }

    /// It asks for a block of `piece`.
    pub fn asks_for(&mut self, piece: PieceIndex) {
        let Some(blocks) = self.told_of.get_mut(&piece) else { return };
        *blocks = blocks.saturating_sub(1);
        if *blocks == 0 {
            self.told_of.remove(&piece);
        }
    }

    /// It was sent `bytes` of `piece`: what it may ask for while choked it may have once.
    pub fn use_allowance(&mut self, piece: PieceIndex, bytes: u32) {
        let Some(left) = self.allowed_to_it.get_mut(&piece) else { return };
        *left = left.saturating_sub(bytes);
        if *left == 0 {
            self.allowed_to_it.remove(&piece);
        }
    }

    /// It has got all of a half-sent piece, or is not to finish it while choked.
    pub fn forget_half_sent(&mut self, piece: PieceIndex) {
        self.half_sent.remove(&piece);
        self.allowed_to_it.remove(&piece);
    }

    /// Whether something it asked for waits for our uplink.
    pub fn is_busy(&self) -> bool {
        self.uploading > 0 || !self.uploads.is_empty()
    }

    /// Whether it has got far more from us than it gave, although it has something for us, or hides
    /// what it has: it must have at least what we sent. `piece` is the length of a piece in bytes.
    pub fn owes(&self, piece: u64) -> bool {
        let (got, gave) = (self.up.total(), self.down.total());
        let admits = match &self.holds {
            Some(Holds::Some(bits)) => u64::from(bits.count()) * piece,
            Some(Holds::All) => u64::MAX,
            None => 0,
        };
        let credit = CREDIT.max(CREDIT_PIECES * piece);
        let hides = got > admits.saturating_add(credit);
        got > credit + GENEROSITY * gave && (self.am_interested || hides)
    }

    /// The peer said what it has as a whole; an error when it does so again and again. It may once,
    /// at the beginning (BEP 3), and each time costs us a look at all pieces.
    pub fn note_opening(&mut self) -> Result<(), Disconnect> {
        self.openings += 1;
        if self.openings > MAX_OPENINGS {
            return Err(Disconnect::Protocol("too many bitfields"));
        }
        Ok(())
    }

    /// Remembers a statement about pieces made before the metadata is known.
    pub fn note_early(&mut self, statement: Early) -> Result<(), Disconnect> {
        match statement {
            Early::All => self.early = EarlyHaves { all: true, ..EarlyHaves::default() },
            Early::None => self.early = EarlyHaves::default(),
            Early::Bitfield(bytes) => self.early.bitfield = Some(bytes),
            Early::Have(piece) if self.early.haves.len() < MAX_EARLY_HAVES => {
                self.early.haves.push(piece);
            }
            Early::Have(_) => return Err(Disconnect::Protocol("too many haves before metadata")),
        }
        Ok(())
    }

    /// Makes sense of what was said early, now that the torrent is known.
    pub fn settle_early(&mut self, geometry: &Geometry) -> Result<(), Disconnect> {
        let early = std::mem::take(&mut self.early);
        let count = geometry.piece_count();
        let mut bits = match early.bitfield {
            _ if early.all => Bitfield::full(count),
            Some(bytes) => Bitfield::from_wire(&bytes, count)
                .map_err(|_| Disconnect::Protocol("a bitfield that does not fit the torrent"))?,
            None => Bitfield::empty(count),
        };
        for index in early.haves {
            let piece = geometry
                .piece(index)
                .ok_or(Disconnect::Protocol("a have beyond the last piece"))?;
            bits.insert(piece);
        }
        self.holds = Some(if bits.is_full() { Holds::All } else { Holds::Some(bits) });
        Ok(())
    }

    /// The peer suggests a piece that we lack.
    pub fn note_suggestion(&mut self, piece: PieceIndex, now: Timestamp) {
        self.suggested_at = Some(now);
        self.has_suggested = true;
        if !self.suggested.contains(&piece) {
            self.nothing_at = None;
            if self.suggested.len() >= MAX_SUGGESTED {
                self.suggested.pop_front();
            }
            self.suggested.push_back(piece);
        }
    }

    /// Forgets suggestions that are not `open` any more.
    pub fn keep_suggestions(&mut self, open: impl Fn(PieceIndex) -> bool) {
        self.suggested.retain(|piece| open(*piece));
    }

    /// The peer's suggestions hold no longer: it chokes us, and gives others what it suggested.
    pub fn forget_suggestions(&mut self) {
        self.suggested.clear();
        self.suggested_at = None;
    }

    /// A block of `piece` came from the peer.
    pub fn note_block(&mut self, piece: PieceIndex, now: Timestamp) {
        if self.suggested.contains(&piece) {
            self.suggested_at = Some(now);
        }
    }

    /// The piece to ask for first, out of those it suggests that are `open` still.
    pub fn suggestion(&self, open: impl Fn(PieceIndex) -> bool) -> Option<PieceIndex> {
        self.suggested.iter().copied().find(|p| open(*p))
    }

    /// Whether it suggests `piece`.
    pub fn suggests(&self, piece: PieceIndex) -> bool {
        self.suggested.contains(&piece)
    }

    /// Whether the peer has everything and tells what it would give us: then it is asked for
    /// nothing else. What it does not suggest it gives to others, from whom we can have it soon.
    pub fn is_suggesting(&self, now: Timestamp) -> bool {
        self.suggested_at.is_some_and(|at| now.since(at) < SUGGESTING) && self.is_seed()
    }

    /// Whether the peer has everything and has told us what it would give us: what it refuses is on
    /// its way to others, also when it has nothing left to suggest.
    pub fn hands_out(&self) -> bool {
        self.has_suggested && self.is_seed()
    }

    /// Whether it is known to send what it has to send without waiting for an acknowledgement.
    pub fn sends_at_once(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.starts_with(env!("CARGO_PKG_NAME")))
    }

    /// We cancelled a request: the block may come all the same.
    pub fn note_cancelled(&mut self) {
        self.cancelled = (self.cancelled + 1).min(UPLOAD_QUEUE as u32 * 4);
    }

    /// A block came that was not asked for (any more); an error when that is no accident.
    pub fn note_unasked(&mut self) -> Result<(), Disconnect> {
        if self.cancelled > 0 {
            self.cancelled -= 1;
            return Ok(());
        }
        self.unasked += 1;
        if self.unasked > MAX_UNASKED {
            return Err(Disconnect::Protocol("blocks that nobody asked for"));
        }
        Ok(())
    }

    /// A request was rejected while we were unchoked; whether to believe for now that the peer
    /// lacks the piece.
    pub fn note_rejected(&mut self) -> bool {
        self.rejected += 1;
        self.rejected.is_multiple_of(3)
    }
}

/// What a peer says about its pieces before we know how many there are.
#[derive(Clone, Debug)]
pub enum Early {
    /// `have all`.
    All,
    /// `have none`.
    None,
    /// `bitfield`.
    Bitfield(Bytes),
    /// `have`.
    Have(u32),
}
