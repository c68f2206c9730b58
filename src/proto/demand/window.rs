//! The read window of one open file: what its reads so far say about the reads to come.
//!
//! The kernel turns a program's reads into requests that overlap, arrive out of order and are
//! larger than what was asked for. So a window does not look at single requests but at *runs*:
//! stretches of the file that were read almost without a gap. A run that has grown is read ahead of
//! in proportion to what it has read already (which doubles, read by read, up to a budget); a run
//! that has not is no reason to fetch anything. Hence a random reader causes no readahead at all,
//! and a program that probes the head and the tail of every file causes little.

use std::ops::Range;

/// How far from a run, in bytes, a read still belongs to it: the kernel keeps two requests of up to
/// 1 MiB in flight, and they may be handled in either order.
const SLACK: u64 = 2 * 1024 * 1024;

/// A run is read ahead of by at least this much, in bytes, once it is one.
const FIRST: u64 = 1024 * 1024;

/// A run shorter than this, in bytes, is a probe. The kernel's own readahead makes 256 KiB of a
/// program's first read of a few KiB up to 128 KiB.
const PROBE: u64 = 256 * 1024;

/// Runs remembered at a time: players read the picture, the sound and an index side by side.
const RUNS: usize = 4;

/// So many reads elsewhere, and the run that is read ahead of counts as abandoned.
const STRAYS: u32 = 4;

/// What to read ahead of one handle, derived from its reads. Offsets and lengths are in bytes.
#[derive(Clone, Debug)]
pub struct ReadWindow {
    size: u64,
    budget: u64,
    /// Most recently read last.
    runs: Vec<Run>,
    /// What the caller was told last.
    announced: Range<u64>,
    /// Reads since one belonged to the announced run.
    strays: u32,
}

/// A stretch of the file that was read almost without a gap.
#[derive(Clone, Debug)]
struct Run {
    start: u64,
    end: u64,
    /// Bytes of it that were read, never more than its length.
    read: u64,
    /// Reads that moved its end forward.
    advances: u32,
}

impl ReadWindow {
    /// The window of a newly opened file of `size` bytes, never reading more than `budget` bytes
    /// ahead.
    pub fn new(size: u64, budget: u64) -> Self {
        Self { size, budget, runs: Vec::new(), announced: 0..0, strays: 0 }
    }

    /// Takes note of a read. Returns what should be read ahead from now on (an empty range: nothing)
    /// when that has changed enough to say so.
    pub fn observe(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length).min(self.size);
        if offset >= end {
            return None;
        }
        let mut run = self.take_run(offset, end);
        let advanced = run.add(offset, end);
        let ahead = run.ahead(self.size, self.budget);
        let end = run.end;
        self.runs.push(run);
        match ahead {
            Some(_) if !advanced => None,
            Some(ahead) => self.announce(ahead),
            // The end of the file: nothing is left to be read ahead.
            None if end == self.size && self.announced.contains(&end.saturating_sub(1)) => {
                self.announce(0..0)
            }
            None => self.stray(),
        }
    }

    /// Forgets what was announced, because it was withdrawn; whether there was anything. The next
    /// read of a run announces it again.
    pub fn withdraw(&mut self) -> bool {
        !std::mem::take(&mut self.announced).is_empty()
    }

    /// The run that a read belongs to, taken out of the list; a new one if there is none.
    fn take_run(&mut self, offset: u64, end: u64) -> Run {
        if let Some(at) = self.runs.iter().rposition(|run| run.is_near(offset, end)) {
            return self.runs.remove(at);
        }
        if self.runs.len() == RUNS {
            self.runs.remove(0);
        }
        Run { start: offset, end: offset, read: 0, advances: 0 }
    }

    fn announce(&mut self, ahead: Range<u64>) -> Option<Range<u64>> {
        self.strays = 0;
        let step = (ahead.end - ahead.start) / 4;
        let moved = ahead.start.abs_diff(self.announced.start) > step
            || ahead.end.abs_diff(self.announced.end) > step
            || ahead.is_empty() != self.announced.is_empty();
        moved.then(|| {
            self.announced = ahead.clone();
            ahead
        })
    }

    /// A read that says nothing about the next one.
    fn stray(&mut self) -> Option<Range<u64>> {
        self.strays += 1;
        if self.announced.is_empty() || self.strays < STRAYS {
            return None;
        }
        self.announce(0..0)
    }
}

