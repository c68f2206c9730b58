//! How soon nodes answer, and how many do: what tells a slow node from a dead one.
//!
//! A node that was measured is late by its own measure ([`RoundTrip`]). Most nodes that a lookup
//! asks were never heard of before; they are judged by all others ([`Answers`]).

use std::time::Duration;

/// A node is never late before this: threads wait for each other that long on a busy machine.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(50);

/// A node is late after this, whatever was measured.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one node takes to answer: the mean and how far it strays (RFC 6298), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    smoothed: u32,
    deviation: u32,
}

impl RoundTrip {
    /// After the first answer.
    pub fn first(sample: Duration) -> Self {
        let smoothed = micros(sample);
        Self { smoothed, deviation: smoothed / 2 }
    }

    /// After another answer.
    #[must_use]
    pub fn then(self, sample: Duration) -> Self {
        let off = self.smoothed.abs_diff(micros(sample));
        Self {
            smoothed: self.smoothed - self.smoothed / 8 + micros(sample) / 8,
            deviation: self.deviation - self.deviation / 4 + off / 4,
        }
    }

    /// The mean.
    pub fn mean(self) -> Duration {
        Duration::from_micros(self.smoothed.into())
    }

    /// After this the answer is late.
    pub fn timeout(self) -> Duration {
        let micros = u64::from(self.smoothed) + 4 * u64::from(self.deviation);
        Duration::from_micros(micros).clamp(MIN_TIMEOUT, MAX_TIMEOUT)
    }
}

/// Longer ones are cut: no answer is waited for so long.
fn micros(sample: Duration) -> u32 {
    sample.as_micros().min(60_000_000) as u32
}

/// Bins of the distribution, four to a doubling.
const BINS: usize = 56;

/// The first bin ends here; the last one, 14 doublings later, begins at 7 s.
const FIRST_BIN_MICROS: f32 = 500.0;

/// What is believed before anything was measured: a median of 100 ms, and one out of six takes
/// more than 220 ms.
const PRIOR_MEDIAN_MICROS: f32 = 100_000.0;
/// The same: the standard deviation of the logarithm.
const PRIOR_SPREAD: f32 = 0.8;
/// As many answers outweigh the prior.
const PRIOR_WEIGHT: f32 = 8.0;
/// The share of unknown nodes that are supposed to answer: addresses in tables outlive nodes.
const PRIOR_ALIVE: f32 = 0.7;

/// No more than this are supposed to answer, whatever was seen: nodes die, sometimes many at once,
/// and whoever never doubts waits too long for each.
const MAX_ALIVE: f32 = 0.85;

/// The share of silent nodes that are supposed to answer when they are asked again, before any was:
/// few datagrams are lost, most of the silent are dead.
const PRIOR_LOST: f32 = 0.05;
/// As many second questions outweigh that.
const PRIOR_LOST_WEIGHT: f32 = 4.0;

/// From this share on everyone silent is worth a second question.
const LOSSY: f32 = 0.08;

/// When so much was seen, all of it counts half: networks change.
const MEMORY: f32 = 1024.0;

/// How nodes answer that nothing is known of: how many, and the distribution of their round trips.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    bins: [f32; BINS],
    total: f32,
    answered: f32,
    silent: f32,
    /// Second questions to the silent, and how many of them were answered.
    again: f32,
    lost: f32,
}

impl Default for Answers {
    fn default() -> Self {
        let mut bins = [0.0; BINS];
        for (i, bin) in bins.iter_mut().enumerate() {
            let deviations = (bin_end(i) / PRIOR_MEDIAN_MICROS).ln() / PRIOR_SPREAD;
            // The logistic curve that is nearest to the normal one.
            *bin = PRIOR_WEIGHT / (1.0 + (-1.702 * deviations).exp());
        }
        (1..BINS).rev().for_each(|i| bins[i] -= bins[i - 1]);
        let total = bins.iter().sum();
        let answered = PRIOR_WEIGHT * PRIOR_ALIVE;
        let (again, lost) = (PRIOR_LOST_WEIGHT, PRIOR_LOST_WEIGHT * PRIOR_LOST);
        Self { bins, total, answered, silent: PRIOR_WEIGHT - answered, again, lost }
    }
}

