//! transmission-daemon as a peer, told what to do through its RPC.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::http::post;
use super::{PATIENCE, Process, Scratch, Torrent, free_port, wait_until};

/// A running transmission-daemon. It cannot be told of a peer, and never connects to 127/8 itself
/// (it holds such addresses for wrong): the other has to connect to it.
pub struct Transmission {
    process: Process,
    rpc: SocketAddr,
    pub address: SocketAddr,
}

impl Transmission {
    /// Seeds a torrent; returns when it has checked the data.
    pub fn seed(scratch: &Scratch, torrent: &Torrent) -> Self {
        let peer = Self::start(scratch, &torrent.save_path);
        peer.add(torrent.file.to_str().unwrap());
        peer.wait_until_complete();
        peer
    }

    /// A daemon without torrents that saves into `save_path`.
    pub fn start(scratch: &Scratch, save_path: &Path) -> Self {
        Self::start_at(scratch, save_path, Ipv4Addr::LOCALHOST, &[])
    }

    /// The same, which calls files `.part` while they are not whole.
    pub fn start_naming_parts(scratch: &Scratch, save_path: &Path) -> Self {
        let peer = Self::start(scratch, save_path);
        peer.call("session-set", json!({ "rename-partial-files": true })).unwrap();
        peer
    }

    /// Ends it as a person would; it writes what it has.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        assert!(self.process.wait(PATIENCE).is_some(), "transmission-daemon does not end");
    }

    /// A daemon at this address that takes part in the DHT if there are nodes to begin with. It wants
    /// more than eight of them, none on 127/8, and asks one every two seconds.
    pub fn start_at(
        scratch: &Scratch,
        save_path: &Path,
        ip: Ipv4Addr,
        nodes: &[SocketAddr],
    ) -> Self {
        let (port, rpc_port) = (free_port(), free_port());
        let config = scratch.dir(&format!("transmission-{port}"));
        if !nodes.is_empty() {
            std::fs::write(config.join("dht.dat"), dht_table(nodes)).unwrap();
        }
        let settings = json!({
            "bind-address-ipv4": ip.to_string(), "bind-address-ipv6": "::1",
            "rpc-bind-address": "127.0.0.1", "rpc-port": rpc_port, "rpc-whitelist-enabled": false,
            "rpc-host-whitelist-enabled": false, "rpc-authentication-required": false,
            "peer-port": port, "peer-port-random-on-start": false, "port-forwarding-enabled": false,
            "dht-enabled": !nodes.is_empty(), "lpd-enabled": false, "pex-enabled": false, "utp-enabled": false,
            "encryption": 0, "download-dir": save_path, "incomplete-dir-enabled": false,
            "rename-partial-files": false, "start-added-torrents": true, "umask": 18,
            "ratio-limit-enabled": false, "idle-seeding-limit-enabled": false,
        });
        std::fs::write(config.join("settings.json"), settings.to_string()).unwrap();
        let mut command = Command::new("transmission-daemon");
        command.args(["--foreground", "--log-error", "--config-dir"]).arg(&config);
        // Its caches go by HOME.
        command.env("HOME", &config);
        let process = Process::spawn(scratch, &mut command);
        let rpc = ([127, 0, 0, 1], rpc_port).into();
        let peer = Self { process, rpc, address: (ip, port).into() };
        wait_until("transmission's RPC answers", PATIENCE, || {
            peer.call("session-get", json!({})).is_some()
        });
        peer
    }

    /// Adds a .torrent file or magnet link.
    #[track_caller]
    pub fn add(&self, source: &str) {
        let answer = self.call("torrent-add", json!({ "filename": source })).unwrap();
        assert_eq!(answer["result"], "success", "{answer}");
    }

    /// 0 to 1 of its only torrent; 0 while it is being checked or has no metadata.
    pub fn progress(&self) -> f64 {
        const FIELDS: [&str; 4] =
            ["percentDone", "status", "metadataPercentComplete", "leftUntilDone"];
        const SEEDING: u64 = 6;
        let answer = self.call("torrent-get", json!({ "fields": FIELDS })).unwrap();
        let torrent = &answer["arguments"]["torrents"][0];
        let complete = torrent["status"] == SEEDING
            && torrent["metadataPercentComplete"] == 1.0
            && torrent["leftUntilDone"] == 0;
        let done = torrent["percentDone"].as_f64().unwrap_or(0.0);
        if complete { 1.0 } else { done.min(0.999) }
    }

    #[track_caller]
    pub fn wait_until_complete(&self) {
        self.wait_until_complete_within(PATIENCE);
    }

    #[track_caller]
    pub fn wait_until_complete_within(&self, bound: Duration) {
        wait_until("transmission has all of it", bound, || self.progress() == 1.0);
    }

    /// One call; `None` while nobody answers.
    fn call(&self, method: &str, arguments: Value) -> Option<Value> {
        const PATH: &str = "/transmission/rpc";
        let body = json!({ "method": method, "arguments": arguments }).to_string();
        // The first answer is 409 with the session id that the next request has to carry.
        let (head, _) = post(self.rpc, PATH, "", &body)?;
        let id = head.lines().find(|line| line.starts_with("X-Transmission-Session-Id: "))?;
        let (_, answer) = post(self.rpc, PATH, &format!("{id}\r\n"), &body)?;
        serde_json::from_str(&answer).ok()
    }
}

/// The table of an earlier life: a daemon asks these nodes soon, and those of `dht.bootstrap` four
/// times a minute.
fn dht_table(nodes: &[SocketAddr]) -> Vec<u8> {
    let mut compact = Vec::new();
    for node in nodes {
        let SocketAddr::V4(node) = node else { panic!("{node}: an IPv4 address is needed") };
        compact.extend(node.ip().octets());
        compact.extend(node.port().to_be_bytes());
    }
    let id: [u8; 20] = rand::random();
    let head = format!("5:nodes{}:", compact.len());
    [&b"d2:id20:"[..], &id, head.as_bytes(), &compact, b"e"].concat()
}
