//! aria2c as a peer.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::http::post;
use super::process::listens;
use super::{PATIENCE, Process, Scratch, Torrent, free_port, wait_until};

/// A running aria2c with one torrent. It cannot be told of a peer: let the other connect to it,
/// or give both a tracker.
pub struct Aria2 {
    process: Process,
    rpc: SocketAddr,
    pub address: SocketAddr,
}

impl Aria2 {
    /// Seeds a torrent; returns when it has checked the data and listens.
    pub fn seed(scratch: &Scratch, torrent: &Torrent) -> Self {
        let source = torrent.file.to_str().unwrap();
        let options = ["--check-integrity=true"];
        let mut peer = Self::start(scratch, source, &torrent.save_path, &options);
        peer.wait_until_complete();
        peer
    }

    /// Downloads from a .torrent file or magnet link into `save_path`, then seeds.
    pub fn start(scratch: &Scratch, source: &str, save_path: &Path, options: &[&str]) -> Self {
        let (port, rpc_port) = (free_port(), free_port());
        let mut command = Command::new("aria2c");
        command
            .args(["--no-conf=true", "--interface=127.0.0.1", "--enable-dht=false"])
            .args(["--enable-dht6=false", "--disable-ipv6=true", "--bt-enable-lpd=false"])
            .args(["--enable-peer-exchange=false", "--file-allocation=none"])
            .args(["--console-log-level=notice", "--show-console-readout=false"])
            .args(["--enable-color=false", "--summary-interval=0", "--seed-ratio=0.0"])
            .arg("--enable-rpc=true")
            .arg(format!("--rpc-listen-port={rpc_port}"))
            .arg(format!("--listen-port={port}"))
            .arg(format!("--dir={}", save_path.display()))
            .arg(format!("--stop-with-process={}", std::process::id()))
            .args(options)
            .arg(source);
        let process = Process::spawn(scratch, &mut command);
        let (address, rpc) = (([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], rpc_port).into());
        let mut peer = Self { process, rpc, address };
        wait_until("aria2 listens", PATIENCE, || {
            assert!(!peer.process.has_ended(), "aria2c ended: {}", peer.said());
            listens(port) && listens(rpc_port)
        });
        peer
    }

    /// Waits until it has everything and serves it.
    #[track_caller]
    pub fn wait_until_complete(&mut self) {
        wait_until("aria2 has all of it", PATIENCE, || {
            assert!(!self.process.has_ended(), "aria2c ended: {}", self.said());
            let active = self.call("aria2.tellActive");
            active["result"].as_array().is_some_and(|downloads| {
                downloads.iter().any(|download| download["seeder"] == "true")
            })
        });
    }

    /// Bytes that are there.
    pub fn completed(&self) -> u64 {
        let active = self.call("aria2.tellActive");
        let completed = active["result"][0]["completedLength"].as_str();
        completed.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
    }

    /// Ends it as a person would; it writes what it has.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        assert!(self.process.wait(PATIENCE).is_some(), "aria2c does not end");
    }

    /// One call of its JSON-RPC without arguments; null while nobody answers.
    fn call(&self, method: &str) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": "test", "method": method }).to_string();
        let answer = post(self.rpc, "/jsonrpc", "", &body);
        answer.and_then(|(_, answer)| serde_json::from_str(&answer).ok()).unwrap_or_default()
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.process.stdout()).into_owned()
    }
}
