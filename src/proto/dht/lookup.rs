//! One iterative lookup: whom to ask next, and when the k closest nodes that answer are known.
//!
//! Candidates are kept in the order of their distance, and each counts as much as it is likely to
//! answer ([`Answers::hope`]): one that was asked less and less the longer it is silent, so that a
//! late query frees its place by and by, yet counts when it is answered after all. Those that matter
//! are the closest ones of which k answers may be expected (the *front*). As soon as
//! an answer brings closer nodes the front moves on to them; nobody waits for those left behind.
//!
//! Far from the target a few queries at a time are enough: the first answer leads on. Near to it
//! ([`NEAR`]) everyone is wanted, so most are asked at once. There all name the same nodes: an answer
//! has room for k, dead ones among them, and the last of the k closest living ones remain unnamed
//! though everybody knows them. So somebody is asked once more, for those that come next.

mod crowd;
#[cfg(test)]
mod tests;

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
/// expected: four times k nodes.
const NEAR: f64 = 4.0;

/// Who is at most so many bits farther than a candidate may bring the same nodes as that one would.
const ALIKE_BITS: u32 = 3;

/// Answers to expect of those that the end waits for: the last of k is as likely one too many.
const END: f32 = K as f32 - 0.5;

/// The end is reached when of all these no more answers than this are still to be expected: two out
/// of a hundred of the k closest are then missing because they are late.
const REST: f32 = 0.15;

/// While fewer than k have answered, those who are silent are waited for so long: in a small network,
/// or of the one node that is known, nobody else can answer instead, and on a busy machine an
/// answer takes far longer than those before.
const GRACE: Duration = Duration::from_secs(1);

/// Nodes that are asked once more, for others that are near to the target.
const MAX_SIDES: usize = 2;

/// The same while somebody may crowd around the target: the more answer, the better is seen whether
/// they are too many.
const MAX_SIDES_SUSPECTED: usize = 8;

/// Silent nodes near to the target that are asked again although hardly anything seems to be lost:
/// else nobody would notice that it is.
const PROBES: usize = 1;

/// They are asked when they have not named all nodes that are expected to be so near.
const SIDE_REACH: f64 = 1.4;

/// They know such nodes when they are so near themselves.
const SIDE_NEAR: f64 = 3.0;

/// How often is looked whether somebody is late: an eighth of the median round trip, in these
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
    /// Nodes that share just so many bits with the target are not asked.
    pub avoid: Option<u32>,
}

/// What has become of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asked(Timestamp),
    /// Asked for the second time; when first, and when again.
    Again(Timestamp, Timestamp),
    Answered,
    Failed,
}

#[derive(Clone, Debug)]
struct Candidate {
    distance: Distance,
    contact: Contact,
    /// Its id is one that its address may have (BEP 42).
    fits: bool,
    block: Option<u64>,
    trip: Option<RoundTrip>,
    state: State,
    /// Questions that may still be answered.
    open: u8,
    hops: u8,
}

/// What to ask of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Who is asked.
    pub to: Contact,
    /// For nodes close to what. When that is not the target of the lookup, only nodes are wanted
    /// (`find_node`).
    pub target: NodeId,
    /// He was asked the same before and is silent.
    pub again: bool,
}

/// A question beside those that lead to the target.
#[derive(Clone, Copy, Debug)]
struct Side {
    ask: Ask,
    state: State,
}

impl Side {
    const fn is_open(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }
}

/// A lookup.
#[derive(Clone, Debug)]
pub struct Lookup {
    target: NodeId,
    options: LookupOptions,
    candidates: Vec<Candidate>,
    sides: Vec<Side>,
    /// Lookups of other places, when somebody crowds around this one.
    detours: Vec<Lookup>,
    started: Timestamp,
    asked: usize,
    probes: usize,
    /// Closer than this is near to the target.
    near: Option<Distance>,
    /// Everyone closer than this is asked.
    beyond: Option<Distance>,
    crowded: bool,
    /// There may be a crowd.
    suspected: bool,
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
            beyond: options.beyond,
            crowded: false,
            suspected: false,
            options,
            candidates: Vec::new(),
            sides: Vec::new(),
            detours: Vec::new(),
            started: now,
            asked: 0,
            probes: 0,
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
    pub fn next(&mut self, now: Timestamp) -> Option<Ask> {
        if self.finished {
            return None;
        }
        if let Some(side) = self.sides.iter_mut().find(|side| side.state == State::New) {
            side.state = State::Asked(now);
            self.asked += 1;
            return Some(side.ask);
        }
        if let Some(at) = self.choose(now) {
            let candidate = self.candidates.get_mut(at)?;
            let first = match candidate.state {
                State::Asked(at) => Some(at),
                _ => None,
            };
            let again = first.is_some();
            candidate.state = first.map_or(State::Asked(now), |at| State::Again(at, now));
            candidate.open = candidate.open.saturating_add(1);
            self.probes += usize::from(again);
            self.asked += 1;
            return Some(Ask { to: candidate.contact, target: self.target, again });
        }
        let ask = self.detours.iter_mut().find_map(|detour| detour.next(now))?;
        self.asked += 1;
        Some(ask)
    }

