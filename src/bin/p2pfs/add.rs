//! `p2pfs add`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, visible};

use super::source::{self, Network};
use super::{daemon, mount, places};

/// Add a torrent to a mount of folders
///
/// Its folder is there at once, and empty until the metadata is known; until then its attribute
/// user.p2pfs.state says what it waits for.
#[derive(Debug, Args)]
pub struct Add {
    /// Magnet link, .torrent file, http(s) URL of one, or info hash
    source: String,
    /// Where the folders are mounted: `p2pfs mount` with several sources, or --folders
    dir: PathBuf,
    #[command(flatten)]
    network: Network,
}

impl Add {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let (source, _) = source::check(&self.source).await?;
        let dir = places::in_mount(&self.dir)?;
        let source = Box::new(self.network.request(source, mount::TIMEOUT)?);
        let request = Request::Add { source, dir: dir.clone().into() };
        let added = daemon::ask(socket, request, |_| {}).await?;
        let folder = dir.join(&added.name);
        let empty = if added.empty > 0 { " is empty until its metadata is found" } else { "" };
        eprintln!("p2pfs: {}{empty}", visible(&folder.to_string_lossy()));
        Ok(())
    }
}
