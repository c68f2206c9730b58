//! What a reader leaves behind in the kernel's page cache, while the file is fetched.
//!
//! Every byte that is read through the mount lies in memory twice: in the pages of the cache file and in
//! those of the mount. Once the file is complete the kernel reads the cache file itself (passthrough), and
//! throws the mount's pages away. Until then those that a reader has passed are of no use, and the memory
//! that they have is what the next pages need: memory that was just used is in the processor's caches, and
//! memory that never was is slow to come by, most of all in a virtual machine.

use std::ops::Range;

/// How far before the furthest read, in bytes, pages are left alone: the kernel reads up to 4 MiB ahead of
/// a program that says that it reads in order, and programs go back a little.
const KEPT: u64 = 8 * 1024 * 1024;

/// What has been passed is forgotten in steps of so many bytes. Memory that comes back in larger ones is soon given
/// back to the host, where there is one.
const STEP: u64 = 256 * 1024;

/// A read so far from the others, in bytes, is elsewhere. The kernel's readahead keeps two requests of
/// 1 MiB in flight, which may be answered in either order.
const SLACK: u64 = 2 * 1024 * 1024;

/// The way of one reader through a file, by its reads that did not find their pages.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail {
    /// Where the reads begin that were not answered. To forget their pages would be to wait for them.
    waiting: Vec<u64>,
    /// Reads were in order from here on.
    start: u64,
    /// The furthest of them ended here.
    end: u64,
    /// Nothing before this is forgotten again: who reads it a second time may do so often.
    passed: u64,
}

impl Trail {
    /// A read was asked for.
    pub(super) fn asked(&mut self, offset: u64) {
        self.waiting.push(offset);
    }

    /// It was answered. `forget` takes pages that nobody needs any more, if there are enough of them, and says whether
    /// it could.
    pub(super) fn answered(
        &mut self,
        offset: u64,
        length: u64,
        forget: impl FnOnce(Range<u64>) -> bool,
    ) {
        if let Some(at) = self.waiting.iter().position(|waiting| *waiting == offset) {
            self.waiting.swap_remove(at);
        }
        let end = offset.saturating_add(length);
        if offset > self.end.saturating_add(SLACK) || end.saturating_add(SLACK) < self.start {
            (self.start, self.end) = (offset, end);
        }
        self.end = self.end.max(end);
        let first_waiting = self.waiting.iter().copied().min().unwrap_or(u64::MAX);
        let behind = self.end.saturating_sub(KEPT).min(first_waiting);
        let behind = self.start.max(self.passed)..behind;
        if behind.end >= behind.start.saturating_add(STEP) && forget(behind.clone()) {
            self.passed = behind.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A read that is answered at once.
    fn read(trail: &mut Trail, offset: u64, length: u64) -> Option<Range<u64>> {
        let mut forgotten = None;
        trail.asked(offset);
        trail.answered(offset, length, |range| forgotten.replace(range).is_none());
        forgotten
    }

    /// Reads a range in requests of 1 MiB.
    fn run(trail: &mut Trail, range: Range<u64>) -> Vec<Range<u64>> {
        range.filter_map(|at| read(trail, at * MIB, MIB)).collect()
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
        let forgotten: Vec<_> = order.filter_map(|at| read(&mut trail, at * MIB, MIB)).collect();
        assert_eq!(forgotten.last().map(|one| one.end), Some(100 * MIB - KEPT));
    }

    #[test]
    fn reads_here_and_there_leave_nothing_behind() {
        let mut trail = Trail::default();
        let offsets = (0..1000u64).map(|i| i * 7919 % 1000 * 4 * MIB);
        assert_eq!(offsets.filter_map(|at| read(&mut trail, at, 4096)).count(), 0);
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
        read(&mut trail, u64::MAX, u64::MAX);
        read(&mut trail, u64::MAX - MIB, MIB);
        assert_eq!(trail.end, u64::MAX);
    }

    #[test]
    fn pages_of_a_read_that_waits_are_left_alone_and_so_is_what_lies_behind_it() {
        let mut trail = Trail::default();
        trail.asked(3 * MIB);
        run(&mut trail, 0..3);
        let forgotten = run(&mut trail, 4..30);
        assert_eq!(forgotten.last().map(|one| one.end), Some(3 * MIB));
        let mut rest = None;
        trail.answered(3 * MIB, MIB, |range| rest.replace(range).is_none());
        assert_eq!(rest, Some(3 * MIB..30 * MIB - KEPT));
    }

    #[test]
    fn what_could_not_be_forgotten_is_the_next_time() {
        let mut trail = Trail::default();
        for at in 0..20 {
            trail.asked(at * MIB);
            trail.answered(at * MIB, MIB, |_| false);
        }
        assert_eq!(run(&mut trail, 20..21).first(), Some(&(0..21 * MIB - KEPT)));
    }
}