    /// What was asked was answered after `rtt` with `nodes`. Answers that come late count too.
    pub fn answered(&mut self, ask: Ask, nodes: &[Contact], rtt: Duration, now: Timestamp) {
        if self.side_answered(&ask) {
            self.options.answers.measured(rtt);
            let from = self.candidates.iter().find(|c| c.contact == ask.to);
            let hops = from.map_or(u8::MAX, |c| c.hops.saturating_add(1));
            self.add_all(nodes, hops);
        } else if ask.target == self.target {
            self.candidate_answered(ask.to, nodes, rtt);
        } else if let Some(detour) = self.detours.iter_mut().find(|d| d.target == ask.target) {
            detour.answered(ask, nodes, rtt, now);
        }
        self.review(now);
    }

    fn candidate_answered(&mut self, from: Contact, nodes: &[Contact], rtt: Duration) {
        let waits = |c: &&mut Candidate| {
            c.contact == from && matches!(c.state, State::Asked(_) | State::Again(..))
        };
        let Some(candidate) = self.candidates.iter_mut().find(waits) else { return };
        candidate.state = State::Answered;
        let (distance, hops) = (candidate.distance, candidate.hops.saturating_add(1));
        self.look_for_crowd();
        self.look_aside(from, distance, nodes);
        self.options.answers.measured(rtt);
        self.add_all(nodes, hops);
    }

    fn add_all(&mut self, nodes: &[Contact], hops: u8) {
        nodes.iter().take(MAX_NODES).for_each(|contact| self.insert(*contact, None, hops));
    }

