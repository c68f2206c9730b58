//! A directory for one test, and the cleaning up after it.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{PATIENCE, wait_for};

/// A temporary directory. When it is dropped, every mount below it is detached, every process
/// that names it in its command line or environment is killed, and it is deleted.
pub struct Scratch {
    dir: TempDir,
    logs: AtomicU32,
}

impl Scratch {
    /// Readable for everybody, because some tests run programs as an ordinary user.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("p2pfs-test-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, logs: AtomicU32::new(0) }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in here; nothing is created.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A directory in here, created if it is missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A file in here with this content.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A new name for a log file of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        self.dir("logs").join(format!("{number:03}-{process}"))
    }

    /// Processes that name this directory in their command line or environment.
    pub fn processes(&self) -> Vec<Pid> {
        processes_naming(self.root())
    }

    /// Prints the end of every log: called when a test fails.
    fn print_logs(&self) {
        let mut logs: Vec<_> =
            fs::read_dir(self.dir("logs")).unwrap().flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let tail = &text[text.len().saturating_sub(2000)..];
            if !tail.is_empty() {
                eprintln!("--- {}\n{}", log.display(), String::from_utf8_lossy(tail));
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        // A daemon may be mounting right now: detach, kill, and detach what came meanwhile.
        for _ in 0..2 {
            for mount in mounts_below(self.root()).iter().rev() {
                detach(mount);
            }
            for pid in self.processes() {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        let gone = wait_for(PATIENCE, || self.processes().is_empty().then_some(()));
        if gone.is_none() && !std::thread::panicking() {
            panic!("processes do not die: {:?}", self.processes());
        }
    }
}

fn detach(mount: &Path) {
    if umount2(mount, MntFlags::MNT_DETACH).is_err() {
        let _ = std::process::Command::new("fusermount3").arg("-uz").arg(mount).status();
    }
}

/// Mount points below `root` in the order they were mounted.
pub fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|mount| mount.starts_with(root))
        .collect()
}

/// mountinfo writes blanks and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()) {
            Some(digits) if byte == b'\\' => {
                out.push(u8::from_str_radix(digits, 8).unwrap());
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn processes_naming(root: &Path) -> Vec<Pid> {
    let needle = root.as_os_str().as_bytes();
    let names_root = |pid: i32| {
        ["cmdline", "environ"].iter().any(|file| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|text| text.windows(needle.len()).any(|window| window == needle))
        })
    };
    let own = std::process::id() as i32;
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != own && is_alive(pid) && names_root(pid))
        .map(Pid::from_raw)
        .collect()
}

/// Zombies have died; somebody else has to collect them.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with(['Z', 'X']))
}

/// A port on loopback that nobody has, TCP and UDP. From below the range that outgoing
/// connections take theirs from, and never twice in one process.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id().wrapping_mul(7919) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + ((u32::from(start) + u32::from(step)) % u32::from(COUNT)) as u16;
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Mounts a tmpfs of this size; the [`Scratch`] unmounts it.
pub fn small_disk(scratch: &Scratch, size: &str) -> PathBuf {
    let dir = scratch.dir("small-disk");
    let mut command = if nix::unistd::Uid::effective().is_root() {
        Command::new("mount")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "mount"]);
        sudo
    };
    let options = format!("size={size},mode=1777");
    command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir);
    super::run(scratch, &mut command, super::PATIENCE).success();
    dir
}
