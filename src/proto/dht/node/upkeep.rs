//! Keeps the tables alive, and our id one that our address may have.

use std::net::{IpAddr, SocketAddr};

use rand::RngExt;

use super::pending::Purpose;
use super::{Dht, LookupId, family_of};
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::krpc::{Answer, Method};
use crate::proto::time::Timestamp;

/// Networks that must see us at an address before our id follows it: the first two that answer when we
/// start may be one liar's.
const MIN_VOTERS: usize = 4;

/// Nodes that are pinged for one empty slot: some are dead.
const FILL_PINGS: usize = 2;

impl Dht {
    /// Does what is due: asks routers again, looks for our own place, refreshes buckets.
    pub(super) fn keep_up(&mut self, now: Timestamp) {
        for index in 0..self.families.len() {
            let Some(family) = self.family(index) else { continue };
            for router in family.routers_due(now) {
                self.introduce(router, now);
            }
            self.look_after(index, now);
            self.fill(index, now);
        }
    }

    /// Asks for a node where the table has none.
    fn fill(&mut self, index: usize, now: Timestamp) {
        let random = NodeId::new(self.rng.random());
        let due = self.family(index).and_then(|family| family.fill_due(random, now));
        if let Some((closest, target)) = due {
            let method = Method::FindNode { target, want: None };
            self.ask(closest.addr, Some(closest.id), method, Purpose::Fill, now);
        }
    }

    /// Somebody was asked for nodes where the table has none: the first of them may have a place.
    pub(super) fn fills(&mut self, from: SocketAddr, answer: &Answer, now: Timestamp) {
        let index = family_of(&from);
        let named = self.named(from, answer, index);
        let lacks = |contact: &Contact| {
            let family = self.families.get(index).and_then(Option::as_ref);
            family.is_some_and(|family| family.table.lacks(&contact.id))
        };
        let wanted: Vec<_> = named.into_iter().filter(lacks).take(FILL_PINGS).collect();
        wanted.into_iter().for_each(|contact| self.verify(Some(contact), now));
    }

    fn look_after(&mut self, index: usize, now: Timestamp) {
        let random = NodeId::new(self.rng.random());
        let Some(family) = self.family(index) else { return };
        let Some(target) = family.upkeep_due(random, now) else { return };
        let lookup = self.look_for_upkeep(index, target, now);
        if let Some(family) = self.family(index) {
            family.upkeep = Some(lookup);
        }
        self.begin(lookup, now);
        self.end_if_over(lookup, now);
    }

    /// A lookup of ours has ended.
    pub(super) fn kept_up(&mut self, lookup: LookupId, now: Timestamp) {
        let mine = self.families.iter_mut().flatten().find(|f| f.upkeep == Some(lookup));
        if let Some(family) = mine {
            family.upkeep_done(now);
        }
    }

    /// A node whose id was not known has answered. What it knows is news while we know little.
    pub(super) fn introduced(&mut self, contact: Contact, answer: &Answer, now: Timestamp) {
        let index = family_of(&contact.addr);
        let nodes = self.named(contact.addr, answer, index);
        self.tell_of_others(&contact, answer, index, now);
        self.look_after(index, now);
        if self.family(index).is_some_and(|family| family.table.len() < 4 * K) {
            self.add_to_all(index, &nodes, now);
        }
    }

    /// An answer also names nodes of the other family: they are asked while nobody is known there,
    /// but not again and again: perhaps that network is not to be reached at all.
    pub(super) fn tell_of_others(
        &mut self,
        from: &Contact,
        answer: &Answer,
        family: usize,
        now: Timestamp,
    ) {
        let other = 1 - family;
        let named = self.named(from.addr, answer, other);
        if !named.is_empty() && self.family(other).is_some_and(|family| family.take_hints(now)) {
            named.iter().take(K).for_each(|contact| self.introduce(contact.addr, now));
        }
    }

    /// Takes an id that our address may have, once most say what it is (BEP 42). Contacts stay.
    pub(super) fn follow_address(&mut self, ours: IpAddr, now: Timestamp) {
        let random = self.rng.random();
        let ourselves = self.external.ourselves(0);
        let believed = if ours.is_ipv4() { ourselves.v4 } else { ourselves.v6 };
        if self.config.id.is_some()
            || believed.map(|addr| addr.ip()) != Some(ours)
            || self.external.voters(ours) < MIN_VOTERS
        {
            return;
        }
        if let Some(family) = self.family(ours.is_ipv6() as usize)
            && !family.id.fits(ours)
            && family.may_move(now)
        {
            family.set_id(NodeId::secured(ours, random), now);
            family.moved = Some(now);
        }
    }
}
