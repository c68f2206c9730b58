//! Our own questions, and what is learnt from how they are answered.

use std::net::SocketAddr;

use rand::RngExt;

use super::pending::{Pending, Purpose};
use super::{Dht, LookupId, Outcome, Output, family_of};
use crate::proto::dht::id::{Contact, NodeId};
use crate::proto::dht::krpc::{Answer, KrpcError, Message, Method, Want};
use crate::proto::dht::rtt::MAX_TIMEOUT;
use crate::proto::time::Timestamp;

/// Nodes pinged at once because others ask us or stop to answer.
const MAX_PINGS: usize = 32;

impl Dht {
    /// Asks, unless whoever is there was asked too much already, or all together were.
    pub(super) fn ask(
        &mut self,
        to: SocketAddr,
        id: Option<NodeId>,
        method: Method,
        purpose: Purpose,
        now: Timestamp,
    ) -> bool {
        let Some(own) = self.family(family_of(&to)).map(|family| family.id) else { return false };
        if self.questions.room_at(now) > now || !self.out_limit.take(to.ip(), now) {
            return false;
        }
        let transaction = self.new_transaction();
        let mut message = Message::query(transaction.to_be_bytes().to_vec(), own, method);
        message.read_only = self.is_read_only();
        self.reach.wrote_to(to.ip(), now);
        let deadline = now + MAX_TIMEOUT;
        let pending = Pending { to, id, purpose, sent: now, deadline, twin: None };
        self.questions.open(transaction, pending);
        self.send(to, message.encode());
        true
    }

    /// Four bytes that are not in use and cannot be guessed: whoever does not see our questions
    /// cannot answer them.
    fn new_transaction(&mut self) -> u32 {
        loop {
            let transaction = self.rng.random();
            if !self.questions.is_open(transaction) {
                return transaction;
            }
        }
    }

    /// Asks somebody whose id is not known who is close to us.
    pub(super) fn introduce(&mut self, addr: SocketAddr, now: Timestamp) {
        let Some(target) = self.family(family_of(&addr)).map(|family| family.id) else { return };
        let want = self.want(now);
        self.ask(addr, None, Method::FindNode { target, want }, Purpose::Introduce, now);
    }

    /// Which nodes to ask for: those of both families while in one of them nobody is known (BEP 32,
    /// "Bootstrapping"), otherwise what comes by itself.
    pub(super) fn want(&self, now: Timestamp) -> Option<Want> {
        let both = self.families.iter().all(Option::is_some);
        let alone = self.families.iter().flatten().any(|family| family.takes_hints(now));
        (both && alone).then_some(Want { v4: true, v6: true })
    }

    /// Asks one node whether it is there.
    pub fn ping(&mut self, addr: SocketAddr, now: Timestamp) -> LookupId {
        let lookup = self.new_id();
        self.ask_one(addr, Method::Ping, Purpose::PingFor(lookup), now);
        lookup
    }

    /// Asks one node which torrents it keeps, and who is close to `target` (BEP 51).
    pub fn sample(&mut self, addr: SocketAddr, target: NodeId, now: Timestamp) -> LookupId {
        let lookup = self.new_id();
        let method = Method::SampleInfohashes { target, want: None };
        self.ask_one(addr, method, Purpose::SampleFor(lookup), now);
        lookup
    }

