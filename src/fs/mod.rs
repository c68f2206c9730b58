//! The filesystem.

mod mount;

pub use mount::{Mount, MountError, MountOptions, Unmount};
