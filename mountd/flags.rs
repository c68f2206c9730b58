//! The daemon's command line.

use std::path::PathBuf;

use clap::Parser;
use p2pfs::rpc::Settings;

/// Serve the mounts and seeds of one user
///
/// p2pfs(1) starts this program when it is needed; it leaves 60 seconds after the last mount or seed
/// has ended, or as soon as somebody then wants other settings of it. Started by hand, or by a service
/// manager, it stays until it is told to stop (SIGTERM, SIGINT), which ends all mounts. SIGHUP has it
/// read the rate limits and `log` of its file of settings anew; with --foreground it ends the daemon. It
/// listens for commands at a unix socket, which only its own user and root may use.
#[derive(Debug, Parser)]
#[command(name = "p2pfs-mountd", version, about)]
pub struct Flags {
    /// Socket for commands (default: $XDG_RUNTIME_DIR/p2pfs/socket, /run/p2pfs/socket for root)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// File of settings, see p2pfs.toml(5) (default: ~/.config/p2pfs/p2pfs.toml, /etc/p2pfs.toml for root)
    #[arg(long, value_name = "FILE", env = "P2PFS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub settings: Settings,
    /// Leave when the last mount or seed has ended, and say what happens on stderr
    #[arg(short, long)]
    pub foreground: bool,
    /// Started by a client: detach, say when ready on stdout, leave when idle
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub detach: bool,
    /// What to mount or seed at once, as JSON
    #[arg(long, hide = true, requires = "foreground", value_name = "JSON")]
    pub request: Option<String>,
    /// Print the manual page
    #[arg(long, hide = true)]
    pub man: bool,
}
