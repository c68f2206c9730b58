//! `p2pfs stop`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::Request;

use super::daemon;

/// Stop seeding
#[derive(Debug, Args)]
pub struct Stop {
    /// The data that is being seeded, or its info hash
    #[arg(value_name = "PATH|INFOHASH")]
    what: PathBuf,
}

impl Stop {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        // Data that has gone can be stopped by its info hash.
        let what = self.what.canonicalize().unwrap_or(self.what).into();
        daemon::ask(socket, Request::Stop { what }, |_| {}).await?;
        Ok(())
    }
}
