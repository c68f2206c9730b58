//! Lookups: whom to ask, what to make of the answers, and the announces and puts that follow.

use std::net::SocketAddr;
use std::time::Duration;

use super::pending::{Pending, Purpose};
use super::search::{Half, Kind, Search};
use super::{Dht, LookupId, MAX_LOOKUPS, MAX_QUEUED, MAX_WAIT, Outcome, Output, family_of};
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::krpc::{Answer, KrpcError, usable};
use crate::proto::dht::lookup::{Ask, Lookup, LookupOptions};
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// IPv4 and IPv6.
const FAMILIES: [usize; 2] = [0, 1];

impl Dht {
    /// Begins a lookup, or has it wait for its turn.
    pub(super) fn look(&mut self, target: NodeId, kind: Kind, now: Timestamp) -> LookupId {
        let lookup = self.new_id();
        let used = self.families.each_ref().map(Option::is_some);
        if self.searches.len() < MAX_LOOKUPS {
            self.searches.insert(lookup, Search::new(target, kind, used, now + MAX_WAIT));
            self.begin(lookup, now);
        } else if self.queue.len() < MAX_QUEUED {
            self.queue.push_back((lookup, target, kind));
        } else {
            self.output.push_back(Output::Finished { lookup, outcome: Outcome::Refused });
        }
        lookup
    }

    /// Begins a lookup for ourselves, in one family. There are at most two of them, so they do not
    /// wait for a turn.
    pub(super) fn look_for_upkeep(
        &mut self,
        family: usize,
        target: NodeId,
        now: Timestamp,
    ) -> LookupId {
        let lookup = self.new_id();
        let used = FAMILIES.map(|index| index == family);
        let kind = Kind::FindNode { upkeep: true };
        self.searches.insert(lookup, Search::new(target, kind, used, now));
        lookup
    }

    /// More nodes for the lookups that are under way.
    pub(super) fn add_to_all(&mut self, family: usize, nodes: &[Contact], now: Timestamp) {
        for lookup in self.running() {
            if let Some(looking) = self.looking(lookup, family) {
                looking.add(nodes, now);
                self.go_on(lookup, family, now);
            }
        }
    }

    /// Begins the lookups whose turn it is. Only at the end of what is handled: one that ends at
    /// once makes room for the next.
    pub(super) fn start_next(&mut self, now: Timestamp) {
        let used = self.families.each_ref().map(Option::is_some);
        while self.searches.len() < MAX_LOOKUPS {
            let Some((lookup, target, kind)) = self.queue.pop_front() else { return };
            self.searches.insert(lookup, Search::new(target, kind, used, now + MAX_WAIT));
            self.begin(lookup, now);
        }
    }

    pub(super) fn begin(&mut self, lookup: LookupId, now: Timestamp) {
        self.give_our_own(lookup, now);
        for family in FAMILIES {
            self.begin_half(lookup, family, now);
        }
    }

    /// Peers that have announced themselves to us are found first.
    fn give_our_own(&mut self, lookup: LookupId, now: Timestamp) {
        let Some(search) = self.searches.get_mut(&lookup) else { return };
        let Kind::GetPeers(options) = search.kind else { return };
        let info_hash = InfoHash::new(*search.target.as_bytes());
        let (max, rng) = (crate::proto::dht::krpc::MAX_VALUES, &mut self.rng);
        let mut peers = self.peers.peers(info_hash, false, options.no_seed, max, rng, now);
        peers.extend(self.peers.peers(info_hash, true, options.no_seed, max, rng, now));
        let peers = search.give(&peers);
        if !peers.is_empty() {
            self.output.push_back(Output::Peers { lookup, info_hash, from: None, peers });
        }
    }

    /// Begins a lookup in one family, if somebody is known there.
    fn begin_half(&mut self, lookup: LookupId, family: usize, now: Timestamp) {
        let (Some(search), Some(Some(known))) =
            (self.searches.get_mut(&lookup), self.families.get_mut(family))
        else {
            return;
        };
        let mut start = known.start(&search.target);
        // Where a crowd fills all that is known near to the target, the way round it begins far away.
        start.extend(known.start(&search.target.flipped(0)));
        let Some(half) = search.halves.get(family) else { return };
        if start.is_empty() || !matches!(half, Half::Waiting) {
            return;
        }
        let expected = known.size.expected(K);
        let beyond = expected.filter(|_| search.is_wide());
        let answers = known.answers.clone();
        let options = LookupOptions { answers, expected, beyond, avoid: None };
        let begun = Lookup::new(search.target, &start, options, now);
        search.halves[family] = Half::Looking(Box::new(begun));
        self.go_on(lookup, family, now);
    }

    /// Asks whom the lookup wants asked now, and ends it when it is at its end.
    pub(super) fn go_on(&mut self, lookup: LookupId, family: usize, now: Timestamp) {
        let want = self.want(now);
        while let Some((ask, method)) = self.next_question(lookup, family, want, now) {
            let purpose = Purpose::Search(lookup, ask);
            if !self.ask(ask.to.addr, Some(ask.to.id), method, purpose, now)
                && let Some(looking) = self.looking(lookup, family)
            {
                looking.failed(ask, now);
            }
        }
        if self.looking(lookup, family).is_some_and(|looking| looking.is_finished()) {
            self.end_half(lookup, family, now);
        }
    }

