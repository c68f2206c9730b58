//! The programs under test, each daemon with its own socket, cache, port and home.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{
    Finished, PATIENCE, Process, Scratch, Torrent, Tree, free_port, mounts_below, run, wait_until,
};

/// What `nobody` is called in numbers: the ordinary user of the tests that run as root.
const NOBODY: u32 = 65534;

/// One daemon (started by the first command that needs it) and the command line that talks to it.
pub struct P2pfs<'a> {
    scratch: &'a Scratch,
    name: String,
    program: PathBuf,
    as_nobody: bool,
    lsd: bool,
    /// Nodes to begin with; `None` without DHT.
    dht: Option<Vec<SocketAddr>>,
    pub data_dir: PathBuf,
    /// Where its peers reach it.
    pub address: SocketAddr,
}

impl<'a> P2pfs<'a> {
    pub fn new(scratch: &'a Scratch) -> Self {
        Self::named(scratch, "p2pfs")
    }

    /// For tests with several daemons.
    pub fn named(scratch: &'a Scratch, name: &str) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_p2pfs"));
        let data_dir = scratch.path(&format!("{name}-cache"));
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
        scratch.dir(&format!("{name}-home"));
        Self {
            scratch,
            name: name.into(),
            program,
            as_nobody: false,
            lsd: false,
            dht: None,
            data_dir,
            address,
        }
    }

    /// With copies of the programs that an ordinary user can run, as that user: `nobody` if the
    /// tests run as root, otherwise whoever runs them.
    pub fn as_ordinary_user(scratch: &'a Scratch) -> Self {
        let mut this = Self::named(scratch, "user");
        if nix::unistd::Uid::effective().is_root() {
            this.as_nobody = true;
            this.program = install(scratch, &this.program);
            let home = scratch.dir("user-home");
            for dir in [&home, &scratch.dir("mnt")] {
                std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            this.data_dir = home.join("cache");
        }
        this
    }

    /// Listens on another address of this machine.
    pub fn listening_on(mut self, ip: IpAddr) -> Self {
        self.address.set_ip(ip);
        self
    }

    /// With local discovery, which would otherwise let daemons of other tests find each other.
    pub fn with_lsd(mut self) -> Self {
        self.lsd = true;
        self
    }

    /// With the DHT, which would otherwise let daemons find each other; it begins with these nodes.
    pub fn with_dht(mut self, nodes: &[SocketAddr]) -> Self {
        self.dht = Some(nodes.to_vec());
        self
    }

    pub fn with_data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = dir.to_path_buf();
        self
    }