    /// A question will not be answered: an error came, or nothing within the hard limit of whoever
    /// sent it.
    pub fn failed(&mut self, ask: Ask, now: Timestamp) {
        let side = self.sides.iter_mut().find(|side| side.ask == ask && side.is_open());
        let asked = |c: &&mut Candidate| c.contact == ask.to && c.open > 0;
        if let Some(side) = side {
            side.state = State::Failed;
        } else if ask.target != self.target {
            let detour = self.detours.iter_mut().find(|d| d.target == ask.target);
            detour.into_iter().for_each(|detour| detour.failed(ask, now));
        } else if let Some(candidate) = self.candidates.iter_mut().find(asked) {
            candidate.open -= 1;
            if candidate.open == 0 && candidate.state != State::Answered {
                candidate.state = State::Failed;
                self.options.answers.silent();
            }
        }
        self.review(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        self.look_again
    }

    /// Time has passed: who is late now no longer counts.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.detours.iter_mut().for_each(|detour| detour.handle_timeout(now));
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
    /// [`LookupOptions::beyond`]; when somebody crowds around the target also the nodes around other
    /// places.
    pub fn announce_to(&self) -> Vec<Contact> {
        let within = |c: &Candidate| self.beyond >= Some(c.distance);
        let wanted = |(i, c): &(usize, &Candidate)| *i < K || within(c);
        let here = self.responders().enumerate().take_while(wanted).map(|(_, c)| c.contact);
        here.chain(self.elsewhere()).collect()
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

    /// Learns from the answer of a node at `own` how near it is, and whether to ask it once more.
    fn look_aside(&mut self, from: Contact, own: Distance, nodes: &[Contact]) {
        let farthest = nodes.iter().map(|c| self.target.distance(&c.id)).max();
        let Some(expected) = self.options.expected.map(|d| d.share()) else {
            // Who names nodes that are farther than itself knows no more that are closer.
            self.near = self.near.max(farthest.filter(|far| *far > own).map(|_| own));
            return;
        };
        let Some(named) = farthest.filter(|_| nodes.len() >= K).map(|far| far.share()) else {
            return;
        };
        let reach = SIDE_REACH * expected;
        let most = if self.suspected { MAX_SIDES_SUSPECTED } else { MAX_SIDES };
        let room = self.options.avoid.is_none() && !self.crowded && self.sides.len() < most;
        if room && named < reach && own.share() <= SIDE_NEAR * expected {
            // The half of the neighbourhood in which those beyond the named ones are.
            let bit = Distance::of_share((named + reach) / 2.0).shared_bits();
            // Then a quarter of it, and an eighth.
            let bit = bit + (self.sides.len() / MAX_SIDES) as u32;
            let ask = Ask { to: from, target: self.target.flipped(bit), again: false };
            self.sides.push(Side { ask, state: State::New });
        }
    }

    /// Whether this is the answer to a question beside those that lead to the target.
    fn side_answered(&mut self, ask: &Ask) -> bool {
        let side = self.sides.iter_mut().find(|side| side.ask == *ask && side.is_open());
        side.map(|side| side.state = State::Answered).is_some()
    }

    /// Takes a node among the candidates.
    fn insert(&mut self, contact: Contact, trip: Option<RoundTrip>, hops: u8) {
        let distance = self.target.distance(&contact.id);
        if self.options.avoid == Some(distance.shared_bits()) {
            return;
        }
        let fits = contact.id.fits(contact.addr.ip());
        let key = |c: &Candidate| (c.distance, !c.fits, c.contact.addr);
        let wanted = (distance, !fits, contact.addr);
        if self.candidates.binary_search_by_key(&wanted, key).is_ok() {
            return;
        }
        let block = block(contact.addr.ip());
        if self.is_repeated(&contact, distance, block) || !self.make_room(distance, fits) {
            return;
        }
        let at = self.candidates.partition_point(|c| key(c) < wanted);
        let candidate =
            Candidate { distance, contact, fits, block, trip, state: State::New, open: 0, hops };
        self.candidates.insert(at, candidate);
        self.candidates.truncate(MAX_CANDIDATES);
    }

    /// Whether there are enough candidates of this block of addresses, or of this id.
    fn is_repeated(&mut self, contact: &Contact, distance: Distance, block: Option<u64>) -> bool {
        let same = |c: &&Candidate| block.is_some() && c.block == block;
        if self.candidates.iter().filter(same).count() >= MAX_PER_BLOCK {
            self.one_block_near(distance);
            return true;
        }
        self.candidates.iter().filter(|c| c.contact.id == contact.id).count() >= MAX_PER_ID
    }

    /// How many answers are to be expected of a candidate, 0–1.
    fn worth(&self, candidate: &Candidate, now: Timestamp) -> f32 {
        let answers = &self.options.answers;
        match candidate.state {
            State::New => answers.hope(candidate.trip, Duration::ZERO),
            State::Asked(at) => {
                let hope = answers.hope(candidate.trip, now.since(at));
                let near = answers.is_lossy() && self.near >= Some(candidate.distance);
                if near { hope + (1.0 - hope) * answers.lost() } else { hope }
            }
            // Either question may be answered yet: whoever is silent may only be slow.
            State::Again(first, again) => {
                let hope = answers.hope(candidate.trip, now.since(first));
                let second = answers.lost() * answers.later_than(now.since(again));
                hope + (1.0 - hope) * second
            }
            State::Answered => 1.0,
            State::Failed => 0.0,
        }
    }

    /// Whether somebody near to the target is silent for so long that he is worth a second question.
    fn is_worth_another(&self, candidate: &Candidate, asked: Timestamp, now: Timestamp) -> bool {
        let answers = &self.options.answers;
        (answers.is_lossy() || self.probes < PROBES)
            && self.near >= Some(candidate.distance)
            && now.since(asked) >= answers.ask_again_after(candidate.trip)
    }

    /// The closest candidate of the front that should be asked now.
    fn choose(&self, now: Timestamp) -> Option<usize> {
        let (mut sum, mut pending) = (0.0, 0.0);
        for (at, candidate) in self.candidates.iter().enumerate() {
            let beyond = self.beyond >= Some(candidate.distance);
            if sum >= K as f32 && !beyond {
                return None;
            }
            let worth = self.worth(candidate, now);
            match candidate.state {
                State::New if self.near >= Some(candidate.distance) => {
                    return (pending < ALPHA_NEAR).then_some(at);
                }
                State::New => return (pending + self.alike(at, now) < ALPHA).then_some(at),
                State::Asked(asked) if self.is_worth_another(candidate, asked, now) => {
                    return Some(at);
                }
                State::Asked(_) | State::Again(..) => pending += worth,
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
        let asked = alike.filter(|c| matches!(c.state, State::Asked(_) | State::Again(..)));
        asked.map(|c| self.worth(c, now)).sum()
    }

    /// Answers to expect that the end has to wait for.
    fn rest(&self, now: Timestamp) -> f32 {
        let (mut sum, mut rest) = (0.0, self.detours_rest(now));
        for candidate in &self.candidates {
            let beyond = self.beyond >= Some(candidate.distance);
            if sum >= END && !beyond {
                break;
            }
            let worth = self.worth(candidate, now);
            sum += worth;
            match candidate.state {
                State::New => return f32::INFINITY,
                State::Asked(_) | State::Again(..) => rest += worth,
                State::Answered | State::Failed => {}
            }
        }
        rest
    }

    /// Whether so few have answered that whoever is late should be waited for.
    fn needs_the_late(&self, now: Timestamp) -> bool {
        self.responders().count() < K
            && self.candidates.iter().any(|candidate| match candidate.state {
                State::Asked(at) | State::Again(at, _) => now.since(at) < GRACE,
                State::New | State::Answered | State::Failed => false,
            })
    }

    /// Looks whether the end is reached, and if not, when to look again.
    fn review(&mut self, now: Timestamp) {
        self.go_round(now);
        self.finished |= now.since(self.started) >= MAX_TIME
            || self.choose(now).is_none() && self.rest(now) < REST && !self.needs_the_late(now);
        let tick = (self.options.answers.within(0.5) / 8).clamp(MIN_TICK, MAX_TICK);
        self.look_again = (!self.finished).then(|| now + tick);
    }
}
