//! The threads that hash and write, shared by all torrents of a store.
//!
//! Three queues, in this order:
//! 1. pieces that arrived and are to be verified: readers wait for them;
//! 2. writes of verified pieces, never on all threads at once, so that a disk that blocks cannot
//!    keep arrived pieces from being verified;
//! 3. pieces at rest that are to be hashed again.
//!
//! The queues have no bound of their own. A job of the first two holds a piece buffer, so the
//! budget of buffers bounds them (and keeps the first from starving the second: no write, no new
//! buffer); who asks for pieces at rest asks for a few at a time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{io, num};

use super::lock;

/// Which queue a job waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Verifying a piece that arrived.
    Verify,
    /// Writing a verified piece.
    Write,
    /// Hashing a piece at rest.
    Check,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queues {
    verify: VecDeque<Job>,
    write: VecDeque<Job>,
    check: VecDeque<Job>,
    writing: usize,
    stopping: bool,
}

impl Queues {
    fn next(&mut self, threads: usize) -> Option<(Class, Job)> {
        if let Some(job) = self.verify.pop_front() {
            return Some((Class::Verify, job));
        }
        if self.writing + 1 < threads
            && let Some(job) = self.write.pop_front()
        {
            self.writing += 1;
            return Some((Class::Write, job));
        }
        self.check.pop_front().map(|job| (Class::Check, job))
    }

    fn is_empty(&self) -> bool {
        self.verify.is_empty() && self.write.is_empty() && self.check.is_empty()
    }
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
}

/// The threads. Dropping this finishes what is queued.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// As many threads as there are cores, and at least two.
    pub(super) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, num::NonZero::get).max(2);
        let mut workers = Self { shared: Arc::default(), threads: Vec::with_capacity(count) };
        for i in 0..count {
            let shared = workers.shared.clone();
            let thread = thread::Builder::new().name(format!("store-{i}"));
            workers.threads.push(thread.spawn(move || work(&shared, count))?);
        }
        Ok(workers)
    }

    /// Runs `job` on one of the threads, after those of its class that came before.
    pub(super) fn submit(&self, class: Class, job: impl FnOnce() + Send + 'static) {
        let mut queues = lock(&self.shared.queues);
        match class {
            Class::Verify => queues.verify.push_back(Box::new(job)),
            Class::Write => queues.write.push_back(Box::new(job)),
            Class::Check => queues.check.push_back(Box::new(job)),
        }
        drop(queues);
        self.shared.wake.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.shared.queues).stopping = true;
        self.shared.wake.notify_all();
        // The last owner of a store can be a job, so this may run on one of the threads.
        let own = thread::current().id();
        for thread in self.threads.drain(..).filter(|t| t.thread().id() != own) {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, threads: usize) {
    let mut queues = lock(&shared.queues);
    loop {
        let Some((class, job)) = queues.next(threads) else {
            if queues.stopping && queues.is_empty() {
                return;
            }
            queues = shared.wake.wait(queues).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(queues);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job of the store panicked");
        }
        queues = lock(&shared.queues);
        if class == Class::Write {
            queues.writing -= 1;
            shared.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn next(queues: &mut Queues) -> Option<Class> {
        queues.next(2).map(|(class, _)| class)
    }

    #[test]
    fn verifying_comes_first_and_a_blocked_disk_leaves_a_thread_for_it() {
        let mut queues = Queues::default();
        (0..3).for_each(|_| queues.write.push_back(Box::new(|| ())));
        queues.check.push_back(Box::new(|| ()));
        queues.verify.push_back(Box::new(|| ()));
        assert_eq!(next(&mut queues), Some(Class::Verify));
        assert_eq!(next(&mut queues), Some(Class::Write));
        assert_eq!(next(&mut queues), Some(Class::Check), "one of two threads writes already");
        assert_eq!(next(&mut queues), None);
        queues.writing -= 1;
        assert_eq!(next(&mut queues), Some(Class::Write));
    }

    #[test]
    fn dropping_finishes_what_is_queued_and_survives_a_panic() {
        let workers = Workers::start().unwrap();
        let (tx, rx) = mpsc::channel();
        for i in 0..100 {
            let tx = tx.clone();
            let class = [Class::Verify, Class::Write, Class::Check][i % 3];
            workers.submit(class, move || {
                tx.send(i).unwrap();
                assert!(i != 7, "one job panics");
            });
        }
        drop((workers, tx));
        let mut done: Vec<_> = rx.iter().collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }
}
