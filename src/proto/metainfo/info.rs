//! The info dictionary: what the info hash covers.

use std::collections::HashMap;

use super::file_tree::FileTree;
use crate::proto::bencode::{BencodeError, Dict, Limits, Value};
use crate::proto::geometry::{BLOCK_LEN, Geometry, GeometryError};
use crate::proto::ids::{InfoHash, InfoHashV2};
use crate::proto::merkle::Hash;

/// The most files a torrent may list, pad files included.
pub const MAX_FILES: usize = 1_000_000;

/// The most parts that one path may have.
const MAX_PATH_PARTS: usize = 512;

/// The most parts of all paths together: it bounds the memory that names of a few bytes take.
pub(super) const MAX_ALL_PATH_PARTS: usize = 4_000_000;

/// The most files of one path, padding aside.
const MAX_OF_ONE_NAME: u32 = 50;

/// A parsed info dictionary. Everything in it is checked: file lengths add up to the total, there
/// is one hash a piece, all numbers fit the [`Geometry`], and both halves of a hybrid say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// SHA-1 of [`Self::raw`], or without a v1 half the beginning of the v2 hash: what handshakes and
    /// announces carry.
    pub info_hash: InfoHash,
    /// The bytes as they were found, to be hashed and handed to other peers (BEP 9).
    pub raw: Vec<u8>,
    /// The suggested name, raw bytes as found (`name.utf-8` where present); never shown unchecked.
    pub name: Vec<u8>,
    /// How the bytes are cut into pieces.
    pub geometry: Geometry,
    /// SHA-1 of each piece, one entry a piece; empty without a v1 half.
    pub piece_hashes: Vec<[u8; 20]>,
    /// The files in torrent order, pad files included; they follow each other without gaps. Without a
    /// v1 half the gaps between files are pad files too, which nobody sends.
    pub files: Vec<FileEntry>,
    /// Whether it is one file called `name`, not a list or tree of files.
    pub single_file: bool,
    /// What BitTorrent v2 adds (BEP 52), where there is a v2 half.
    pub v2: Option<V2>,
    /// Peers from the tracker only (BEP 27).
    pub private: bool,
}

/// The v2 half of an info dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2 {
    /// SHA-256 of the dictionary.
    pub info_hash: InfoHashV2,
    /// The root of each file's hash tree, one entry for each of [`Info::files`]; `None` for padding
    /// and what has no bytes.
    pub roots: Vec<Option<Hash>>,
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
    /// Padding (BEP 47 `p`, or without a v2 half what BitComet calls so): zeros that nobody sees.
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
    /// More files of one name than an accident makes.
    #[error("more than {MAX_OF_ONE_NAME} files of the torrent have the same name; get it again")]
    TooManyOfOneName,
    /// No file, or no bytes in any.
    #[error("the torrent is empty: it has no bytes to share")]
    Empty,
    /// Numbers beyond what we support.
    #[error("the torrent cannot be used: {0}")]
    Geometry(#[from] GeometryError),
    /// Not one hash a piece.
    #[error(
        "the torrent has {found} bytes of hashes where its {needed} pieces need 20 each; get it again"
    )]
    PieceHashes {
        /// Bytes of them.
        found: usize,
        /// How many pieces there are.
        needed: u32,
    },
    /// A `meta version` after 2.
    #[error("the torrent is of version {0} of BitTorrent, which is newer than this program")]
    Newer(i64),
    /// A hybrid (BEP 52) whose two halves describe different files.
    #[error("the v1 and v2 parts of the hybrid torrent contradict each other; do not trust it")]
    Inconsistent,
}

