//! Making a torrent: files and piece hashes in, a .torrent file out, always the same for the same
//! input, and the same that libtorrent makes of it. Reading and hashing the files is the caller's part.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file_tree::{self, with_gaps};
use super::info::{FileEntry, Info, InfoError, with_offsets};
use super::piece_layers::PieceLayers;
use super::torrent_file::Metainfo;
use crate::proto::bencode::{DictWriter, ListWriter};
use crate::proto::geometry::{BLOCK_LEN, Geometry, GeometryError};
use crate::proto::merkle::{Hash, Shape};

/// The most folders above a file of a v2 torrent: clients bound how deeply a description is nested.
const MAX_TREE_DEPTH: usize = 120;

/// The longest piece that [`default_piece_length`] gives, as doublings of a block: 16 MiB.
const MAX_DOUBLINGS: u32 = 10;

/// A piece length for `total` bytes: a power of two from 16 KiB to 16 MiB that grows with the root of
/// the size, so that the hashes of the pieces do. It is what libtorrent chooses, so that the same files
/// make the same torrent with either.
pub fn default_piece_length(total: u64) -> u32 {
    let enough = |doublings: &u32| total <= ((1u64 << (28 + 2 * doublings)) + 50) / 100;
    BLOCK_LEN << (0..MAX_DOUBLINGS).find(enough).unwrap_or(MAX_DOUBLINGS)
}

/// Which protocols a torrent is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// BitTorrent v1 (BEP 3).
    #[default]
    V1,
    /// BitTorrent v2 (BEP 52).
    V2,
    /// Both; files are padded to whole pieces.
    Hybrid,
}

/// What may be said about a torrent besides its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Which protocols it is for.
    pub version: Version,
    /// Bytes in a piece, a power of two from 16 KiB; [`default_piece_length`] when `None`.
    pub piece_length: Option<u32>,
    /// Peers from the tracker only (BEP 27).
    pub private: bool,
    /// URLs of trackers in tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    /// URLs of web servers that have the files (BEP 19).
    pub web_seeds: Vec<String>,
    /// A comment.
    pub comment: Option<String>,
    /// The program that makes it.
    pub created_by: Option<String>,
    /// When it is made, in seconds since 1970. It is not part of what the info hash covers.
    pub creation_date: Option<i64>,
}

