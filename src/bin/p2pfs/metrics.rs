//! `p2pfs metrics`

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use clap::Args;
use p2pfs::rpc::{Request, Response, metrics};

use super::daemon;

/// Print numbers about all mounts and seeds as Prometheus reads them
///
/// For the textfile collector of its node exporter; with --metrics the daemon answers Prometheus itself.
#[derive(Debug, Args)]
pub struct Metrics {}

impl Metrics {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let mut shares = Vec::new();
        let take = |event| {
            if let Response::Share(share) = event {
                shares.push(*share);
            }
        };
        daemon::ask_all(socket, &Request::Status { path: None }, take).await?;
        io::stdout().write_all(metrics::text(&shares).as_bytes())?;
        Ok(())
    }
}
