//! What a node has once for IPv4 and once for IPv6 (BEP 32: two networks that know little of each
//! other).

use std::net::SocketAddr;
use std::time::Duration;

use super::LookupId;
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::rtt::{Answers, RoundTrip};
use crate::proto::dht::size::Size;
use crate::proto::dht::table::{STALE, Table};
use crate::proto::time::Timestamp;

/// Addresses kept to begin with: routers, nodes of a .torrent. When there are more, the oldest go.
pub const MAX_ROUTERS: usize = 64;

/// Nodes of an earlier life that are kept until the table has grown: all of a full table.
pub const MAX_SAVED: usize = 400;

/// The first wait before routers that did not answer are asked again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest such wait: a network that comes back is noticed within a minute.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How long after looking for our own place a node that knows fewer than k others looks again at
/// first; doubled each time: whoever it began at may have begun a moment before.
const FIRST_LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The longest such wait: there may not be more than a few.
const MAX_LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The longest wait before hints are taken again: most hosts have no IPv6.
const MAX_HINT_WAIT: Duration = Duration::from_secs(15 * 60);

/// An id is kept so long, however many see us elsewhere: whoever could make most voters lie would
/// otherwise have us move without end.
const ID_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Lookups of random places that follow those which fill the buckets when a node starts, if these were
/// fewer: they tell how large the network is ([`Size`]).
const RANDOM: usize = 7;

/// How often a node for an empty slot of the table is asked for.
const FILL: Duration = Duration::from_secs(4);

/// Only in networks where so many nodes are to be expected in a slot of the table.
const FILL_MIN: f64 = 4.0;

/// Nodes kept to begin with again.
const BACKUP: usize = 2 * K;

/// Nodes at which a lookup starts, if there are so many.
const START: usize = 2 * K;

/// One family.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub id: NodeId,
    pub table: Table,
    pub size: Size,
    pub answers: Answers,
    /// The lookup of our own id, and that of a bucket, if there is one now.
    pub upkeep: Option<LookupId>,
    routers: Vec<SocketAddr>,
    /// Nodes of an earlier life, not in the table yet.
    saved: Vec<Contact>,
    retry_at: Timestamp,
    retry: Duration,
    look_at: Timestamp,
    look_again: Duration,
    /// Lookups that followed that of our own place, and the next bucket they are for: all that have
    /// room, one after the other (Kademlia, 2.3). The last one is that of those near to us, some of
    /// whom may have come at the same time as we.
    explored: usize,
    next_bucket: usize,
    /// When an empty slot of the table is looked for, and how many were looked at.
    fill_at: Timestamp,
    filled: usize,
    /// When addresses that the other family names are taken again.
    hint_at: Timestamp,
    hint_wait: Duration,
    /// When our id has followed our address.
    pub moved: Option<Timestamp>,
    /// Some that have answered, to begin with again after the network was away.
    backup: Vec<SocketAddr>,
}

impl Family {
    pub fn new(id: NodeId, v4: bool, now: Timestamp) -> Self {
        Self {
            id,
            table: Table::new(id, v4, now),
            size: Size::default(),
            answers: Answers::default(),
            upkeep: None,
            routers: Vec::new(),
            saved: Vec::new(),
            retry_at: now + FIRST_RETRY,
            retry: FIRST_RETRY,
            look_at: now,
            look_again: FIRST_LOOK_AGAIN,
            explored: 0,
            next_bucket: 0,
            fill_at: now,
            filled: 0,
            hint_at: now,
            hint_wait: FIRST_RETRY,
            moved: None,
            backup: Vec::new(),
        }
    }

    /// Our own id is another from now on; our place has to be found again.
    pub fn set_id(&mut self, id: NodeId, now: Timestamp) {
        self.id = id;
        self.table.set_own(id, now);
        self.look_at = now;
        self.next_bucket = 0;
    }

    /// Whether our id may follow our address now.
    pub fn may_move(&self, now: Timestamp) -> bool {
        self.moved.is_none_or(|then| now.since(then) >= ID_LIFETIME)
    }

    /// Whether there is nobody to ask.
    pub fn knows_nobody(&self) -> bool {
        self.table.contacts().next().is_none()
    }

    /// Whether there are enough nodes for a lookup to be worth something.
    pub fn knows_enough(&self) -> bool {
        self.table.contacts().take(K).count() == K
    }

    /// Whether addresses that the other family names are wanted.
    pub fn takes_hints(&self, now: Timestamp) -> bool {
        now >= self.hint_at && self.knows_nobody()
    }

    /// The same; and not again for a while, each time a longer one.
    pub fn take_hints(&mut self, now: Timestamp) -> bool {
        let takes = self.takes_hints(now);
        if takes {
            self.hint_at = now + self.hint_wait;
            self.hint_wait = (2 * self.hint_wait).min(MAX_HINT_WAIT);
        }
        takes
    }

    /// Keeps an address to begin with.
    pub fn add_router(&mut self, addr: SocketAddr, now: Timestamp) {
        self.routers.retain(|router| *router != addr);
        if self.routers.len() >= MAX_ROUTERS {
            self.routers.remove(0);
        }
        self.routers.push(addr);
        self.retry = FIRST_RETRY;
        self.retry_at = now + FIRST_RETRY;
    }

