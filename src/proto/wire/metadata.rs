//! Fetching the info dictionary of a magnet from several peers at once (BEP 9).
//!
//! Until the dictionary is whole its hash says nothing, and every peer may lie about its length.
//! So pieces are collected in *assemblies*, one for each length that is claimed, and peers that
//! claim the same length share one: a liar about the length blocks nobody. When an assembly turns
//! out wrong and one peer gave all of it, that peer is proven a liar. When several gave it, their
//! length becomes *contested*: from then on each of these peers fills an assembly of its own, which
//! finds both the liar and the dictionary.
//!
//! Who works on what is derived; requests are planned anew in every [`MetadataFetch::poll`]. A piece
//! nobody was asked for comes first, then copies of pieces that others already owe us, the more the
//! longer they take.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::extended::{METADATA_PIECE_LEN, MetadataMessage};
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// The longest info dictionary accepted, in bytes: that of the largest torrent.
pub const MAX_METADATA_LEN: u32 = 32 * 1024 * 1024;

/// Pieces held at most in all assemblies together, 64 MiB of them: one dictionary of the greatest
/// length, and as much again for those who claim other lengths.
const MAX_HELD: usize = 2 * (MAX_METADATA_LEN / METADATA_PIECE_LEN) as usize;

/// Requests a peer owes us at most: fills a round trip of 50 ms up to 20 Mbit/s, and most
/// dictionaries are not longer.
const WINDOW: usize = 8;

/// A peer that owes us something and sends nothing for this long has timed out.
const TIMEOUT: Duration = Duration::from_secs(4);

/// A piece may be asked of one more peer each time that it is this much older.
const HEDGE: Duration = Duration::from_millis(250);

/// A dictionary of no more pieces is asked of several peers at once: it comes as soon as the fastest has
/// sent it, and what carries data next, their connections, have been in use.
const SHORT: u32 = 4;

/// So many.
const AT_ONCE: u32 = 4;

/// How long a peer is left alone after it refused or timed out; doubles each time.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The back-off doubles this often at most, to 32 s.
const MAX_DOUBLINGS: u32 = 5;

/// How long the favourite stays so at first, when room is short.
const TURN: Duration = Duration::from_secs(60);

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataOutput {
    /// Ask this peer for this piece.
    Request {
        /// The peer.
        peer: u64,
        /// The piece's number.
        piece: u32,
    },
    /// The info dictionary: its hash is right. Comes once, as the last output.
    Done(Vec<u8>),
    /// This peer has been proven to lie, or sent what nobody asked for; it is forgotten here. It
    /// may have gone already.
    Misbehaved {
        /// The peer.
        peer: u64,
    },
}

/// Names an assembly: the length claimed, and the peer that fills it alone if that length is
/// contested.
type Key = (u32, Option<u64>);

/// Collects the info dictionary. After each input, [`Self::poll`] until `None`. The caller bounds
/// the number of peers; memory does not grow with it beyond 64 MiB of pieces (and the dictionary
/// itself once more while it is put together).
#[derive(Debug)]
pub struct MetadataFetch {
    info_hash: InfoHash,
    rng: ChaCha8Rng,
    /// The latest moment heard of.
    now: Timestamp,
    /// When a piece came last.
    gave: Timestamp,
    peers: BTreeMap<u64, Peer>,
    /// Only those that hold a piece.
    assemblies: BTreeMap<Key, Assembly>,
    /// Lengths at which an assembly by several peers was wrong.
    contested: BTreeSet<u32>,
    favourite: Favourite,
    outputs: VecDeque<MetadataOutput>,
    done: bool,
}

/// The one assembly that is not dropped when room is short, in turns that become longer: whoever
/// fills the room with lies only delays the others.
#[derive(Debug)]
struct Favourite {
    key: Option<Key>,
    until: Timestamp,
    turn: Duration,
}

#[derive(Debug)]
struct Peer {
    size: u32,
    owes: BTreeMap<u32, Owed>,
    /// When it last sent something, or was asked while it owed nothing.
    active: Timestamp,
    /// Refusals and timeouts since it last sent data.
    strikes: u32,
    /// Not to be asked before.
    retry_at: Timestamp,
}

