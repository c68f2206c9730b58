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
    /// Magnet link, .torrent file, URL of one (http, https, file), or info hash
    source: String,
    /// Where the folders are mounted: `p2pfs mount` with several sources, or --folders
    dir: PathBuf,
    /// Use what is good of the download of another client, where it is, and fetch the rest: PATH is
    /// the torrent's file or folder, or the folder that has it; it is checked first and never written
    #[arg(long, value_name = "PATH")]
    use_data: Option<PathBuf>,
    #[command(flatten)]
    network: Network,
}

impl Add {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let (source, _) = source::check(&self.source).await?;
        let dir = places::in_mount(&self.dir)?;
        let use_data = self.use_data.as_deref().map(places::existing).transpose()?;
        let mut source = self.network.request(source, mount::TIMEOUT)?;
        source.use_data = use_data.map(Into::into);
        let request = Request::Add { source: Box::new(source), dir: dir.clone().into() };
        let added = daemon::ask(socket, request, |_| {}).await?;
        let folder = dir.join(&added.name);
        let empty = if added.empty > 0 { " is empty until its metadata is found" } else { "" };
        eprintln!("p2pfs: {}{empty}", visible(&folder.to_string_lossy()));
        Ok(())
    }
}
