//! `p2pfs rm`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::Request;

use super::{daemon, places};

/// Take a folder out of a mount of folders
///
/// What was downloaded stays in the cache.
#[derive(Debug, Args)]
pub struct Rm {
    /// The folder's name
    name: PathBuf,
    /// Where the folders are mounted
    dir: PathBuf,
    /// Also if files of it are open: reading them fails from then on
    #[arg(long)]
    force: bool,
}

impl Rm {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let dir = places::in_mount(&self.dir)?.into();
        let request = Request::Remove { dir, name: self.name.into(), force: self.force };
        daemon::ask(socket, request, |_| {}).await?;
        Ok(())
    }
}
