//! Stub of the mount, until the filesystem replaces it.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::Torrent;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Where.
    pub dir: PathBuf,
    /// Let others in.
    pub allow_other: bool,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bits that files do not have.
    pub umask: Option<u16>,
    /// After which a read fails.
    pub read_timeout: Option<Duration>,
}

/// Why a mount cannot be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// In use.
    #[error("it is in use")]
    Busy,
    /// Anything else.
    #[error("there is no filesystem yet")]
    Other,
}

/// How to unmount.
#[derive(Clone, Copy, Debug)]
pub enum Unmount {
    /// Refuse when in use.
    Clean,
    /// Cut off.
    Force,
    /// Detach.
    Lazy,
}

/// A live mount.
pub struct Mount {}

impl Mount {
    /// Mounts.
    pub fn new(_torrent: Torrent, _options: MountOptions) -> Result<Mount, MountError> {
        Err(MountError::Other)
    }

    /// Unmounts.
    pub fn unmount(&self, _how: Unmount) -> Result<(), MountError> {
        Err(MountError::Other)
    }

    /// Completes when the mount is gone, whoever ended it.
    pub async fn ended(&self) {}
}