    /// Keeps nodes of an earlier life.
    pub fn add_saved(&mut self, contacts: impl Iterator<Item = Contact>) -> Vec<SocketAddr> {
        let room = MAX_SAVED.saturating_sub(self.saved.len());
        let new: Vec<_> = contacts.take(room).collect();
        self.saved.extend_from_slice(&new);
        new.into_iter().map(|contact| contact.addr).collect()
    }

    /// Where a lookup of `target` starts; empty as long as nobody is known.
    pub fn start(&mut self, target: &NodeId) -> Vec<(Contact, Option<RoundTrip>)> {
        let mut start = self.table.start(target, START);
        if start.len() < START && !self.saved.is_empty() {
            self.saved.sort_unstable_by_key(|contact| target.distance(&contact.id));
            start.extend(self.saved.iter().take(START).map(|contact| (*contact, None)));
        }
        start
    }

    /// A node of an earlier life is gone.
    pub fn forget_saved(&mut self, addr: SocketAddr) {
        self.saved.retain(|contact| contact.addr != addr);
    }

    /// Routers that are to be asked now: nobody has answered yet, and it is time.
    pub fn routers_due(&mut self, now: Timestamp) -> Vec<SocketAddr> {
        if now < self.retry_at || !self.knows_nobody() {
            return Vec::new();
        }
        self.retry = (2 * self.retry).min(MAX_RETRY);
        self.retry_at = now + self.retry;
        self.routers.iter().chain(&self.backup).copied().collect()
    }

    /// What is to be looked up now to keep the table in order: our own place, or that of a bucket
    /// in which nothing happens; after a start also some `random` places.
    pub fn upkeep_due(&mut self, random: NodeId, now: Timestamp) -> Option<NodeId> {
        if self.upkeep.is_some() || self.knows_nobody() && self.saved.is_empty() {
            return None;
        }
        if now >= self.look_at {
            self.look_at = Timestamp::FAR_FUTURE;
            return Some(self.id);
        }
        if let Some(target) = self.explore(random) {
            return Some(target);
        }
        if self.table.next_refresh() > now {
            return None;
        }
        self.table.refresh_due(now)
    }

    /// After our own place has been found: a place in the next bucket that has room, or a `random` one.
    fn explore(&mut self, random: NodeId) -> Option<NodeId> {
        if !self.explores() {
            return None;
        }
        self.explored += 1;
        let lacking = self.table.lacking(self.next_bucket);
        self.next_bucket = lacking.map_or(usize::MAX, |(index, _)| index + 1);
        lacking.map(|(_, target)| target).or((self.explored <= RANDOM).then_some(random))
    }

    fn explores(&self) -> bool {
        (self.next_bucket < usize::MAX || self.explored < RANDOM) && self.knows_enough()
    }

    /// Whether the table can be filled: it is good for something, and the network large.
    fn fills(&self) -> bool {
        let slots = 2.0 * Table::capacity(0) as f64;
        !self.explores() && self.size.nodes().is_some_and(|nodes| nodes >= slots * FILL_MIN)
    }

    /// Whom to ask for what, so that an empty slot of the table is filled. After the last one, the
    /// first is looked at again when buckets are refreshed, too.
    pub fn fill_due(&mut self, random: NodeId, now: Timestamp) -> Option<(Contact, NodeId)> {
        if now < self.fill_at || !self.fills() {
            return None;
        }
        let Some((slot, target, closest)) = self.table.gap(self.filled, random) else {
            (self.filled, self.fill_at) = (0, now + STALE);
            return None;
        };
        (self.filled, self.fill_at) = (slot + 1, now + FILL);
        Some((closest, target))
    }

    /// When something will be due.
    pub fn next_due(&self) -> Option<Timestamp> {
        let nobody = self.knows_nobody();
        let anywhere = !(self.routers.is_empty() && self.backup.is_empty());
        let retry = (nobody && anywhere).then_some(self.retry_at);
        let fill = self.fills().then_some(self.fill_at);
        if self.upkeep.is_some() || nobody && self.saved.is_empty() {
            return retry.into_iter().chain(fill).min();
        }
        let look = if self.explores() { Timestamp::ZERO } else { self.look_at };
        retry.into_iter().chain(fill).chain([look, self.table.next_refresh()]).min()
    }

    /// The lookup that kept the table in order has ended. With a table that is good for something,
    /// our own place is not looked for again: nodes close to us are refreshed with their bucket.
    pub fn upkeep_done(&mut self, now: Timestamp) {
        self.upkeep = None;
        if self.knows_enough() {
            let contacts = self.table.contacts().map(|contact| contact.addr);
            self.backup = contacts.take(BACKUP).collect();
            self.saved = Vec::new();
            (self.retry, self.look_again) = (FIRST_RETRY, FIRST_LOOK_AGAIN);
        } else {
            self.look_at = self.look_at.min(now + self.look_again);
            self.look_again = (2 * self.look_again).min(MAX_LOOK_AGAIN);
        }
    }
}