impl Info {
    /// Reads an info dictionary: v1, v2 or hybrid. The info hashes are those of `raw` itself.
    pub fn parse(raw: impl Into<Vec<u8>>) -> Result<Self, InfoError> {
        let raw = raw.into();
        let dict = Dict::parse(&raw, Limits::INFO)?;
        let tree = file_tree(dict)?;
        let name = match dict.bytes(b"name.utf-8") {
            Some(name) => name,
            None => {
                let name = dict.get(b"name").ok_or(InfoError::Missing("name"))?;
                name.as_bytes().ok_or(InfoError::Invalid("name"))?
            }
        };
        let name = name.to_vec();
        let piece_length = unsigned(dict, "piece length")?;
        let part = match tree {
            None => v1(dict, &name, piece_length)?.with_bitcomet_padding(),
            Some(tree) => {
                let length = v2_piece_length(piece_length)?;
                if dict.get(b"pieces").is_none() {
                    v2_only(tree, length)?
                } else {
                    let v1 = v1(dict, &name, piece_length)?;
                    let roots = Some(tree.matched(&v1.files, length)?);
                    let geometry = v1.geometry.with_padding(ends(&v1.files));
                    Part { roots, geometry, ..v1 }
                }
            }
        };
        // BEP 27 knows 1 alone. Whoever wrote another number meant it too, as other clients see it.
        let private = dict.int(b"private").is_some_and(|private| private != 0);
        let v2 = part.roots.map(|roots| V2 { info_hash: InfoHashV2::of(&raw), roots });
        let info_hash = match &v2 {
            Some(v2) if part.piece_hashes.is_empty() => v2.info_hash.truncated(),
            _ => InfoHash::of(&raw),
        };
        let Part { geometry, piece_hashes, files, single_file, .. } = part;
        Ok(Self { info_hash, raw, name, geometry, piece_hashes, files, single_file, v2, private })
    }

    /// The v1 info hash, if there is a v1 half.
    pub fn info_hash_v1(&self) -> Option<InfoHash> {
        (!self.is_v2_only()).then_some(self.info_hash)
    }

    /// The v2 info hash, if there is a v2 half.
    pub fn info_hash_v2(&self) -> Option<InfoHashV2> {
        self.v2.as_ref().map(|v2| v2.info_hash)
    }

    /// Whether there is no v1 half.
    pub fn is_v2_only(&self) -> bool {
        self.v2.as_ref().is_some_and(|v2| v2.info_hash.truncated() == self.info_hash)
    }

    /// The number of the file that has the byte at `offset` of the torrent.
    pub fn file_at(&self, offset: u64) -> Option<usize> {
        let file = self.files.partition_point(|f| f.offset + f.length <= offset);
        self.files.get(file).filter(|f| f.offset <= offset).map(|_| file)
    }

    /// Root and length of each file that is longer than a piece, so that it has a piece layer.
    pub fn files_with_layers(&self) -> impl Iterator<Item = (&Hash, u64)> {
        let roots = self.v2.iter().flat_map(|v2| &v2.roots);
        let files =
            self.files.iter().zip(roots).filter_map(|(f, root)| Some((root.as_ref()?, f.length)));
        files.filter(|(_, length)| *length > self.geometry.piece_length().into())
    }
}

/// What the two halves of a dictionary are read to.
struct Part {
    geometry: Geometry,
    piece_hashes: Vec<[u8; 20]>,
    files: Vec<FileEntry>,
    single_file: bool,
    roots: Option<Vec<Option<Hash>>>,
}

impl Part {
    /// Padding of before BEP 47, which has no attribute but a name: a number follows, and the advice to
    /// get BitComet.
    fn with_bitcomet_padding(mut self) -> Self {
        let is_padding = |name: &Vec<u8>| {
            let number = name.strip_prefix(b"_____padding_file_").and_then(<[u8]>::first);
            number.is_some_and(u8::is_ascii_digit)
        };
        for file in self.files.iter_mut().filter(|_| !self.single_file) {
            file.pad |= file.path.last().is_some_and(is_padding);
        }
        self
    }
}

/// The v1 half.
fn v1(dict: Dict<'_>, name: &[u8], piece_length: u64) -> Result<Part, InfoError> {
    let single_file = dict.get(b"files").is_none();
    let files = if single_file { vec![only_file(dict, name)?] } else { file_list(dict)? };
    let geometry = Geometry::new(total_length(&files)?, piece_length)?;
    let piece_hashes = piece_hashes(dict, &geometry)?;
    Ok(Part { geometry, piece_hashes, files: with_offsets(files), single_file, roots: None })
}

