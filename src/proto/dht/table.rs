//! The routing table of one address family (BEP 5; 32: each family has its own).
//!
//! A bucket holds the nodes that share so many leading bits with our own id; the last one all that
//! share more, and is divided when it has k. The first ones hold more than k ([`Table::capacity`]),
//! and when one is full its nodes are spread over its range: as many slots as it holds nodes, one
//! node in each, so that a lookup begins one bit closer than at random ones. Only nodes that have
//! answered take a place: a datagram that came in may have anybody's address on it. Who finds no
//! place waits as a replacement.

use std::time::Duration;

use super::id::{Contact, K, NodeId, block};
use super::rtt::RoundTrip;
use crate::proto::time::Timestamp;

/// A node that was not heard of for so long is questionable; a bucket without a change for so long
/// is refreshed (BEP 5).
pub const STALE: Duration = Duration::from_secs(15 * 60);

/// A node that left so many queries in a row unanswered is bad (BEP 5: "multiple").
const BAD_FAILURES: u8 = 2;

/// Nodes that a lookup starts at although they are closer than chance has it.
pub const MAX_STRANGE: usize = K / 2;

/// So many more bits than there are buckets share the closest of all nodes with a target: three for
/// k nodes, two for luck.
pub const STRANGE_BITS: u32 = 5;

/// A node.
#[derive(Clone, Copy, Debug)]
struct Entry {
    contact: Contact,
    heard: Timestamp,
    trip: Option<RoundTrip>,
    failures: u8,
}

impl Entry {
    fn is_bad(&self) -> bool {
        self.failures >= BAD_FAILURES
    }

    fn is_good(&self, now: Timestamp) -> bool {
        self.trip.is_some() && self.failures == 0 && now.since(self.heard) < STALE
    }

    fn fits(&self) -> bool {
        self.contact.id.fits(self.contact.addr.ip())
    }
}

/// A bucket: nodes in use, and those that wait for a place, the last one heard of last.
#[derive(Clone, Debug)]
struct Bucket {
    nodes: Vec<Entry>,
    spare: Vec<Entry>,
    changed: Timestamp,
}

impl Bucket {
    const fn new(now: Timestamp) -> Self {
        Self { nodes: Vec::new(), spare: Vec::new(), changed: now }
    }

    /// Another node in use out of the same block of addresses.
    fn neighbour(&self, contact: &Contact) -> Option<usize> {
        let ours = block(contact.addr.ip());
        let same = |e: &Entry| ours.is_some() && block(e.contact.addr.ip()) == ours;
        self.nodes.iter().position(same)
    }

    /// Puts a node among the replacements; the one heard of longest ago goes.
    fn keep(&mut self, entry: Entry) {
        let same_block = |e: &Entry| {
            let ours = block(entry.contact.addr.ip());
            e.contact.id == entry.contact.id || ours.is_some() && block(e.contact.addr.ip()) == ours
        };
        self.spare.retain(|e| !same_block(e));
        if self.spare.len() == K {
            self.spare.remove(0);
        }
        self.spare.push(entry);
    }

    /// Who could go for `new`, if somebody could: a bad node, or one that only claims its id.
    fn yielding(&self, new: &Entry) -> Option<usize> {
        let bad = self.nodes.iter().position(Entry::is_bad);
        bad.or_else(|| new.fits().then(|| self.nodes.iter().position(|e| !e.fits()))?)
    }

    /// Who could go for `new`, whose slot is empty: the last one that came to a slot where somebody
    /// was already.
    fn superfluous(&self, new: &Entry, slot: impl Fn(&NodeId) -> usize) -> Option<usize> {
        let of = |e: &Entry| slot(&e.contact.id);
        if !new.fits() || self.nodes.iter().any(|e| of(e) == of(new)) {
            return None;
        }
        let mut taken = vec![false; self.nodes.len().next_power_of_two().max(K)];
        let again = |e: &Entry| taken.get_mut(of(e)).is_some_and(|t| std::mem::replace(t, true));
        let again: Vec<_> = self.nodes.iter().map(again).collect();
        again.into_iter().rposition(|again| again)
    }

    /// The node heard of longest ago, if it is questionable.
    fn questionable(&self, now: Timestamp) -> Option<Contact> {
        let oldest = self.nodes.iter().min_by_key(|e| e.heard)?;
        (!oldest.is_good(now)).then_some(oldest.contact)
    }
}

/// The routing table.
#[derive(Clone, Debug)]
pub struct Table {
    own: NodeId,
    v4: bool,
    buckets: Vec<Bucket>,
    refreshes: u64,
}

impl Table {
    /// An empty table of the node `own`, for IPv4 or else for IPv6.
    pub fn new(own: NodeId, v4: bool, now: Timestamp) -> Self {
        Self { own, v4, buckets: vec![Bucket::new(now)], refreshes: 0 }
    }

