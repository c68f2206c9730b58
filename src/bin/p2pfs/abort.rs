//! `p2pfs abort`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, size};

use super::{daemon, places};

/// End all reads of a mount that wait, with an I/O error
#[derive(Debug, Args)]
pub struct Abort {
    /// Where the torrent is mounted
    dir: PathBuf,
}

impl Abort {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let dir = places::in_mount(&self.dir)?.into();
        let done = daemon::ask(socket, Request::Abort { dir }, |_| {}).await?;
        eprintln!("p2pfs: ended {}", size::count(done.reads, "waiting read"));
        Ok(())
    }
}
