//! Tests of the store as a whole, on real files.

mod blocks;
mod disk;
mod evict;
mod in_place;
mod model;

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::{Store, TorrentStore, Verdict, VerifiedRange};
use crate::proto::geometry::{BLOCK_LEN, Geometry, PieceIndex};
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::{FileEntry, Info};

/// A torrent made for a test, with its true bytes.
pub(super) struct Sample {
    pub(super) info: Arc<Info>,
    pub(super) data: Vec<u8>,
}

impl Sample {
    /// Files of these lengths; `true` for padding, which is zeros.
    pub(super) fn new(files: &[(u64, bool)], piece_length: u64) -> Self {
        let mut data = Vec::new();
        for &(length, pad) in files {
            let from = data.len() as u64;
            data.extend((from..from + length).map(|i| if pad { 0 } else { byte(i) }));
        }
        Self::with_data(files, piece_length, data)
    }

    pub(super) fn with_data(files: &[(u64, bool)], piece_length: u64, data: Vec<u8>) -> Self {
        let geometry = Geometry::new(data.len() as u64, piece_length).unwrap();
        let piece_hashes =
            data.chunks(piece_length as usize).map(|p| Sha1::digest(p).into()).collect();
        let mut offset = 0;
        let entry = |(i, &(length, pad)): (usize, &(u64, bool))| {
            let at = offset;
            offset += length;
            FileEntry {
                path: vec![format!("file {i}").into_bytes()],
                offset: at,
                length,
                executable: false,
                pad,
                hidden: false,
                symlink: None,
                mtime: None,
            }
        };
        let entries = files.iter().enumerate().map(entry).collect();
        let raw = format!("{files:?} {piece_length} {:?}", Sha1::digest(&data)).into_bytes();
        let info = Info {
            info_hash: InfoHash::of(&raw),
            raw,
            name: b"sample".to_vec(),
            geometry,
            piece_hashes,
            files: entries,
            single_file: files.len() == 1,
            v2: None,
            private: false,
        };
        Self { info: Arc::new(info), data }
    }

    pub(super) fn piece(&self, index: u32) -> PieceIndex {
        self.info.geometry.piece(index).unwrap()
    }

    pub(super) fn bytes(&self, piece: PieceIndex) -> &[u8] {
        let range = self.info.geometry.piece_range(piece);
        &self.data[range.start as usize..range.end as usize]
    }

    pub(super) fn file(&self, file: usize) -> &[u8] {
        let f = &self.info.files[file];
        &self.data[f.offset as usize..(f.offset + f.length) as usize]
    }
}

/// Content that differs from place to place and is never 0.
fn byte(i: u64) -> u8 {
    ((i ^ (i >> 8).wrapping_mul(31) ^ (i >> 16).wrapping_mul(17)) % 255) as u8 + 1
}

/// Calls `start` with a callback and waits until it was called.
pub(super) fn wait<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> T {
    let (tx, rx) = mpsc::channel();
    start(Box::new(move |value| tx.send(value).unwrap()));
    rx.recv().unwrap()
}

/// Puts `data` as a piece and has it verified.
pub(super) fn offer(torrent: &Arc<TorrentStore>, piece: PieceIndex, data: &[u8]) -> Verdict {
    let buffer = torrent.buffer(piece);
    for block in torrent.info().geometry.blocks(piece) {
        let at = block.begin() as usize;
        assert!(buffer.put(block, &data[at..at + block.length as usize]));
    }
    wait(|done| torrent.verify(buffer, false, None, done))
}

/// Puts the true bytes of a piece and has them verified.
pub(super) fn verify(torrent: &Arc<TorrentStore>, sample: &Sample, piece: u32) -> VerifiedRange {
    let piece = sample.piece(piece);
    match offer(torrent, piece, sample.bytes(piece)) {
        Verdict::Verified { range, .. } => range,
        _ => panic!("the true bytes of {piece:?} were refused"),
    }
}

/// The same, and has them written.
pub(super) fn store_piece(torrent: &Arc<TorrentStore>, sample: &Sample, piece: u32) {
    let range = verify(torrent, sample, piece);
    wait(|done| torrent.write(range, done)).unwrap();
    let_loose(torrent, sample.piece(piece));
}

/// Waits until nobody holds a piece: whoever is told of it holds it until it has heard.
pub(super) fn let_loose(torrent: &TorrentStore, piece: PieceIndex) {
    while torrent.pins(piece) > 0 {
        std::thread::yield_now();
    }
}

/// Registers a list of lost pieces.
pub(super) fn lost_pieces(torrent: &TorrentStore) -> Arc<Mutex<Vec<u32>>> {
    let lost = Arc::<Mutex<Vec<u32>>>::default();
    let to = lost.clone();
    torrent.set_on_lost(Box::new(move |p, _| to.lock().unwrap().push(p.get())));
    lost
}

pub(super) fn open(dir: &Path, sample: &Sample) -> Arc<TorrentStore> {
    Store::open(dir).unwrap().torrent(sample.info.clone()).unwrap()
}

pub(super) fn read_all(torrent: &TorrentStore, file: usize) -> Option<Vec<u8>> {
    let length = torrent.info().files[file].length as usize;
    torrent.read_anywhere(file, 0, length, <[u8]>::to_vec)
}

