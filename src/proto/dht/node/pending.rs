//! Questions that have not been answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::LookupId;
use crate::proto::dht::id::{Contact, NodeId};
use crate::proto::dht::lookup::Ask;
use crate::proto::time::Timestamp;

/// Questions open at once; beyond, lookups wait until one ends. The limit of questions in a second
/// is reached before.
pub const MAX_PENDING: usize = 4_096;

/// What a question was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of a lookup.
    Search(LookupId, Ask),
    /// The announce or put after it; `again` for the second time.
    Store { lookup: LookupId, again: bool },
    /// A ping on somebody's order.
    PingFor(LookupId),
    /// A question for torrents on somebody's order.
    SampleFor(LookupId),
    /// A node whose id is not known yet: a router, for example.
    Introduce,
    /// Nodes for an empty slot of the table.
    Fill,
    /// Is a node of the table still there, or one that would like to be in it?
    Ping,
}

/// An open question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub to: SocketAddr,
    /// Who is supposed to be there.
    pub id: Option<NodeId>,
    pub purpose: Purpose,
    pub sent: Timestamp,
    pub deadline: Timestamp,
    /// The same question, asked before or again.
    pub twin: Option<u32>,
}

impl Pending {
    /// Whom we asked, as far as we knew.
    pub fn contact(&self) -> Option<Contact> {
        self.id.map(|id| Contact { id, addr: self.to })
    }

    /// Whether the same was asked before without an answer.
    pub fn is_again(&self) -> bool {
        matches!(
            self.purpose,
            Purpose::Search(_, Ask { again: true, .. }) | Purpose::Store { again: true, .. }
        )
    }
}

/// All open questions.
#[derive(Clone, Debug, Default)]
pub(super) struct Questions {
    open: BTreeMap<u32, Pending>,
    by_deadline: BTreeSet<(Timestamp, u32)>,
}

impl Questions {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    pub fn is_open(&self, transaction: u32) -> bool {
        self.open.contains_key(&transaction)
    }

    /// Opens a question whose transaction is not in use.
    pub fn open(&mut self, transaction: u32, mut pending: Pending) {
        if let Purpose::Search(lookup, Ask { again: true, to, target }) = pending.purpose {
            let first = Purpose::Search(lookup, Ask { again: false, to, target });
            let first = self.open.iter_mut().find(|(_, open)| open.purpose == first);
            if let Some((number, first)) = first {
                (first.twin, pending.twin) = (Some(transaction), Some(*number));
            }
        }
        self.by_deadline.insert((pending.deadline, transaction));
        self.open.insert(transaction, pending);
    }

    /// The question that an answer from `from` belongs to; it is open no more, nor is its twin.
    pub fn answered(&mut self, transaction: &[u8], from: SocketAddr) -> Option<Pending> {
        let transaction = u32::from_be_bytes(transaction.try_into().ok()?);
        self.open.get(&transaction).filter(|pending| pending.to == from)?;
        let pending = self.close(transaction)?;
        pending.twin.map(|twin| self.close(twin));
        Some(pending)
    }

    /// When there is room for another question.
    pub fn room_at(&self, now: Timestamp) -> Timestamp {
        match self.next_deadline() {
            Some(next) if self.open.len() >= MAX_PENDING => next.max(now),
            _ => now,
        }
    }

    /// A question whose time is over.
    pub fn overdue(&mut self, now: Timestamp) -> Option<Pending> {
        let (deadline, transaction) = *self.by_deadline.first()?;
        if deadline > now {
            return None;
        }
        let pending = self.close(transaction)?;
        if let Some(twin) = pending.twin.and_then(|twin| self.open.get_mut(&twin)) {
            twin.twin = None;
        }
        Some(pending)
    }

    /// Closes the question to one node that was asked on this order.
    pub fn give_up(&mut self, order: LookupId) {
        let ours = [Purpose::PingFor(order), Purpose::SampleFor(order)];
        let of = |(transaction, pending): (&u32, &Pending)| {
            ours.contains(&pending.purpose).then_some(*transaction)
        };
        let mine: Vec<_> = self.open.iter().filter_map(of).collect();
        for transaction in mine {
            self.close(transaction);
        }
    }

    fn close(&mut self, transaction: u32) -> Option<Pending> {
        let pending = self.open.remove(&transaction)?;
        self.by_deadline.remove(&(pending.deadline, transaction));
        Some(pending)
    }
}
