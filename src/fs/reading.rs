//! How a read is answered: at once if all of its bytes are here, and otherwise when the engine says
//! so. A request that straddles missing data is held until it can be answered whole.
//!
//! A waiting read ends in one of these ways: its bytes; `EIO` after the mount's read timeout, an
//! abort, or when the torrent or its disk is gone; `EINTR` when its program is to end
//! (`signals.rs`) or, past the page cache, cannot be seen; `EIO` when the mount is ended by force.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::handles::Handle;
use super::lock;
use super::ops::Fs;
use crate::engine::ReadError;

/// How long a failed range stays failed. When a request for readahead has failed, the kernel asks
/// again, at once, for the page that the program wanted, and that time the program waits unkillably.
const RETRY: Duration = Duration::from_secs(1);

/// Failed ranges remembered at a time; the oldest is forgotten for another.
const MAX_FAILURES: usize = 1024;

/// Answers a read; called exactly once.
pub type Reply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    /// The open file's number.
    pub handle: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// The thread that reads; 0 if the kernel does not say.
    pub pid: u32,
}

/// A read that has not been answered.
pub(super) struct Ticket {
    fs: Arc<Fs>,
    handle: Arc<Handle>,
    range: Range<u64>,
    pub(super) direct: bool,
    pub(super) pid: u32,
    pub(super) since: Instant,
    deadline: Option<Instant>,
    /// The handle's flushes when the engine was last told that this read waits.
    flushes: AtomicU32,
    /// Taken when it is answered.
    reply: Mutex<Option<Reply>>,
}

impl Fs {
    /// Reads what is asked for, less only at the end of the file. Returns at once; `reply` may be
    /// called later, on a thread of the engine.
    pub fn read(self: &Arc<Self>, request: ReadRequest, reply: Reply) {
        let Some(handle) = self.handles.get(request.handle) else {
            return reply(Err(Errno::EBADF));
        };
        let start = request.offset;
        let end = start.saturating_add(request.length.into()).min(handle.size);
        if start >= end {
            return reply(Ok(&[]));
        }
        self.look_ahead(&handle, start, end - start);
        let since = Instant::now();
        let ticket = Arc::new(Ticket {
            fs: Arc::clone(self),
            flushes: AtomicU32::new(handle.flushes.load(Ordering::SeqCst)),
            handle,
            range: start..end,
            direct: request.direct,
            pid: request.pid,
            since,
            deadline: self.view.read_timeout.and_then(|timeout| since.checked_add(timeout)),
            reply: Mutex::new(Some(reply)),
        });
        if ticket.serve() && ticket.is_waiting() {
            self.watch.add(self, ticket);
            // The end may have come while the wait began.
            if self.ending.load(Ordering::SeqCst) {
                self.abort_reads();
            }
        }
    }

    /// Tells the engine what the handle will probably read next. Done before the read is answered,
    /// because afterwards the handle may be closed, and in the order of the reads.
    fn look_ahead(&self, handle: &Handle, at: u64, length: u64) {
        let mut window = lock(&handle.window);
        if let Some(ahead) = window.observe(at, length) {
            let length = ahead.end - ahead.start;
            self.content.read_ahead(handle.id, handle.file, ahead.start, length);
        }
    }

    /// Reads of this mount that wait now.
    pub fn waiting_reads(&self) -> usize {
        self.watch.waiting().len()
    }

    /// Ends the waiting reads of this mount with `EIO`; how many there were. The torrent may have
    /// other mounts: theirs go on.
    pub fn abort_reads(&self) -> usize {
        let waiting = self.watch.waiting();
        waiting.iter().for_each(|ticket| ticket.abort());
        waiting.len()
    }

    /// From now on nothing waits: what is not here is `EIO`. Ends the reads that wait now.
    pub fn end_reads(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.abort_reads();
    }

    /// Reads may wait again.
    pub fn resume_reads(&self) {
        self.ending.store(false, Ordering::SeqCst);
    }
}

