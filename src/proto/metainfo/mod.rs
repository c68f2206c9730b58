//! Metainfo: what a .torrent file or the info dictionary of a magnet says (BEP 3, 9, 12, 19, 27, 47).

mod info;
pub mod layout;

pub use info::{FileEntry, Info};
