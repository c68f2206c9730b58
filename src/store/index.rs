//! The index: which pieces are at rest. Only a hint: each is hashed again before it counts.
//!
//! A header of fixed length, then a bitmap in the bit order of the wire. A bit is set after the
//! data was written, by writing one byte, so a crash at any moment leaves an index that is merely
//! behind. Whatever does not look exactly right is taken as empty.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use super::files::open_own;
use super::lock;
use crate::proto::bitfield::Bitfield;
use crate::proto::geometry::PieceIndex;
use crate::proto::metainfo::Info;

/// Magic and version.
const MAGIC: [u8; 8] = *b"p2pfsix1";

/// Magic, piece count, info hash.
const HEADER: usize = 8 + 4 + 20;

/// The index file of one torrent.
pub(super) struct Index {
    file: std::fs::File,
    bits: Mutex<Bitfield>,
    /// When it was last used, as it was found.
    used: Option<SystemTime>,
}

impl Index {
    /// Opens the index at `path`, or begins an empty one.
    pub(super) fn open(path: &Path, info: &Info) -> io::Result<Self> {
        let file = open_own(path)?;
        let used = file.metadata()?.modified().ok();
        let pieces = info.geometry.piece_count();
        let mut header = MAGIC.to_vec();
        header.extend(pieces.to_be_bytes());
        header.extend(info.info_hash.as_bytes());
        let bits = match read(&file, &header, pieces)? {
            Some(bits) => bits,
            None => {
                let empty = Bitfield::empty(pieces);
                header.extend(empty.as_bytes());
                file.set_len(0)?;
                file.write_all_at(&header, 0)?;
                empty
            }
        };
        Ok(Self { file, bits: Mutex::new(bits), used })
    }

    /// Notes when the torrent was last used: now, or when it was found to be.
    pub(super) fn note_use(&self, now: bool) {
        let at = if now { Some(SystemTime::now()) } else { self.used };
        if let Some(Err(error)) = at.map(|at| self.file.set_modified(at)) {
            tracing::debug!(%error, "cannot note the last use of a torrent");
        }
    }

    /// The pieces it lists.
    pub(super) fn pieces(&self) -> Bitfield {
        lock(&self.bits).clone()
    }

    /// Lists a piece, or strikes it off. A failure is logged: it costs a hint after a restart.
    pub(super) fn set(&self, piece: PieceIndex, at_rest: bool) {
        let mut bits = lock(&self.bits);
        let changed = if at_rest { bits.insert(piece) } else { bits.remove(piece) };
        let at = piece.index() / 8;
        let Some(byte) = bits.as_bytes().get(at..=at).filter(|_| changed) else { return };
        if let Err(error) = self.file.write_all_at(byte, (HEADER + at) as u64) {
            tracing::warn!(%error, piece = piece.get(), "cannot write the cache's index");
        }
    }
}

/// What a well-formed index lists.
fn read(file: &std::fs::File, header: &[u8], pieces: u32) -> io::Result<Option<Bitfield>> {
    let mut found = vec![0; HEADER + pieces.div_ceil(8) as usize];
    if file.metadata()?.len() != found.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut found, 0)?;
    let (found_header, bitmap) = found.split_at(HEADER);
    Ok((found_header == header).then(|| Bitfield::from_wire(bitmap, pieces).ok()).flatten())
}
