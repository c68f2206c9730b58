//! `p2pfs wait`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, Response};

use super::progress::Shown;
use super::{daemon, places};

/// Wait until all files of a mount, or those that were selected, are here and verified
#[derive(Debug, Args)]
pub struct Wait {
    /// Where the torrent is mounted
    dir: PathBuf,
}

impl Wait {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        until_complete(socket, &places::in_mount(&self.dir)?).await
    }
}

/// Waits until all that was selected is here, and shows how far it is.
pub async fn until_complete(socket: Option<&Path>, dir: &Path) -> Result<()> {
    let dir = dir.to_owned().into();
    let mut shown = Shown::default();
    let show = |event| {
        if let Response::Progress(progress) = event {
            shown.show(&progress);
        }
    };
    daemon::ask(socket, Request::Wait { dir }, show).await?;
    Ok(())
}