    /// `p2pfs VERB --socket …` in the environment of this daemon.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = self.command_alone(verb);
        command.arg("--socket").arg(self.home().join("socket"));
        command
    }

    /// `p2pfs VERB`, for those that need no daemon.
    pub fn command_alone(&self, verb: &str) -> Command {
        let mut command = self.as_same_user(&self.program);
        command.arg(verb);
        command
    }

    /// Any program as the user of this daemon, with an environment of its own.
    pub fn as_same_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if self.as_nobody {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
            command.arg("--clear-groups").arg(program);
            command
        } else {
            Command::new(program)
        };
        for variable in ["XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        let home = self.home();
        command.env("HOME", &home).env("LC_ALL", "C.UTF-8").current_dir(&home);
        command
    }

    fn home(&self) -> PathBuf {
        self.scratch.path(&format!("{}-home", self.name))
    }

    /// A command that may be the one to start the daemon: with all of the daemon's settings.
    pub fn starting_command(&self, verb: &str) -> Command {
        let mut command = self.command(verb);
        command.arg("--port").arg(self.address.port().to_string());
        command.arg("--listen").arg(self.address.ip().to_string());
        command.arg("--data-dir").arg(&self.data_dir);
        if !self.lsd {
            command.arg("--no-lsd");
        }
        match &self.dht {
            None => drop(command.arg("--no-dht")),
            Some(nodes) => nodes.iter().for_each(|node| {
                command.arg("--dht-bootstrap").arg(node.to_string());
            }),
        }
        command
    }

    /// Runs `p2pfs VERB ARGS…` to its end.
    #[track_caller]
    pub fn run(&self, verb: &str, arguments: &[&str]) -> Finished {
        run(self.scratch, self.command(verb).args(arguments), PATIENCE)
    }

    /// A new empty directory to mount on.
    pub fn mount_point(&self) -> PathBuf {
        let parent = self.scratch.dir("mnt");
        let dir = tempfile::Builder::new().prefix("m").tempdir_in(parent).unwrap().keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        if self.as_nobody {
            std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        dir
    }

    /// Mounts and expects that to work.
    #[track_caller]
    pub fn mount(&self, source: impl AsRef<OsStr>, options: &[&str]) -> Mount<'_> {
        let dir = self.mount_point();
        self.try_mount(source, &dir, options).success();
        self.mounted(dir)
    }

    /// Mounts a bare info hash whose peers the DHT knows, soon enough: the first are there within
    /// five seconds of asking, and the metadata with them.
    #[track_caller]
    pub fn mount_by_dht(&self, info_hash: &str) -> Mount<'_> {
        let began = Instant::now();
        let mount = self.mount(info_hash, &["--no-pex", "--on-demand"]);
        let took = began.elapsed();
        eprintln!("mounted by the DHT alone after {took:.2?}");
        assert!(took < Duration::from_secs(5), "mounted after {took:?}");
        mount
    }

    /// `p2pfs mount OPTIONS SOURCE DIR`, whatever comes of it.
    #[track_caller]
    pub fn try_mount(&self, source: impl AsRef<OsStr>, dir: &Path, options: &[&str]) -> Finished {
        let mut command = self.starting_command("mount");
        run(self.scratch, command.args(options).arg(source).arg(dir), PATIENCE)
    }

    /// `p2pfs mount -f`, which stays; returns when the mount is live.
    #[track_caller]
    pub fn mount_foreground(
        &self,
        source: impl AsRef<OsStr>,
        options: &[&str],
    ) -> (Process, Mount<'_>) {
        let dir = self.mount_point();
        let mut command = self.starting_command("mount");
        command.arg("--foreground").args(options).arg(source).arg(&dir);
        let mut process = Process::spawn(self.scratch, &mut command);
        wait_until("the mount in the foreground is live", PATIENCE, || {
            assert!(!process.has_ended(), "p2pfs ended: {}", process.stderr());
            is_mounted(&dir)
        });
        (process, self.mounted(dir))
    }

    fn mounted(&self, dir: PathBuf) -> Mount<'_> {
        assert!(is_mounted(&dir), "p2pfs mount said yes, but nothing is mounted on {dir:?}");
        Mount { p2pfs: self, dir }
    }

    /// Seeds a torrent from where its data is; returns when the data is checked.
    #[track_caller]
    pub fn seed(&self, torrent: &Torrent, options: &[&str]) {
        self.try_seed(&torrent.file, &torrent.data, options).success();
    }

    #[track_caller]
    pub fn try_seed(&self, torrent: &Path, data: &Path, options: &[&str]) -> Finished {
        let mut command = self.starting_command("seed");
        run(self.scratch, command.args(options).arg(torrent).arg(data), PATIENCE)
    }

    /// What `p2pfs status --json` says: one object for each mount and seed.
    #[track_caller]
    pub fn status(&self) -> Vec<Status> {
        let said = self.run("status", &["--json"]).success().stdout();
        let list: Vec<Value> =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"));
        list.into_iter().map(Status).collect()
    }

    /// The daemon's process, which it says itself.
    #[track_caller]
    pub fn daemon(&self) -> Pid {
        let status = self.status();
        Pid::from_raw(status.first().expect("a daemon with a share").number("pid") as i32)
    }

    /// Ends the daemon as a crash would, and waits until it is gone.
    #[track_caller]
    pub fn kill_daemon(&self) {
        self.end_daemon(Signal::SIGKILL);
    }

    /// Ends the daemon in order.
    #[track_caller]
    pub fn stop_daemon(&self) {
        self.end_daemon(Signal::SIGTERM);
    }

    #[track_caller]
    fn end_daemon(&self, signal: Signal) {
        let daemon = self.daemon();
        kill(daemon, signal).unwrap();
        wait_until("the daemon is gone", PATIENCE, || !self.scratch.processes().contains(&daemon));
    }
}

