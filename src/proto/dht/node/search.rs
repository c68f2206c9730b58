//! A lookup with what it is for: its question, what the answers brought, and what comes after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{Announce, GetPeers, Outcome, Scrape};
use crate::proto::dht::id::{Contact, K, NodeId};
use crate::proto::dht::items::{Item, immutable_target, mutable_target, replaces};
use crate::proto::dht::krpc::{Answer, KrpcError, Method, PutItem, Signed, Want};
use crate::proto::dht::lookup::Lookup;
use crate::proto::dht::peer_store::Bloom;
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// Peers given out by one lookup; more than a torrent connects to.
const MAX_GIVEN: usize = 4_000;

/// Nodes that an announce or put goes to. Usually it is k; more when somebody crowds around the
/// target.
pub const MAX_STORES: usize = 40;

/// A filter that counts more than this says nothing (BEP 33).
const MAX_COUNT: f64 = 6_000.0;

/// What is looked for.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Nodes; `upkeep` when nobody is told.
    FindNode { upkeep: bool },
    /// Peers.
    GetPeers(GetPeers),
    /// An item. The salt is part of the target and not told.
    GetItem { salt: Vec<u8>, newer_than: Option<i64> },
    /// Nodes to keep an item.
    PutItem { item: Item, cas: Option<i64> },
}

/// What a node allows us.
#[derive(Clone, Debug)]
struct Grant {
    token: Vec<u8>,
    /// It has an item already, so that `cas` means something (BEP 44).
    has_item: bool,
}

/// How far a lookup is in one family.
#[derive(Debug)]
pub(super) enum Half {
    /// The family is not used.
    Absent,
    /// Nobody is known yet.
    Waiting,
    /// Under way.
    Looking(Box<Lookup>),
    /// So many announces or puts have not been answered.
    Storing(usize),
    /// At its end.
    Done,
}

/// A lookup in both families.
#[derive(Debug)]
pub(super) struct Search {
    pub target: NodeId,
    pub kind: Kind,
    /// IPv4 and IPv6.
    pub halves: [Half; 2],
    /// When waiting for the first node ends.
    pub wait_until: Timestamp,
    grants: BTreeMap<SocketAddr, Grant>,
    given: BTreeSet<SocketAddr>,
    found: Vec<Contact>,
    /// Who has answered.
    answered: BTreeSet<SocketAddr>,
    stored: usize,
    refusal: Option<KrpcError>,
    item: Option<Item>,
    /// Seeds and others; others of nodes that do not count (BEP 33, "Handling legacy responses").
    blooms: Option<Box<(Bloom, Bloom)>>,
    uncounted: Vec<SocketAddr>,
}

impl Search {
    pub fn new(target: NodeId, kind: Kind, families: [bool; 2], wait_until: Timestamp) -> Self {
        Self {
            target,
            kind,
            halves: families.map(|used| if used { Half::Waiting } else { Half::Absent }),
            wait_until,
            grants: BTreeMap::new(),
            given: BTreeSet::new(),
            found: Vec::new(),
            answered: BTreeSet::new(),
            stored: 0,
            refusal: None,
            item: None,
            blooms: None,
            uncounted: Vec::new(),
        }
    }

    pub fn is_upkeep(&self) -> bool {
        matches!(self.kind, Kind::FindNode { upkeep: true })
    }

    /// Whether it has to get past those who crowd around the target: they may want to hide what is
    /// stored there.
    pub fn is_wide(&self) -> bool {
        !matches!(self.kind, Kind::FindNode { .. })
    }

    /// The question to a node: what the lookup is for, or only for nodes near another target.
    pub fn question(&self, target: NodeId, want: Option<Want>) -> Method {
        match &self.kind {
            _ if target != self.target => Method::FindNode { target, want },
            Kind::FindNode { .. } => Method::FindNode { target, want },
            Kind::GetPeers(GetPeers { no_seed, scrape, .. }) => Method::GetPeers {
                info_hash: InfoHash::new(*target.as_bytes()),
                want,
                no_seed: *no_seed,
                scrape: *scrape,
            },
            Kind::GetItem { newer_than, .. } => Method::Get { target, seq: *newer_than, want },
            Kind::PutItem { .. } => Method::Get { target, seq: None, want },
        }
    }