/// Answers that one peer has not given for one piece.
#[derive(Debug, Default)]
struct Owed {
    /// How many; they may all still come, however late.
    answers: u32,
    /// When the last was asked for, unless we stopped to count on it.
    asked: Option<Timestamp>,
}

/// The pieces received, by number.
type Assembly = BTreeMap<u32, Received>;

#[derive(Debug)]
struct Received {
    from: u64,
    data: Box<[u8]>,
}

/// A missing piece that peers have been asked for.
struct Asked {
    /// How many peers we count on for it, at least 1.
    copies: u32,
    /// When the first of them was asked.
    oldest: Timestamp,
}

impl Asked {
    /// When one more peer may be asked, for a piece of a dictionary of `size` bytes.
    fn next_at(&self, size: u32) -> Timestamp {
        let at_once = if piece_count(size) <= SHORT { AT_ONCE } else { 1 };
        self.oldest + HEDGE * (self.copies + 1).saturating_sub(at_once)
    }
}

impl Peer {
    /// How many requests we count on.
    fn live(&self) -> usize {
        self.owes.values().filter(|o| o.asked.is_some()).count()
    }

    fn is_asked(&self, piece: u32) -> bool {
        self.owes.get(&piece).is_some_and(|o| o.asked.is_some())
    }

    /// Whether it may be asked for something now. One that failed is tried with single requests.
    fn is_idle(&self, now: Timestamp) -> bool {
        let window = if self.strikes == 0 { WINDOW } else { 1 };
        self.retry_at <= now && self.live() < window
    }

    /// Takes one answer off what it owes for `piece`; whether it owed one.
    fn answered(&mut self, piece: u32) -> bool {
        let Some(owed) = self.owes.get_mut(&piece) else { return false };
        owed.answers -= 1;
        owed.asked = None;
        if owed.answers == 0 {
            self.owes.remove(&piece);
        }
        true
    }

    fn strike(&mut self, now: Timestamp) {
        self.retry_at = now + BACK_OFF * 2u32.pow(self.strikes.min(MAX_DOUBLINGS));
        self.strikes += 1;
    }

    /// When it times out, if it owes anything that we count on.
    fn deadline(&self) -> Option<Timestamp> {
        (self.live() > 0).then(|| self.active + TIMEOUT)
    }
}

impl MetadataFetch {
    /// A fetch of the info dictionary with this hash. All choices follow from `seed`.
    pub fn new(info_hash: InfoHash, seed: u64) -> Self {
        Self {
            info_hash,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Timestamp::ZERO,
            gave: Timestamp::ZERO,
            peers: BTreeMap::new(),
            assemblies: BTreeMap::new(),
            contested: BTreeSet::new(),
            favourite: Favourite { key: None, until: Timestamp::ZERO, turn: TURN },
            outputs: VecDeque::new(),
            done: false,
        }
    }

    /// A peer that speaks `ut_metadata` has announced a `metadata_size` of `size` bytes. Ignored
    /// when it is 0 or above [`MAX_METADATA_LEN`], or the peer is known: its first word counts.
    pub fn peer_ready(&mut self, peer: u64, size: u32, now: Timestamp) {
        self.advance(now);
        if !self.done && (1..=MAX_METADATA_LEN).contains(&size) {
            self.peers.entry(peer).or_insert_with(|| Peer {
                size,
                owes: BTreeMap::new(),
                active: now,
                strikes: 0,
                retry_at: now,
            });
        }
    }

    /// A peer has disconnected. What it gave to shared assemblies stays.
    pub fn peer_gone(&mut self, peer: u64) {
        let Some(Peer { size, .. }) = self.peers.remove(&peer) else { return };
        self.assemblies.remove(&(size, Some(peer)));
        if self.peers.values().all(|p| p.size != size) {
            self.contested.remove(&size);
        }
    }

