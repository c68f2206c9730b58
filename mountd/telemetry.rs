//! What the daemon says about itself: warnings by default, more as `P2PFS_LOG` asks (the syntax of
//! tracing's `EnvFilter`: `debug`, `p2pfs::engine=trace`).

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use p2pfs::rpc::beside;
use tracing_subscriber::EnvFilter;

/// Logs to stderr, or to `SOCKET.log` when a socket is given. The file begins anew each time.
pub fn start(socket: Option<&Path>) -> Result<()> {
    let filter = EnvFilter::try_from_env("P2PFS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    let Some(socket) = socket else {
        logs.with_writer(std::io::stderr).init();
        return Ok(());
    };
    let path = beside(socket, "log");
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .with_context(|| format!("cannot write the log {}", path.display()))?;
    logs.with_ansi(false).with_writer(std::sync::Mutex::new(file)).init();
    Ok(())
}
