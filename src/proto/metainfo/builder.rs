//! Making a torrent: files and piece hashes in, a .torrent file out, always the same for the same
//! input. Reading and hashing the files is the caller's part.

use std::sync::Arc;

use super::info::{FileEntry, Info, InfoError, with_offsets};
use super::piece_layers::PieceLayers;
use super::torrent_file::Metainfo;
use crate::proto::bencode::{DictWriter, ListWriter};
use crate::proto::geometry::{BLOCK_LEN, Geometry, GeometryError};

/// How many pieces [`default_piece_length`] stays below: enough for peers to trade, few enough for
/// a small description.
const TARGET_PIECES: u64 = 2000;

/// The longest piece that [`default_piece_length`] gives, in bytes.
const MAX_DEFAULT_PIECE_LENGTH: u64 = 16 * 1024 * 1024;

/// A piece length for `total` bytes: a power of two from 16 KiB to 16 MiB that makes at most 2000
/// pieces, more only beyond 31 GiB.
pub fn default_piece_length(total: u64) -> u32 {
    let length = total.div_ceil(TARGET_PIECES).clamp(1, MAX_DEFAULT_PIECE_LENGTH);
    // At most 16 MiB, which is a power of two and fits.
    (length.next_power_of_two() as u32).max(BLOCK_LEN)
}

/// What may be said about a torrent besides its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
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
    /// Two files with the same path.
    #[error("`{0}` is there twice")]
    Twice(String),
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
/// cut, [`Self::push_piece`] takes the hashes.
#[derive(Clone, Debug)]
pub struct Builder {
    name: Vec<u8>,
    files: Vec<FileEntry>,
    single_file: bool,
    options: BuildOptions,
    geometry: Geometry,
    piece_hashes: Vec<[u8; 20]>,
}

impl Builder {
    /// Begins a torrent called `name`. One file with an empty path makes a single-file torrent;
    /// otherwise paths are below the torrent's root, and the files are put in the order of their
    /// paths. Offsets are filled in; pad files are left out.
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
        for pair in files.windows(2) {
            if let [a, b] = pair
                && a.path == b.path
            {
                return Err(BuildError::Twice(shown(&a.path)));
            }
        }
        let mut lengths = files.iter().map(|f| f.length);
        let total = lengths.try_fold(0u64, u64::checked_add).unwrap_or(u64::MAX);
        if total == 0 {
            return Err(InfoError::Empty.into());
        }
        let piece_length = options.piece_length.unwrap_or_else(|| default_piece_length(total));
        if !piece_length.is_power_of_two() || piece_length < BLOCK_LEN {
            return Err(BuildError::PieceLength(piece_length));
        }
        let geometry = Geometry::new(total, piece_length.into())?;
        let files = with_offsets(files);
        Ok(Self { name, files, single_file, options, geometry, piece_hashes: Vec::new() })
    }

    /// The files in the order in which their bytes follow each other.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// How the bytes are cut into pieces.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Takes the SHA-1 of the next piece.
    pub fn push_piece(&mut self, hash: [u8; 20]) {
        self.piece_hashes.push(hash);
    }

    /// The torrent, once every piece has been hashed.
    pub fn finish(self) -> Result<Metainfo, BuildError> {
        let (found, needed) = (self.piece_hashes.len(), self.geometry.piece_count());
        if found != needed as usize {
            return Err(BuildError::Pieces { found, needed });
        }
        let info = Info::parse(self.info_bytes())?;
        let options = self.options;
        Ok(Metainfo {
            info: Arc::new(info),
            piece_layers: PieceLayers::default(),
            trackers: options.trackers,
            web_seeds: options.web_seeds,
            nodes: Vec::new(),
            comment: options.comment,
            created_by: options.created_by,
            creation_date: options.creation_date,
        })
    }

    fn info_bytes(&self) -> Vec<u8> {
        let mut info = DictWriter::new();
        info.bytes(b"name", &self.name)
            .int(b"piece length", self.geometry.piece_length().into())
            .bytes(b"pieces", self.piece_hashes.as_flattened());
        if self.options.private {
            info.int(b"private", 1);
        }
        match &self.files[..] {
            [only] if self.single_file => describe(&mut info, only),
            files => {
                let mut list = ListWriter::new();
                for file in files {
                    let mut entry = DictWriter::new();
                    entry.raw(b"path", ListWriter::of_bytes(&file.path).finish());
                    describe(&mut entry, file);
                    list.raw(&entry.finish());
                }
                info.raw(b"files", list.finish());
            }
        }
        info.finish()
    }
}

/// Writes what single files and entries of `files` have in common (BEP 47).
fn describe(dict: &mut DictWriter, file: &FileEntry) {
    // Checked when the geometry was made: the total is far below 2^63.
    dict.int(b"length", file.length as i64);
    let flags = [(file.hidden, b'h'), (file.symlink.is_some(), b'l'), (file.executable, b'x')];
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
