//! Child processes that cannot outlive their test, and what /proc says about them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, Scratch, wait_for, wait_until};

/// A child whose output goes to files (a pipe would stay open in daemons that it leaves behind).
/// Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    /// Panics with what it said unless it ended with 0.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}: {}\n{}", self.command, self.status, self.said());
        self
    }

    /// Panics unless it ended by itself with another code than 0.
    #[track_caller]
    pub fn failure(self) -> Self {
        assert!(
            self.status.code().is_some_and(|code| code != 0),
            "{}: {}\n{}",
            self.command,
            self.status,
            self.said()
        );
        self
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn said(&self) -> String {
        let out: String = self.stdout().escape_debug().take(2000).collect();
        format!("stdout: {out}\nstderr: {}", self.stderr)
    }
}

/// Runs a command to its end; it is killed, and the test fails, if that takes longer than `bound`.
#[track_caller]
pub fn run(scratch: &Scratch, command: &mut Command, bound: Duration) -> Finished {
    let shown = format!("{command:?}");
    let mut process = Process::spawn(scratch, command);
    match process.wait(bound) {
        Some(status) => Finished {
            command: shown,
            status,
            stdout: fs::read(&process.out).unwrap(),
            stderr: process.stderr(),
        },
        None => panic!("{shown} still runs after {bound:?}\n{}", process.stderr()),
    }
}

impl Process {
    /// Starts it with no input and its output in files.
    #[track_caller]
    pub fn spawn(scratch: &Scratch, command: &mut Command) -> Self {
        command.stdin(Stdio::null());
        let (out, err, name) = prepare(scratch, command);
        let child = command.stdout(File::create(&out).unwrap()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { name, child, out, err }
    }

    /// Starts it with pipes for input and output; the caller takes them from [`Self::child`].
    #[track_caller]
    pub fn spawn_piped(scratch: &Scratch, command: &mut Command) -> Self {
        let (out, err, name) = prepare(scratch, command);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { name, child, out, err }
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        fs::read(&self.out).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its exit status, if it ends within `bound`.
    pub fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        wait_for(bound, || self.child.try_wait().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Sends a signal; returns how long it then took to die of that signal, at most `bound`.
    #[track_caller]
    pub fn dies_of(&mut self, signal: Signal, bound: Duration) -> Duration {
        let sent = Instant::now();
        self.signal(signal);
        let status = self.wait(bound);
        let status =
            status.unwrap_or_else(|| panic!("{} outlived {signal} by {bound:?}", self.name));
        assert_eq!(status.signal(), Some(signal as i32), "{}: {status}", self.name);
        sent.elapsed()
    }

    /// Waits until it sleeps in a system call that reads and stays there for a while.
    #[track_caller]
    pub fn wait_until_blocked_in_read(&mut self) {
        let pid = self.pid();
        let what = format!("{} waits in a read", self.name);
        let (mut before, mut same) = (None, 0);
        wait_until(&what, PATIENCE, || {
            assert!(!self.has_ended(), "{} ended: {}", self.name, self.stderr());
            let now = blocked_read(pid);
            same = if now.is_some() && now == before { same + 1 } else { 0 };
            before = now;
            same >= LOOKS
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        if self.wait(PATIENCE).is_none() && !std::thread::panicking() {
            panic!("{} does not die", self.name);
        }
    }
}

fn prepare(scratch: &Scratch, command: &mut Command) -> (PathBuf, PathBuf, String) {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned();
    let log = scratch.log(&name);
    let (out, err) = (log.with_extension("out"), log.with_extension("err"));
    // A group of its own: a Ctrl-C at the terminal ends the test, whose guards end the rest.
    command.stderr(File::create(&err).unwrap()).process_group(0);
    (out, err, name)
}

/// Looks at a process, a poll of [`wait_until`] apart, after which a read counts as waiting.
const LOOKS: u32 = 10;

#[cfg(target_arch = "x86_64")]
const READS: [i64; 6] = [0, 17, 19, 40, 275, 326];
#[cfg(not(target_arch = "x86_64"))]
const READS: [i64; 6] = [63, 67, 65, 71, 76, 285];

/// The system call and the characters read so far of a process asleep in read, pread64, readv,
/// sendfile, splice or copy_file_range.
fn blocked_read(pid: Pid) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let asleep = stat.rsplit(") ").next()?.starts_with(['D', 'S']);
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let number: i64 = call.split(' ').next()?.parse().ok()?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    (asleep && READS.contains(&number)).then(|| (call, io.lines().next().unwrap_or("").to_owned()))
}

/// Whether somebody listens on this TCP port in this thread's network, by the kernel's tables: a
/// connection to try it would look like a peer.
pub fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let wanted = format!(":{port:04X}");
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
        let table = fs::read_to_string(table).unwrap_or_default();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or("");
            local.ends_with(&wanted) && fields.nth(1) == Some(LISTEN)
        })
    })
}