impl Run {
    fn is_near(&self, offset: u64, end: u64) -> bool {
        offset <= self.end.saturating_add(SLACK) && end.saturating_add(SLACK) >= self.start
    }

    /// Adds a read; whether it moved the end forward.
    fn add(&mut self, offset: u64, end: u64) -> bool {
        let advanced = end > self.end;
        self.start = self.start.min(offset);
        // What it repeats of the run does not count, as far as that can be told without a list.
        self.read += if advanced { end - offset.max(self.end) } else { end - offset };
        self.end = self.end.max(end);
        self.read = self.read.min(self.end - self.start);
        self.advances += u32::from(advanced);
        advanced
    }

    /// What to read ahead of this run; `None` if it is no sequential read or has reached the end.
    fn ahead(&self, size: u64, budget: u64) -> Option<Range<u64>> {
        let dense = self.read >= (self.end - self.start) / 2;
        if self.advances < 2 || self.read < PROBE || !dense || self.end >= size {
            return None;
        }
        let length = (self.read.saturating_mul(2)).max(FIRST).min(budget);
        Some(self.end..self.end.saturating_add(length).min(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    const BUDGET: u64 = 32 * MIB;

    /// Feeds reads; every announcement that came out.
    fn announcements(
        window: &mut ReadWindow,
        reads: impl IntoIterator<Item = (u64, u64)>,
    ) -> Vec<Range<u64>> {
        reads.into_iter().filter_map(|(offset, length)| window.observe(offset, length)).collect()
    }

    fn sequential(from: u64, to: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
        (from..to).step_by(step as usize).map(move |at| (at, step.min(to - at)))
    }

    #[test]
    fn one_read_of_the_head_gets_nothing() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        assert_eq!(window.observe(0, 256 * KIB), None);
    }

    #[test]
    fn probes_of_head_and_tail_get_nothing() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let probes = [(0, 16 * KIB), (16 * KIB, 32 * KIB), ((1 << 30) - 64 * KIB, 64 * KIB)];
        assert!(announcements(&mut window, probes).is_empty());
    }

    #[test]
    fn a_head_of_a_mebibyte_gets_little() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let said = announcements(&mut window, sequential(0, MIB, 128 * KIB));
        assert!(said.iter().all(|ahead| ahead.end <= 3 * MIB), "{said:?}");
    }