    /// Takes what an answer says. Gives peers that are new, all of them `usable`.
    pub fn absorb(
        &mut self,
        from: SocketAddr,
        answer: &mut Answer,
        usable: impl Fn(&SocketAddr) -> bool,
    ) -> Vec<SocketAddr> {
        self.answered.insert(from);
        if let Some(token) = answer.token.take() {
            let has_item = answer.value.is_some() || answer.seq.is_some();
            self.grants.insert(from, Grant { token, has_item });
        }
        match self.kind {
            Kind::GetPeers(GetPeers { scrape, .. }) => {
                answer.values.retain(|peer| peer.is_ipv4() == from.is_ipv4() && usable(peer));
                if scrape {
                    self.count(answer);
                }
                self.give(&answer.values)
            }
            Kind::GetItem { .. } | Kind::PutItem { .. } => {
                self.take_item(answer);
                Vec::new()
            }
            Kind::FindNode { .. } => Vec::new(),
        }
    }

    /// The peers among these that were not given out before.
    pub fn give(&mut self, peers: &[SocketAddr]) -> Vec<SocketAddr> {
        let room = MAX_GIVEN.saturating_sub(self.given.len());
        peers.iter().copied().filter(|peer| self.given.insert(*peer)).take(room).collect()
    }

    fn count(&mut self, answer: &Answer) {
        match &answer.scrape {
            Some(theirs) if theirs.0.estimate().max(theirs.1.estimate()) <= MAX_COUNT => {
                let empty = || Box::new((Bloom::EMPTY, Bloom::EMPTY));
                let ours = self.blooms.get_or_insert_with(empty);
                ours.0.unite(&theirs.0);
                ours.1.unite(&theirs.1);
            }
            Some(_) => {}
            None => {
                let room = MAX_GIVEN.saturating_sub(self.uncounted.len());
                self.uncounted.extend(answer.values.iter().take(room));
            }
        }
    }

    /// Keeps an item that belongs here, the newest of them.
    fn take_item(&mut self, answer: &mut Answer) {
        let salt = match &self.kind {
            Kind::GetItem { salt, .. } => salt,
            Kind::PutItem { item: Item { signed: Some(signed), .. }, .. } => &signed.salt,
            _ => return,
        };
        let Some(value) = answer.value.take() else { return };
        let signed = answer.signed.take().map(|signed| Signed { salt: salt.clone(), ..signed });
        let ours = |item: &Item| item.signed.as_ref().map_or(-1, |signed| signed.seq);
        let item = match signed {
            Some(signed) if mutable_target(&signed.key, salt) == self.target => {
                Item { value, signed: Some(signed) }
            }
            _ if immutable_target(&value) == self.target => Item::immutable(value),
            _ => return,
        };
        let newer = self.item.as_ref().is_none_or(|old| ours(old) < ours(&item));
        if newer && item.check().is_ok() {
            self.item = Some(item);
        }
    }

    /// Whether nothing better can come: what cannot be changed was found.
    pub fn has_all(&self) -> bool {
        matches!((&self.kind, &self.item), (Kind::GetItem { .. }, Some(Item { signed: None, .. })))
    }

    /// A lookup has ended: to whom to announce or put, and with what.
    pub fn stores(&mut self, lookup: &Lookup) -> Vec<(Contact, Method)> {
        self.found.extend(lookup.closest_answering());
        if !self.may_store() {
            return Vec::new();
        }
        let to = lookup.announce_to();
        let granted = to.into_iter().filter(|c| self.grants.contains_key(&c.addr));
        chosen(granted.collect())
            .into_iter()
            .filter_map(|contact| Some((contact, self.store(contact.addr)?)))
            .collect()
    }

    /// Whether there is something to announce or put. Somebody may have put a newer item: then those
    /// nodes that do not know it would only be led astray.
    fn may_store(&mut self) -> bool {
        match (&self.kind, &self.item) {
            (Kind::GetPeers(GetPeers { announce, .. }), _) => announce.is_some(),
            (Kind::PutItem { item, cas }, Some(newest)) => {
                self.refusal = replaces(newest, item, *cas).err();
                self.refusal.is_none()
            }
            (Kind::PutItem { .. }, None) => true,
            _ => false,
        }
    }

