//! Torrents with a v2 half (BEP 52): blocks that are verified alone, padding, and both hashes of a piece.

use tempfile::TempDir;

use super::super::blocks::MAX_UNWRITTEN;
use super::super::buffer::PieceBuffer;
use super::disk::SmallDisk;
use super::*;
use crate::proto::ids::InfoHashV2;
use crate::proto::merkle::{Hash, Known, Shape, Tree, Trusted, block_hash};
use crate::proto::metainfo::V2;

const BLOCK: usize = BLOCK_LEN as usize;

/// The tree of a file.
fn tree(sample: &Sample, file: usize) -> Tree {
    let leaves = sample.file(file).chunks(BLOCK).map(block_hash).collect();
    let shape = Shape::of(sample.info.files[file].length).unwrap();
    Tree::new(shape, 0, leaves).unwrap()
}

/// The same torrent with a v2 half, and without a v1 half if it is not `hybrid`.
fn with_v2(sample: Sample, hybrid: bool) -> Sample {
    let mut info: Info = (*sample.info).clone();
    let files = 0..info.files.len();
    let roots = files.map(|f| (!info.files[f].pad).then(|| tree(&sample, f).root())).collect();
    let info_hash = InfoHashV2::of(&info.raw);
    info.v2 = Some(V2 { info_hash, roots });
    if !hybrid {
        info.info_hash = info_hash.truncated();
        info.piece_hashes.clear();
    }
    let ends: Vec<_> = info.files.iter().filter(|f| !f.pad).map(|f| f.offset + f.length).collect();
    info.geometry = info.geometry.with_padding(ends.into_iter());
    Sample { info: Arc::new(info), data: sample.data }
}

/// One file of `blocks` blocks, four of them a piece.
fn film(blocks: u64, hybrid: bool) -> Sample {
    let length = blocks * u64::from(BLOCK_LEN);
    with_v2(Sample::new(&[(length, false)], 4 * u64::from(BLOCK_LEN)), hybrid)
}

/// All that can be known of a file.
fn known(sample: &Sample, file: usize) -> Known {
    let tree = tree(sample, file);
    let piece_length = sample.info.geometry.piece_length();
    let mut known = Known::new(tree.shape(), tree.root(), piece_length);
    for layer in [known.base(), 0] {
        while let Some(range) = known.lacking(layer, 0, u64::MAX) {
            known.learn(range, &tree.answer(range).unwrap()).unwrap();
        }
    }
    known
}

fn root(sample: &Sample, piece: u32) -> Option<Trusted> {
    let known = known(sample, 0);
    known.trusted(known.base(), piece.into())
}

fn block_bytes(sample: &Sample, piece: PieceIndex, index: u32) -> &[u8] {
    let at = index as usize * BLOCK;
    &sample.bytes(piece)[at..at + BLOCK]
}

/// Puts some blocks of a piece, of which `bad` are wrong.
fn put(buffer: &PieceBuffer, sample: &Sample, blocks: &[u32], bad: &[u32]) {
    for index in blocks {
        let block = sample.info.geometry.block(buffer.piece(), *index).unwrap();
        let mut bytes = block_bytes(sample, buffer.piece(), *index).to_vec();
        bytes[5] ^= u8::from(bad.contains(index));
        assert!(buffer.put(block, &bytes));
    }
}

/// Has blocks judged, and what is good written. Returns which are good and which are not.
fn judge(
    torrent: &Arc<TorrentStore>,
    buffer: &Arc<PieceBuffer>,
    sample: &Sample,
    blocks: &[u32],
) -> (Vec<u32>, Vec<u32>) {
    let known = known(sample, 0);
    let first = u64::from(buffer.piece().get()) << known.base();
    let hash = |index: &u32| (*index, known.trusted(0, first + u64::from(*index)).unwrap());
    let blocks = blocks.iter().map(hash).collect();
    let judged = wait(|done: Box<dyn FnOnce(_) + Send>| {
        let done = move |good: &[u32], bad: &[u32]| done((good.to_vec(), bad.to_vec()));
        torrent.verify_blocks(buffer.clone(), blocks, done);
    });
    while !torrent.blocks_are_settled() {
        std::thread::yield_now();
    }
    judged
}

fn reads(torrent: &TorrentStore, sample: &Sample, start: u64, length: usize) -> Option<bool> {
    let expected = &sample.data[start as usize..start as usize + length];
    torrent.read_file(0, start, length, |bytes| bytes == expected)
}

