//! The info dictionary: what the info hash covers.

use crate::proto::geometry::Geometry;
use crate::proto::ids::InfoHash;

/// A parsed info dictionary. Everything in it is checked: file lengths add up to the total, there
/// is one hash a piece, and all numbers fit the [`Geometry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// SHA-1 of [`Self::raw`].
    pub info_hash: InfoHash,
    /// The bytes as they were found, to be hashed and handed to other peers (BEP 9).
    pub raw: Vec<u8>,
    /// The suggested name, raw bytes as found (`name.utf-8` where present); never shown unchecked.
    pub name: Vec<u8>,
    /// How the bytes are cut into pieces.
    pub geometry: Geometry,
    /// SHA-1 of each piece, one entry a piece.
    pub piece_hashes: Vec<[u8; 20]>,
    /// The files in torrent order, pad files included; they follow each other without gaps.
    pub files: Vec<FileEntry>,
    /// Whether the dictionary had `length` (one file called `name`) instead of `files`.
    pub single_file: bool,
    /// Peers from the tracker only (BEP 27).
    pub private: bool,
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// The path's parts as found, unchecked: only [`super::layout`] makes names of them.
    pub path: Vec<Vec<u8>>,
    /// Where it begins in the torrent, in bytes.
    pub offset: u64,
    /// Its length in bytes; 0 for a symbolic link.
    pub length: u64,
    /// Executable (BEP 47 `x`).
    pub executable: bool,
    /// Padding (BEP 47 `p`): zeros that nobody sees.
    pub pad: bool,
    /// Hidden (BEP 47 `h`); shown all the same, kept for completeness.
    pub hidden: bool,
    /// The parts of the link's target as found, relative to the torrent's root (BEP 47 `l`).
    pub symlink: Option<Vec<Vec<u8>>>,
    /// Modification time in seconds since 1970, where the torrent says.
    pub mtime: Option<i64>,
}