    /// How many nodes a bucket holds of those that share so many bits with our own id: half of all
    /// lookups start in the first bucket, a quarter in the second; where there are sixteen times as
    /// many to choose from, they start four bits closer, which is one hop less.
    pub const fn capacity(bits: usize) -> usize {
        match bits {
            0..=3 => 128 >> bits,
            _ => K,
        }
    }

    /// Whose table it is.
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// Our own id has changed (BEP 42): all nodes find their places anew.
    pub fn set_own(&mut self, own: NodeId, now: Timestamp) {
        let buckets = std::mem::replace(&mut self.buckets, vec![Bucket::new(now)]);
        self.own = own;
        for entry in buckets.into_iter().flat_map(|b| b.nodes.into_iter().chain(b.spare)) {
            if entry.contact.id != own && !entry.is_bad() {
                self.place(self.index(&entry.contact.id), entry, now);
            }
        }
    }

    /// A node was heard of: it `answered` a query of ours after `rtt`, or asked us something. Gives
    /// a node to ping: one that is questionable and would make room, or the one itself, which gets
    /// a place when it answers.
    pub fn seen(
        &mut self,
        contact: Contact,
        rtt: Option<Duration>,
        answered: bool,
        now: Timestamp,
    ) -> Option<Contact> {
        if contact.id == self.own || contact.addr.is_ipv4() != self.v4 {
            return None;
        }
        let index = self.index(&contact.id);
        let bucket = self.buckets.get_mut(index)?;
        if let Some(at) = bucket.nodes.iter().position(|e| e.contact.id == contact.id) {
            return update(bucket, at, contact, rtt, answered, now);
        }
        let trip = answered.then(|| RoundTrip::first(rtt.unwrap_or_default()));
        self.place(index, Entry { contact, heard: now, trip, failures: 0 }, now)
    }

    /// Finds a place for a node that has none.
    fn place(&mut self, index: usize, entry: Entry, now: Timestamp) -> Option<Contact> {
        let last = index + 1 == self.buckets.len();
        let bucket = self.buckets.get_mut(index)?;
        let neighbour = bucket.neighbour(&entry.contact);
        if let Some(at) = neighbour {
            // One place for one block; whoever holds it keeps it while it answers.
            if entry.trip.is_none() || !bucket.nodes[at].is_bad() {
                return None;
            }
            bucket.nodes[at] = entry;
            bucket.changed = now;
            return None;
        }
        let room = bucket.nodes.len() < if last { K } else { Self::capacity(index) };
        if entry.trip.is_none() {
            bucket.keep(entry);
            // The last bucket is divided for whoever answers: nobody near to us is missed.
            return if room || last { Some(entry.contact) } else { bucket.questionable(now) };
        }
        if room {
            bucket.spare.retain(|e| e.contact.id != entry.contact.id);
            bucket.nodes.push(entry);
        } else if let Some(at) = bucket.yielding(&entry) {
            bucket.nodes[at] = entry;
        } else if !last && let Some(at) = self.superfluous(index, &entry) {
            self.buckets.get_mut(index)?.nodes[at] = entry;
        } else if last && self.divide(now) {
            return self.place(self.index(&entry.contact.id), entry, now);
        } else {
            let bucket = self.buckets.get_mut(index)?;
            bucket.keep(entry);
            return bucket.questionable(now);
        }
        self.buckets.get_mut(index)?.changed = now;
        None
    }

    /// See [`Bucket::superfluous`].
    fn superfluous(&self, index: usize, new: &Entry) -> Option<usize> {
        self.buckets.get(index)?.superfluous(new, |id| slot(id, index))
    }

    /// The slots of the first buckets, which hold more than k, one after the other.
    fn slots() -> impl Iterator<Item = (usize, usize)> {
        let buckets = (0..).take_while(|index| Self::capacity(*index) > K);
        buckets.flat_map(|index| (0..Self::capacity(index)).map(move |slot| (index, slot)))
    }

    /// The first empty slot after `from` of them: which one it is, some id there, and the node that
    /// is closest to it and may know one.
    pub fn gap(&self, from: usize, random: NodeId) -> Option<(usize, NodeId, Contact)> {
        let (number, (index, at)) =
            Self::slots().enumerate().skip(from).find(|(_, (index, at))| {
                let bucket = self.buckets.get(*index).filter(|_| index + 1 < self.buckets.len());
                bucket.is_some_and(|b| b.nodes.iter().all(|e| slot(&e.contact.id, *index) != *at))
            })?;
        let mut bytes = *random.as_bytes();
        // The slots of a bucket are told apart by seven bits at most, of the first eleven.
        let width = Self::capacity(index).ilog2() as usize;
        let [a, b, ..] = *self.own.flipped(index as u32).as_bytes();
        let rest = 16 - index - 1 - width;
        let prefix = (u16::from_be_bytes([a, b]) >> (rest + width) << width | at as u16) << rest;
        let free = u16::from_be_bytes([bytes[0], bytes[1]]) & ((1 << rest) - 1);
        bytes[..2].copy_from_slice(&(prefix | free).to_be_bytes());
        let target = NodeId::new(bytes);
        let closest = self.nearest(&target, 1, |e| !e.is_bad()).first().copied()?;
        Some((number, target, closest))
    }

