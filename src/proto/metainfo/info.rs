//! The info dictionary: what the info hash covers.

use super::hybrid;
use crate::proto::bencode::{BencodeError, Dict, Limits, Value};
use crate::proto::geometry::{Geometry, GeometryError};
use crate::proto::ids::InfoHash;

/// The most files a torrent may list, pad files included.
pub const MAX_FILES: usize = 1_000_000;

/// The most parts that one path may have.
const MAX_PATH_PARTS: usize = 512;

/// The most parts of all paths together: it bounds the memory that names of a few bytes take.
const MAX_ALL_PATH_PARTS: usize = 4_000_000;

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
    /// Its length in bytes. That of a symbolic link should be 0; if not, those bytes are in the
    /// pieces and shown nowhere.
    pub length: u64,
    /// Executable (BEP 47 `x`).
    pub executable: bool,
    /// Padding (BEP 47 `p`): zeros that nobody sees.
    pub pad: bool,
    /// Hidden (BEP 47 `h`); shown all the same, kept for completeness.
    pub hidden: bool,
    /// The parts of the link's target as found, relative to the torrent's root (BEP 47 `l`); empty
    /// when the torrent does not say.
    pub symlink: Option<Vec<Vec<u8>>>,
    /// Modification time in seconds since 1970, where the torrent says.
    pub mtime: Option<i64>,
}

