//! Clients and the daemon: who starts it, who may talk to it, how it ends.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use p2pfs::rpc::{Client, Request, Response, frame};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A socket and a cache of a test's own, and the daemons that were started for them.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/socket")
    }

    fn mountd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs-mountd"));
        command.arg("--socket").arg(self.socket());
        command.arg("--data-dir").arg(self.dir.path().join("cache"));
        command.args(["--listen", "127.0.0.1", "--no-lsd"]);
        command
    }

    fn start(&self) -> Daemon {
        let child = self.mountd().stderr(Stdio::piped()).spawn().unwrap();
        until("the daemon listens", || UnixStream::connect(self.socket()).is_ok());
        Daemon { child }
    }

    fn p2pfs(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
        command.current_dir(self.dir.path()).args(arguments).arg("--socket").arg(self.socket());
        command.output().unwrap()
    }
}

/// A daemon that is killed when the test is over.
struct Daemon {
    child: Child,
}

impl Daemon {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition that only another process brings about.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The pid of the daemon that answers, and its answer's last message.
fn ask(socket: &Path, request: Request) -> (u32, Result<(), String>) {
    run(async {
        let client = Client::connect(socket).await.unwrap();
        let pid = client.daemon_pid();
        (pid, client.call(request, |_| {}).await.map(drop).map_err(|e| e.message))
    })
}

#[test]
fn clients_that_come_at_once_end_up_with_one_daemon() {
    let place = Place::new();
    // Nobody is behind that peer and there is no tracker: each waits for the metadata in vain.
    let source = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let listing = || {
        Command::new(env!("CARGO_BIN_EXE_p2pfs"))
            .args(["ls", source, "--peer", "127.0.0.1:1", "--timeout", "600"])
            .args(["--listen", "127.0.0.1", "--no-lsd", "--socket"])
            .arg(place.socket())
            .arg("--data-dir")
            .arg(place.dir.path().join("cache"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let clients: Vec<_> = (0..6).map(|_| Daemon { child: listing() }).collect();
    // All of them wait for the same daemon, which lives as long as one of them does.
    let mut held = None;
    until("a daemon listens", || {
        held = UnixStream::connect(place.socket()).ok();
        held.is_some()
    });
    // It would leave with the last connection, if no client has come yet.
    let (pid, _) = ask(&place.socket(), Request::Status { path: None });
    until("all clients are connected", || connections(pid) > clients.len());
    drop(held);
    let lock = std::fs::read_to_string("/proc/locks").unwrap();
    assert!(lock.contains(&format!(" {pid} ")), "the daemon holds its lock");
    assert_eq!(daemons_of(&place.socket()), [pid]);
    drop(clients);
    until("the daemon leaves when its clients have", || {
        UnixStream::connect(place.socket()).is_err()
    });
}

/// How many sockets of clients a daemon has open; its listening sockets are a few of them.
fn connections(pid: u32) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let inodes: Vec<&str> = table
        .lines()
        .filter(|line| line.ends_with("/run/socket"))
        .filter_map(|line| line.split_whitespace().nth(6))
        .collect();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let open = links.filter(|link| {
        let link = link.to_string_lossy();
        inodes.iter().any(|inode| link == format!("socket:[{inode}]"))
    });
    open.count().saturating_sub(1)
}

/// The living daemons that were started for `socket`.
fn daemons_of(socket: &Path) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split('\0');
        let is_mountd = words.next()?.ends_with("p2pfs-mountd");
        (is_mountd && words.any(|word| Path::new(word) == socket)).then_some(pid)
    });
    processes.collect()
}

#[test]
fn a_stale_socket_is_no_obstacle() {
    let place = Place::new();
    let first = place.start();
    first.signal(nix::sys::signal::SIGKILL);
    drop(first);
    assert!(place.socket().exists());
    let second = place.start();
    assert_eq!(ask(&place.socket(), Request::Status { path: None }), (second.child.id(), Ok(())));
}

#[test]
fn a_second_daemon_says_that_there_is_one() {
    let place = Place::new();
    let _first = place.start();
    let second = place.mountd().output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("already running") && said.lines().count() == 1, "{said}");
}

#[test]
fn sigterm_sigint_and_shutdown_end_it_cleanly() {
    let place = Place::new();
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT] {
        let mut daemon = place.start();
        daemon.signal(signal);
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
        assert!(!place.socket().exists());
    }
    let mut daemon = place.start();
    assert_eq!(ask(&place.socket(), Request::Shutdown).1, Ok(()));
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

