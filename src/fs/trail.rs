//! What a reader leaves behind in the kernel's page cache, while the file is fetched.
//!
//! Every byte that is read through the mount lies in memory twice: in the pages of the cache file and in
//! those of the mount. Once the file is complete the kernel reads the cache file itself (passthrough), and
//! throws the mount's pages away. Until then those that a reader has passed are of no use, and the memory
//! that they have is what the next pages need: memory that was just used is in the processor's caches, and
//! memory that never was is slow to come by, most of all in a virtual machine.

use std::ops::Range;

/// How far before the furthest read, in bytes, pages are left alone: the kernel reads up to 2 MiB ahead of
/// the program, and programs go back a little.
const KEPT: u64 = 4 * 1024 * 1024;

/// What has been passed is forgotten in steps of so many bytes. Memory that comes back in larger ones is soon given
/// back to the host, where there is one.
const STEP: u64 = 256 * 1024;

/// A read so far from the furthest one, in bytes, is elsewhere. The kernel's readahead keeps two requests of
/// 1 MiB in flight, which may be handled in either order.
const SLACK: u64 = 2 * 1024 * 1024;

/// The way of one reader through a file, by its reads that did not find their pages.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail {
    /// Reads were in order from here on.
    start: u64,
    /// The furthest of them ended here.
    end: u64,
    /// What lies before this was forgotten once. It is not again: who reads it a second time may do so often.
    passed: u64,
}

impl Trail {
    /// Takes note of a read; which pages nobody needs any more, if there are enough of them.
    pub(super) fn read(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length);
        if offset > self.end.saturating_add(SLACK) || end.saturating_add(SLACK) < self.end {
            (self.start, self.end) = (offset, end);
        }
        self.end = self.end.max(end);
        let behind = self.start.max(self.passed)..self.end.saturating_sub(KEPT);
        if behind.end < behind.start.saturating_add(STEP) {
            return None;
        }
        self.passed = behind.end;
        Some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads a range in requests of 1 MiB.
    fn run(trail: &mut Trail, range: Range<u64>) -> Vec<Range<u64>> {
        range.filter_map(|at| trail.read(at * MIB, MIB)).collect()
    }

    #[test]
    fn what_was_passed_is_forgotten_once_and_without_a_gap() {
        let mut trail = Trail::default();
        let forgotten = run(&mut trail, 0..100);
        assert_eq!(forgotten.first().map(|one| one.start), Some(0));
        assert!(forgotten.windows(2).all(|two| two[0].end == two[1].start), "{forgotten:?}");
        assert_eq!(forgotten.last().map(|one| one.end), Some(100 * MIB - KEPT));
        assert_eq!(run(&mut trail, 0..90), []);
        assert_eq!(run(&mut trail, 90..110).first().map(|one| one.start), Some(100 * MIB - KEPT));
    }

    #[test]
    fn reads_that_overtake_each_other_are_in_order() {
        let mut trail = Trail::default();
        let order = (0..50).flat_map(|pair| [2 * pair + 1, 2 * pair]);
        let forgotten: Vec<_> = order.filter_map(|at| trail.read(at * MIB, MIB)).collect();
        assert_eq!(forgotten.last().map(|one| one.end), Some(100 * MIB - KEPT));
    }

    #[test]
    fn reads_here_and_there_leave_nothing_behind() {
        let mut trail = Trail::default();
        let offsets = (0..1000u64).map(|i| i * 7919 % 1000 * 4 * MIB);
        assert_eq!(offsets.filter_map(|at| trail.read(at, 4096)).count(), 0);
    }

    #[test]
    fn a_look_at_the_end_changes_nothing() {
        let mut trail = Trail::default();
        assert_eq!(run(&mut trail, 0..1), []);
        assert_eq!(run(&mut trail, 99..100), []);
        assert_eq!(run(&mut trail, 0..99).first().map(|one| one.start), Some(0));
    }

    #[test]
    fn no_read_goes_past_the_end_of_numbers() {
        let mut trail = Trail::default();
        trail.read(u64::MAX, u64::MAX);
        trail.read(u64::MAX - MIB, MIB);
        assert_eq!(trail.end, u64::MAX);
    }
}