/// Where a bin ends, in microseconds.
fn bin_end(i: usize) -> f32 {
    FIRST_BIN_MICROS * (i as f32 / 4.0).exp2()
}

/// Where a round trip lies among the bins; the part after the point is how far into its bin.
fn position(round_trip: Duration) -> f32 {
    let micros = micros(round_trip) as f32;
    if micros <= FIRST_BIN_MICROS {
        return micros / FIRST_BIN_MICROS;
    }
    (1.0 + 4.0 * (micros / FIRST_BIN_MICROS).log2()).min(BINS as f32)
}

impl Answers {
    /// An answer came after `round_trip`.
    pub fn answered(&mut self, round_trip: Duration) {
        self.measured(round_trip);
        self.answered += 1.0;
        self.fade();
    }

    /// The same, while nobody knows yet how many others will not answer.
    pub fn measured(&mut self, round_trip: Duration) {
        let bin = (position(round_trip) as usize).min(BINS - 1);
        self.bins[bin] += 1.0;
        self.total += 1.0;
    }

    /// No answer came.
    pub fn silent(&mut self) {
        self.silent += 1.0;
        self.fade();
    }

    /// A silent node was asked again and has `answered` then, or has not.
    pub fn asked_again(&mut self, answered: bool) {
        self.again += 1.0;
        self.lost += f32::from(u8::from(answered));
        if self.again > MEMORY {
            (self.again, self.lost) = (self.again / 2.0, self.lost / 2.0);
        }
    }

    /// The share of silent nodes that answer when they are asked again, 0–1: datagrams were lost.
    pub fn lost(&self) -> f32 {
        self.lost / self.again
    }

    /// Whether so much is lost that everyone silent is worth a second question.
    pub fn is_lossy(&self) -> bool {
        self.lost() >= LOSSY
    }

    /// After this a silent node may be asked again: hardly any answer takes longer.
    pub fn ask_again_after(&self, node: Option<RoundTrip>) -> Duration {
        let unknown = || self.within(0.95).clamp(MIN_TIMEOUT, MAX_TIMEOUT);
        node.map_or_else(unknown, RoundTrip::timeout)
    }

    fn fade(&mut self) {
        if self.answered + self.silent > MEMORY {
            let parts = [&mut self.total, &mut self.answered, &mut self.silent];
            self.bins.iter_mut().chain(parts).for_each(|weight| *weight /= 2.0);
        }
    }

    /// The share of unknown nodes that answer, 0–1.
    pub fn alive(&self) -> f32 {
        (self.answered / (self.answered + self.silent)).min(MAX_ALIVE)
    }

    /// The share of answers that take longer than `age`, 0–1.
    pub fn later_than(&self, age: Duration) -> f32 {
        let position = position(age);
        let whole = (position as usize).min(BINS);
        let before: f32 = self.bins.iter().take(whole).sum();
        let part = self.bins.get(whole).map_or(0.0, |bin| bin * position.fract());
        (1.0 - (before + part) / self.total).clamp(0.0, 1.0)
    }

    /// Within this time comes a share of `share` of the answers.
    pub fn within(&self, share: f32) -> Duration {
        let (mut wanted, mut end) = (share * self.total, 0);
        while end + 1 < BINS && wanted > self.bins[end] {
            wanted -= self.bins[end];
            end += 1;
        }
        let part = if self.bins[end] > 0.0 { (wanted / self.bins[end]).min(1.0) } else { 1.0 };
        let micros = match end {
            0 => FIRST_BIN_MICROS * part,
            end => bin_end(end - 1) * (part / 4.0).exp2(),
        };
        Duration::from_micros(micros as u64)
    }

    /// After this an answer is late: of a node that was measured by its own measure, of another by
    /// that of all.
    pub fn timeout(&self, node: Option<RoundTrip>) -> Duration {
        let unknown = || (self.within(0.95) * 3 / 2).clamp(MIN_TIMEOUT, MAX_TIMEOUT);
        node.map_or_else(unknown, RoundTrip::timeout)
    }

