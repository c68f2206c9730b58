//! `p2pfs umount`

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use p2pfs::fs::mount::is_dead;
use p2pfs::fs::mountinfo::{FS_TYPE, mount_at};
use p2pfs::rpc::{ErrorKind, Request, Response, RpcError, Unmounting, size, visible};

use super::progress::Shown;
use super::{daemon, places};

/// End a mount
///
/// Refuses while the mount is in use. What was downloaded stays in the cache.
#[derive(Debug, Args)]
pub struct Umount {
    /// Where the torrent is mounted
    dir: PathBuf,
    /// End reads that wait, and cut off whoever uses the mount
    #[arg(long, conflicts_with = "lazy")]
    force: bool,
    /// Detach it now; it ends when nobody uses it any more
    #[arg(long, short = 'l')]
    lazy: bool,
    /// Wait until everything that was selected is here, then end it
    #[arg(long, conflicts_with_all = ["force", "lazy"])]
    when_done: bool,
}

impl Umount {
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let dir = places::in_mount(&self.dir)?;
        let how = match (self.force, self.lazy) {
            (true, _) => Unmounting::Force,
            (_, true) => Unmounting::Lazy,
            _ => Unmounting::Clean,
        };
        if self.when_done {
            super::wait::until_complete(socket, &dir).await?;
        }
        let request = Request::Umount { dir: dir.clone().into(), how };
        let mut shown = Shown::default();
        let show = |event| {
            if let Response::Progress(progress) = event {
                shown.show(&progress);
            }
        };
        let asked = daemon::ask(socket, request, show).await;
        shown.clear();
        let error = match asked {
            Ok(done) => {
                if done.reads > 0 && self.force {
                    eprintln!("p2pfs: ended {}", size::count(done.reads, "waiting read"));
                }
                if let Some(ratio) = done.ratio {
                    eprintln!("p2pfs: {}: share ratio {ratio}", visible(&done.name));
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let kind = error.downcast_ref::<RpcError>().map(|error| error.kind);
        if kind != Some(ErrorKind::NotHere) {
            return Err(error);
        }
        // No daemon of ours has it: a dead mount, or that of a daemon we cannot ask.
        match mount_at(&dir)? {
            Some(mount) if mount.fs_type == FS_TYPE => unmount(&dir, how),
            _ => bail!("{}: no torrent is mounted there; see p2pfs status", self.dir.display()),
        }
    }
}

/// Unmounts without a daemon.
fn unmount(dir: &Path, how: Unmounting) -> Result<()> {
    // Nobody can use a dead mount, so it can always be detached.
    let lazy = how == Unmounting::Lazy || is_dead(dir);
    let failed = || format!("{}: cannot be unmounted", dir.display());
    if !nix::unistd::geteuid().is_root() {
        let flags = if lazy { "-uqz" } else { "-uq" };
        let run = Command::new("fusermount3").arg(flags).arg("--").arg(dir).status();
        let status = run.context("cannot run fusermount3; install fuse3").with_context(failed)?;
        if !status.success() {
            bail!("{}: in use or not yours; --lazy detaches it", dir.display());
        }
        return Ok(());
    }
    let flags = match (lazy, how) {
        (true, _) => MntFlags::MNT_DETACH,
        (_, Unmounting::Force) => MntFlags::MNT_FORCE | MntFlags::MNT_DETACH,
        _ => MntFlags::empty(),
    };
    match umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EBUSY) => bail!("{}: in use; --force or --lazy ends it", dir.display()),
        done => done.with_context(failed),
    }
}
