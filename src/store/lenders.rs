//! Threads that read data of somebody else. It may be on a server that does not answer, or in a file system
//! that waits for this very process; then only these threads wait, a few for each file.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::lock;

/// Files that may be stuck before others have to wait.
const STUCK_FILES: usize = 4;

/// Threads of all torrents together, or a few more; beyond these a torrent gets one.
const MAX_THREADS: usize = 256;

/// Jobs of a file that wait at a time, as many as the kernel has reads outstanding. The oldest read is given up for
/// another.
const MAX_QUEUED: usize = 16 << 10;

/// A file of which nothing comes for so long is stuck.
const STUCK: Duration = Duration::from_secs(1);

/// How long a thread without a job stays.
const IDLE: Duration = Duration::from_secs(5);

struct Job {
    work: Box<dyn FnOnce() + Send>,
    /// Whether it is not given up for another; there are few at a time.
    is_check: bool,
}

/// The threads of one torrent, which begin when there is work and end when there is none.
pub(super) struct Lenders(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    of_all: Arc<AtomicUsize>,
}

/// One of the threads of all torrents, for as long as this lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(of_all: &Arc<AtomicUsize>) -> Self {
        of_all.fetch_add(1, Ordering::Relaxed);
        Self(of_all.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Queue {
    /// Those with jobs that wait or are being done.
    files: BTreeMap<usize, File>,
    /// The file after which the next one is looked for.
    turn: usize,
    threads: usize,
    idle: usize,
}

struct File {
    waiting: VecDeque<Job>,
    running: usize,
    /// When a job last ended, or the first came: all threads may be with files that are stuck.
    moved: Instant,
}

impl File {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), running: 0, moved: Instant::now() }
    }

    fn can_go_on(&self) -> bool {
        !self.waiting.is_empty() && self.running < per_file()
    }
}

impl Queue {
    /// The next job of a file that is not being waited for by enough threads already.
    fn next(&mut self) -> Option<(usize, Job)> {
        let (before, after) = (self.files.range(..=self.turn), self.files.range(self.turn + 1..));
        let file = *after.chain(before).find(|(_, file)| file.can_go_on())?.0;
        self.turn = file;
        let queue = self.files.get_mut(&file)?;
        let job = queue.waiting.pop_front()?;
        queue.running += 1;
        Some((file, job))
    }

    fn can_go_on(&self) -> bool {
        self.files.values().any(File::can_go_on)
    }

    fn done(&mut self, file: usize) {
        let Some(queue) = self.files.get_mut(&file) else { return };
        queue.running -= 1;
        queue.moved = Instant::now();
        if queue.running == 0 && queue.waiting.is_empty() {
            self.files.remove(&file);
        }
    }
}

/// Threads for one file: enough to hash it at full speed, and to keep a disk busy.
fn per_file() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).clamp(4, 8)
}

impl Lenders {
    /// `of_all` counts the threads of all torrents.
    pub(super) fn new(of_all: Arc<AtomicUsize>) -> Self {
        Self(Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), of_all }))
    }

    /// Does a job about a file, after those about the same file that came before. One that is given up is
    /// dropped.
    pub(super) fn submit(&self, file: usize, job: impl FnOnce() + Send + 'static) {
        self.add(file, Job { work: Box::new(job), is_check: false });
    }

    /// The same, but it is only given up when no thread can be had.
    pub(super) fn submit_check(&self, file: usize, job: impl FnOnce() + Send + 'static) {
        self.add(file, Job { work: Box::new(job), is_check: true });
    }

    fn add(&self, file: usize, job: Job) {
        let mut queue = lock(&self.0.queue);
        let own = &mut queue.files.entry(file).or_insert_with(File::new).waiting;
        let oldest = own.iter().position(|job| !job.is_check).filter(|_| own.len() >= MAX_QUEUED);
        let given_up = oldest.and_then(|oldest| own.remove(oldest));
        own.push_back(job);
        call_one(&self.0, queue);
        drop(given_up);
    }

    /// Whether there are jobs about a file and none has ended for a while.
    pub(super) fn is_stuck(&self, file: usize) -> bool {
        lock(&self.0.queue).files.get(&file).is_some_and(|file| file.moved.elapsed() > STUCK)
    }
}

/// Has one more thread come, if there is something for it to do.
fn call_one(shared: &Arc<Shared>, mut queue: MutexGuard<'_, Queue>) {
    if !queue.can_go_on() {
        return;
    }
    let most = match shared.of_all.load(Ordering::Relaxed) < MAX_THREADS {
        true => STUCK_FILES * per_file(),
        false => 1,
    };
    let spawn = queue.idle == 0 && queue.threads < most;
    queue.threads += usize::from(spawn);
    let counted = spawn.then(|| Counted::new(&shared.of_all));
    drop(queue);
    let Some(counted) = counted else { return shared.wake.notify_one() };
    let own = shared.clone();
    let job = move || {
        let _counted = counted;
        work(&own);
    };
    if thread::Builder::new().name("lender".to_owned()).spawn(job).is_err() {
        let mut queue = lock(&shared.queue);
        queue.threads -= 1;
        // Nobody else would ever do what waits.
        let lost = if queue.threads == 0 { Some(std::mem::take(&mut queue.files)) } else { None };
        drop(queue);
        drop(lost);
    }
}

