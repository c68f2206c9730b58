//! What a node has once for IPv4 and once for IPv6 (BEP 32: two networks that know little of each
//! other).

use std::net::SocketAddr;
use std::time::Duration;

use super::LookupId;
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::rtt::{Answers, RoundTrip};
use crate::proto::dht::size::Size;
use crate::proto::dht::table::Table;
use crate::proto::time::Timestamp;

/// Addresses kept to begin with: routers, nodes of a .torrent. When there are more, the oldest go.
pub const MAX_ROUTERS: usize = 64;

/// Nodes of an earlier life that are kept until the table has grown.
pub const MAX_SAVED: usize = 200;

/// The first wait before routers that did not answer are asked again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest such wait: a network that comes back is noticed within a minute.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// How long after looking for our own place a node whose table is nearly empty looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

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
        }
    }

    /// Our own id is another from now on; our place has to be found again.
    pub fn set_id(&mut self, id: NodeId, now: Timestamp) {
        self.id = id;
        self.table.set_own(id, now);
        self.look_at = now;
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
    pub fn start(&mut self, target: &NodeId, now: Timestamp) -> Vec<(Contact, Option<RoundTrip>)> {
        let mut start = self.table.start(target, START, now);
        if self.table.len() >= 4 * K {
            self.saved = Vec::new();
        }
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
        if !self.table.is_empty() || self.routers.is_empty() || now < self.retry_at {
            return Vec::new();
        }
        self.retry = (2 * self.retry).min(MAX_RETRY);
        self.retry_at = now + self.retry;
        self.routers.clone()
    }

    /// What is to be looked up now to keep the table in order: our own place, or that of a bucket
    /// in which nothing happens.
    pub fn upkeep_due(&mut self, now: Timestamp) -> Option<NodeId> {
        if self.upkeep.is_some() || self.table.is_empty() && self.saved.is_empty() {
            return None;
        }
        if now >= self.look_at {
            self.look_at = now + LOOK_AGAIN;
            return Some(self.id);
        }
        if self.table.next_refresh() > now {
            return None;
        }
        self.table.refresh_due(now)
    }

    /// When something will be due.
    pub fn next_due(&self) -> Option<Timestamp> {
        if self.table.is_empty() && self.saved.is_empty() {
            return (!self.routers.is_empty()).then_some(self.retry_at);
        }
        if self.upkeep.is_some() {
            return None;
        }
        Some(self.look_at.min(self.table.next_refresh()))
    }

    /// The lookup that kept the table in order has ended. With a table that is good for something,
    /// our own place is not looked for again: nodes close to us are refreshed with their bucket.
    pub fn upkeep_done(&mut self, now: Timestamp) {
        self.upkeep = None;
        let settled = self.table.len() >= K;
        self.look_at = if settled { Timestamp::FAR_FUTURE } else { now + LOOK_AGAIN };
    }
}