    /// A `ut_metadata` message from a peer. Its requests are not for us to answer and ignored.
    pub fn on_message(&mut self, peer: u64, message: MetadataMessage, now: Timestamp) {
        self.advance(now);
        if self.done {
            return;
        }
        match message {
            MetadataMessage::Data { piece, data, .. } => self.on_data(peer, piece, &data),
            MetadataMessage::Reject { piece } => {
                let Some(p) = self.peers.get_mut(&peer) else { return };
                // The window is often refused as a whole, and that is one refusal.
                if p.answered(piece) && p.retry_at <= self.now {
                    p.strike(self.now);
                }
            }
            MetadataMessage::Request { .. } | MetadataMessage::Unknown => {}
        }
    }

    /// Bytes here and in all, of the assembly that has come furthest; zeros before any peer has
    /// said how many there are.
    pub fn progress(&self) -> (u32, u32) {
        let here = |(key, assembly): (&Key, &BTreeMap<u32, Received>)| {
            let bytes = assembly.values().map(|p| p.data.len() as u32).sum();
            (bytes, key.0)
        };
        let claimed = self.peers.values().map(|p| (0, p.size));
        self.assemblies.iter().map(here).chain(claimed).max().unwrap_or((0, 0))
    }

    /// When any peer sent a piece last, right or wrong; [`Timestamp::ZERO`] if none has.
    pub fn gave(&self) -> Timestamp {
        self.gave
    }