#[cfg(test)]
impl Lenders {
    /// As if no thread could be had.
    pub(super) fn lose_all(&self) {
        let mut queue = lock(&self.0.queue);
        let lost: Vec<_> =
            queue.files.values_mut().map(|f| std::mem::take(&mut f.waiting)).collect();
        drop(queue);
        drop(lost);
    }
}

fn work(shared: &Arc<Shared>) {
    let mut queue = lock(&shared.queue);
    loop {
        while let Some((file, job)) = queue.next() {
            call_one(shared, queue);
            if catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                tracing::error!("a job at data of somebody else panicked");
            }
            queue = lock(&shared.queue);
            queue.done(file);
        }
        queue.idle += 1;
        let waited = shared.wake.wait_timeout(queue, IDLE);
        let timeout;
        (queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
        if timeout.timed_out() && !queue.can_go_on() {
            queue.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Has threads wait for `file` until what is returned is dropped.
    fn stick(lenders: &Lenders, file: usize, jobs: usize) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..jobs {
            let held = held.clone();
            lenders.submit(file, move || {
                let _ = lock(&held).recv();
            });
        }
        release
    }

    fn answers(lenders: &Lenders, file: usize) {
        let (done, answered) = mpsc::channel();
        lenders.submit(file, move || done.send(()).unwrap());
        answered.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_file_that_is_stuck_holds_up_no_other_and_goes_on_later() {
        let lenders = Lenders::new(Arc::default());
        let stuck: Vec<_> = (0..STUCK_FILES - 1).map(|file| stick(&lenders, file, 100)).collect();
        assert!(!lenders.is_stuck(0), "it has only just begun");
        wait_until(|| lenders.is_stuck(0));
        answers(&lenders, STUCK_FILES);
        wait_until(|| file(&lenders, STUCK_FILES) == (0, 0));
        assert!(!lenders.is_stuck(STUCK_FILES));
        assert!(lock(&lenders.0.queue).threads <= STUCK_FILES * per_file());
        drop(stuck);
        answers(&lenders, 0);
        wait_until(|| lock(&lenders.0.queue).files.is_empty());
    }

    #[test]
    fn a_file_for_which_no_thread_is_left_is_stuck_too() {
        let lenders = Lenders::new(Arc::default());
        let _stuck: Vec<_> = (0..STUCK_FILES).map(|file| stick(&lenders, file, 100)).collect();
        wait_until(|| (0..STUCK_FILES).all(|stuck| file(&lenders, stuck).0 == per_file()));
        lenders.submit(STUCK_FILES, || ());
        wait_until(|| lenders.is_stuck(STUCK_FILES));
        assert_eq!(file(&lenders, STUCK_FILES), (0, 1));
    }

    #[test]
    fn all_torrents_together_have_a_bounded_number_of_threads_and_each_has_one() {
        let of_all = Arc::<AtomicUsize>::default();
        let torrents = MAX_THREADS / (STUCK_FILES * per_file()) + 3;
        let all: Vec<_> = (0..torrents).map(|_| Lenders::new(of_all.clone())).collect();
        let stick_all = |lenders| (0..STUCK_FILES).map(|file| stick(lenders, file, 100)).collect();
        let stuck: Vec<Vec<_>> = all.iter().map(stick_all).collect();
        wait_until(|| of_all.load(Ordering::Relaxed) >= MAX_THREADS);
        let one_more = Lenders::new(of_all.clone());
        answers(&one_more, 0);
        assert_eq!(lock(&one_more.0.queue).threads, 1);
        let threads = of_all.load(Ordering::Relaxed);
        assert!(threads <= MAX_THREADS + torrents + 1, "{threads}");
        drop((stuck, all));
        wait_until(|| of_all.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_is_given_up() {
        let lenders = Lenders::new(Arc::default());
        let stuck = stick(&lenders, 0, per_file());
        wait_until(|| file(&lenders, 0).0 == per_file());
        let (given_up, seen) = mpsc::channel::<()>();
        let (kept, checked) = mpsc::channel();
        lenders.submit_check(0, move || kept.send(()).unwrap());
        lenders.submit(0, move || drop(given_up));
        (0..MAX_QUEUED - 1).for_each(|_| lenders.submit(0, || ()));
        assert_eq!(
            seen.recv_timeout(Duration::from_secs(60)),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
        assert_eq!(file(&lenders, 0).1, MAX_QUEUED);
        drop(stuck);
        checked.recv_timeout(Duration::from_secs(60)).unwrap();
        answers(&lenders, 0);
    }

    /// Jobs of a file that are being done, and that wait.
    fn file(lenders: &Lenders, file: usize) -> (usize, usize) {
        let queue = lock(&lenders.0.queue);
        queue.files.get(&file).map_or((0, 0), |file| (file.running, file.waiting.len()))
    }

    fn wait_until(met: impl Fn() -> bool) {
        let began = Instant::now();
        while !met() {
            assert!(began.elapsed() < Duration::from_secs(60), "it never comes to that");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