fn at(block: u64) -> u64 {
    block * u64::from(BLOCK_LEN)
}

#[test]
fn blocks_are_readable_alone_and_outlive_their_buffer() {
    for hybrid in [false, true] {
        let dir = TempDir::new().unwrap();
        let sample = film(12, hybrid);
        let torrent = open(dir.path(), &sample);
        let buffer = torrent.buffer(sample.piece(1));
        put(&buffer, &sample, &[1, 2, 3], &[3]);
        assert_eq!(reads(&torrent, &sample, at(5), 10), None, "nobody has judged it");
        // One that is not here is not judged.
        assert_eq!(judge(&torrent, &buffer, &sample, &[0, 1, 2, 3]), (vec![1, 2], vec![3]));
        assert_eq!(reads(&torrent, &sample, at(5) + 7, BLOCK + 9), Some(true));
        assert_eq!(reads(&torrent, &sample, at(6) + 7, BLOCK), None, "its end is not good");
        assert_eq!(reads(&torrent, &sample, at(5) - 1, 2), None, "its begin is not here");
        buffer.discard();
        drop(buffer);
        assert_eq!(reads(&torrent, &sample, at(5), 2 * BLOCK), Some(true));
        assert!(!torrent.is_here(sample.piece(1)));
        let mut out = [0; BLOCK];
        assert!(!torrent.read_block(sample.piece(1), BLOCK_LEN, &mut out).unwrap(), "for peers");
    }
}

#[test]
fn a_read_may_go_from_whole_pieces_to_single_blocks() {
    let dir = TempDir::new().unwrap();
    let sample = film(12, true);
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    let buffer = torrent.buffer(sample.piece(1));
    put(&buffer, &sample, &[0], &[]);
    judge(&torrent, &buffer, &sample, &[0]);
    assert_eq!(reads(&torrent, &sample, at(3) + 1, BLOCK + 5), Some(true));
    assert_eq!(reads(&torrent, &sample, at(3) + 1, 2 * BLOCK), None);
}

#[test]
fn a_piece_is_filled_from_its_blocks_at_rest() {
    let dir = TempDir::new().unwrap();
    let sample = film(12, false);
    let torrent = open(dir.path(), &sample);
    let piece = sample.piece(1);
    let first = torrent.buffer(piece);
    put(&first, &sample, &[1], &[]);
    judge(&torrent, &first, &sample, &[1]);
    first.discard();
    let second = torrent.buffer(piece);
    put(&second, &sample, &[0, 2, 3], &[]);
    let verdict = wait(|done| torrent.verify(second, false, root(&sample, 1), done));
    let Verdict::Verified { range, .. } = verdict else { panic!("{verdict:?}") };
    wait(|done| torrent.write(range, done)).unwrap();
    assert!(torrent.is_at_rest(piece));
    assert_eq!(reads(&torrent, &sample, at(4), 4 * BLOCK), Some(true));
    // Without the block there is nothing to judge, and nobody to blame.
    let third = torrent.buffer(sample.piece(2));
    put(&third, &sample, &[0, 2, 3], &[]);
    let verdict = wait(|done| torrent.verify(third, true, root(&sample, 2), done));
    assert!(matches!(verdict, Verdict::Mismatch { block_digests } if block_digests.is_empty()));
}

#[test]
fn a_refused_piece_is_mended_by_its_bad_block_alone() {
    for (hybrid, know_root) in [(false, true), (true, true), (true, false)] {
        let dir = TempDir::new().unwrap();
        let sample = film(12, hybrid);
        let torrent = open(dir.path(), &sample);
        let buffer = torrent.buffer(sample.piece(1));
        put(&buffer, &sample, &[0, 1, 2, 3], &[2]);
        let root = root(&sample, 1).filter(|_| know_root);
        let verdict = wait(|done| torrent.verify(buffer.clone(), true, root, done));
        assert!(
            matches!(&verdict, Verdict::Mismatch { block_digests } if block_digests.len() == 4)
        );
        assert_eq!(judge(&torrent, &buffer, &sample, &[0, 1, 2, 3]), (vec![0, 1, 3], vec![2]));
        let block = sample.info.geometry.block(sample.piece(1), 2).unwrap();
        assert!(
            !buffer.put(block, block_bytes(&sample, sample.piece(1), 2)),
            "the bad one is there"
        );
        buffer.refuse(2);
        put(&buffer, &sample, &[2], &[]);
        let verdict = wait(|done| torrent.verify(buffer.clone(), false, root, done));
        assert!(matches!(verdict, Verdict::Verified { .. }), "{verdict:?}");
    }
}

