//! aria2c as a peer.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::{PATIENCE, Process, Scratch, Torrent, free_port, wait_until};

/// A running aria2c with one torrent. It cannot be told of a peer: let the other connect to it,
/// or give both a tracker.
pub struct Aria2 {
    process: Process,
    pub address: SocketAddr,
}

impl Aria2 {
    /// Seeds a torrent; returns when it has checked the data and listens.
    pub fn seed(scratch: &Scratch, torrent: &Torrent) -> Self {
        let source = torrent.file.to_str().unwrap();
        let options = ["--check-integrity=true", "--seed-ratio=0.0"];
        let mut peer = Self::start(scratch, source, &torrent.save_path, &options);
        peer.wait_until_seeding();
        peer
    }

    /// Downloads from a .torrent file or magnet link into `save_path`, then seeds.
    pub fn start(scratch: &Scratch, source: &str, save_path: &Path, options: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new("aria2c");
        command
            .args(["--no-conf=true", "--interface=127.0.0.1", "--enable-dht=false"])
            .args(["--enable-dht6=false", "--disable-ipv6=true", "--bt-enable-lpd=false"])
            .args(["--enable-peer-exchange=false", "--file-allocation=none"])
            .args(["--console-log-level=notice", "--show-console-readout=false"])
            .args(["--enable-color=false", "--summary-interval=0", "--seed-ratio=0.0"])
            .arg(format!("--listen-port={port}"))
            .arg(format!("--dir={}", save_path.display()))
            .arg(format!("--stop-with-process={}", std::process::id()))
            .args(options)
            .arg(source);
        let process = Process::spawn(scratch, &mut command);
        let mut peer = Self { process, address: ([127, 0, 0, 1], port).into() };
        peer.wait_until_listening(port);
        peer
    }

    /// Waits until it has everything, by its own word.
    #[track_caller]
    pub fn wait_until_seeding(&mut self) {
        wait_until("aria2 seeds", PATIENCE, || {
            assert!(!self.process.has_ended(), "aria2c ended: {}", self.said());
            self.said().contains("Seeding is over")
                || self.said().contains("Download complete")
                || self.said().contains("seeding")
        });
    }

    fn wait_until_listening(&mut self, port: u16) {
        wait_until("aria2 listens", PATIENCE, || {
            assert!(!self.process.has_ended(), "aria2c ended: {}", self.said());
            super::process::listens(port)
        });
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.process.stdout()).into_owned()
    }
}