    fn ask_one(&mut self, addr: SocketAddr, method: Method, purpose: Purpose, now: Timestamp) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if !self.ask(addr, None, method, purpose, now)
            && let Purpose::PingFor(lookup) | Purpose::SampleFor(lookup) = purpose
        {
            self.output.push_back(Output::Finished { lookup, outcome: Outcome::Refused });
        }
    }

    /// Pings a node that is in the table or would like to be.
    pub(super) fn verify(&mut self, contact: Option<Contact>, now: Timestamp) {
        let Some(Contact { id, addr }) = contact else { return };
        if self.pinging.len() < MAX_PINGS
            && !self.pinging.contains(&addr)
            && self.ask(addr, Some(id), Method::Ping, Purpose::Ping, now)
        {
            self.pinging.insert(addr);
        }
    }

    /// Somebody has asked us something.
    pub(super) fn heard_of(&mut self, contact: Contact, now: Timestamp) {
        if !crate::proto::dht::krpc::usable(&contact.addr) {
            return;
        }
        let Some(family) = self.family(family_of(&contact.addr)) else { return };
        let ping = family.table.seen(contact, None, false, now);
        self.verify(ping, now);
    }

    /// An answer has come, perhaps to a question of ours.
    pub(super) fn answered(
        &mut self,
        from: SocketAddr,
        transaction: &[u8],
        answer: Answer,
        ip: Option<SocketAddr>,
        now: Timestamp,
    ) {
        let Some(pending) = self.questions.answered(transaction, from) else {
            self.traffic.dropped += 1;
            return;
        };
        self.traffic.answered += 1;
        let index = family_of(&from);
        let Some(family) = self.family(index) else { return };
        if family.id == answer.id {
            self.unanswered(&pending, now);
            return;
        }
        let first = family.knows_nobody();
        self.is_there(&pending, answer.id, now);
        if first {
            self.wake(index, now);
        }
        if let Some(ours) = ip {
            self.voted(from.ip(), ours.ip(), now);
        }
        if pending.id.is_some_and(|id| id != answer.id) {
            // Not who was asked: what it says is not what was looked for.
            self.no_use(&pending, None, now);
            return;
        }
        self.make_use(&pending, answer, now);
    }

    /// Somebody answered: a node of the table, and a measure of the network.
    fn is_there(&mut self, pending: &Pending, id: NodeId, now: Timestamp) {
        self.pinging.remove(&pending.to);
        self.reach.answered(now);
        let rtt = now.since(pending.sent);
        let Some(family) = self.family(family_of(&pending.to)) else { return };
        family.answers.answered(rtt);
        if pending.is_again() {
            family.answers.asked_again(true);
        }
        family.forget_saved(pending.to);
        let replaced = pending.contact().filter(|contact| contact.id != id);
        let gone = replaced.and_then(|old| family.table.failed(old, now));
        let contact = Contact { id, addr: pending.to };
        let ping = family.table.seen(contact, Some(rtt), true, now);
        self.verify(gone, now);
        self.verify(ping, now);
    }

    fn make_use(&mut self, pending: &Pending, answer: Answer, now: Timestamp) {
        let contact = Contact { id: answer.id, addr: pending.to };
        let rtt = now.since(pending.sent);
        match pending.purpose {
            Purpose::Search(lookup, ask) => self.found(lookup, ask, answer, rtt, now),
            Purpose::Store { lookup, .. } => self.stored(lookup, pending.to, Some(Ok(())), now),
            Purpose::PingFor(lookup) => {
                let outcome = Outcome::Pong { contact, rtt };
                self.output.push_back(Output::Finished { lookup, outcome });
            }
            Purpose::SampleFor(lookup) => {
                let nodes = self.named(pending.to, &answer, family_of(&pending.to));
                let outcome = Outcome::Samples { samples: answer.samples, nodes };
                self.output.push_back(Output::Finished { lookup, outcome });
            }
            Purpose::Introduce => self.introduced(contact, &answer, now),
            Purpose::Fill => self.fills(pending.to, &answer, now),
            Purpose::Ping => {}
        }
    }

    /// An error has come, perhaps to a question of ours.
    pub(super) fn refused(
        &mut self,
        from: SocketAddr,
        transaction: &[u8],
        error: KrpcError,
        now: Timestamp,
    ) {
        let Some(pending) = self.questions.answered(transaction, from) else {
            self.traffic.dropped += 1;
            return;
        };
        self.traffic.answered += 1;
        self.pinging.remove(&from);
        let refuses = self.should_know(&pending);
        if let Some(family) = self.family(family_of(&from)) {
            family.answers.answered(now.since(pending.sent));
            // Who answers nothing but errors is there, but of no use.
            let contact = pending.contact().filter(|_| refuses);
            let next = contact.and_then(|contact| family.table.failed(contact, now));
            self.verify(next, now);
        }
        self.no_use(&pending, Some(error), now);
    }

    /// Whether every node answers such a question: not all know items (BEP 44) or samples (BEP 51),
    /// and a store may be full.
    fn should_know(&self, pending: &Pending) -> bool {
        match pending.purpose {
            Purpose::Search(lookup, ask) => self.searches.get(&lookup).is_some_and(|search| {
                let method = search.question(ask.target, None);
                matches!(method, Method::FindNode { .. } | Method::GetPeers { .. })
            }),
            Purpose::Ping | Purpose::PingFor(_) | Purpose::Introduce | Purpose::Fill => true,
            Purpose::Store { .. } | Purpose::SampleFor(_) => false,
        }
    }

    /// Nobody has answered.
    pub(super) fn unanswered(&mut self, pending: &Pending, now: Timestamp) {
        self.traffic.silent += 1;
        self.pinging.remove(&pending.to);
        let Some(family) = self.family(family_of(&pending.to)) else { return };
        // Who was asked twice is counted once.
        if pending.is_again() {
            family.answers.asked_again(false);
        } else {
            family.answers.silent();
            family.forget_saved(pending.to);
            let next = pending.contact().and_then(|contact| family.table.failed(contact, now));
            self.verify(next, now);
        }
        self.no_use(pending, None, now);
    }

    /// A question has brought nothing.
    fn no_use(&mut self, pending: &Pending, error: Option<KrpcError>, now: Timestamp) {
        match pending.purpose {
            Purpose::Search(lookup, ask) => self.not_found(lookup, ask, now),
            Purpose::Store { lookup, again } => {
                if again || error.is_some() || !self.store_again(lookup, pending, now) {
                    self.stored(lookup, pending.to, error.map(Err), now);
                }
            }
            Purpose::PingFor(lookup) | Purpose::SampleFor(lookup) => {
                self.output.push_back(Output::Finished { lookup, outcome: Outcome::NoAnswer });
            }
            Purpose::Introduce | Purpose::Fill | Purpose::Ping => {}
        }
    }
}