#[test]
fn settings_that_are_not_the_daemons_are_refused() {
    let place = Place::new();
    let _daemon = place.start();
    let source = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let port = UnusedPort::find().0.to_string();
    for (flag, value, named) in [
        ("--port", port.as_str(), "port"),
        ("--data-dir", "elsewhere", "cache"),
        ("--listen", "127.0.0.9", "listen address"),
        ("--upload-limit", "1M", "upload limit"),
        ("--download-limit", "1M", "download limit"),
    ] {
        let refused = place.p2pfs(&["mount", source, "mnt", flag, value]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(named) && said.contains("--socket"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn kept_files_never_replace_what_is_there_and_nothing_stays_mounted() {
    let place = Place::new();
    let at = |name: &str| place.dir.path().join(name);
    std::fs::write(at("data"), b"new").unwrap();
    std::fs::create_dir(at("kept")).unwrap();
    std::fs::write(at("kept/data"), b"old").unwrap();
    assert!(place.p2pfs(&["create", "data"]).status.success());
    let refused = place.p2pfs(&[
        "mount",
        "data.torrent",
        "mnt",
        "--until-done",
        "--keep",
        "kept",
        "--data-dir",
        "cache",
        "--listen",
        "127.0.0.1",
        "--no-lsd",
    ]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("kept/data") && said.lines().count() == 1, "{said}");
    assert_eq!(std::fs::read(at("kept/data")).unwrap(), b"old");
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap();
    let mounts = String::from_utf8_lossy(&mounts);
    assert!(!mounts.contains(at("mnt").to_str().unwrap()));
    until("the daemon that was started for it leaves", || {
        UnixStream::connect(place.socket()).is_err()
    });
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_and_when_it_ends() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let place = Place::new();
    let file = place.dir.path().join("notify");
    let name = format!("p2pfs-test-{}", std::process::id());
    let hidden = SocketAddr::from_abstract_name(&name).unwrap();
    let managers = [
        (file.to_str().unwrap().to_owned(), UnixDatagram::bind(&file).unwrap()),
        (format!("@{name}"), UnixDatagram::bind_addr(&hidden).unwrap()),
    ];
    for (address, manager) in managers {
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let told = || {
            let mut state = [0; 100];
            let length = manager.recv(&mut state).unwrap();
            String::from_utf8(state[..length].to_vec()).unwrap()
        };
        let child = place.mountd().env("NOTIFY_SOCKET", address).spawn().unwrap();
        let mut daemon = Daemon { child };
        assert_eq!(told(), "READY=1");
        assert!(UnixStream::connect(place.socket()).is_ok());
        daemon.signal(nix::sys::signal::SIGTERM);
        assert_eq!(told(), "STOPPING=1");
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    }
}

/// A port that no daemon listens on.
struct UnusedPort(u16);

impl UnusedPort {
    fn find() -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        Self(listener.local_addr().unwrap().port())
    }
}

#[test]
fn the_socket_and_its_folder_are_the_users_alone() {
    let place = Place::new();
    let _daemon = place.start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(place.socket().parent().unwrap()), 0o700);
    assert_eq!(mode(&place.socket()), 0o600);
}

/// Needs root, as which the whole suite runs: only root can become somebody else.
#[test]
fn another_user_is_turned_away_even_where_modes_let_him_in() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let _daemon = place.start();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    open(place.dir.path(), 0o755);
    open(place.socket().parent().unwrap(), 0o755);
    open(&place.socket(), 0o666);
    // The stranger's connection is closed without a word.
    let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                  print(len(s.recv(100)))";
    let stranger = Command::new("python3")
        .args(["-c", script])
        .arg(place.socket())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(stranger.stdout).unwrap(), "0\n", "{:?}", stranger.stderr);
    assert!(ask(&place.socket(), Request::Status { path: None }).1.is_ok());
}

#[test]
fn nonsense_on_the_socket_does_not_hurt_the_daemon() {
    let place = Place::new();
    let _daemon = place.start();
    let other_version = frame::encode(&serde_json::json!({"version": 99, "request": {}})).unwrap();
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{]", b"\0\0\0\x02{}", &other_version] {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.is_empty(), "it has said hello");
    }
    let refused = run(async {
        let mut stream = tokio::net::UnixStream::connect(place.socket()).await.unwrap();
        let _hello: Option<serde_json::Value> = frame::read(&mut stream).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &other_version).await.unwrap();
        frame::read::<Response>(&mut stream).await.unwrap()
    });
    assert!(matches!(refused, Some(Response::Error(e)) if e.message.contains("version")));
    assert!(ask(&place.socket(), Request::Status { path: None }).1.is_ok());
}