#[test]
fn what_went_bad_at_rest_is_found_and_forgotten() {
    let dir = TempDir::new().unwrap();
    let sample = film(12, false);
    let torrent = open(dir.path(), &sample);
    let piece = sample.piece(0);
    let first = torrent.buffer(piece);
    put(&first, &sample, &[1], &[]);
    judge(&torrent, &first, &sample, &[1]);
    first.discard();
    let path = dir.path().join(sample.info.info_hash.to_string()).join("files/0");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"other", at(1)).unwrap();
    let second = torrent.buffer(piece);
    put(&second, &sample, &[0, 2, 3], &[]);
    let verdict = wait(|done| torrent.verify(second.clone(), false, root(&sample, 0), done));
    assert!(matches!(verdict, Verdict::Mismatch { .. }));
    assert_eq!(judge(&torrent, &second, &sample, &[0, 1, 2, 3]), (vec![0, 2, 3], vec![1]));
    assert_eq!(reads(&torrent, &sample, at(1), 5), None);
}

#[test]
fn halves_that_do_not_agree_are_a_contradiction() {
    let sample = film(12, true);
    let v1_alone = {
        let mut info: Info = (*sample.info).clone();
        info.piece_hashes[1] = [7; 20];
        Sample { info: Arc::new(info), data: sample.data.clone() }
    };
    for (torrent_of, root_of) in [(&sample, 0), (&v1_alone, 1)] {
        let dir = TempDir::new().unwrap();
        let torrent = open(dir.path(), torrent_of);
        let buffer = torrent.buffer(sample.piece(1));
        put(&buffer, &sample, &[0, 1, 2, 3], &[]);
        let verdict = wait(|done| torrent.verify(buffer, false, root(&sample, root_of), done));
        assert!(matches!(verdict, Verdict::Contradiction), "{verdict:?}");
        assert_eq!(reads(&torrent, &sample, at(4), 1), None);
    }
}

#[test]
fn padding_behind_a_file_hashes_as_zeros_and_is_given_to_peers() {
    let dir = TempDir::new().unwrap();
    let files = [(20_000, false), (12_768, true), (100, false)];
    let sample = with_v2(Sample::new(&files, 32_768), true);
    let torrent = open(dir.path(), &sample);
    assert_eq!(sample.info.geometry.piece_len(sample.piece(0)), 20_000);
    [0, 1].iter().for_each(|piece| {
        let (piece, mut known) = (sample.piece(*piece), known(&sample, 0));
        if piece.get() == 1 {
            known = self::known(&sample, 2);
        }
        let root = known.trusted(known.base(), 0);
        let buffer = torrent.buffer(piece);
        for block in sample.info.geometry.blocks(piece) {
            let at = block.begin() as usize;
            assert!(buffer.put(block, &sample.bytes(piece)[at..at + block.length as usize]));
        }
        let verdict = wait(|done| torrent.verify(buffer, false, root, done));
        let Verdict::Verified { range, .. } = verdict else { panic!("{verdict:?}") };
        let mut out = vec![1; 16_384];
        if piece.get() == 0 {
            assert!(torrent.read_block(piece, 16_384, &mut out).unwrap(), "from memory");
            assert_eq!(out, &sample.data[16_384..32_768]);
        }
        wait(|done| torrent.write(range, done)).unwrap();
    });
    let mut out = vec![1; 16_384];
    assert!(torrent.read_block(sample.piece(0), 16_384, &mut out).unwrap(), "from the disk");
    assert_eq!(out, &sample.data[16_384..32_768]);
    assert_eq!(read_all(&torrent, 0).unwrap(), sample.file(0));
    assert_eq!(read_all(&torrent, 2).unwrap(), sample.file(2));
}

/// Told of the hashes of the blocks of a piece.
type Hashed = Box<dyn FnOnce(Option<Arc<[Hash]>>) + Send>;