    /// Whether a node would be the only one in its slot.
    pub fn lacks(&self, id: &NodeId) -> bool {
        let index = self.index(id);
        let bucket = self.buckets.get(index).filter(|_| Self::capacity(index) > K);
        bucket
            .is_some_and(|b| b.nodes.iter().all(|e| slot(&e.contact.id, index) != slot(id, index)))
    }

    /// A query was not answered in time. Gives a node to ping that may take its place.
    pub fn failed(&mut self, contact: Contact, now: Timestamp) -> Option<Contact> {
        let index = self.index(&contact.id);
        let bucket = self.buckets.get_mut(index)?;
        bucket.spare.retain(|e| e.contact != contact);
        let at = bucket.nodes.iter().position(|e| e.contact == contact)?;
        bucket.nodes[at].failures = bucket.nodes[at].failures.saturating_add(1);
        if !bucket.nodes[at].is_bad() {
            return None;
        }
        let answered = bucket.spare.iter().rposition(|e| e.is_good(now));
        let Some(next) = answered else { return bucket.spare.last().map(|e| e.contact) };
        bucket.nodes[at] = bucket.spare.remove(next);
        bucket.changed = now;
        None
    }

    /// The `n` nodes closest to `target`: good ones, and if these are too few others that are not
    /// bad.
    pub fn closest(&self, target: &NodeId, n: usize, now: Timestamp) -> Vec<Contact> {
        let good = self.nearest(target, n, |e| e.is_good(now));
        if good.len() >= n {
            return good;
        }
        let key = |e: &Entry| (!e.is_good(now), target.distance(&e.contact.id));
        first(self.usable(), n, key).map(|e| e.contact).collect()
    }

    /// The `n` closest of those that are wanted. All in the bucket of the target are closer than those
    /// in deeper buckets, and these than those in shallower ones.
    fn nearest(&self, target: &NodeId, n: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<Contact> {
        let (shallower, rest) = self.buckets.split_at(self.index(target));
        let (same, deeper) = rest.split_at(1);
        let mut found = Vec::with_capacity(n);
        for buckets in [same, deeper].into_iter().chain(shallower.chunks(1).rev()) {
            let all = buckets.iter().flat_map(|bucket| &bucket.nodes).filter(|e| wanted(e));
            let key = |e: &Entry| target.distance(&e.contact.id);
            found.extend(first(all, n - found.len(), key).map(|e| e.contact));
            if found.len() >= n {
                break;
            }
        }
        found
    }

    /// Where a lookup of `target` starts: the `n` closest, with what is known of their round trips.
    /// Those that were not heard of for long may well be there, and may be much closer. But of those
    /// that are closer than chance has it only a few: they may be a crowd that names only itself.
    pub fn start(&self, target: &NodeId, n: usize) -> Vec<(Contact, Option<RoundTrip>)> {
        let key = |e: &Entry| (e.failures > 0, target.distance(&e.contact.id));
        let mut strange = 0;
        let mut wanted = |e: &&Entry| {
            let near = target.distance(&e.contact.id).shared_bits() > self.usual_bits();
            strange += usize::from(near);
            !near || strange <= MAX_STRANGE
        };
        let found = first(self.usable(), usize::MAX, key).filter(|e| wanted(e)).take(n);
        found.map(|e| (e.contact, e.trip)).collect()
    }

    /// So many bits may a node share with any target: there are about as many buckets as bits are
    /// needed to tell all but k nodes from each other.
    fn usual_bits(&self) -> u32 {
        self.buckets.len() as u32 + STRANGE_BITS
    }

    /// All nodes that are not bad.
    fn usable(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.iter().flat_map(|bucket| &bucket.nodes).filter(|e| !e.is_bad())
    }

    /// A target in the range of the first bucket from `from` on that has room, and which one that is.
    pub fn lacking(&mut self, from: usize) -> Option<(usize, NodeId)> {
        let mut all = self.buckets.iter().enumerate().skip(from);
        let (index, _) = all.find(|(index, b)| b.nodes.len() < Self::capacity(*index))?;
        self.refreshes += 1;
        Some((index, self.target_in(index)))
    }

    /// A target in the range of a bucket that has not changed for `STALE`: looking it up refreshes
    /// the bucket.
    pub fn refresh_due(&mut self, now: Timestamp) -> Option<NodeId> {
        let due = |bucket: &Bucket| now.since(bucket.changed) >= STALE;
        let index = self.buckets.iter().position(due)?;
        self.buckets[index].changed = now;
        self.refreshes += 1;
        Some(self.target_in(index))
    }

    /// When [`Self::refresh_due`] will next have one.
    pub fn next_refresh(&self) -> Timestamp {
        let oldest = self.buckets.iter().map(|bucket| bucket.changed).min();
        oldest.map_or(Timestamp::FAR_FUTURE, |changed| changed + STALE)
    }

    /// All nodes in use, bad ones left out.
    pub fn contacts(&self) -> impl Iterator<Item = Contact> {
        self.usable().map(|e| e.contact)
    }

    /// How many nodes are in use.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.nodes.len()).sum()
    }

