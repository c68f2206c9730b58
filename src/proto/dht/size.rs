//! How many nodes there are, by how densely they lie.
//!
//! Ids are spread evenly, so the distance of the k-th closest node to some target tells how many
//! there are. Whoever crowds many ids around one target changes one sample only; the estimate is the
//! median of many.

use std::collections::VecDeque;

use super::id::{Distance, K};

/// The latest samples that count: their median is right within a tenth or so.
const SAMPLES: usize = 64;

/// Fewer samples say nothing yet.
const ENOUGH: usize = 3;

/// An estimate of the number of nodes.
#[derive(Clone, Debug, Default)]
pub struct Size {
    samples: VecDeque<f64>,
}

impl Size {
    /// A lookup has ended; these are the distances to its target of the closest nodes that answered,
    /// ascending. Fewer than k mean that there are so few.
    pub fn sample(&mut self, distances: &[Distance]) {
        let Some(estimate) = density(distances) else { return };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(estimate);
    }

    /// How many nodes there are; `None` when too little is known.
    pub fn nodes(&self) -> Option<f64> {
        let mut sorted: Vec<_> = self.samples.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        (sorted.len() >= ENOUGH).then(|| sorted.get(sorted.len() / 2).copied())?
    }

    /// The distance from any target within which `n` nodes are to be expected.
    pub fn expected(&self, n: usize) -> Option<Distance> {
        self.nodes().map(|nodes| Distance::of_share(n as f64 / nodes))
    }
}

/// The number of nodes of which the last one lies so far away. A third is taken off so that half
/// of the samples are too high and half too low (the median of a gamma distribution).
fn density(distances: &[Distance]) -> Option<f64> {
    let closest = distances.get(..distances.len().min(K))?;
    let farthest = closest.last()?.share().max(f64::MIN_POSITIVE);
    Some((closest.len() as f64 - 1.0 / 3.0) / farthest)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The distances of the closest of so many nodes.
    fn closest(nodes: usize, rng: &mut ChaCha8Rng) -> Vec<Distance> {
        let mut all: Vec<_> =
            (0..nodes).map(|_| Distance::of_share(rng.random_range(0.0..1.0))).collect();
        all.sort();
        all.truncate(K);
        all
    }

    #[test]
    fn the_estimate_is_right_within_a_quarter() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for nodes in [100, 3_000] {
            let mut size = Size::default();
            (0..100).for_each(|_| size.sample(&closest(nodes, &mut rng)));
            let ratio = size.nodes().unwrap() / nodes as f64;
            assert!((0.8..1.25).contains(&ratio), "{ratio}");
            assert!((size.expected(8).unwrap().share() * nodes as f64 - 8.0).abs() < 2.0);
        }
    }

    #[test]
    fn who_crowds_around_some_targets_changes_little() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut size = Size::default();
        for i in 0..64 {
            let mut found = closest(3_000, &mut rng);
            if i % 4 == 0 {
                found = vec![Distance::of_share(1e-9); K];
            }
            size.sample(&found);
        }
        assert!(size.nodes().unwrap() < 6_000.0, "{:?}", size.nodes());
    }

    #[test]
    fn too_few_samples_and_empty_ones_say_nothing() {
        let mut size = Size::default();
        (0..9).for_each(|_| size.sample(&[]));
        size.sample(&[Distance::of_share(0.1)]);
        size.sample(&[Distance::of_share(0.1)]);
        assert_eq!(size.nodes(), None);
        size.sample(&[Distance::of_share(0.0)]);
        assert!(size.nodes().is_some());
        assert!(size.expected(8).is_some());
    }
}