    pub fn store(&self, to: SocketAddr) -> Option<Method> {
        let Grant { token, has_item } = self.grants.get(&to)?.clone();
        match &self.kind {
            Kind::GetPeers(GetPeers { announce: Some(announce), .. }) => {
                let Announce { port, implied, seed } = *announce;
                let info_hash = InfoHash::new(*self.target.as_bytes());
                Some(Method::AnnouncePeer { info_hash, port, implied_port: implied, seed, token })
            }
            Kind::PutItem { item, cas } => {
                let (value, mutable) = (item.value.clone(), item.signed.clone());
                let cas = cas.filter(|_| has_item && mutable.is_some());
                Some(Method::Put { item: PutItem { value, mutable, cas }, token })
            }
            _ => None,
        }
    }

    /// An announce or put was taken, refused, or not answered.
    pub fn stored(&mut self, family: usize, result: Option<Result<(), KrpcError>>) {
        match result {
            Some(Ok(())) => self.stored += 1,
            Some(Err(error)) => self.refusal = Some(error),
            None => {}
        }
        if let Some(half) = self.halves.get_mut(family) {
            *half = match half {
                Half::Storing(open) if *open > 1 => Half::Storing(*open - 1),
                Half::Storing(_) => Half::Done,
                _ => return,
            };
        }
    }

    /// Whether all that was begun has ended. A family in which nobody is known holds up none.
    pub fn is_over(&self, now: Timestamp) -> bool {
        let open = |half: &Half| matches!(half, Half::Looking(_) | Half::Storing(_));
        let done = self.halves.iter().any(|half| matches!(half, Half::Done));
        self.has_all() || !self.halves.iter().any(open) && (done || now >= self.wait_until)
    }

    /// When it has to be looked at again.
    pub fn next_look(&self) -> Option<Timestamp> {
        let looking = self.halves.iter().filter_map(|half| match half {
            Half::Looking(lookup) => lookup.poll_timeout(),
            _ => None,
        });
        let begun = |half: &Half| matches!(half, Half::Looking(_) | Half::Storing(_));
        let waits = !self.halves.iter().any(begun);
        looking.chain(waits.then_some(self.wait_until)).min()
    }

    /// What came of it.
    pub fn outcome(mut self) -> Outcome {
        if self.answered.is_empty() {
            return Outcome::NoNodes;
        }
        match self.kind {
            Kind::FindNode { .. } => {
                self.found.sort_unstable_by_key(|contact| self.target.distance(&contact.id));
                Outcome::Nodes(self.found)
            }
            Kind::GetPeers(GetPeers { scrape, .. }) => Outcome::Peers {
                peers: self.given.len(),
                nodes: self.answered.len(),
                announced: self.stored,
                scrape: scrape.then(|| self.counted()),
            },
            Kind::GetItem { .. } => Outcome::Item(self.item),
            Kind::PutItem { .. } => Outcome::Put { stored: self.stored, refusal: self.refusal },
        }
    }

    fn counted(&self) -> Scrape {
        let (seeds, mut others) =
            self.blooms.as_deref().cloned().unwrap_or((Bloom::EMPTY, Bloom::EMPTY));
        for peer in &self.uncounted {
            if !seeds.may_contain(peer.ip()) {
                others.insert(peer.ip());
            }
        }
        Scrape { seeds: seeds.estimate().round() as u32, peers: others.estimate().round() as u32 }
    }
}

/// Who of those that would store is asked to: the k closest, and further ones up to
/// [`MAX_STORES`], first of all those that did not choose where they are (BEP 42).
fn chosen(mut granted: Vec<Contact>) -> Vec<Contact> {
    let mut further = granted.split_off(granted.len().min(K));
    further.sort_by_key(|contact| !contact.id.fits(contact.addr.ip()));
    further.truncate(MAX_STORES - K);
    granted.append(&mut further);
    granted
}
