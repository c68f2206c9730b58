//! Which data of other clients cannot be used.

use std::io;
use std::path::Path;

use p2pfs::fs::mountinfo::{FS_TYPE, MountEntry, mounts};
use p2pfs::rpc::{RpcError, SourceRequest};
use rustix::fs::makedev;

/// Refuses data that would be read from a mount of ours, or be hidden by the one that is asked for.
pub fn check_data(source: &SourceRequest, dir: &Path) -> Result<(), RpcError> {
    let Some(data) = &source.use_data else { return Ok(()) };
    let mounts = mounts().map_err(RpcError::failed)?;
    let holding = mounts.iter().filter(|mount| data.starts_with(&mount.dir));
    // The last of those with the longest path is the one on top.
    let holding = holding.max_by_key(|mount| mount.dir.as_os_str().len());
    if holding.is_some_and(|mount| mount.fs_type == FS_TYPE) {
        return Err(RpcError::failed(format_args!(
            "{}: lies in a mounted torrent; --use-data is for the download of another client",
            data.display()
        )));
    }
    if data.starts_with(dir) { Err(covered(dir)) } else { Ok(()) }
}

/// The devices of all torrents that are mounted: data must not lead there by links either.
pub fn mounted_torrents() -> io::Result<Vec<u64>> {
    let device = |mount: MountEntry| {
        let (major, minor) = mount.device.split_once(':')?;
        Some(makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    let ours = mounts()?.into_iter().filter(|mount| mount.fs_type == FS_TYPE);
    Ok(ours.filter_map(device).collect())
}

/// What is said of data that a mount would hide.
pub fn covered(dir: &Path) -> RpcError {
    RpcError::failed(format_args!(
        "{}: a mount there would hide the data that is to be used; mount it somewhere else",
        dir.display()
    ))
}