    /// How likely it is, 0–1, that a node which was asked `age` ago will still answer.
    pub fn hope(&self, node: Option<RoundTrip>, age: Duration) -> f32 {
        // Where answers come at once, one that does not is a thread that waits for its turn.
        let patience = if age < MIN_TIMEOUT { 0.5 } else { 0.0 };
        let alive = self.alive() * self.later_than(age).max(patience);
        let hope = alive / (alive + 1.0 - self.alive());
        match node {
            // It has answered before, and so soon that the others say nothing about it.
            Some(node) if age < node.timeout() => hope.max(0.5),
            Some(_) => hope.min(0.05),
            None => hope,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_node_is_late_soon_and_an_unsteady_one_later() {
        let steady = (0..50).fold(RoundTrip::first(ms(80)), |trip, _| trip.then(ms(80)));
        let unsteady = (0..50).fold(RoundTrip::first(ms(80)), |trip, i| trip.then(ms(i % 2 * 160)));
        assert!(steady.timeout() < ms(90), "{steady:?}");
        assert!(unsteady.timeout() > ms(250), "{unsteady:?}");
    }

    #[test]
    fn timeouts_have_bounds() {
        assert_eq!(RoundTrip::first(Duration::ZERO).timeout(), MIN_TIMEOUT);
        assert_eq!(RoundTrip::first(ms(100_000)).timeout(), MAX_TIMEOUT);
        let mut answers = Answers::default();
        (0..5_000).for_each(|_| answers.answered(Duration::from_micros(80)));
        assert_eq!(answers.timeout(None), MIN_TIMEOUT);
        (0..5_000).for_each(|_| answers.answered(ms(9_000)));
        assert_eq!(answers.timeout(None), MAX_TIMEOUT);
    }

    #[test]
    fn what_was_measured_outweighs_what_was_believed() {
        let mut answers = Answers::default();
        assert!(answers.within(0.5) > ms(80) && answers.within(0.5) < ms(125));
        (0..200).for_each(|i| answers.answered(ms(10 + i % 20)));
        assert!(answers.within(0.5) > ms(15) && answers.within(0.5) < ms(25));
        assert!(answers.timeout(None) < ms(100));
    }

    #[test]
    fn the_longer_a_node_is_silent_the_less_hope_there_is() {
        let answers = Answers::default();
        assert!((answers.hope(None, Duration::ZERO) - 0.7).abs() < 0.01);
        let hopes: Vec<_> = (0..40).map(|i| answers.hope(None, ms(i * 50))).collect();
        assert!(hopes.is_sorted_by(|a, b| a >= b), "{hopes:?}");
        assert!(hopes[39] < 0.05);
    }

    #[test]
    fn a_node_that_was_measured_is_judged_by_its_own_measure() {
        let (answers, node) = (Answers::default(), RoundTrip::first(ms(20)).then(ms(20)));
        assert!(answers.hope(Some(node), ms(45)) >= 0.5);
        assert!(answers.hope(Some(node), ms(100)) <= 0.05);
        assert!(answers.hope(None, ms(100)) > 0.4);
    }

    #[test]
    fn where_answers_come_at_once_a_node_may_still_be_busy() {
        let mut answers = Answers::default();
        (0..5_000).for_each(|_| answers.answered(Duration::from_micros(80)));
        assert!(answers.hope(None, ms(49)) > 0.7);
        assert!(answers.hope(None, ms(50)) < 0.01);
    }

    proptest! {
        #[test]
        fn the_share_within_a_time_and_the_time_of_a_share_agree(
            samples in prop::collection::vec(0u64..8_000_000, 0..300), share in 0.01f32..0.99,
        ) {
            let mut answers = Answers::default();
            for sample in samples {
                answers.answered(Duration::from_micros(sample));
            }
            let later = answers.later_than(answers.within(share));
            prop_assert!((later - (1.0 - share)).abs() < 0.02, "{later} {share}");
        }
    }
}
