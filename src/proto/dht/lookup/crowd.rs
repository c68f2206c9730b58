//! Somebody crowds around the target: one who wants to be all that is found there.
//!
//! A crowd is known by the number of nodes, of which only so many are to be expected at any distance.
//! No more are candidates, so the crowd does not use up a lookup. But it also fills the tables of
//! honest nodes around the target, and names nobody but itself. So whoever finds it announces and asks
//! at other places, too, which everyone computes alike: those that differ from the target in one bit
//! ([`Detour`][Lookup::detour_bits]). The bit is so early that nodes beyond it are as many as a large
//! crowd: one that begins before it is thin, one that begins after it is not there.

use super::super::id::{Distance, K};
use super::{Ask, Candidate, Lookup, LookupOptions, MAX_CANDIDATES, Side, State};
use crate::proto::time::Timestamp;

/// How many times as many candidates there may be as are to be expected.
const LIMIT: f64 = 2.0;

/// So many more may be, however few are to be expected.
const LIMIT_MIN: f64 = 4.0;

/// The same for nodes that have answered: of those there are no dead ones, so they are a closer
/// measure.
const DENSE: f64 = 2.0;
/// The same. One of a hundred lookups finds more by accident.
const DENSE_MIN: f64 = 3.0;

/// The same for a suspicion, on which others are asked for those around: of ten lookups one finds so
/// many by accident.
const SUSPECT: f64 = 1.5;
/// The same.
const SUSPECT_MIN: f64 = 2.0;

/// Nodes on each side of the first bit in which another place differs.
const CROWD: f64 = 512.0;

/// Other places. Two, since the bits depend on an estimate of the number of nodes: those of others
/// are the same or one off.
const DETOURS: u32 = 2;

impl Lookup {
    /// Whether there is room at this distance, where only so many nodes are to be expected. One whose
    /// id fits its address (BEP 42) may have the place of one whose does not.
    pub(super) fn make_room(&mut self, distance: Distance, fits: bool) -> bool {
        for bits in (0..=distance.shared_bits()).rev() {
            let Some(expected) = self.expected_sharing(bits) else { return true };
            let limit = LIMIT_MIN + LIMIT * expected;
            if limit >= MAX_CANDIDATES as f64 {
                break;
            }
            let closer = self.candidates.partition_point(|c| c.distance.shared_bits() >= bits);
            if (closer as f64) < limit {
                continue;
            }
            self.crowded = true;
            let yields = |c: &Candidate| c.state == State::New && !c.fits;
            let last = self.candidates.iter().take(closer).rposition(yields);
            let Some(last) = last.filter(|_| fits) else { return false };
            self.candidates.remove(last);
        }
        true
    }

    /// How many nodes, dead ones too, are to be expected that share so many bits with the target.
    fn expected_sharing(&self, bits: u32) -> Option<f64> {
        let share = self.options.expected?.share().max(f64::MIN_POSITIVE);
        let alive = f64::from(self.options.answers.alive().max(0.1));
        Some(K as f64 / alive / share * (-f64::from(bits)).exp2())
    }

    /// More nodes of one block of addresses than there is room for: so near to the target, that is no
    /// accident.
    pub(super) fn one_block_near(&mut self, distance: Distance) {
        self.crowded |= Some(distance) <= self.options.expected;
    }

    /// Looks whether more have answered within any distance than are to be expected.
    pub(super) fn look_for_crowd(&mut self) {
        let Some(expected) = self.options.expected else { return };
        let density = K as f64 / expected.share().max(f64::MIN_POSITIVE);
        let more_than = |least: f64, times: f64| {
            self.responders().take(4 * K).zip(1u32..).any(|(candidate, count)| {
                f64::from(count) > least + times * density * candidate.distance.share()
            })
        };
        let (dense, suspect) = (more_than(DENSE_MIN, DENSE), more_than(SUSPECT_MIN, SUSPECT));
        self.crowded |= dense;
        self.suspected |= suspect;
    }

    /// The bits in which other places differ from the target.
    fn detour_bits(&self) -> std::ops::Range<u32> {
        let Some(expected) = self.options.expected else { return 0..0 };
        let nodes = K as f64 / expected.share().max(f64::MIN_POSITIVE);
        let first = (nodes / CROWD).max(1.0).log2() as u32;
        first..first + DETOURS
    }

    /// Looks up other places, once somebody crowds around this one, and has those who are there asked
    /// for what is looked for here.
    pub(super) fn go_round(&mut self, now: Timestamp) {
        if !self.crowded || self.options.avoid.is_some() {
            return;
        }
        if self.detours.is_empty() {
            self.detours = self.detour_bits().map(|bit| self.detour(bit, now)).collect();
        }
        let found = self.detours.iter().filter(|detour| detour.finished);
        let found: Vec<_> = found.flat_map(Lookup::closest_answering).collect();
        for to in found {
            let ask = Ask { to, target: self.target, again: false };
            let asked = self.candidates.iter().any(|c| c.contact == to && c.open > 0);
            if !asked && self.sides.iter().all(|side| side.ask != ask) {
                self.sides.push(Side { ask, state: State::New });
            }
        }
    }

    /// The lookup of another place. It has no eyes for this one.
    fn detour(&self, bit: u32, now: Timestamp) -> Self {
        let options = LookupOptions { avoid: Some(bit), beyond: None, ..self.options.clone() };
        let start: Vec<_> = self.candidates.iter().map(|c| (c.contact, c.trip)).collect();
        Self::new(self.target.flipped(bit), &start, options, now)
    }

    /// Who has answered around other places.
    pub(super) fn elsewhere(&self) -> impl Iterator<Item = super::Contact> {
        let here = |side: &&Side| side.ask.target == self.target && side.state == State::Answered;
        self.sides.iter().filter(here).map(|side| side.ask.to)
    }

    /// Answers to expect of and around other places: the end waits for them.
    pub(super) fn detours_rest(&self, now: Timestamp) -> f32 {
        if !self.crowded {
            return 0.0;
        }
        if self.detours.iter().any(|detour| !detour.finished) {
            return f32::INFINITY;
        }
        let answers = &self.options.answers;
        let hope = |side: &Side| match side.state {
            State::New => f32::INFINITY,
            State::Asked(at) | State::Again(at, _) => answers.hope(None, now.since(at)),
            State::Answered | State::Failed => 0.0,
        };
        self.sides.iter().map(hope).sum()
    }
}
