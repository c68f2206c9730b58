//! The hashes of files on disk, piece by piece, computed on all cores.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use p2pfs::proto::geometry::Geometry;
use p2pfs::proto::merkle::{Hash, block_hashes, piece_root};
use p2pfs::proto::metainfo::FileEntry;
use p2pfs::rpc::size;
use sha1::{Digest, Sha1};

use super::progress::Shown;

/// Bytes read at a time, whole blocks: they stay in the cache of a core until they are hashed.
const CHUNK: usize = 1 << 18;

/// Bytes that a worker hashes before it says so, where pieces are shorter.
const BATCH: u32 = 1 << 22;

/// What is to be hashed.
pub struct Job<'a> {
    pub files: &'a [FileEntry],
    /// Where each file is; `None` for padding, which is zeros.
    pub paths: &'a [Option<PathBuf>],
    pub geometry: &'a Geometry,
    /// Whether the SHA-1 of all bytes is wanted.
    pub v1: bool,
    /// Whether the root of the bytes that are not padding is wanted; then each piece is of one file.
    pub v2: bool,
}

/// The hashes of one piece, as far as they were wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digests {
    pub v1: [u8; 20],
    pub v2: Hash,
}

/// A file that could not be read to where it should end.
#[derive(Debug)]
pub struct ReadError {
    /// Its number.
    pub file: usize,
    pub error: io::Error,
}

impl Job<'_> {
    /// Hashes all pieces, shows how far it is, and gives each piece to `done`, in any order, until that
    /// returns an error.
    pub fn run<E>(
        &self,
        mut done: impl FnMut(u32, Result<Digests, ReadError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let (total, mut shown, mut finished) = (self.geometry.total(), Shown::default(), 0u64);
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::sync_channel(64);
            for _ in 0..workers {
                let (tell, next, stop) = (tell.clone(), &next, &stop);
                scope.spawn(move || self.work(next, stop, &tell));
            }
            drop(tell);
            for (piece, digests) in told.into_iter().flatten() {
                if let Err(error) = done(piece, digests) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                finished = (finished + u64::from(self.geometry.piece_length())).min(total);
                shown.show_done(finished, total);
            }
            Ok(())
        })
    }

    /// Takes batches of pieces until there are none left.
    fn work(&self, next: &AtomicU32, stop: &AtomicBool, tell: &mpsc::SyncSender<Batch>) {
        let mut reader = Reader { job: self, open: None, buffer: vec![0; CHUNK] };
        let size = (BATCH / self.geometry.piece_length()).max(1);
        while !stop.load(Ordering::Relaxed) {
            let first = next.fetch_add(size, Ordering::Relaxed);
            let last = first.saturating_add(size).min(self.geometry.piece_count());
            if first >= last {
                return;
            }
            let batch = (first..last).map(|piece| (piece, reader.hash(piece))).collect();
            if tell.send(batch).is_err() {
                return;
            }
        }
    }
}

type Batch = Vec<(u32, Result<Digests, ReadError>)>;

impl Shown {
    fn show_done(&mut self, done: u64, total: u64) {
        if self.is_due() {
            let text = format!("hashed {} of {}", size::show(done), size::show(total));
            self.show_text(Some((done, total)), text);
        }
    }
}

/// Reads the files as if they were one; keeps the last one open.
struct Reader<'a> {
    job: &'a Job<'a>,
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn hash(&mut self, piece: u32) -> Result<Digests, ReadError> {
        let job = self.job;
        let begin = u64::from(piece) * u64::from(job.geometry.piece_length());
        let end = job.geometry.total().min(begin + u64::from(job.geometry.piece_length()));
        let (mut sha1, mut blocks, mut length) = (Sha1::new(), Vec::new(), 0);
        let first = job.files.partition_point(|file| file.offset + file.length <= begin);
        let mut at = begin;
        for number in first..job.files.len() {
            let entry = &job.files[number];
            if at >= end {
                break;
            }
            let file_end = end.min(entry.offset + entry.length);
            if !entry.pad && entry.length > 0 {
                length = entry.length;
            }
            if entry.pad && !job.v1 {
                break;
            }
            while at < file_end {
                let wanted = CHUNK.min((file_end - at) as usize);
                self.read(number, at - entry.offset, wanted)?;
                let bytes = &self.buffer[..wanted];
                if job.v1 {
                    sha1.update(bytes);
                }
                if job.v2 && !entry.pad {
                    blocks.append(&mut block_hashes(bytes));
                }
                at += wanted as u64;
            }
        }
        let v2 = match job.v2 {
            true => piece_root(&blocks, length, job.geometry.piece_length()),
            false => Hash::default(),
        };
        Ok(Digests { v1: sha1.finalize().into(), v2 })
    }

    /// Fills the first `wanted` bytes of the buffer.
    fn read(&mut self, number: usize, at: u64, wanted: usize) -> Result<(), ReadError> {
        let Some(path) = &self.job.paths[number] else {
            self.buffer[..wanted].fill(0);
            return Ok(());
        };
        let failed = |error| ReadError { file: number, error };
        let open = match self.open.take() {
            Some((open, file)) if open == number => (open, file),
            _ => (number, File::open(path).map_err(failed)?),
        };
        let (_, file) = self.open.insert(open);
        file.read_exact_at(&mut self.buffer[..wanted], at).map_err(failed)
    }
}
