//! `p2pfs prefetch`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, size};

use super::{daemon, places};

/// Have a file or folder of a mount fetched now
#[derive(Debug, Args)]
pub struct Prefetch {
    /// Its path in the mount
    path: PathBuf,
}

impl Prefetch {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let path = places::existing(&self.path)?.into();
        let done = daemon::ask(socket, Request::Prefetch { path }, |_| {}).await?;
        let (bytes, files) = (size::show(done.bytes), size::count(done.files, "file"));
        eprintln!("p2pfs: {bytes} in {files} will be fetched");
        Ok(())
    }
}
