//! Looks after the programs whose reads wait.
//!
//! A program that waits for a page of a file sees a signal that it handles itself (`dd`, Python,
//! `rsync` and Ctrl-C) only when the read is answered, and where the page is read by itself (after
//! an error, past the page cache, in some mappings) not even `SIGKILL` comes through. And when a
//! descriptor is closed, it may be that a waiting reader was killed, or that another process closed
//! its copy. The kernel tells us none of this. But it says who reads, and `/proc` says what has
//! become of them. So while reads wait, and only then, this looks now and then: it answers `EINTR`
//! where a signal that is to end the program waits too, and renews the demand of those who live.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::lock;
use super::ops::Fs;
use super::reading::Ticket;

/// How often it looks.
const TICK: Duration = Duration::from_millis(200);

/// How long a read past the page cache (`O_DIRECT`) waits whose reader cannot be seen from here:
/// nothing would end it, so it is interrupted, and programs that find no signal try again.
const UNSEEN: Duration = Duration::from_secs(2);

/// The signals by which people and systems end programs. Others (timers, a child's end) must not
/// disturb a read: files are not read with errors like `EINTR` in mind.
const ENDING: u64 = bit(libc::SIGHUP)
    | bit(libc::SIGINT)
    | bit(libc::SIGQUIT)
    | bit(libc::SIGKILL)
    | bit(libc::SIGTERM);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The waiting reads of a mount.
#[derive(Default)]
pub(super) struct Watch(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    /// Those that have been answered leave at the next look.
    tickets: Vec<Arc<Ticket>>,
    /// A thread looks.
    running: bool,
}

impl Watch {
    /// Looks after a read until it is answered.
    pub(super) fn add(&self, fs: &Arc<Fs>, ticket: Arc<Ticket>) {
        let mut watched = lock(&self.0);
        watched.tickets.push(Arc::clone(&ticket));
        if !watched.running {
            let fs = Arc::clone(fs);
            let thread = thread::Builder::new().name("p2pfs-signals".to_owned());
            watched.running = thread.spawn(move || while fs.watch.look() {}).is_ok();
        }
        drop(watched);
        // Of the many reads of one io_submit(2) each comes when the one before it has ended.
        if ticket.direct && reader(ticket.pid) == Reader::Ending {
            ticket.interrupt();
        }
    }

    /// Those that have not been answered.
    pub(super) fn waiting(&self) -> Vec<Arc<Ticket>> {
        let watched = lock(&self.0);
        watched.tickets.iter().filter(|ticket| ticket.is_waiting()).cloned().collect()
    }

    /// Waits a moment and looks; false when nothing waits any more.
    fn look(&self) -> bool {
        thread::sleep(TICK);
        let mut watched = lock(&self.0);
        watched.tickets.retain(|ticket| ticket.is_waiting());
        watched.running = !watched.tickets.is_empty();
        let tickets = watched.tickets.clone();
        drop(watched);
        let mut readers = HashMap::new();
        let now = Instant::now();
        for ticket in &tickets {
            ticket.look_at_time(now);
            let reader = readers.entry(ticket.pid).or_insert_with(|| reader(ticket.pid));
            match reader.is_to_be_interrupted(ticket.direct, now - ticket.since) {
                true => ticket.interrupt(),
                false => ticket.renew(),
            }
        }
        !tickets.is_empty()
    }
}

/// What has become of a thread that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// It has ended.
    Gone,
    /// It waits for its read.
    Waiting,
    /// A signal that is to end it waits for it.
    Ending,
    /// Nothing is known of it.
    Unseen,
}

impl Reader {
    fn is_to_be_interrupted(self, direct: bool, waited: Duration) -> bool {
        match self {
            // The pages of a read whose reader has gone stay locked until it is answered, and
            // whoever else comes to wait for them cannot be seen from here.
            Self::Ending | Self::Gone => true,
            Self::Waiting => false,
            Self::Unseen => direct && waited >= UNSEEN,
        }
    }
}

fn reader(thread: u32) -> Reader {
    if thread == 0 {
        // Of another namespace of processes.
        return Reader::Unseen;
    }
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => become_of(&status),
        // A /proc that hides other users' processes (hidepid) proves nothing.
        Err(_) if kill(Pid::from_raw(thread as i32), None) == Err(Errno::ESRCH) => Reader::Gone,
        Err(_) => Reader::Unseen,
    }
}

fn become_of(status: &str) -> Reader {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    match state.map(str::trim_start) {
        None => Reader::Gone,
        Some(state) if state.starts_with(['Z', 'X']) => Reader::Gone,
        Some(_) if pending(status) & ENDING != 0 => Reader::Ending,
        Some(_) => Reader::Waiting,
    }
}

/// The signals, as bits, that wait and are neither blocked nor ignored (proc_pid_status(5)).
fn pending(status: &str) -> u64 {
    let mask = |field: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !(mask("SigBlk:") | mask("SigIgn:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u64, process: u64, blocked: u64, ignored: u64) -> String {
        format!(
            "Name:\tdd\nState:\tD (disk sleep)\nPid:\t7\nSigQ:\t1/63451\nSigPnd:\t{thread:016x}\nShdPnd:\t{process:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t0000000000000202\n"
        )
    }

    #[test]
    fn what_waits_and_is_not_blocked_or_ignored_counts() {
        let (int, term) = (bit(libc::SIGINT), bit(libc::SIGTERM));
        assert_eq!(pending(&status(int, term, 0, 0)), int | term);
        assert_eq!(pending(&status(int, term, term, 0)), int);
        assert_eq!(pending(&status(int, term, 0, int)), term);
        assert_eq!(pending(&status(0, 0, 0, 0)), 0);
        assert_eq!(pending("nonsense"), 0);
    }

    #[test]
    fn a_timer_or_a_child_ends_nobody() {
        let others = bit(libc::SIGALRM) | bit(libc::SIGCHLD) | bit(libc::SIGURG);
        assert_eq!(become_of(&status(others, others, 0, 0)), Reader::Waiting);
    }

    #[test]
    fn an_interrupt_ends_unless_it_is_ignored() {
        let int = bit(libc::SIGINT);
        assert_eq!(become_of(&status(0, int, 0, 0)), Reader::Ending);
        assert_eq!(become_of(&status(0, int, 0, int)), Reader::Waiting);
    }

    #[test]
    fn only_past_the_page_cache_a_reader_that_cannot_be_seen_is_interrupted() {
        assert_eq!(reader(0), Reader::Unseen);
        assert!(!Reader::Unseen.is_to_be_interrupted(true, UNSEEN / 2));
        assert!(Reader::Unseen.is_to_be_interrupted(true, UNSEEN));
        assert!(!Reader::Unseen.is_to_be_interrupted(false, UNSEEN));
        assert!(!Reader::Waiting.is_to_be_interrupted(true, UNSEEN));
    }

    #[test]
    fn a_reader_that_has_ended_is_gone() {
        let dead = status(0, bit(libc::SIGKILL), 0, 0).replace("D (disk sleep)", "Z (zombie)");
        assert_eq!(become_of(&dead), Reader::Gone);
        assert_eq!(reader(i32::MAX as u32), Reader::Gone);
        assert_eq!(reader(nix::unistd::gettid().as_raw() as u32), Reader::Waiting);
    }
}