/// Why a torrent cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A path that no torrent should have: an empty part, `.`, `..`, a separator or NUL.
    #[error("`{0}` is not a path that a torrent can have")]
    Path(String),
    /// Two files with the same path, or in a v2 torrent a file where a folder is.
    #[error("`{0}` is there twice")]
    Twice(String),
    /// A path that clients would refuse in a v2 torrent.
    #[error(
        "`{0}` is in too many folders for a v2 torrent (at most {MAX_TREE_DEPTH}); make a v1 torrent"
    )]
    TooDeep(String),
    /// Not every client reads other piece lengths.
    #[error("a piece length of {0} bytes is not a power of two from 16384; choose another")]
    PieceLength(u32),
    /// The piece length makes no sense for these files.
    #[error("choose another piece length: {0}")]
    Geometry(#[from] GeometryError),
    /// Not as many hashes as pieces: files changed while they were read.
    #[error("{found} pieces were hashed where {needed} were expected; did a file change?")]
    Pieces {
        /// How many hashes came.
        found: usize,
        /// How many pieces there are.
        needed: u32,
    },
    /// What came out is no usable torrent.
    #[error(transparent)]
    Info(#[from] InfoError),
}

/// A torrent in the making: [`Self::files`] says in which order to read, [`Self::geometry`] where to
/// cut, [`Self::push_piece`] and [`Self::push_root`] take the hashes.
#[derive(Clone, Debug)]
pub struct Builder {
    name: Vec<u8>,
    files: Vec<FileEntry>,
    single_file: bool,
    options: BuildOptions,
    geometry: Geometry,
    piece_hashes: Vec<[u8; 20]>,
    piece_roots: Vec<Hash>,
}

impl Builder {
    /// Begins a torrent called `name`. One file with an empty path makes a single-file torrent;
    /// otherwise paths are below the torrent's root, and the files are put in the order of their
    /// paths. Offsets are filled in; pad files are left out, and put in where the version needs them.
    pub fn new(
        name: impl Into<Vec<u8>>,
        mut files: Vec<FileEntry>,
        options: BuildOptions,
    ) -> Result<Self, BuildError> {
        let name = name.into();
        files.retain(|f| !f.pad);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let single_file = matches!(&files[..], [only] if only.path.is_empty());
        check_path(std::slice::from_ref(&name))?;
        for file in files.iter().filter(|_| !single_file) {
            check_path(&file.path)?;
        }
        check_tree(&files, options.version)?;
        let mut lengths = files.iter().map(|f| f.length);
        let total = lengths.try_fold(0u64, u64::checked_add).unwrap_or(u64::MAX);
        if total == 0 {
            return Err(InfoError::Empty.into());
        }
        let piece_length = options.piece_length.unwrap_or_else(|| default_piece_length(total));
        if !piece_length.is_power_of_two() || piece_length < BLOCK_LEN {
            return Err(BuildError::PieceLength(piece_length));
        }
        Geometry::new(total, piece_length.into())?;
        let several = files.len() > 1;
        let files = match options.version {
            Version::V1 => files,
            Version::V2 => with_gaps(files, piece_length, false),
            Version::Hybrid => with_gaps(files, piece_length, several),
        };
        // Padding is less than a piece a file, and the total was checked.
        let total = files.iter().map(|file| file.length).sum();
        let geometry = Geometry::new(total, piece_length.into())?;
        let files = with_offsets(files);
        let (piece_hashes, piece_roots) = (Vec::new(), Vec::new());
        Ok(Self { name, files, single_file, options, geometry, piece_hashes, piece_roots })
    }

    /// The files in the order in which their bytes follow each other, padding (zeros) included.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// How the bytes are cut into pieces.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether pieces need a SHA-1, of all their bytes.
    pub fn has_v1(&self) -> bool {
        self.options.version != Version::V2
    }

    /// Whether pieces need a root, of their bytes that are not padding.
    pub fn has_v2(&self) -> bool {
        self.options.version != Version::V1
    }

    /// Takes the SHA-1 of the next piece.
    pub fn push_piece(&mut self, hash: [u8; 20]) {
        self.piece_hashes.push(hash);
    }

    /// Takes the root of the next piece (see [`crate::proto::merkle::piece_root`]).
    pub fn push_root(&mut self, root: Hash) {
        self.piece_roots.push(root);
    }

    /// The torrent, once every piece has been hashed.
    pub fn finish(self) -> Result<Metainfo, BuildError> {
        let needed = self.geometry.piece_count();
        for (wanted, found) in
            [(self.has_v1(), self.piece_hashes.len()), (self.has_v2(), self.piece_roots.len())]
        {
            if wanted && found != needed as usize {
                return Err(BuildError::Pieces { found, needed });
            }
        }
        let (roots, layers) = self.roots();
        let info = Info::parse(self.info_bytes(&roots))?;
        // They are those of the roots, unless somebody has said something else to us.
        let piece_layers = PieceLayers::checked(layers, &info).unwrap_or_default();
        let options = self.options;
        Ok(Metainfo {
            info: Arc::new(info),
            piece_layers,
            trackers: options.trackers,
            web_seeds: options.web_seeds,
            nodes: Vec::new(),
            comment: options.comment,
            created_by: options.created_by,
            creation_date: options.creation_date,
        })
    }

    /// The root of each file that has bytes, and the layers of those of several pieces.
    fn roots(&self) -> (Vec<Option<Hash>>, BTreeMap<Hash, Vec<Hash>>) {
        let mut layers = BTreeMap::new();
        if !self.has_v2() {
            return (Vec::new(), layers);
        }
        let layer = Shape::piece_layer(self.geometry.piece_length());
        let root = |file: &FileEntry| {
            let shape = Shape::of(file.length).filter(|_| !file.pad)?;
            let mut pieces = self.geometry.pieces_of(file.offset..file.offset + file.length);
            let (count, first) = (pieces.len(), pieces.next()?.index());
            let own = self.piece_roots.get(first..first + count)?;
            if let [only] = own {
                return Some(*only);
            }
            let root = shape.root(layer, own)?;
            layers.insert(root, own.to_vec());
            Some(root)
        };
        (self.files.iter().map(root).collect(), layers)
    }

    fn info_bytes(&self, roots: &[Option<Hash>]) -> Vec<u8> {
        let mut info = DictWriter::new();
        info.bytes(b"name", &self.name).int(b"piece length", self.geometry.piece_length().into());
        if self.options.private {
            info.int(b"private", 1);
        }
        if self.has_v1() {
            self.write_v1(&mut info);
        }
        if self.has_v2() {
            let name = self.single_file.then_some(&self.name[..]);
            let tree = file_tree::write(&self.files, roots, name, describe);
            info.int(b"meta version", 2).raw(b"file tree", tree);
        }
        info.finish()
    }

    fn write_v1(&self, info: &mut DictWriter) {
        info.bytes(b"pieces", self.piece_hashes.as_flattened());
        match &self.files[..] {
            [only] if self.single_file => {
                describe(info, only);
                info.int(b"length", only.length as i64);
            }
            files => {
                let mut list = ListWriter::new();
                for file in files {
                    let mut entry = DictWriter::new();
                    entry.raw(b"path", ListWriter::of_bytes(&file.path).finish());
                    describe(&mut entry, file);
                    // Checked when the geometry was made: the total is far below 2^63.
                    entry.int(b"length", file.length as i64);
                    list.raw(&entry.finish());
                }
                info.raw(b"files", list.finish());
            }
        }
    }
}

/// Writes what is said of a file besides its length, wherever it is said (BEP 47).
fn describe(dict: &mut DictWriter, file: &FileEntry) {
    let flags = [
        (file.pad, b'p'),
        (file.hidden, b'h'),
        (file.symlink.is_some(), b'l'),
        (file.executable, b'x'),
    ];
    let attr: Vec<u8> = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
    if !attr.is_empty() {
        dict.bytes(b"attr", &attr);
    }
    if let Some(target) = &file.symlink {
        dict.raw(b"symlink path", ListWriter::of_bytes(target).finish());
    }
    if let Some(mtime) = file.mtime {
        dict.int(b"mtime", mtime);
    }
}

/// Checks that no file is in the way of another. The files are in the order of their paths.
fn check_tree(files: &[FileEntry], version: Version) -> Result<(), BuildError> {
    let v2 = version != Version::V1;
    for pair in files.windows(2) {
        if let [a, b] = pair
            && (a.path == b.path || (v2 && b.path.starts_with(&a.path)))
        {
            return Err(BuildError::Twice(shown(&a.path)));
        }
    }
    match files.iter().find(|file| v2 && file.path.len() > MAX_TREE_DEPTH) {
        Some(file) => Err(BuildError::TooDeep(shown(&file.path))),
        None => Ok(()),
    }
}

fn check_path(path: &[Vec<u8>]) -> Result<(), BuildError> {
    let bad = |part: &Vec<u8>| {
        matches!(&part[..], b"" | b"." | b"..") || part.iter().any(|b| matches!(b, b'/' | 0))
    };
    if path.is_empty() || path.iter().any(bad) {
        return Err(BuildError::Path(shown(path)));
    }
    Ok(())
}

fn shown(path: &[Vec<u8>]) -> String {
    path.iter().map(|part| part.escape_ascii().to_string()).collect::<Vec<_>>().join("/")
}
