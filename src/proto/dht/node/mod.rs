//! The machine of a node: one UDP port, both families, all that a node says, keeps and looks for.
//!
//! It is driven like the other machines: datagrams, times and wishes go in; after each call
//! [`Dht::poll_output`] is asked until it gives nothing, and [`Dht::poll_timeout`] says when
//! [`Dht::handle_timeout`] is due. The rooms: [`answering`] serves others; [`asking`] has our own
//! questions and what is learnt from their answers; [`looking`] runs lookups; [`upkeep`] keeps the
//! tables alive, and our id one that our address may have; `saved` is what survives a restart.
//!
//! Nothing that others send is kept without a bound, and what makes no sense costs one walk over a
//! datagram. An answer counts only from the address that was asked, with the transaction that it was
//! asked with.

mod answering;
mod asking;
mod family;
mod looking;
mod pending;
mod reach;
mod saved;
mod search;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::id::{Contact, NodeId, is_local};
use super::items::{Item, Items};
use super::krpc::{Answer, Body, KrpcError, MAX_DATAGRAM, Message, NoMessage, Samples};
use super::limits::{Allowance, Limiter};
use super::peer_store::PeerStore;
use super::token::Tokens;
use crate::proto::ids::InfoHash;
use crate::proto::swarm::ExternalAddress;
use crate::proto::time::Timestamp;

use family::Family;
use pending::Questions;
use reach::Reach;
use search::{Kind, Search};

pub use family::{MAX_ROUTERS, MAX_SAVED};
pub use pending::MAX_PENDING;
pub use search::MAX_STORES;

/// Lookups at once; others wait for their turn.
pub const MAX_LOOKUPS: usize = 32;

/// Lookups that wait for their turn; beyond, they end at once with [`Outcome::Refused`].
pub const MAX_QUEUED: usize = 1_024;

/// How long a lookup waits for the first node to be known.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// What we answer: a site that asks more than 25 times a second is no node that looks for
/// something, and all together get a few hundred kilobytes a second at the very most.
const ANSWERS: Allowance = Allowance { of_site: 100, per_second: 250, burst: 1_000 };

/// What we ask: lookups of some hundred torrents at once, and of one site 50 questions a second at
/// most, some 5 kB: whoever names one address again and again does not flood it through us.
const QUESTIONS: Allowance = Allowance { of_site: 200, per_second: 500, burst: 1_000 };

/// What a node is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our id in both families; otherwise it is random and follows our address (BEP 42).
    pub id: Option<NodeId>,
    /// Take part by IPv4.
    pub v4: bool,
    /// Take part by IPv6.
    pub v6: bool,
    /// Ask only, answer nothing (BEP 43). Otherwise that depends on whether others reach us.
    pub read_only: bool,
    /// Strangers cannot make us write to addresses of our local network.
    pub restrict: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { id: None, v4: true, v6: true, read_only: false, restrict: true }
    }
}

/// Names something that was asked for; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LookupId(u64);

/// What a lookup of peers does beside looking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetPeers {
    /// Tell the closest nodes that we have the torrent.
    pub announce: Option<Announce>,
    /// Count seeds and others (BEP 33).
    pub scrape: bool,
    /// Seeds are of no use (BEP 33).
    pub no_seed: bool,
}

/// What others are told of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Where we listen.
    pub port: u16,
    /// We listen where we ask from: right for whoever is behind a router.
    pub implied: bool,
    /// We have everything.
    pub seed: bool,
}

/// The peers of a torrent, by estimate (BEP 33).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrape {
    /// Those that have everything.
    pub seeds: u32,
    /// The others.
    pub peers: u32,
}

