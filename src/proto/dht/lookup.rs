//! One iterative lookup: whom to ask next, and when the k closest nodes that answer are known.
//!
//! Candidates are kept in the order of their distance, and each counts as much as it is likely to
//! answer ([`Answers::hope`]): one that was asked less and less the longer it is silent, so that a
//! late query frees its place by and by, yet counts when it is answered after all. Those that matter
//! are the closest ones of which k answers may be expected, and a few more (the *front*). As soon as
//! an answer brings closer nodes the front moves on to them; nobody waits for those left behind.
//!
//! Far from the target a few queries at a time are enough: the first answer leads on. Near to it
//! ([`NEAR`]) everyone is wanted, and everyone's answer names some that others do not name, so most
//! are asked at once.

use std::time::Duration;

use super::id::{Contact, Distance, K, NodeId, block};
use super::rtt::{Answers, RoundTrip};
use crate::proto::time::Timestamp;

/// Candidates that are kept; the farthest go.
const MAX_CANDIDATES: usize = 256;

/// Candidates out of one block of addresses: more would let one owner fill a result.
const MAX_PER_BLOCK: usize = 2;

/// Addresses of one id: whoever names a node with a wrong address must not hide it.
const MAX_PER_ID: usize = 2;

/// Nodes of one answer that are looked at (BEP 5: k; some send more).
const MAX_NODES: usize = 2 * K;

/// A lookup ends after this, whatever is open.
pub const MAX_TIME: Duration = Duration::from_secs(10);

/// Answers to expect of the queries under way: no more are sent while there are so many. Four
/// queries when seven out of ten nodes answer.
const ALPHA: f32 = 2.2;

/// The same near to the target: nine queries.
const ALPHA_NEAR: f32 = 6.0;

/// Near to the target are those within so many times the distance within which k nodes are to be
/// expected: six times k nodes.
const NEAR: f64 = 6.0;

/// Who is at most so many bits farther than a candidate may bring the same nodes as that one would.
const ALIKE_BITS: u32 = 3;

/// Answers to expect of the front. With k alone some of the k closest stay unknown: one answer names
/// k nodes, dead ones among them.
const FRONT: f32 = K as f32 + 2.0;

/// Answers to expect of those that the end waits for: the others of the front were asked for what
/// they name.
const END: f32 = K as f32 - 0.5;

/// The end is reached when of all these no more answers than this are still to be expected: one out
/// of a hundred of the k closest is then missed for being late.
const REST: f32 = 0.1;

/// How often is looked whether somebody is late: a sixteenth of the median round trip, in these
/// bounds.
const MIN_TICK: Duration = Duration::from_millis(1);
/// The same.
const MAX_TICK: Duration = Duration::from_millis(25);

/// How to look.
#[derive(Clone, Debug, Default)]
pub struct LookupOptions {
    /// How nodes answer that nothing is known of.
    pub answers: Answers,
    /// The distance within which k nodes are to be expected ([`super::Size::expected`]), by which a
    /// lookup knows that it is near. Without it, it is near to the target as soon as somebody names
    /// nodes that are farther than itself, since that one knows no more that are closer.
    pub expected: Option<Distance>,
    /// Everyone closer than this is asked, also when the k closest have answered: with the same
    /// distance a lookup gets past whoever crowds around the target.
    pub beyond: Option<Distance>,
}

/// What has become of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asked(Timestamp),
    Answered,
    Failed,
}

#[derive(Clone, Debug)]
struct Candidate {
    distance: Distance,
    contact: Contact,
    trip: Option<RoundTrip>,
    state: State,
    hops: u8,
}

/// A lookup.
#[derive(Clone, Debug)]
pub struct Lookup {
    target: NodeId,
    options: LookupOptions,
    candidates: Vec<Candidate>,
    started: Timestamp,
    asked: usize,
    /// Closer than this is near to the target.
    near: Option<Distance>,
    finished: bool,
    look_again: Option<Timestamp>,
}

