//! libtorrent (python3-libtorrent) as a peer: tests/peers/lt.py.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, Process, Scratch, Torrent, wait_for, wait_until};

/// A running libtorrent session with one torrent.
pub struct Libtorrent {
    process: Process,
    stdin: ChildStdin,
    latest: Arc<Mutex<Value>>,
    pub address: SocketAddr,
}

impl Libtorrent {
    /// Seeds a torrent on 127.0.0.1; returns when it has checked the data.
    pub fn seed(scratch: &Scratch, torrent: &Torrent) -> Self {
        Self::seed_with(scratch, torrent, &torrent.save_path, &[])
    }

    /// The same from another directory and with options of lt.py, such as `--upload-limit`.
    pub fn seed_with(
        scratch: &Scratch,
        torrent: &Torrent,
        save_path: &Path,
        options: &[&str],
    ) -> Self {
        let peer = Self::start(scratch, torrent.file.to_str().unwrap(), save_path, options);
        wait_until("libtorrent seeds", PATIENCE, || peer.progress() == 1.0);
        peer
    }

    /// A seeder that serves corrupted data without looking at it.
    pub fn lie(scratch: &Scratch, torrent: &Torrent, options: &[&str]) -> Self {
        // One wrong byte in each block: no piece of it is right.
        let corrupted = torrent.corrupted(scratch, 16 << 10);
        Self::seed_with(scratch, torrent, &corrupted, &[&["--seed-mode"], options].concat())
    }

    /// Downloads from a .torrent file or magnet link into `save_path`; returns when it listens. Once
    /// in some hundred starts on a busy machine libtorrent says nothing at all: then another one is
    /// started.
    pub fn start(scratch: &Scratch, source: &str, save_path: &Path, options: &[&str]) -> Self {
        let attempts = [PATIENCE / 3, PATIENCE];
        let started = attempts
            .into_iter()
            .find_map(|patience| Self::attempt(scratch, source, save_path, options, patience));
        started.unwrap_or_else(|| panic!("lt.py does not listen"))
    }

    fn attempt(
        scratch: &Scratch,
        source: &str,
        save_path: &Path,
        options: &[&str],
        patience: Duration,
    ) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/lt.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(source).arg(save_path).args(options);
        let mut process = Process::spawn_piped(scratch, &mut command);
        let stdin = process.child().stdin.take().unwrap();
        let mut lines = BufReader::new(process.child().stdout.take().unwrap()).lines();
        let latest = Arc::new(Mutex::new(Value::Null));
        let shared = Arc::clone(&latest);
        // Ends with the process, whose stdout it reads.
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                *shared.lock().unwrap() = serde_json::from_str(&line).unwrap();
            }
        });
        let v6 = options.windows(2).any(|pair| pair[0] == "--host" && pair[1] == "::1");
        let listening = wait_for(patience, || latest.lock().unwrap()["port"].as_u64());
        if listening.is_none() {
            eprintln!("lt.py says nothing: {}", process.stderr());
        }
        let port = listening? as u16;
        let address = if v6 {
            ([0, 0, 0, 0, 0, 0, 0, 1], port).into()
        } else {
            ([127, 0, 0, 1], port).into()
        };
        Some(Self { process, stdin, latest, address })
    }

    /// Connects to another peer.
    pub fn connect(&mut self, peer: SocketAddr) {
        writeln!(self.stdin, "connect {peer}").unwrap();
    }

    /// 1.0 only when all of it is there and checked.
    pub fn progress(&self) -> f64 {
        self.said("progress").as_f64().unwrap_or(0.0)
    }

    /// Pieces that are there and checked.
    pub fn pieces(&self) -> u64 {
        self.said("pieces").as_u64().unwrap_or(0)
    }

    /// Payload bytes it has sent; libtorrent counts once a second.
    pub fn uploaded(&self) -> u64 {
        self.said("uploaded").as_u64().unwrap_or(0)
    }

    /// Bytes it received that failed the hash check.
    pub fn wasted(&self) -> u64 {
        self.said("wasted").as_u64().unwrap_or(0)
    }

    /// Peers it is connected to.
    pub fn peers(&self) -> u64 {
        self.said("peers").as_u64().unwrap_or(0)
    }

    /// A field of the last line of lt.py.
    fn said(&self, field: &str) -> Value {
        self.latest.lock().unwrap()[field].clone()
    }

    #[track_caller]
    pub fn wait_until_complete(&self) {
        wait_until("libtorrent has all of it", PATIENCE, || self.progress() == 1.0);
    }
}

/// Some nodes of libtorrent's DHT that know each other: tests/peers/lt_dht.py.
pub struct LibtorrentDht {
    _process: Process,
    _stdin: ChildStdin,
    pub nodes: Vec<SocketAddr>,
}

impl LibtorrentDht {
    /// Starts so many; returns when each knows some of the others.
    pub fn start(scratch: &Scratch, count: usize) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/lt_dht.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(count.to_string());
        let mut process = Process::spawn_piped(scratch, &mut command);
        let stdin = process.child().stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(process.child().stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ports: Vec<u16> = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error} in {line:?}: {}", process.stderr()));
        let nodes = ports.into_iter().map(|port| ([127, 0, 0, 1], port).into()).collect();
        Self { _process: process, _stdin: stdin, nodes }
    }

    /// As lt.py wants them.
    pub fn options(&self) -> Vec<String> {
        self.nodes.iter().flat_map(|node| ["--dht-node".into(), node.to_string()]).collect()
    }
}