/// Copies both programs to where everybody can run them.
fn install(scratch: &Scratch, program: &Path) -> PathBuf {
    let bin = scratch.dir("bin");
    for name in ["p2pfs", "p2pfs-mountd"] {
        std::fs::copy(program.with_file_name(name), bin.join(name)).unwrap();
    }
    bin.join("p2pfs")
}

pub fn is_mounted(dir: &Path) -> bool {
    mounts_below(dir).iter().any(|mount| mount == dir)
}

/// A live mount. Not ended when dropped: the [`Scratch`] sees to that.
pub struct Mount<'a> {
    p2pfs: &'a P2pfs<'a>,
    dir: PathBuf,
}

impl Mount<'_> {
    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads all of it.
    #[track_caller]
    pub fn tree(&self) -> Tree {
        Tree::read(&self.dir)
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.dir)
    }

    /// Runs `p2pfs VERB OPTIONS… DIR` to its end.
    #[track_caller]
    pub fn run(&self, verb: &str, options: &[&str]) -> Finished {
        let mut command = self.p2pfs.command(verb);
        run(self.p2pfs.scratch, command.args(options).arg(&self.dir), PATIENCE)
    }

    /// Its entry in `p2pfs status --json`.
    #[track_caller]
    pub fn status(&self) -> Status {
        let said = self.run("status", &["--json"]).success().stdout();
        let list: Vec<Value> =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"));
        assert_eq!(list.len(), 1, "status of one mount: {said}");
        list.into_iter().map(Status).next().unwrap()
    }

    /// Waits until all of it is verified.
    #[track_caller]
    pub fn wait(&self) {
        self.run("wait", &[]).success();
    }

    /// Unmounts, expects that to work, and that nothing is left.
    #[track_caller]
    pub fn umount(self) {
        self.run("umount", &[]).success();
        assert!(!self.is_mounted(), "still mounted after umount");
    }

    /// Waits until somebody has unmounted it.
    #[track_caller]
    pub fn wait_until_unmounted(&self) {
        wait_until("it is unmounted", PATIENCE, || !self.is_mounted());
    }
}

/// One mount or seed as `p2pfs status --json` describes it.
#[derive(Debug)]
pub struct Status(Value);

impl Status {
    /// A field that must be there and a whole number.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    /// A field that must be there and a number, whole or not.
    #[track_caller]
    pub fn fraction(&self, field: &str) -> f64 {
        self.0[field].as_f64().unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    /// A field that must be there and text.
    #[track_caller]
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_else(|| panic!("no text {field} in {}", self.0))
    }

    /// Whether the mount has left its folder.
    pub fn is_detached(&self) -> bool {
        self.0["detached"] == true
    }

    /// Nodes of the DHT that the daemon knows by IPv4.
    pub fn dht_nodes(&self) -> u64 {
        self.0["dht_nodes"]["v4"].as_u64().unwrap_or(0)
    }

    /// Connected peers that it knows of from `source`.
    pub fn peers_from(&self, source: &str) -> u64 {
        self.0["peers_from"][source].as_u64().unwrap_or(0)
    }

    /// Everything, for tests that look for a word somewhere in it.
    pub fn json(&self) -> String {
        self.0.to_string()
    }
}