    #[test]
    fn a_sequential_read_doubles_up_to_the_budget() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let said = announcements(&mut window, sequential(0, 64 * MIB, 128 * KIB));
        let lengths: Vec<_> = said.iter().map(|ahead| ahead.end - ahead.start).collect();
        assert!(lengths.is_sorted(), "{lengths:?}");
        assert_eq!(lengths.first(), Some(&MIB));
        assert_eq!(lengths.last(), Some(&BUDGET));
    }

    #[test]
    fn few_of_the_reads_are_worth_a_word() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let said = announcements(&mut window, sequential(0, 1 << 30, 128 * KIB));
        assert!(said.len() < 8192 / 50, "{} announcements for 8192 reads", said.len());
    }

    #[test]
    fn what_is_announced_stays_ahead_of_a_steady_reader() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let mut announced = 0..0;
        for (offset, length) in sequential(0, 512 * MIB, 128 * KIB) {
            announced = window.observe(offset, length).unwrap_or(announced);
            if offset > 32 * MIB {
                assert!(announced.end >= offset + BUDGET / 2, "{announced:?} at {offset}");
                assert!(announced.start + BUDGET / 2 >= offset, "{announced:?} at {offset}");
            }
        }
    }

    #[test]
    fn swapped_and_repeated_requests_are_sequential_all_the_same() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let mut reads: Vec<_> = sequential(0, 64 * MIB, MIB).collect();
        reads.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        reads.insert(5, reads[4]);
        let said = announcements(&mut window, reads);
        assert_eq!(said.last().map(|ahead| ahead.end - ahead.start), Some(BUDGET));
    }

    #[test]
    fn random_reads_get_nothing() {
        let size = 1u64 << 30;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let reads: Vec<_> =
            (0..5000).map(|_| (rng.random_range(0..size / 4096) * 4096, 4096)).collect();
        assert!(announcements(&mut ReadWindow::new(size, BUDGET), reads).is_empty());
    }

    #[test]
    fn reading_backwards_gets_nothing() {
        let mut reads: Vec<_> = sequential(0, 64 * MIB, 128 * KIB).collect();
        reads.reverse();
        assert!(announcements(&mut ReadWindow::new(1 << 30, BUDGET), reads).is_empty());
    }

    #[test]
    fn a_probe_in_between_does_not_end_the_readahead() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        announcements(&mut window, sequential(0, 8 * MIB, 128 * KIB));
        assert_eq!(window.observe(1 << 29, 64 * KIB), None);
        let said = announcements(&mut window, sequential(8 * MIB, 32 * MIB, 128 * KIB));
        assert!(said.iter().all(|ahead| ahead.end - ahead.start >= 16 * MIB), "{said:?}");
    }

    #[test]
    fn a_reader_that_turns_random_is_read_ahead_of_no_longer() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        announcements(&mut window, sequential(0, 8 * MIB, 128 * KIB));
        let far = (1..20).map(|i| (i * 50 * MIB, 4 * KIB));
        let said = announcements(&mut window, far);
        assert!(said.len() == 1 && said.iter().all(Range::is_empty), "{said:?}");
    }

    #[test]
    fn a_seek_starts_small_again() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        announcements(&mut window, sequential(0, 64 * MIB, 128 * KIB));
        let said = announcements(&mut window, sequential(500 * MIB, 501 * MIB, 128 * KIB));
        let first = said.first().cloned().unwrap();
        assert!(first.start > 500 * MIB && first.end <= 502 * MIB, "{first:?}");
    }

    #[test]
    fn two_streams_in_one_file_are_both_read_ahead_of() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        let pairs = sequential(0, 32 * MIB, MIB).flat_map(|(at, n)| [(at, n), (at + 512 * MIB, n)]);
        let said = announcements(&mut window, pairs);
        assert!(said.iter().any(|ahead| ahead.start < 64 * MIB));
        assert!(said.iter().any(|ahead| ahead.start > 512 * MIB));
    }

    #[test]
    fn at_the_end_nothing_is_left() {
        let mut window = ReadWindow::new(8 * MIB, BUDGET);
        let said = announcements(&mut window, sequential(0, 8 * MIB, 128 * KIB));
        assert_eq!(said.last(), Some(&(0..0)));
    }

    #[test]
    fn what_was_withdrawn_is_announced_again() {
        let mut window = ReadWindow::new(1 << 30, BUDGET);
        announcements(&mut window, sequential(0, 32 * MIB, MIB));
        assert!(window.withdraw());
        assert!(!window.withdraw());
        let ahead = 33 * MIB..33 * MIB + BUDGET;
        assert_eq!(window.observe(32 * MIB, MIB), Some(ahead));
    }

    proptest! {
        #[test]
        fn nothing_outside_the_file_or_the_budget_is_ever_asked_for(
            size in 0u64..(1 << 40),
            budget in 1u64..(1 << 30),
            reads in prop::collection::vec((any::<u64>(), any::<u64>(), 0u64..4), 0..200),
        ) {
            let mut window = ReadWindow::new(size, budget);
            let mut at = 0u64;
            for (offset, length, kind) in reads {
                // A mixture of anything at all and of runs.
                let (offset, length) =
                    if kind == 0 { (offset, length) } else { (at, length % (4 * MIB)) };
                at = offset.saturating_add(length) % size.max(1);
                if let Some(ahead) = window.observe(offset, length) {
                    prop_assert!(ahead.start <= ahead.end && ahead.end <= size);
                    prop_assert!(ahead.end - ahead.start <= budget);
                }
            }
        }
    }
}