impl Lookup {
    /// A lookup of `target` that starts at these nodes; of some the round trip is known.
    pub fn new(
        target: NodeId,
        start: &[(Contact, Option<RoundTrip>)],
        options: LookupOptions,
        now: Timestamp,
    ) -> Self {
        let near = options.expected.map(|d| Distance::of_share(NEAR * d.share()));
        let mut lookup = Self {
            target,
            near,
            options,
            candidates: Vec::new(),
            started: now,
            asked: 0,
            finished: false,
            look_again: None,
        };
        start
            .iter()
            .take(MAX_CANDIDATES)
            .for_each(|(contact, trip)| lookup.insert(*contact, *trip, 1));
        lookup.review(now);
        lookup
    }

    /// What is looked for.
    pub const fn target(&self) -> NodeId {
        self.target
    }

    /// More nodes to start at, such as routers that have answered meanwhile.
    pub fn add(&mut self, contacts: &[Contact], now: Timestamp) {
        contacts.iter().take(MAX_CANDIDATES).for_each(|contact| self.insert(*contact, None, 1));
        self.review(now);
    }

    /// Whom to ask now; to be called until it gives nobody.
    pub fn next(&mut self, now: Timestamp) -> Option<Contact> {
        if self.finished {
            return None;
        }
        let at = self.choose(now)?;
        let candidate = self.candidates.get_mut(at)?;
        candidate.state = State::Asked(now);
        self.asked += 1;
        let contact = candidate.contact;
        self.review(now);
        Some(contact)
    }

    /// `from` answered after `rtt` and named `nodes`. Answers that come late count too.
    pub fn answered(&mut self, from: Contact, nodes: &[Contact], rtt: Duration, now: Timestamp) {
        let Some(candidate) = self.candidates.iter_mut().find(|c| c.contact == from) else {
            return;
        };
        if !matches!(candidate.state, State::Asked(_)) {
            return;
        }
        candidate.state = State::Answered;
        let (own, hops) = (candidate.distance, candidate.hops.saturating_add(1));
        self.options.answers.measured(rtt);
        let farther = |c: &Contact| self.target.distance(&c.id) > own;
        if self.options.expected.is_none() && nodes.iter().any(farther) {
            self.near = self.near.max(Some(own));
        }
        nodes.iter().take(MAX_NODES).for_each(|contact| self.insert(*contact, None, hops));
        self.review(now);
    }

    /// A query will not be answered: an error came, or nothing within the hard limit of whoever sent
    /// it.
    pub fn failed(&mut self, contact: Contact, now: Timestamp) {
        let asked = |c: &&mut Candidate| c.contact == contact && c.state != State::Answered;
        if let Some(candidate) = self.candidates.iter_mut().find(asked) {
            candidate.state = State::Failed;
            self.options.answers.silent();
        }
        self.review(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        self.look_again
    }

    /// Time has passed: who is late now no longer counts.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.review(now);
    }

    /// Whether it has come to its end.
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// The k closest nodes that have answered so far, the closest first.
    pub fn closest_answering(&self) -> Vec<Contact> {
        self.responders().take(K).map(|c| c.contact).collect()
    }

    /// All that have answered, the closest first.
    pub fn answering(&self) -> impl Iterator<Item = Contact> {
        self.responders().map(|c| c.contact)
    }

    /// To whom to announce: the k closest that have answered, and all within
    /// [`LookupOptions::beyond`].
    pub fn announce_to(&self) -> Vec<Contact> {
        let within = |c: &Candidate| self.options.beyond.is_some_and(|beyond| c.distance <= beyond);
        let wanted = |(i, c): &(usize, &Candidate)| *i < K || within(c);
        self.responders().enumerate().take_while(wanted).map(|(_, c)| c.contact).collect()
    }

    /// Queries sent.
    pub const fn asked(&self) -> usize {
        self.asked
    }

    /// How many nodes led to the closest one that answered, itself counted.
    pub fn hops(&self) -> usize {
        self.responders().next().map_or(0, |c| c.hops.into())
    }

    /// Distances of the k closest that answered, ascending: a sample for [`super::Size`].
    pub fn distances(&self) -> Vec<Distance> {
        self.responders().take(K).map(|c| c.distance).collect()
    }

    fn responders(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(|c| c.state == State::Answered)
    }