/// Why an info dictionary cannot be used. Each message is about "the torrent".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// Not bencode, or beyond a limit.
    #[error("the torrent's description is damaged ({0}); get it again")]
    Bencode(#[from] BencodeError),
    /// A key that every torrent has is not there.
    #[error("the torrent's description has no `{0}`; get it again")]
    Missing(&'static str),
    /// A value that makes no sense.
    #[error("the torrent's description has an impossible `{0}`; get it again")]
    Invalid(&'static str),
    /// A file list that cannot be read, with the number of the file, from 1.
    #[error("file {0} of the torrent has no usable path or length; get the torrent again")]
    BadFile(usize),
    /// More files, or longer paths, than we hold in memory.
    #[error("the torrent has too many files or too deep folders (at most {MAX_FILES} files)")]
    TooManyFiles,
    /// No file, or no bytes in any.
    #[error("the torrent is empty: it has no bytes to share")]
    Empty,
    /// Numbers beyond what we support.
    #[error("the torrent cannot be used: {0}")]
    Geometry(#[from] GeometryError),
    /// Not one hash a piece.
    #[error("the torrent has {found} piece hashes where its files need {needed}; get it again")]
    PieceHashes {
        /// How many there are (a last broken one counts).
        found: usize,
        /// How many pieces there are.
        needed: u32,
    },
    /// BEP 52 without a v1 part.
    #[error("BitTorrent v2 only torrents are not supported yet; use a v1 or hybrid torrent of it")]
    V2Only,
    /// A hybrid (BEP 52) whose two halves describe different files.
    #[error("the v1 and v2 parts of the hybrid torrent contradict each other; do not trust it")]
    Inconsistent,
}

impl Info {
    /// Reads an info dictionary; a hybrid's v1 part is used. The info hash is that of `raw` itself.
    pub fn parse(raw: impl Into<Vec<u8>>) -> Result<Self, InfoError> {
        let raw = raw.into();
        let dict = Dict::parse(&raw, Limits::INFO)?;
        let tree = dict.get(b"file tree");
        if dict.get(b"pieces").is_none() && (tree.is_some() || dict.int(b"meta version") == Some(2))
        {
            return Err(InfoError::V2Only);
        }
        let name = utf8_or_raw(dict, b"name.utf-8", b"name").ok_or(InfoError::Missing("name"))?;
        let name = name.as_bytes().ok_or(InfoError::Invalid("name"))?.to_vec();
        let single_file = dict.get(b"files").is_none();
        let files = if single_file { vec![only_file(dict, &name)?] } else { file_list(dict)? };
        let total = total_length(files.iter().map(|f| f.length))?;
        let geometry = Geometry::new(total, unsigned(dict, "piece length")?)?;
        let piece_hashes = piece_hashes(dict, &geometry)?;
        let files = with_offsets(files);
        if let Some(tree) = tree {
            hybrid::check(tree, &files, geometry.piece_length())?;
        }
        let private = dict.int(b"private") == Some(1);
        let info_hash = InfoHash::of(&raw);
        Ok(Self { info_hash, raw, name, geometry, piece_hashes, files, single_file, private })
    }
}

/// The value of the key that is UTF-8 by name, else of the plain key.
fn utf8_or_raw<'a>(dict: Dict<'a>, utf8: &[u8], plain: &[u8]) -> Option<Value<'a>> {
    dict.get(utf8).or_else(|| dict.get(plain))
}

/// The value of a key that has to be a number and not negative.
fn unsigned(dict: Dict<'_>, key: &'static str) -> Result<u64, InfoError> {
    let value = dict.get(key.as_bytes()).ok_or(InfoError::Missing(key))?;
    value.as_int().and_then(|n| u64::try_from(n).ok()).ok_or(InfoError::Invalid(key))
}

/// Bytes of all files, if there are any.
fn total_length(mut lengths: impl Iterator<Item = u64>) -> Result<u64, InfoError> {
    let total = lengths.try_fold(0u64, u64::checked_add).ok_or(InfoError::Invalid("length"))?;
    if total == 0 { Err(InfoError::Empty) } else { Ok(total) }
}

/// Puts each file right behind the one before it. The sum of the lengths must be known to fit.
pub(super) fn with_offsets(mut files: Vec<FileEntry>) -> Vec<FileEntry> {
    let mut end = 0;
    for file in &mut files {
        file.offset = end;
        end += file.length;
    }
    files
}

fn piece_hashes(dict: Dict<'_>, geometry: &Geometry) -> Result<Vec<[u8; 20]>, InfoError> {
    let value = dict.get(b"pieces").ok_or(InfoError::Missing("pieces"))?;
    let bytes = value.as_bytes().ok_or(InfoError::Invalid("pieces"))?;
    let (hashes, broken) = bytes.as_chunks::<20>();
    let needed = geometry.piece_count();
    if !broken.is_empty() || hashes.len() != needed as usize {
        return Err(InfoError::PieceHashes { found: bytes.len().div_ceil(20), needed });
    }
    Ok(hashes.to_vec())
}

/// The file of a dictionary with `length`.
fn only_file(dict: Dict<'_>, name: &[u8]) -> Result<FileEntry, InfoError> {
    let length = unsigned(dict, "length")?;
    let mut file = FileEntry::new(vec![name.to_vec()], length);
    let attr = dict.bytes(b"attr").unwrap_or_default();
    file.executable = attr.contains(&b'x');
    file.hidden = attr.contains(&b'h');
    file.mtime = dict.int(b"mtime");
    Ok(file)
}

/// The files of a dictionary with `files`.
fn file_list(dict: Dict<'_>) -> Result<Vec<FileEntry>, InfoError> {
    let list = dict.list(b"files").ok_or(InfoError::Invalid("files"))?;
    let (mut files, mut parts) = (Vec::new(), 0);
    for value in list {
        if files.len() == MAX_FILES {
            return Err(InfoError::TooManyFiles);
        }
        let number = files.len() + 1;
        let file = value.as_dict().and_then(listed_file).ok_or(InfoError::BadFile(number))?;
        parts += file.path.len() + file.symlink.as_ref().map_or(0, Vec::len);
        if parts > MAX_ALL_PATH_PARTS {
            return Err(InfoError::TooManyFiles);
        }
        files.push(file);
    }
    Ok(files)
}

/// One entry of `files`; `None` when its path or length is no use. Padding needs no path, a link no
/// length.
fn listed_file(dict: Dict<'_>) -> Option<FileEntry> {
    let attr = dict.bytes(b"attr").unwrap_or_default();
    let (pad, link) = (attr.contains(&b'p'), attr.contains(&b'l'));
    let path = match utf8_or_raw(dict, b"path.utf-8", b"path") {
        Some(value) => path_parts(value)?,
        None if pad => Vec::new(),
        None => return None,
    };
    let length = match dict.get(b"length") {
        Some(value) => u64::try_from(value.as_int()?).ok()?,
        None if link => 0,
        None => return None,
    };
    let mut file = FileEntry::new(path, length);
    file.executable = attr.contains(&b'x');
    file.pad = pad;
    file.hidden = attr.contains(&b'h');
    file.mtime = dict.int(b"mtime");
    if link {
        file.symlink = match utf8_or_raw(dict, b"symlink path.utf-8", b"symlink path") {
            Some(value) => Some(path_parts(value)?),
            None => Some(Vec::new()),
        };
    }
    Some(file)
}

/// The parts of a path, if it is a list of strings and not too long.
fn path_parts(value: Value<'_>) -> Option<Vec<Vec<u8>>> {
    let parts = value.as_list()?.take(MAX_PATH_PARTS + 1);
    let parts: Vec<_> = parts.map(|v| v.as_bytes().map(<[u8]>::to_vec)).collect::<Option<_>>()?;
    (parts.len() <= MAX_PATH_PARTS).then_some(parts)
}

impl FileEntry {
    /// A plain file at the torrent's beginning.
    pub fn new(path: Vec<Vec<u8>>, length: u64) -> Self {
        Self {
            path,
            offset: 0,
            length,
            executable: false,
            pad: false,
            hidden: false,
            symlink: None,
            mtime: None,
        }
    }
}