/// What the machine wants done, or has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this datagram.
    Transmit {
        /// Where to.
        to: SocketAddr,
        /// Its bytes.
        datagram: Vec<u8>,
    },
    /// Peers of a torrent that were not given out by this lookup before. They come with each answer.
    Peers {
        /// The lookup.
        lookup: LookupId,
        /// The torrent.
        info_hash: InfoHash,
        /// Who knew them; `None` when they had announced themselves to us.
        from: Option<SocketAddr>,
        /// Their addresses, checked for what cannot be.
        peers: Vec<SocketAddr>,
    },
    /// A lookup, or a question to one node, is at its end. Comes once for each that was not
    /// cancelled.
    Finished {
        /// Which.
        lookup: LookupId,
        /// What came of it.
        outcome: Outcome,
    },
}

/// What came of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Dht::find_node`]: the closest nodes that answered, of both families.
    Nodes(Vec<Contact>),
    /// Of [`Dht::get_peers`].
    Peers {
        /// How many peers were given out.
        peers: usize,
        /// How many nodes answered.
        nodes: usize,
        /// How many nodes took our announce.
        announced: usize,
        /// What was counted, if that was asked for.
        scrape: Option<Scrape>,
    },
    /// Of [`Dht::get_item`]: what was found, checked, the newest of it.
    Item(Option<Item>),
    /// Of [`Dht::put_item`].
    Put {
        /// How many nodes keep it now.
        stored: usize,
        /// What the last one that did not said.
        refusal: Option<KrpcError>,
    },
    /// Of [`Dht::ping`]: it is there.
    Pong {
        /// Who it is.
        contact: Contact,
        /// How long it took.
        rtt: Duration,
    },
    /// Of [`Dht::sample`].
    Samples {
        /// What the node keeps; `None` when it does not know the question.
        samples: Option<Samples>,
        /// Nodes close to the target.
        nodes: Vec<Contact>,
    },
    /// The node that was asked did not answer.
    NoAnswer,
    /// Nobody answered: no node is known, or none is there.
    NoNodes,
    /// There is too much to do already, or an item that is to be put is none.
    Refused,
}

/// Counts for `p2pfs status` and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhtStats {
    /// Our ids, by IPv4 and IPv6.
    pub ids: [Option<NodeId>; 2],
    /// Our address as others see it.
    pub external: [Option<IpAddr>; 2],
    /// Nodes in the tables.
    pub nodes: [usize; 2],
    /// How many nodes there are, by estimate.
    pub network: [Option<u64>; 2],
    /// Whether we only ask.
    pub read_only: bool,
    /// Lookups under way, and waiting for their turn.
    pub lookups: [usize; 2],
    /// Questions that are open.
    pub pending: usize,
    /// Torrents and peers kept for others.
    pub stored: (usize, usize),
    /// Items kept for others.
    pub items: usize,
    /// What has come and gone.
    pub traffic: Traffic,
}

/// Datagrams since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Questions of others.
    pub asked: u64,
    /// Answers and errors to our questions.
    pub answered: u64,
    /// Sent, of any kind.
    pub sent: u64,
    /// What was no message, or an answer to nothing.
    pub dropped: u64,
    /// Questions that were too many.
    pub limited: u64,
    /// Our questions that were not answered.
    pub silent: u64,
}

/// A node of the DHT.
#[derive(Debug)]
pub struct Dht {
    config: Config,
    rng: ChaCha8Rng,
    /// IPv4 and IPv6.
    families: [Option<Family>; 2],
    external: ExternalAddress,
    tokens: Tokens,
    peers: PeerStore,
    items: Items,
    samples: Option<(Timestamp, Vec<InfoHash>)>,
    reach: Reach,
    questions: Questions,
    /// Nodes that are being pinged: once is enough.
    pinging: BTreeSet<SocketAddr>,
    in_limit: Limiter,
    out_limit: Limiter,
    /// There were more questions than allowed; go on then.
    resume_at: Option<Timestamp>,
    searches: BTreeMap<LookupId, Search>,
    /// What has not begun.
    queue: VecDeque<(LookupId, NodeId, Kind)>,
    next_lookup: u64,
    output: VecDeque<Output>,
    traffic: Traffic,
}

