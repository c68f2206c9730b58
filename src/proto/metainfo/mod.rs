//! Metainfo: what a .torrent file or the info dictionary of a magnet says (BEP 3, 9, 12, 19, 27,
//! 47, 52).
//!
//! Everything here comes from strangers. [`Info::parse`] checks what must be right for pieces to be
//! fetched and verified; names it leaves as they are, and only [`layout`] makes paths of them.

mod builder;
mod file_tree;
mod info;
pub mod layout;
mod magnet;
mod piece_layers;
mod torrent_file;
mod urls;

pub use builder::{BuildError, BuildOptions, Builder, Version, default_piece_length};
pub use info::{FileEntry, Info, InfoError, MAX_FILES, V2};
pub use magnet::{Magnet, MagnetError};
pub use piece_layers::PieceLayers;
pub use torrent_file::{Metainfo, MetainfoError};

#[cfg(test)]
mod tests;