/// The v2 half on its own.
fn v2_only(tree: FileTree, piece_length: u32) -> Result<Part, InfoError> {
    let single_file = matches!(&tree.files[..], [only] if only.path.len() == 1);
    let FileTree { files, roots, .. } = tree.aligned(piece_length)?;
    let geometry = Geometry::new(total_length(&files)?, piece_length.into())?;
    let files = with_offsets(files);
    let geometry = geometry.with_padding(ends(&files));
    Ok(Part { geometry, piece_hashes: Vec::new(), files, single_file, roots: Some(roots) })
}

/// Where the files end that have bytes. With a v2 half each begins with a piece, so that what follows
/// it in its last piece is padding.
fn ends(files: &[FileEntry]) -> impl Iterator<Item = u64> {
    files.iter().filter(|f| !f.pad && f.length > 0).map(|f| f.offset + f.length)
}

/// The files of the v2 half, if there is one.
fn file_tree(dict: Dict<'_>) -> Result<Option<FileTree>, InfoError> {
    match (dict.int(b"meta version"), dict.get(b"file tree")) {
        (Some(newer @ 3..), _) => Err(InfoError::Newer(newer)),
        (Some(2), Some(tree)) => FileTree::parse(tree).map(Some),
        (Some(2), None) => Err(InfoError::Missing("file tree")),
        (_, Some(_)) => Err(InfoError::Invalid("meta version")),
        (_, None) => Ok(None),
    }
}

/// A piece length that BEP 52 allows.
fn v2_piece_length(length: u64) -> Result<u32, InfoError> {
    let length = Geometry::new(0, length)?.piece_length();
    let good = length.is_power_of_two() && length >= BLOCK_LEN;
    good.then_some(length).ok_or(InfoError::Invalid("piece length"))
}

/// The path of the key that is UTF-8 by name, or where that has none, of the plain key; `None` if what is
/// there is no path. An empty one where there is nothing and it may be missing.
fn path_of(dict: Dict<'_>, utf8: &[u8], plain: &[u8], needed: bool) -> Option<Vec<Vec<u8>>> {
    dict.get(utf8).and_then(path_parts).or_else(|| match dict.get(plain) {
        Some(value) => path_parts(value),
        None => (!needed).then(Vec::new),
    })
}

/// The value of a key that has to be a number and not negative.
fn unsigned(dict: Dict<'_>, key: &'static str) -> Result<u64, InfoError> {
    let value = dict.get(key.as_bytes()).ok_or(InfoError::Missing(key))?;
    value.as_int().and_then(|n| u64::try_from(n).ok()).ok_or(InfoError::Invalid(key))
}

/// Bytes of all files, if there are any.
fn total_length(files: &[FileEntry]) -> Result<u64, InfoError> {
    let mut lengths = files.iter().map(|file| file.length);
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
        return Err(InfoError::PieceHashes { found: bytes.len(), needed });
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
    few_of_one_name(&files)?;
    Ok(files)
}

/// Some files of one name get numbers when they are shown; very many are no accident.
fn few_of_one_name(files: &[FileEntry]) -> Result<(), InfoError> {
    let mut of_one_name = HashMap::new();
    for file in files.iter().filter(|file| !file.pad) {
        let count = of_one_name.entry(&file.path).or_insert(0);
        *count += 1;
        if *count > MAX_OF_ONE_NAME {
            return Err(InfoError::TooManyOfOneName);
        }
    }
    Ok(())
}

/// One entry of `files`; `None` when its path or length is no use. Padding needs no path, a link no
/// length.
fn listed_file(dict: Dict<'_>) -> Option<FileEntry> {
    let attr = dict.bytes(b"attr").unwrap_or_default();
    let (pad, link) = (attr.contains(&b'p'), attr.contains(&b'l'));
    let path = path_of(dict, b"path.utf-8", b"path", !pad)?;
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
        file.symlink = Some(path_of(dict, b"symlink path.utf-8", b"symlink path", false)?);
    }
    Some(file)
}

/// The parts of a path, if it is a list of strings and not too long.
pub(super) fn path_parts(value: Value<'_>) -> Option<Vec<Vec<u8>>> {
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