impl Ticket {
    /// Answers the read if its bytes are here, or else has it wait for them; whether it waits.
    fn serve(self: &Arc<Self>) -> bool {
        let (fs, file, start) = (&self.fs, self.handle.file, self.range.start);
        let length = (self.range.end - start) as usize;
        if fs.content.read_now(file, start, length, &mut |bytes| self.answer(Ok(bytes))) {
            return false;
        }
        let now = Instant::now();
        if let Some(errno) = self.refusal(now) {
            self.answer(Err(errno));
            return false;
        }
        let wait = Wait(Some(Arc::clone(self)));
        if fs.content.has_elsewhere(file, start, length) {
            fs.content.wait_elsewhere(file, Box::new(move || wait.read_elsewhere()));
            return true;
        }
        let timeout = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        let waiter = Box::new(move |result| wait.over(result));
        fs.content.read_later(self.handle.id, file, start, length, timeout, waiter);
        true
    }

    /// Why the read may not wait, if so.
    fn refusal(&self, now: Instant) -> Option<Errno> {
        if self.fs.ending.load(Ordering::SeqCst) {
            return Some(Errno::EIO);
        }
        self.fs.failures.find(self.handle.file, &self.range, self.pid, self.direct, now)
    }

    /// The wait is over. What was here may have been evicted again, so `Ok` is a new attempt.
    fn woken(self: &Arc<Self>, result: Result<(), ReadError>) {
        match result {
            // Interrupted meanwhile, it waits for nothing.
            _ if !self.is_waiting() => {}
            Ok(()) => {
                self.serve();
            }
            Err(_) => self.fail(Errno::EIO, Whom::All),
        }
    }

    /// The read has been given up; what it asked for is not urgent any more.
    fn abort(&self) {
        if self.pid != 0 {
            // A loop device's thread and io_submit(2) have more reads, one after the other.
            self.note(Errno::EIO, 0..u64::MAX, Whom::Thread(self.pid));
        }
        self.fail(Errno::EIO, Whom::All);
        self.fs.content.flushed(self.handle.id);
    }

    /// The program is to end: it shall have its signal.
    pub(super) fn interrupt(&self) {
        if self.direct {
            // The kernel makes no second attempt, and the program's own may wait.
            self.answer(Err(Errno::EINTR));
        } else {
            self.fail(Errno::EINTR, Whom::Once(self.pid));
        }
    }

    /// Its reader lives. If a flush has withdrawn the demand, then because somebody else closed a
    /// copy of the descriptor: asks again.
    pub(super) fn renew(self: &Arc<Self>) {
        let flushes = self.handle.flushes.load(Ordering::SeqCst);
        if self.flushes.swap(flushes, Ordering::SeqCst) != flushes && self.is_waiting() {
            self.serve();
        }
    }

    /// Its time may be over; data of somebody else is waited for by nobody who looks at the time.
    pub(super) fn look_at_time(self: &Arc<Self>, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.woken(Err(ReadError::TimedOut));
        }
    }

    fn fail(&self, errno: Errno, whom: Whom) {
        self.note(errno, self.range.clone(), whom);
        self.answer(Err(errno));
    }

    fn note(&self, errno: Errno, range: Range<u64>, whom: Whom) {
        let (file, at) = (self.handle.file, Instant::now());
        self.fs.failures.add(Failure { file, range, errno, whom, at });
    }

    /// Whether it has not been answered.
    pub(super) fn is_waiting(&self) -> bool {
        lock(&self.reply).is_some()
    }

    fn answer(&self, result: Result<&[u8], Errno>) {
        let reply = lock(&self.reply).take();
        if let Some(reply) = reply {
            reply(result);
        }
    }
}

/// The engine's side of a waiting read. One that is dropped has lost its engine.
struct Wait(Option<Arc<Ticket>>);

impl Wait {
    /// Reads data of somebody else, which may take long.
    fn read_elsewhere(mut self) {
        let Some(ticket) = self.0.take().filter(|ticket| ticket.is_waiting()) else { return };
        let (file, range) = (ticket.handle.file, &ticket.range);
        let length = (range.end - range.start) as usize;
        let mut answer = |bytes: &[u8]| ticket.answer(Ok(bytes));
        if !ticket.fs.content.read_anywhere(file, range.start, length, &mut answer) {
            // It has changed, and is fetched.
            ticket.serve();
        }
    }