    /// Time has passed: [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.advance(now);
    }

    /// What to do next; `None` until there is another input.
    pub fn poll(&mut self) -> Option<MetadataOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let (peer, piece) = self.plan()?;
        let p = self.peers.get_mut(&peer)?;
        if p.live() == 0 {
            p.active = self.now;
        }
        let owed = p.owes.entry(piece).or_default();
        owed.answers += 1;
        owed.asked = Some(self.now);
        Some(MetadataOutput::Request { peer, piece })
    }

    /// When to call [`Self::handle_timeout`], if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.done {
            return None;
        }
        let deadlines = self.peers.values().filter_map(Peer::deadline);
        let retries = self.peers.values().map(|p| p.retry_at).filter(|at| *at > self.now);
        let next = |key: Key| self.asked(key).into_values().map(move |a| a.next_at(key.0));
        let hedges = self.idle().into_keys().flat_map(next).filter(|at| *at > self.now);
        deadlines.chain(retries).chain(hedges).min()
    }

    /// The assembly that a peer works on.
    fn key(&self, peer: u64, size: u32) -> Key {
        (size, self.contested.contains(&size).then_some(peer))
    }

    fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        for peer in self.peers.values_mut() {
            if peer.deadline().is_some_and(|at| at <= self.now) {
                peer.owes.values_mut().for_each(|o| o.asked = None);
                peer.strike(self.now);
            }
        }
    }

    fn on_data(&mut self, peer: u64, piece: u32, data: &[u8]) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let size = p.size;
        if !p.answered(piece) || data.len() != piece_len(size, piece) {
            return self.misbehaved(peer);
        }
        self.gave = self.now;
        p.active = self.now;
        p.strikes = 0;
        p.retry_at = self.now;
        let key = self.key(peer, size);
        if self.is_held(key, piece) {
            return;
        }
        self.make_room();
        let assembly = self.assemblies.entry(key).or_default();
        assembly.insert(piece, Received { from: peer, data: data.into() });
        if assembly.len() == piece_count(size) as usize {
            self.finish(key);
        }
    }

    /// Judges an assembly that is whole.
    fn finish(&mut self, key: Key) {
        let Some(pieces) = self.assemblies.remove(&key) else { return };
        let from: BTreeSet<u64> = pieces.values().map(|r| r.from).collect();
        let mut info = Vec::with_capacity(key.0 as usize);
        pieces.into_values().for_each(|r| info.extend_from_slice(&r.data));
        if self.info_hash.is_of(&info) {
            self.peers.clear();
            self.assemblies.clear();
            self.outputs.push_back(MetadataOutput::Done(info));
            self.done = true;
        } else if let (Some(&liar), 1) = (from.first(), from.len()) {
            self.misbehaved(liar);
        } else {
            self.contested.insert(key.0);
        }
    }

    fn misbehaved(&mut self, peer: u64) {
        self.peer_gone(peer);
        self.outputs.push_back(MetadataOutput::Misbehaved { peer });
    }

    /// Makes room for one piece, at the cost of an assembly that nobody works on any more, or else
    /// the largest; never of the favourite, which leaves half of the room.
    fn make_room(&mut self) {
        if self.assemblies.values().map(BTreeMap::len).sum::<usize>() < MAX_HELD {
            return;
        }
        let keys: BTreeSet<Key> = self.peers.iter().map(|(id, p)| self.key(*id, p.size)).collect();
        let favourite = &mut self.favourite;
        if favourite.until <= self.now || favourite.key.is_none_or(|key| !keys.contains(&key)) {
            favourite.key = keys.iter().copied().choose(&mut self.rng);
            favourite.until = self.now + favourite.turn;
            favourite.turn += TURN;
        }
        let others = self.assemblies.iter().filter(|(key, _)| Some(**key) != favourite.key);
        let victim = others.max_by_key(|(key, a)| (!keys.contains(key), a.len()));
        if let Some(key) = victim.map(|(key, _)| *key) {
            self.assemblies.remove(&key);
        }
    }

    /// The next request.
    fn plan(&self) -> Option<(u64, u32)> {
        self.idle().into_iter().find_map(|(key, peers)| {
            let asked = self.asked(key);
            let mut all = 0..piece_count(key.0);
            if let Some(piece) = all.find(|p| !asked.contains_key(p) && !self.is_held(key, *p)) {
                return peers.first().map(|(_, id)| (*id, piece));
            }
            let due = asked.into_iter().filter(|(_, a)| a.next_at(key.0) <= self.now);
            let late: BTreeSet<_> = due.map(|(piece, a)| (a.copies, piece)).collect();
            peers.into_iter().find_map(|(_, id)| {
                let peer = self.peers.get(&id)?;
                let (_, piece) = late.iter().find(|(_, piece)| !peer.is_asked(*piece))?;
                Some((id, *piece))
            })
        })
    }

    /// The peers that may be asked, by the assembly they work on, least loaded first.
    fn idle(&self) -> BTreeMap<Key, BTreeSet<(usize, u64)>> {
        let mut idle = BTreeMap::<_, BTreeSet<_>>::new();
        for (&id, peer) in self.peers.iter().filter(|(_, p)| p.is_idle(self.now)) {
            idle.entry(self.key(id, peer.size)).or_default().insert((peer.live(), id));
        }
        idle
    }

    /// The pieces that an assembly lacks and peers have been asked for.
    fn asked(&self, key: Key) -> BTreeMap<u32, Asked> {
        let mut asked = BTreeMap::new();
        for (_, peer) in self.peers.iter().filter(|(id, p)| self.key(**id, p.size) == key) {
            for (&piece, at) in peer.owes.iter().filter_map(|(p, o)| Some((p, o.asked?))) {
                let entry = asked.entry(piece).or_insert(Asked { copies: 0, oldest: at });
                entry.copies += 1;
                entry.oldest = entry.oldest.min(at);
            }
        }
        asked.retain(|piece, _| !self.is_held(key, *piece));
        asked
    }

    fn is_held(&self, key: Key, piece: u32) -> bool {
        self.assemblies.get(&key).is_some_and(|a| a.contains_key(&piece))
    }
}

fn piece_count(size: u32) -> u32 {
    size.div_ceil(METADATA_PIECE_LEN)
}

/// The length of a piece of a dictionary of `size` bytes; 0 for one that does not exist.
fn piece_len(size: u32, piece: u32) -> usize {
    let begin = piece.saturating_mul(METADATA_PIECE_LEN);
    size.saturating_sub(begin).min(METADATA_PIECE_LEN) as usize
}

#[cfg(test)]
mod tests;
