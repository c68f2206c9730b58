//! How a read is answered: at once if all of its bytes are here, and otherwise when the engine says
//! so. A request that straddles missing data is held until it can be answered whole.
//!
//! A waiting read ends in one of four ways: its bytes; `EIO` after the mount's read timeout, an
//! abort, or when the torrent or its disk is gone; `EINTR` for a direct read after
//! [`DIRECT_TIMEOUT`]; `EIO` when the mount is ended by force.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::handles::Handle;
use super::lock;
use super::ops::Fs;
use crate::engine::ReadError;

/// How long a read past the page cache waits. Its process cannot be killed meanwhile, so it is
/// interrupted: programs then try again, unless a signal is waiting for them.
pub const DIRECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a failed range stays failed. When a request for readahead has failed, the kernel asks
/// again, at once, for the page that the program wanted, and that time the program waits unkillably.
const RETRY: Duration = Duration::from_secs(1);

/// Failed ranges remembered at a time; the oldest is forgotten for another.
const MAX_FAILURES: usize = 256;

/// Answers a read; called exactly once.
pub type Reply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// A read that has not been answered.
struct Pending {
    fs: Arc<Fs>,
    handle: Arc<Handle>,
    range: Range<u64>,
    /// Past the page cache (`O_DIRECT`).
    direct: bool,
    deadline: Option<Instant>,
    /// Taken when it is answered.
    reply: Option<Reply>,
}

impl Fs {
    /// Reads up to `length` bytes at `offset`, fewer only at the end of the file. `direct` says that
    /// the read goes past the page cache. Returns at once; `reply` may be called later, on a thread
    /// of the engine.
    pub fn read(self: &Arc<Self>, handle: u64, at: u64, length: u32, direct: bool, reply: Reply) {
        let Some(handle) = self.handles.get(handle) else {
            return reply(Err(Errno::EBADF));
        };
        let end = at.saturating_add(length.into()).min(handle.size);
        if at >= end {
            return reply(Ok(&[]));
        }
        let ahead = lock(&handle.window).observe(at, end - at);
        let timeout = if direct { Some(DIRECT_TIMEOUT) } else { self.view.read_timeout };
        let pending = Pending {
            fs: Arc::clone(self),
            handle: Arc::clone(&handle),
            range: at..end,
            direct,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            reply: Some(reply),
        };
        pending.serve();
        if let Some(ahead) = ahead {
            let length = ahead.end - ahead.start;
            self.content.read_ahead(handle.id, handle.file, ahead.start, length);
        }
    }

    /// From now on nothing waits: what is not here is `EIO`. Ends the reads that wait now.
    pub fn end_reads(&self) -> usize {
        self.ending.store(true, Ordering::SeqCst);
        self.content.abort_reads()
    }
}

impl Pending {
    /// Answers the read if its bytes are here, or else has it wait for them.
    fn serve(mut self) {
        let length = (self.range.end - self.range.start) as usize;
        let (file, start) = (self.handle.file, self.range.start);
        let served = self.fs.content.read_now(file, start, length, &mut |bytes| {
            if let Some(reply) = self.reply.take() {
                reply(Ok(bytes));
            }
        });
        if served {
            return;
        }
        let now = Instant::now();
        let failed = !self.direct && self.fs.failures.covers(file, &self.range, now);
        if failed || self.fs.ending.load(Ordering::SeqCst) {
            return self.fail(Errno::EIO);
        }
        let timeout = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        let (content, handle) = (Arc::clone(&self.fs.content), self.handle.id);
        let fs = Arc::clone(&self.fs);
        let waiter = Box::new(move |result| self.woken(result));
        content.read_later(handle, file, start, length, timeout, waiter);
        // The end may have come between the look at it above and the wait.
        if fs.ending.load(Ordering::SeqCst) {
            content.abort_reads();
        }
    }

    /// The wait is over. What was here may have been evicted again, so `Ok` is a new attempt.
    fn woken(self, result: Result<(), ReadError>) {
        match result {
            Ok(()) => self.serve(),
            Err(ReadError::TimedOut) if self.direct => self.fail(Errno::EINTR),
            Err(_) => {
                self.fs.failures.add(self.handle.file, self.range.clone(), Instant::now());
                self.fail(Errno::EIO);
            }
        }
    }

    fn fail(mut self, errno: Errno) {
        if let Some(reply) = self.reply.take() {
            reply(Err(errno));
        }
    }
}

/// Ranges of files in which a read failed within the last [`RETRY`].
#[derive(Debug, Default)]
pub struct Failures {
    ranges: Mutex<VecDeque<(usize, Range<u64>, Instant)>>,
}

impl Failures {
    fn add(&self, file: usize, range: Range<u64>, now: Instant) {
        let mut ranges = lock(&self.ranges);
        if ranges.len() == MAX_FAILURES {
            ranges.pop_front();
        }
        ranges.push_back((file, range, now));
    }

    fn covers(&self, file: usize, range: &Range<u64>, now: Instant) -> bool {
        let mut ranges = lock(&self.ranges);
        while ranges.front().is_some_and(|(.., at)| now.saturating_duration_since(*at) > RETRY) {
            ranges.pop_front();
        }
        ranges.iter().any(|(f, r, _)| *f == file && r.start <= range.start && range.end <= r.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_covers_its_range_for_a_moment() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(3, 100..200, now);
        assert!(failures.covers(3, &(100..150), now));
        assert!(!failures.covers(3, &(150..250), now));
        assert!(!failures.covers(2, &(100..150), now));
        assert!(!failures.covers(3, &(100..150), now + RETRY + Duration::from_millis(1)));
    }

    #[test]
    fn failures_are_bounded() {
        let (failures, now) = (Failures::default(), Instant::now());
        (0..1000).for_each(|i| failures.add(i, 0..1, now));
        assert_eq!(lock(&failures.ranges).len(), MAX_FAILURES);
        assert!(failures.covers(999, &(0..1), now));
    }
}
