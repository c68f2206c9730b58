//! Somebody crowds around the target: one who wants to be all that is found there.
//!
//! It is known by the number of nodes, of which only so many are to be expected at any distance. No
//! more are candidates, so the crowd does not use up a lookup. But it also fills the tables of honest
//! nodes: asked for the target, they name the crowd and nobody else. So each is asked for its own side
//! of the neighbourhood, where the crowd is not, and names its own neighbours. And whoever announces
//! tells all that answer within a greater distance, whoever searches asks all of them.

use std::time::Duration;

use super::super::id::{Distance, K};
use super::{Ask, Lookup, MAX_CANDIDATES, Side, State};
use crate::proto::time::Timestamp;

/// How many times as many candidates there may be as are to be expected.
const LIMIT: f64 = 2.0;

/// So many more may be, however few are to be expected.
const LIMIT_MIN: f64 = 4.0;

/// Everyone is asked within so many times the distance within which k nodes are to be expected: where
/// the crowd is as far from the target as honest nodes, those beyond it are all that can be found.
const REACH: f64 = 8.0;

/// Answers to expect of the front: the crowd answers, and must not be all that is asked.
pub(super) const FRONT: f32 = 4.0 * K as f32;

/// Nodes asked for their own side.
const MAX_SIDES: usize = 40;

/// Of one side at least so many are asked: one alone may be of the crowd.
const PER_SIDE: f64 = 2.0;

/// Of a greater side so many of its nodes are asked; each names k.
const SHARE_OF_SIDE: f64 = 0.25;

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
            self.spread_out();
            let yields = |c: &super::Candidate| c.state == State::New && !c.fits;
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
        if Some(distance) <= self.options.expected {
            self.spread_out();
        }
    }

    /// From now on those farther from the target are asked too.
    fn spread_out(&mut self) {
        let reach = self.options.expected.map(|d| Distance::of_share(REACH * d.share()));
        self.crowded = true;
        self.beyond = self.beyond.max(reach);
    }

    /// Has those that have answered asked for their own side, where the crowd is not.
    pub(super) fn look_around_crowd(&mut self) {
        if !self.crowded {
            return;
        }
        for at in 0..self.candidates.len() {
            let Some(candidate) = self.candidates.get(at) else { return };
            if Some(candidate.distance) > self.beyond || self.sides.len() >= MAX_SIDES {
                return;
            }
            let (to, bits) = (candidate.contact, candidate.distance.shared_bits());
            let ask = Ask { to, target: self.target.flipped(bits) };
            let once = self.sides.iter().all(|side| side.ask.to != to);
            let same = self.sides.iter().filter(|side| side.ask.target == ask.target).count();
            let of_side = self.expected_sharing(bits + 1).unwrap_or(0.0) * SHARE_OF_SIDE;
            if candidate.state == State::Answered && once && (same as f64) < of_side.max(PER_SIDE) {
                self.sides.push(Side { ask, state: State::New });
            }
        }
    }

    /// Answers to expect from those that were asked for their own side: the end waits for them.
    pub(super) fn crowd_rest(&self, now: Timestamp) -> f32 {
        let hope = |side: &Side| match side.state {
            State::New => self.options.answers.hope(None, Duration::ZERO),
            State::Asked(at) => self.options.answers.hope(None, now.since(at)),
            State::Answered | State::Failed => 0.0,
        };
        if self.crowded { self.sides.iter().map(hope).sum() } else { 0.0 }
    }
}
