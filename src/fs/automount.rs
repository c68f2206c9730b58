//! Directories that are mounted on when somebody looks into them (autofs, systemd's automount units).
//!
//! Who looks into one waits for the mount to be made; only the process that is to make it, and what is
//! started by it in its process group, does not. The daemon is neither. So the client, which is, opens
//! the directory, and the daemon reaches it through the client's descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statfs::{AUTOFS_SUPER_MAGIC, fstatfs, statfs};
use nix::unistd::getpgrp;

use super::mountinfo::{MountEntry, mount_at};

/// The filesystem type of such directories, as the table of mounts has it.
const FS_TYPE: &str = "autofs";

/// Whether a directory (an absolute path without links) waits to be mounted on, by the table of mounts
/// alone.
pub(super) fn waits(dir: &Path) -> bool {
    at(dir).is_some()
}

/// Whether this process is of the group that is to make the mount.
pub(super) fn waits_for_us(dir: &Path) -> bool {
    let on = at(dir);
    let mut options = on.iter().flat_map(|on| on.options.split(','));
    let group = options.find_map(|option| option.strip_prefix("pgrp=")?.parse().ok());
    group == Some(getpgrp().as_raw())
}

fn at(dir: &Path) -> Option<MountEntry> {
    let on = dir.ancestors().find_map(|dir| mount_at(dir).ok().flatten());
    on.filter(|on| on.fs_type == FS_TYPE)
}

/// Whether a path leads to such a directory.
pub(super) fn is_one(path: &Path) -> bool {
    statfs(path).is_ok_and(|of| of.filesystem_type() == AUTOFS_SUPER_MAGIC)
}

/// Such a directory, held open.
pub struct Automount(File);

impl Automount {
    /// Opens a directory if it waits to be mounted on; `None` otherwise, also where that was done while
    /// it was opened.
    pub fn hold(dir: &Path) -> io::Result<Option<Self>> {
        if !waits(dir) {
            return Ok(None);
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = File::options().read(true).custom_flags(flags).open(dir)?;
        let is_one = fstatfs(&opened)?.filesystem_type() == AUTOFS_SUPER_MAGIC;
        Ok(is_one.then_some(Self(opened)))
    }

    /// A path to it on which nobody waits, for as long as this lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}
