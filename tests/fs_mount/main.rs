//! The filesystem on real mounts, with a stand-in for the torrent: its bytes are in memory, and the
//! test decides when they are "here". Needs root, /dev/fuse and the programs that it names.

// Clippy knows only functions marked #[test] as tests.
#![allow(clippy::unwrap_used)]

mod mounting;
mod programs;
mod reading;
mod stand_in;
mod tree;
mod unmounting;
mod waiting;