/// The index of the family of an address.
const fn family_of(addr: &SocketAddr) -> usize {
    addr.is_ipv6() as usize
}

impl Dht {
    /// A node that knows nobody. What others must not guess (tokens, transactions) comes from `seed`.
    pub fn new(config: Config, seed: u64, now: Timestamp) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let id = config.id.unwrap_or_else(|| NodeId::new(rng.random()));
        let family = |used: bool, v4| used.then(|| Family::new(id, v4, now));
        Self {
            config,
            families: [family(config.v4, true), family(config.v6, false)],
            external: ExternalAddress::default(),
            tokens: Tokens::new(&mut rng),
            peers: PeerStore::default(),
            items: Items::default(),
            samples: None,
            reach: Reach::new(now),
            questions: Questions::default(),
            pinging: BTreeSet::new(),
            in_limit: Limiter::new(ANSWERS, now),
            out_limit: Limiter::new(QUESTIONS, now),
            resume_at: None,
            searches: BTreeMap::new(),
            queue: VecDeque::new(),
            next_lookup: 0,
            output: VecDeque::new(),
            traffic: Traffic::default(),
            rng,
        }
    }

    /// A datagram has come. Anything may be in it.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Timestamp) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let used = self.families.get(family_of(&from)).is_some_and(Option::is_some);
        if !used || from.port() == 0 || bytes.len() > MAX_DATAGRAM {
            self.traffic.dropped += 1;
            return;
        }
        match Message::parse(bytes) {
            Ok(Message { transaction, read_only, ip, body }) => match body {
                Body::Query(query) => self.asked(from, transaction, read_only, query, now),
                Body::Answer(answer) => self.answered(from, &transaction, *answer, ip, now),
                Body::Error(error) => self.refused(from, &transaction, error, now),
            },
            Err(NoMessage::Refused { transaction, error }) => {
                self.asked_nonsense(from, transaction, error, now);
            }
            Err(NoMessage::Garbage) => self.traffic.dropped += 1,
        }
        self.start_next(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(pending) = self.questions.overdue(now) {
            self.unanswered(&pending, now);
        }
        self.resume(now);
        self.keep_up(now);
        self.start_next(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let upkeep = self.families.iter().flatten().filter_map(Family::next_due);
        let all = upkeep.chain(self.questions.next_deadline()).chain(self.resume_at);
        all.chain(self.next_look()).min()
    }

    /// What is to be done, in order; to be called until it gives nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// A node is said to be there: a router, a PORT message, a node of a .torrent. It is asked at
    /// once, and again until somebody is known.
    pub fn add_node(&mut self, addr: SocketAddr, now: Timestamp) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if !super::krpc::usable(&addr) {
            return;
        }
        if let Some(Some(family)) = self.families.get_mut(family_of(&addr)) {
            family.add_router(addr, now);
            self.introduce(addr, now);
        }
    }

    /// Looks for peers of a torrent, and announces it if that is wanted. Peers come with each
    /// answer ([`Output::Peers`]).
    pub fn get_peers(
        &mut self,
        info_hash: InfoHash,
        options: GetPeers,
        now: Timestamp,
    ) -> LookupId {
        self.look(info_hash.into(), Kind::GetPeers(options), now)
    }

    /// Looks for the nodes that are closest to `target`.
    pub fn find_node(&mut self, target: NodeId, now: Timestamp) -> LookupId {
        self.look(target, Kind::FindNode { upkeep: false }, now)
    }

    /// Looks for an item: [`super::immutable_target`] or, with the same salt,
    /// [`super::mutable_target`] says where. Of a mutable one only what is newer than `newer_than`.
    pub fn get_item(
        &mut self,
        target: NodeId,
        salt: &[u8],
        newer_than: Option<i64>,
        now: Timestamp,
    ) -> LookupId {
        self.look(target, Kind::GetItem { salt: salt.to_vec(), newer_than }, now)
    }

    /// Has an item kept by the nodes closest to its target; a mutable one only where its number is
    /// `cas`, if that is given. What is no item ends at once with [`Outcome::Refused`].
    pub fn put_item(&mut self, item: Item, cas: Option<i64>, now: Timestamp) -> LookupId {
        if item.check().is_err() {
            let lookup = self.new_id();
            self.output.push_back(Output::Finished { lookup, outcome: Outcome::Refused });
            return lookup;
        }
        self.look(item.target(), Kind::PutItem { item, cas }, now)
    }

    /// Gives up what was asked for; nothing more is said about it.
    pub fn cancel(&mut self, lookup: LookupId, now: Timestamp) {
        self.searches.remove(&lookup);
        self.queue.retain(|(waiting, ..)| *waiting != lookup);
        self.questions.give_up(lookup);
        self.start_next(now);
    }

    /// Somebody sees us at `ours`: an answer said so, or a peer (BEP 10, `yourip`).
    pub fn voted(&mut self, voter: IpAddr, ours: IpAddr, now: Timestamp) {
        self.external.vote(voter, ours);
        let family = self.family(ours.is_ipv6() as usize);
        if family.is_some_and(|family| !family.id.fits(ours)) {
            self.follow_address(ours, now);
        }
    }

    /// How things are.
    pub fn stats(&self) -> DhtStats {
        let ourselves = self.external.ourselves(0);
        let of = |get: &dyn Fn(&Family) -> Option<u64>| {
            self.families.each_ref().map(|family| family.as_ref().and_then(get))
        };
        DhtStats {
            ids: self.families.each_ref().map(|family| family.as_ref().map(|f| f.id)),
            external: [ourselves.v4, ourselves.v6].map(|addr| addr.map(|addr| addr.ip())),
            nodes: self.families.each_ref().map(|f| f.as_ref().map_or(0, |f| f.table.len())),
            network: of(&|family| family.size.nodes().map(|nodes| nodes as u64)),
            read_only: self.is_read_only(),
            lookups: [self.searches.len(), self.queue.len()],
            pending: self.questions.len(),
            stored: self.peers.counts(),
            items: self.items.count(),
            traffic: self.traffic,
        }
    }

    /// The nodes in the table of a family, bad ones left out.
    pub fn contacts(&self, v4: bool) -> impl Iterator<Item = Contact> {
        let family = self.families.get(usize::from(!v4)).and_then(Option::as_ref);
        family.into_iter().flat_map(|family| family.table.contacts())
    }

    /// Whether we only ask (BEP 43).
    pub fn is_read_only(&self) -> bool {
        self.config.read_only || self.reach.is_read_only()
    }

    /// Whether somebody at `from` may name `named` to us, or we it to him: strangers have no
    /// business in a local network.
    fn may_name(&self, from: IpAddr, named: IpAddr) -> bool {
        !self.config.restrict || is_local(from) || !is_local(named)
    }

    fn family(&mut self, index: usize) -> Option<&mut Family> {
        self.families.get_mut(index)?.as_mut()
    }

    fn send(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        self.traffic.sent += 1;
        self.output.push_back(Output::Transmit { to, datagram });
    }

    fn new_id(&mut self) -> LookupId {
        self.next_lookup += 1;
        LookupId(self.next_lookup)
    }

    /// The nodes that an answer names and that may be used in this family.
    fn named(&self, from: SocketAddr, answer: &Answer, family: usize) -> Vec<Contact> {
        let own = self.families.get(family).and_then(Option::as_ref).map(|family| family.id);
        let nodes = if family == 0 { &answer.nodes } else { &answer.nodes6 };
        let good = |c: &&Contact| Some(c.id) != own && self.may_name(from.ip(), c.addr.ip());
        nodes.iter().flatten().filter(good).copied().collect()
    }
}