    /// Takes a node among the candidates.
    fn insert(&mut self, contact: Contact, trip: Option<RoundTrip>, hops: u8) {
        let distance = self.target.distance(&contact.id);
        let secure = contact.id.fits(contact.addr.ip());
        let key =
            |c: &Candidate| (c.distance, !c.contact.id.fits(c.contact.addr.ip()), c.contact.addr);
        let place = self.candidates.binary_search_by_key(&(distance, !secure, contact.addr), key);
        let Err(at) = place else { return };
        if at >= MAX_CANDIDATES || self.is_crowded(&contact) {
            return;
        }
        let state = State::New;
        self.candidates.insert(at, Candidate { distance, contact, trip, state, hops });
        self.candidates.truncate(MAX_CANDIDATES);
    }

    /// Whether there are enough candidates of this block of addresses, or of this id.
    fn is_crowded(&self, contact: &Contact) -> bool {
        let ours = block(contact.addr.ip());
        let same = |c: &&Candidate| ours.is_some() && block(c.contact.addr.ip()) == ours;
        self.candidates.iter().filter(|c| c.contact.id == contact.id).count() >= MAX_PER_ID
            || self.candidates.iter().filter(same).count() >= MAX_PER_BLOCK
    }

    /// How many answers are to be expected of a candidate, 0–1.
    fn worth(&self, candidate: &Candidate, now: Timestamp) -> f32 {
        let answers = &self.options.answers;
        match candidate.state {
            State::New => answers.hope(candidate.trip, Duration::ZERO),
            State::Asked(at) => answers.hope(candidate.trip, now.since(at)),
            State::Answered => 1.0,
            State::Failed => 0.0,
        }
    }

    /// The closest candidate of the front that should be asked now.
    fn choose(&self, now: Timestamp) -> Option<usize> {
        let (mut sum, mut pending) = (0.0, 0.0);
        for (at, candidate) in self.candidates.iter().enumerate() {
            let beyond = self.options.beyond.is_some_and(|beyond| candidate.distance <= beyond);
            if sum >= FRONT && !beyond {
                return None;
            }
            let worth = self.worth(candidate, now);
            match candidate.state {
                State::New if self.near >= Some(candidate.distance) => {
                    return (pending < ALPHA_NEAR).then_some(at);
                }
                State::New => return (pending + self.alike(at, now) < ALPHA).then_some(at),
                State::Asked(_) => pending += worth,
                State::Answered | State::Failed => {}
            }
            sum += worth;
        }
        None
    }

    /// Answers to expect of those that are not much farther than a candidate.
    fn alike(&self, at: usize, now: Timestamp) -> f32 {
        let (Some(this), farther) = (self.candidates.get(at), at + 1..) else { return 0.0 };
        let limit = this.distance.farther_by(ALIKE_BITS);
        let others = self.candidates.get(farther).unwrap_or_default();
        let alike = others.iter().take_while(|c| c.distance <= limit);
        let asked = alike.filter(|c| matches!(c.state, State::Asked(_)));
        asked.map(|c| self.worth(c, now)).sum()
    }

    /// Answers to expect that the end has to wait for.
    fn rest(&self, now: Timestamp) -> f32 {
        let (mut sum, mut rest) = (0.0, 0.0);
        for candidate in &self.candidates {
            let beyond = self.options.beyond.is_some_and(|beyond| candidate.distance <= beyond);
            if sum >= END && !beyond {
                break;
            }
            let worth = self.worth(candidate, now);
            sum += worth;
            match candidate.state {
                State::New => return f32::INFINITY,
                State::Asked(_) => rest += worth,
                State::Answered | State::Failed => {}
            }
        }
        rest
    }

    /// Looks whether the end is reached, and if not, when to look again.
    fn review(&mut self, now: Timestamp) {
        self.finished |= now.since(self.started) >= MAX_TIME
            || self.choose(now).is_none() && self.rest(now) < REST;
        let tick = (self.options.answers.within(0.5) / 16).clamp(MIN_TICK, MAX_TICK);
        self.look_again = (!self.finished).then(|| now + tick);
    }
}

#[cfg(test)]
mod tests;