#[test]
fn the_blocks_of_a_piece_are_hashed_for_peers_once_it_is_verified() {
    let dir = TempDir::new().unwrap();
    let files = [(20_000, false), (12_768, true), (100, false)];
    let sample = with_v2(Sample::new(&files, 32_768), true);
    let torrent = open(dir.path(), &sample);
    let hashes = |piece| {
        let piece = sample.piece(piece);
        wait(|done: Hashed| torrent.hash_blocks(piece, done))
    };
    assert_eq!(hashes(0), None);
    let piece = sample.piece(0);
    let verdict = offer(&torrent, piece, sample.bytes(piece));
    let Verdict::Verified { range, .. } = verdict else { panic!("{verdict:?}") };
    let expected: Arc<[_]> = sample.file(0).chunks(BLOCK).map(block_hash).collect();
    assert_eq!(hashes(0).as_ref(), Some(&expected), "from memory");
    wait(|done| torrent.write(range, done)).unwrap();
    assert_eq!(hashes(0), Some(expected), "from the disk");
}

#[test]
fn on_a_full_disk_blocks_stay_in_memory_until_newer_ones_push_them_out() {
    let disk = SmallDisk::new(256 << 10);
    let kept = MAX_UNWRITTEN as u32;
    let sample = film(u64::from(kept) * 2, false);
    let torrent = open(disk.0.path(), &sample);
    let lost = Arc::<Mutex<Vec<(u32, Option<u32>)>>>::default();
    let to = lost.clone();
    torrent.set_on_lost(Box::new(move |p, block| to.lock().unwrap().push((p.get(), block))));
    for piece in 0..kept / 2 {
        let buffer = torrent.buffer(sample.piece(piece));
        put(&buffer, &sample, &[0, 1, 2], &[]);
        let (good, _) = judge(&torrent, &buffer, &sample, &[0, 1, 2]);
        assert_eq!(good, [0, 1, 2]);
        assert_eq!(reads(&torrent, &sample, at(u64::from(piece) * 4), 3 * BLOCK), Some(true));
        buffer.discard();
    }
    let lost: Vec<_> = lost.lock().unwrap().clone();
    assert!(!lost.is_empty());
    let readable = |piece: u32, index: u32| {
        reads(&torrent, &sample, at(u64::from(piece * 4 + index)), BLOCK) == Some(true)
    };
    for piece in 0..kept / 2 {
        for index in 0..3 {
            assert_eq!(readable(piece, index), !lost.contains(&(piece, Some(index))));
        }
    }
    assert!(readable(0, 0), "it was written while there was room");
}

#[test]
fn blocks_that_were_let_go_are_gone_for_readers_and_on_disk() {
    let dir = TempDir::new().unwrap();
    let sample = film(64, false);
    let limits = crate::store::Limits { size: Some(1 << 20), free: None };
    let store = Store::open_limited(dir.path(), limits).unwrap();
    let torrent = store.torrent(sample.info.clone()).unwrap();
    let lost = Arc::<Mutex<Vec<_>>>::default();
    let to = lost.clone();
    torrent.set_on_lost(Box::new(move |p, block| to.lock().unwrap().push((p.get(), block))));
    let buffer = torrent.buffer(sample.piece(3));
    put(&buffer, &sample, &[1, 2], &[]);
    assert_eq!(judge(&torrent, &buffer, &sample, &[1, 2]).0, [1, 2]);
    assert_eq!(reads(&torrent, &sample, at(13), 100), Some(true));
    // Read by somebody, it stays; then not.
    let guard = torrent.guard(at(12)..at(13));
    torrent.let_all_go();
    assert_eq!(reads(&torrent, &sample, at(13), 100), Some(true));
    drop(guard);
    torrent.let_all_go();
    assert_eq!(reads(&torrent, &sample, at(13), 100), None);
    assert_eq!(*lost.lock().unwrap(), [(3, Some(1)), (3, Some(2))]);
    let files = dir.path().join(sample.info.info_hash.to_string()).join("files");
    assert_eq!(std::fs::read_dir(files).unwrap().count(), 0, "nothing of the file is needed");
    // And what comes again can be read again.
    let buffer = torrent.buffer(sample.piece(3));
    put(&buffer, &sample, &[1], &[]);
    assert_eq!(judge(&torrent, &buffer, &sample, &[1]).0, [1]);
    assert_eq!(reads(&torrent, &sample, at(13), 100), Some(true));
}