#[test]
fn nothing_is_readable_before_it_is_verified() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(50_000, false)], 32_768);
    let torrent = open(dir.path(), &sample);
    let piece = sample.piece(0);
    let buffer = torrent.buffer(piece);
    for block in sample.info.geometry.blocks(piece) {
        let at = block.begin() as usize;
        assert!(buffer.put(block, &sample.data[at..at + block.length as usize]));
    }
    assert!(!torrent.is_verified(piece));
    assert_eq!(torrent.read_file(0, 0, 1, <[u8]>::to_vec), None);
    assert!(!torrent.read_block(piece, 0, &mut [0]).unwrap());
    wait(|done| torrent.verify(buffer, false, None, done));
    assert_eq!(torrent.read_file(0, 0, 1, <[u8]>::to_vec).unwrap(), [sample.data[0]]);
}

#[test]
fn a_verified_piece_is_readable_from_memory_when_the_verdict_comes() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(50_000, false)], 32_768);
    let torrent = open(dir.path(), &sample);
    let range = verify(&torrent, &sample, 1);
    assert!(!torrent.is_at_rest(range.piece()));
    let read = torrent.read_file(0, 40_000, 100, <[u8]>::to_vec).unwrap();
    assert_eq!(read, &sample.data[40_000..40_100]);
    assert_eq!(torrent.read_file(0, 32_760, 100, <[u8]>::to_vec), None, "touches piece 0");
    assert_eq!(torrent.verified_bytes(None), 50_000 - 32_768);
}

#[test]
fn wrong_bytes_are_refused_with_the_digests_of_their_blocks() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100_000, false)], 65_536);
    let torrent = open(dir.path(), &sample);
    let piece = sample.piece(0);
    let mut wrong = sample.bytes(piece).to_vec();
    wrong[20_000] ^= 1;
    let Verdict::Mismatch { block_digests } = offer(&torrent, piece, &wrong) else {
        panic!("wrong bytes were verified")
    };
    assert!(!torrent.is_verified(piece));
    let expected = |b: &[u8]| <[u8; 20]>::from(Sha1::digest(b));
    let blocks: Vec<_> = wrong.chunks(BLOCK_LEN as usize).map(expected).collect();
    assert_eq!(block_digests, blocks);
    assert_eq!(torrent.read_file(0, 0, 1, <[u8]>::to_vec), None);
    store_piece(&torrent, &sample, 0);
    assert_eq!(torrent.read_file(0, 20_000, 1, <[u8]>::to_vec).unwrap(), [sample.data[20_000]]);
}

#[test]
fn digests_of_right_blocks_are_made_when_asked_for() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(20_000, false)], 32_768);
    let torrent = open(dir.path(), &sample);
    let buffer = torrent.buffer(sample.piece(0));
    for block in sample.info.geometry.blocks(sample.piece(0)) {
        let at = block.begin() as usize;
        assert!(buffer.put(block, &sample.data[at..at + block.length as usize]));
    }
    match wait(|done| torrent.verify(buffer, true, None, done)) {
        Verdict::Verified { block_digests: Some(digests), .. } => assert_eq!(digests.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_piece_with_missing_blocks_blames_nobody() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false)], 65_536);
    let torrent = open(dir.path(), &sample);
    let buffer = torrent.buffer(sample.piece(0));
    let mut blocks = sample.info.geometry.blocks(sample.piece(0));
    assert!(buffer.put(blocks.next().unwrap(), &sample.data[..16_384]));
    let verdict = wait(|done| torrent.verify(buffer.clone(), false, None, done));
    assert!(matches!(verdict, Verdict::Mismatch { block_digests } if block_digests.is_empty()));
    assert!(!buffer.put(blocks.next().unwrap(), &sample.data[16_384..32_768]), "it is closed");
}

#[test]
fn a_range_of_another_torrent_is_not_written() {
    let (dir, dir2) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (sample, other) =
        (Sample::new(&[(40_000, false)], 65_536), Sample::new(&[(40_001, false)], 65_536));
    let (torrent, wrong) = (open(dir.path(), &sample), open(dir2.path(), &other));
    let range = verify(&torrent, &sample, 0);
    assert!(wait(|done| wrong.write(range, done)).is_err());
    assert!(!wrong.is_verified(other.piece(0)));
    assert!(!dir2.path().join(other.info.info_hash.to_string()).join("files/0").exists());
}

#[test]
fn ranges_outside_a_file_or_piece_are_refused() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(10, false), (0, false), (20_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    (0..2).for_each(|p| store_piece(&torrent, &sample, p));
    assert_eq!(read_all(&torrent, 0).unwrap(), sample.file(0));
    assert!(read_all(&torrent, 1).unwrap().is_empty());
    assert_eq!(torrent.read_file(0, 5, 6, |_| ()), None);
    assert_eq!(torrent.read_file(2, u64::MAX, 2, |_| ()), None);
    assert_eq!(torrent.read_file(3, 0, 0, |_| ()), None);
    assert!(!torrent.read_block(sample.piece(1), 0, &mut [0; 16_384]).unwrap());
    assert!(!torrent.read_block(sample.piece(0), u32::MAX, &mut [0; 1]).unwrap());
}

#[test]
fn readers_pin_what_they_read() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    (0..2).for_each(|p| store_piece(&torrent, &sample, p));
    let pins = |i| torrent.pins(sample.piece(i));
    let during = torrent.read_file(0, 0, 20_000, |_| (pins(0), pins(1), pins(2)));
    assert_eq!(during, Some((1, 1, 0)));
    assert_eq!(torrent.read_file(0, 0, 40_000, |_| ()), None);
    assert_eq!((pins(0), pins(1), pins(2)), (0, 0, 0));
}
