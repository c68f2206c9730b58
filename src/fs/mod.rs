//! The filesystem: a torrent's files as a read-only directory.
//!
//! - [`content`]: what is needed of a torrent, so that everything here is tested without a network
//! - [`tree`]: the inodes, complete before the mount is live, so that metadata never waits
//! - [`ops`], [`reading`], [`handles`], [`xattr`], `signals`: what each operation means, without FUSE types
//! - [`folders`]: several torrents in one directory; [`shown`]: what they and one torrent have in common
//! - `trail`: which pages of the mount nobody needs any more
//! - `fuse`: the thin adapter to the fuser crate, the only file that knows it
//! - [`options`], [`mountinfo`], [`mount`], [`automount`]: mounting and unmounting
//!
//! Only a buffered read may wait. It waits as a [`reading`] ticket that the engine holds, never on a
//! thread that answers requests.

pub mod automount;
pub mod content;
pub mod folders;
mod fuse;
mod fusermount;
pub mod handles;
pub mod mount;
pub mod mountinfo;
pub mod ops;
pub mod options;
pub mod reading;
pub mod shown;
mod signals;
mod trail;
pub mod tree;
pub mod xattr;

pub use content::Content;
pub use folders::{FolderId, Folders};
pub use mount::{Mount, MountError, Unmount, UnmountError};
pub use options::MountOptions;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what stays consistent even when a thread panicked with it locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