    fn next_question(
        &mut self,
        lookup: LookupId,
        family: usize,
        want: Option<crate::proto::dht::krpc::Want>,
        now: Timestamp,
    ) -> Option<(Ask, crate::proto::dht::krpc::Method)> {
        let (ready, room) = (self.out_limit.ready(now), self.questions.room_at(now));
        let ready = ready.max(room);
        if ready > now {
            self.resume_at = Some(self.resume_at.map_or(ready, |at| at.min(ready)));
            return None;
        }
        let ask = self.looking(lookup, family)?.next(now)?;
        Some((ask, self.searches.get(&lookup)?.question(ask.target, want)))
    }

    fn looking(&mut self, lookup: LookupId, family: usize) -> Option<&mut Lookup> {
        match self.searches.get_mut(&lookup)?.halves.get_mut(family)? {
            Half::Looking(looking) => Some(looking),
            _ => None,
        }
    }

    /// A node has answered.
    pub(super) fn found(
        &mut self,
        lookup: LookupId,
        ask: Ask,
        mut answer: Answer,
        rtt: Duration,
        now: Timestamp,
    ) {
        let from = ask.to;
        let family = family_of(&from.addr);
        let nodes = self.named(from.addr, &answer, family);
        self.tell_of_others(&from, &answer, family, now);
        let (restrict, local) = (self.config.restrict, crate::proto::dht::is_local);
        let good = |peer: &SocketAddr| {
            usable(peer) && (!restrict || local(from.addr.ip()) || !local(peer.ip()))
        };
        let Some(search) = self.searches.get_mut(&lookup) else { return };
        let peers = search.absorb(from.addr, &mut answer, good);
        let info_hash = InfoHash::new(*search.target.as_bytes());
        if !peers.is_empty() {
            let from = Some(from.addr);
            self.output.push_back(Output::Peers { lookup, info_hash, from, peers });
        }
        if let Some(looking) = self.looking(lookup, family) {
            looking.answered(ask, &nodes, rtt, now);
        }
        self.go_on(lookup, family, now);
        self.end_if_over(lookup, now);
    }

    /// A node has answered nothing of use.
    pub(super) fn not_found(&mut self, lookup: LookupId, ask: Ask, now: Timestamp) {
        let family = family_of(&ask.to.addr);
        if let Some(looking) = self.looking(lookup, family) {
            looking.failed(ask, now);
            self.go_on(lookup, family, now);
        }
    }

    /// A lookup has come to its end in one family: announces and puts follow.
    fn end_half(&mut self, lookup: LookupId, family: usize, now: Timestamp) {
        let Some(search) = self.searches.get_mut(&lookup) else { return };
        let Some(half) = search.halves.get_mut(family) else { return };
        let Half::Looking(looked) = std::mem::replace(half, Half::Done) else { return };
        let stores = search.stores(&looked);
        if !stores.is_empty() {
            search.halves[family] = Half::Storing(stores.len());
        }
        // Somebody may crowd around an info hash, and whoever announces looks it up again and again.
        let upkeep = search.is_upkeep();
        if let Some(known) = self.family(family).filter(|known| upkeep && known.knows_enough()) {
            known.size.sample(&looked.distances());
        }
        for (contact, method) in stores {
            let purpose = Purpose::Store { lookup, again: false };
            if !self.ask(contact.addr, Some(contact.id), method, purpose, now) {
                self.stored(lookup, contact.addr, None, now);
            }
        }
        self.end_if_over(lookup, now);
    }

    /// An announce or put was not answered: sends it again.
    pub(super) fn store_again(
        &mut self,
        lookup: LookupId,
        first: &Pending,
        now: Timestamp,
    ) -> bool {
        let store = self.searches.get(&lookup).and_then(|search| search.store(first.to));
        let purpose = Purpose::Store { lookup, again: true };
        store.is_some_and(|method| self.ask(first.to, first.id, method, purpose, now))
    }

    /// An announce or put was taken, refused or not answered.
    pub(super) fn stored(
        &mut self,
        lookup: LookupId,
        at: SocketAddr,
        result: Option<Result<(), KrpcError>>,
        now: Timestamp,
    ) {
        if let Some(search) = self.searches.get_mut(&lookup) {
            search.stored(family_of(&at), result);
            self.end_if_over(lookup, now);
        }
    }

    pub(super) fn end_if_over(&mut self, lookup: LookupId, now: Timestamp) {
        if !self.searches.get(&lookup).is_some_and(|search| search.is_over(now)) {
            return;
        }
        let Some(search) = self.searches.remove(&lookup) else { return };
        if search.is_upkeep() {
            self.kept_up(lookup, now);
        } else {
            let outcome = search.outcome();
            self.output.push_back(Output::Finished { lookup, outcome });
        }
    }

    /// Somebody is known in a family: whoever waited for that begins.
    pub(super) fn wake(&mut self, family: usize, now: Timestamp) {
        for lookup in self.running() {
            self.begin_half(lookup, family, now);
        }
    }

    /// Time has passed for lookups.
    pub(super) fn resume(&mut self, now: Timestamp) {
        let all = self.resume_at.is_some_and(|at| now >= at);
        if all {
            self.resume_at = None;
        }
        for lookup in self.running() {
            for family in FAMILIES {
                let Some(looking) = self.looking(lookup, family) else { continue };
                if all || looking.poll_timeout().is_some_and(|at| now >= at) {
                    looking.handle_timeout(now);
                    self.go_on(lookup, family, now);
                }
            }
            self.end_if_over(lookup, now);
        }
    }

    /// When a lookup has to be looked at again.
    pub(super) fn next_look(&self) -> Option<Timestamp> {
        self.searches.values().filter_map(Search::next_look).min()
    }

    fn running(&self) -> Vec<LookupId> {
        self.searches.keys().copied().collect()
    }
}