    /// Whether no node is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bucket of an id.
    fn index(&self, id: &NodeId) -> usize {
        (self.own.distance(id).shared_bits() as usize).min(self.buckets.len() - 1)
    }

    /// Divides the last bucket; whether it could be.
    fn divide(&mut self, now: Timestamp) -> bool {
        let bits = self.buckets.len() - 1;
        if bits >= 159 {
            return false;
        }
        let Some(last) = self.buckets.last_mut() else { return false };
        let own = self.own;
        let deeper = |e: &Entry| own.distance(&e.contact.id).shared_bits() as usize > bits;
        let (nodes, kept) = last.nodes.drain(..).partition(deeper);
        let (spare, waiting) = last.spare.drain(..).partition(deeper);
        (last.nodes, last.spare) = (kept, waiting);
        self.buckets.push(Bucket { nodes, spare, changed: now });
        true
    }

    /// Some id of which bucket `index` is the place: our own up to the bit that differs there, then
    /// digits of our own that each refresh stirs anew.
    fn target_in(&self, index: usize) -> NodeId {
        let mut bytes = *self.own.as_bytes();
        let mut state = bytes.iter().fold(self.refreshes, |h, b| stir(h ^ u64::from(*b)));
        let last = index + 1 == self.buckets.len();
        // The last bucket is that of our own id, too.
        for bit in index + usize::from(!last)..160 {
            state = stir(state);
            let mask = 0x80 >> (bit % 8);
            bytes[bit / 8] = bytes[bit / 8] & !mask | state as u8 & mask;
        }
        if !last {
            bytes[index / 8] ^= 0x80 >> (index % 8);
        }
        NodeId::new(bytes)
    }
}

/// The first `n` nodes in the order of a key.
fn first<'a, T: Ord>(
    all: impl Iterator<Item = &'a Entry>,
    n: usize,
    key: impl Fn(&Entry) -> T,
) -> impl Iterator<Item = &'a Entry> {
    let mut found: Vec<_> = all.map(|e| (key(e), e)).collect();
    if n > 0 && n < found.len() {
        found.select_nth_unstable_by(n - 1, |(a, _), (b, _)| a.cmp(b));
        found.truncate(n);
    }
    found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    found.into_iter().take(n).map(|(_, e)| e)
}

/// The slot of an id in bucket `index`: the bits after those that make it one of the bucket.
fn slot(id: &NodeId, index: usize) -> usize {
    let width = Table::capacity(index).ilog2() as usize;
    let bit = |i: usize| id.as_bytes().get(i / 8).map_or(0, |byte| byte >> (7 - i % 8) & 1);
    (index + 1..=index + width).fold(0, |slot, i| slot << 1 | usize::from(bit(i)))
}

/// A step of splitmix64: refreshes need to be spread, not to be secret.
fn stir(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// News of a node that has a place. An address changes only when the old one is no good: else
/// anybody could take a node out of our table by naming its id.
fn update(
    bucket: &mut Bucket,
    at: usize,
    contact: Contact,
    rtt: Option<Duration>,
    answered: bool,
    now: Timestamp,
) -> Option<Contact> {
    let entry = bucket.nodes.get_mut(at)?;
    if entry.contact.addr != contact.addr {
        if entry.is_good(now) || !answered {
            return (!entry.is_good(now)).then_some(entry.contact);
        }
        *entry = Entry { contact, heard: now, trip: None, failures: 0 };
    }
    // A question counts for a node that has answered before (BEP 5), but does not prove that
    // what we send arrives.
    entry.heard = now;
    if answered {
        entry.failures = 0;
        entry.trip = match (entry.trip, rtt) {
            (Some(trip), Some(rtt)) => Some(trip.then(rtt)),
            (trip, rtt) => trip.or(Some(RoundTrip::first(rtt.unwrap_or_default()))),
        };
        bucket.changed = now;
    }
    None
}

#[cfg(test)]
mod tests;
