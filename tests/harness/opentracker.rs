//! opentracker: a real tracker, HTTP and UDP on one port.

use std::process::Command;

use nix::unistd::Uid;

use super::{PATIENCE, Process, Scratch, Torrent, free_port, process, wait_until};

/// A running tracker that knows the torrents it was given (Debian's build has a whitelist).
pub struct Opentracker {
    process: Process,
    port: u16,
}

impl Opentracker {
    /// A tracker for these info hashes (hex). Give none to have it refuse everything.
    pub fn start(scratch: &Scratch, info_hashes: &[&str]) -> Self {
        let port = free_port();
        let dir = scratch.dir(&format!("opentracker-{port}"));
        let list: String = info_hashes.iter().map(|hash| format!("{hash}\n")).collect();
        std::fs::write(dir.join("whitelist"), list).unwrap();
        // It insists on giving up root, and then cannot read its list: start it without.
        let mut command = if Uid::effective().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "opentracker"]);
            command
        } else {
            Command::new("opentracker")
        };
        let number = port.to_string();
        command.args(["-i", "127.0.0.1", "-p", &number, "-P", &number, "-w", "whitelist", "-d"]);
        command.arg(&dir).current_dir(&dir);
        let mut process = Process::spawn(scratch, &mut command);
        wait_until("opentracker listens", PATIENCE, || {
            assert!(!process.has_ended(), "opentracker ended: {}", process.stderr());
            process::listens(port)
        });
        Self { process, port }
    }

    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}/announce", self.port)
    }

    pub fn udp(&self) -> String {
        format!("udp://127.0.0.1:{}/announce", self.port)
    }
}