    fn over(mut self, result: Result<(), ReadError>) {
        if let Some(ticket) = self.0.take() {
            ticket.woken(result);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.woken(Err(ReadError::Gone));
        }
    }
}

/// Where reads have failed within the last [`RETRY`].
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<VecDeque<Failure>>);

/// A read that failed.
#[derive(Debug)]
struct Failure {
    file: usize,
    range: Range<u64>,
    errno: Errno,
    whom: Whom,
    at: Instant,
}

/// Whom a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    All,
    Thread(u32),
    /// That thread's next read.
    Once(u32),
}

impl Failures {
    fn add(&self, failure: Failure) {
        let mut failures = lock(&self.0);
        if failures.len() == MAX_FAILURES {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// The failure that a read of this range repeats. Past the page cache (`direct`) the kernel does not ask again,
    /// and what others met does not count.
    fn find(
        &self,
        file: usize,
        range: &Range<u64>,
        pid: u32,
        direct: bool,
        now: Instant,
    ) -> Option<Errno> {
        let mut failures = lock(&self.0);
        failures.retain(|failure| now.saturating_duration_since(failure.at) <= RETRY);
        let at = failures.iter().position(|failure| {
            failure.file == file
                && failure.range.start <= range.start
                && range.end <= failure.range.end
                && match failure.whom {
                    Whom::All => !direct,
                    Whom::Thread(only) | Whom::Once(only) => only == pid,
                }
        })?;
        let failure = failures.get(at)?;
        let errno = failure.errno;
        if matches!(failure.whom, Whom::Once(_)) {
            failures.remove(at);
        }
        Some(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(file: usize, range: Range<u64>, whom: Whom, at: Instant) -> Failure {
        Failure { file, range, errno: Errno::EIO, whom, at }
    }

    #[test]
    fn a_failure_covers_its_range_for_a_moment() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(failure(3, 100..200, Whom::All, now));
        assert_eq!(failures.find(3, &(100..150), 1, false, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(100..150), 2, false, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(150..250), 1, false, now), None);
        assert_eq!(failures.find(2, &(100..150), 1, false, now), None);
        let later = now + RETRY + Duration::from_millis(1);
        assert_eq!(failures.find(3, &(100..150), 1, false, later), None);
    }

    #[test]
    fn an_interruption_concerns_one_thread_and_once() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(failure(3, 100..200, Whom::Once(7), now));
        assert_eq!(failures.find(3, &(100..150), 8, false, now), None);
        assert_eq!(failures.find(3, &(100..150), 7, false, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(100..150), 7, false, now), None);
    }

    #[test]
    fn a_thread_whose_read_was_aborted_waits_for_no_other_for_a_moment() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(failure(3, 0..u64::MAX, Whom::Thread(7), now));
        assert_eq!(failures.find(3, &(0..50), 7, false, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(500..550), 7, false, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(500..550), 8, false, now), None);
        assert_eq!(failures.find(3, &(500..550), 7, true, now), Some(Errno::EIO));
        assert_eq!(failures.find(3, &(500..550), 8, true, now), None);
        failures.add(failure(3, 0..50, Whom::All, now));
        assert_eq!(failures.find(3, &(0..50), 8, true, now), None);
        assert_eq!(failures.find(3, &(500..550), 7, false, now + 2 * RETRY), None);
    }

    #[test]
    fn failures_are_bounded() {
        let (failures, now) = (Failures::default(), Instant::now());
        (0..2 * MAX_FAILURES).for_each(|i| failures.add(failure(i, 0..1, Whom::All, now)));
        assert_eq!(lock(&failures.0).len(), MAX_FAILURES);
        assert!(failures.find(2 * MAX_FAILURES - 1, &(0..1), 0, false, now).is_some());
    }
}
