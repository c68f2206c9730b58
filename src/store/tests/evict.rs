//! A cache with a limit: what `du` would say, and who goes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{Limits, is_no_room};
use super::*;

const MIB: u64 = 1 << 20;

/// Bytes allocated for what is at `path` and below, as `du` counts them.
fn du(path: &Path) -> u64 {
    let Ok(m) = fs::symlink_metadata(path) else { return 0 };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    m.blocks() * 512 + entries.map(|e| du(&e.path())).sum::<u64>()
}

fn limited(dir: &Path, size: u64) -> Arc<Store> {
    Store::open_limited(dir, Limits { size: Some(size), free: None }).unwrap()
}

fn here(torrent: &TorrentStore) -> Vec<u32> {
    let pieces = torrent.info().geometry.pieces().filter(|p| torrent.is_here(*p));
    pieces.map(PieceIndex::get).collect()
}

fn write(torrent: &Arc<TorrentStore>, sample: &Sample, piece: u32) -> std::io::Result<()> {
    let range = verify(torrent, sample, piece);
    wait(|done| torrent.write(range, done))
}

#[test]
fn the_limit_holds_with_each_write_and_what_was_read_last_stays() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(8 * MIB, false)], 65_536);
    let torrent = limited(dir.path(), 2 * MIB).torrent(sample.info.clone()).unwrap();
    let lost = lost_pieces(&torrent);
    for piece in 0..sample.info.geometry.piece_count() {
        write(&torrent, &sample, piece).unwrap();
        let read = torrent.read_file(0, 5 * 65_536, 100, |b| b == &sample.data[327_680..327_780]);
        assert_eq!(read, (piece >= 5).then_some(true), "read again and again, it stays");
        assert!(du(dir.path()) <= 2 * MIB, "{} after piece {piece}", du(dir.path()));
    }
    let here = here(&torrent);
    assert!(here.contains(&5) && here.len() > 20, "{here:?}");
    assert_eq!(lost.lock().unwrap().len() + here.len(), 128);
    drop(torrent);
    let hinted = open(dir.path(), &sample).hinted();
    assert!(hinted.iter(&sample.info.geometry).map(PieceIndex::get).eq(here));
}

#[test]
fn files_smaller_than_a_block_are_removed_whole() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(700, false); 3000], 16_384);
    let torrent = limited(dir.path(), 3 * MIB).torrent(sample.info.clone()).unwrap();
    for piece in 0..sample.info.geometry.piece_count() {
        write(&torrent, &sample, piece).unwrap();
        assert!(du(dir.path()) <= 3 * MIB, "{} after piece {piece}", du(dir.path()));
    }
    let files = fs::read_dir(dir.path().join(sample.info.info_hash.to_string()).join("files"));
    assert!(files.unwrap().count() < 800);
    for file in 0..3000 {
        let read = read_all(&torrent, file);
        assert!(read.is_none_or(|read| read == sample.file(file)));
    }
}

#[test]
fn what_is_pinned_or_read_is_not_let_go_and_when_all_is_nothing_more_is_written() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(MIB, false), (MIB, false), (4 * MIB, false)], 65_536);
    let store = limited(dir.path(), 3 * MIB);
    let torrent = store.torrent(sample.info.clone()).unwrap();
    torrent.set_pinned(&[0], true).unwrap();
    let guard = torrent.guard(MIB..2 * MIB);
    (0..96).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    assert!(here(&torrent).starts_with(&(0..32).collect::<Vec<_>>()));
    let kept = torrent.keep();
    let gone: Vec<_> = (0..96).filter(|piece| !here(&torrent).contains(piece)).collect();
    let error = gone.into_iter().find_map(|piece| write(&torrent, &sample, piece).err());
    assert!(is_no_room(&error.unwrap()));
    drop((kept, guard));
    (32..96).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    assert!(here(&torrent).starts_with(&(0..16).collect::<Vec<_>>()), "pinned");
    assert!(!here(&torrent).contains(&16));
    drop((torrent, store));
    let torrent = limited(dir.path(), 3 * MIB).torrent(sample.info.clone()).unwrap();
    assert!(torrent.pinned().contains(&0), "in its next life too");
}

#[test]
fn of_what_nobody_read_goes_what_most_peers_have() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(4 * MIB, false)], 65_536);
    let torrent = limited(dir.path(), 2 * MIB).torrent(sample.info.clone()).unwrap();
    torrent.set_copies((0..64).map(|piece| if piece % 2 == 0 { 9 } else { 1 }).collect());
    (0..30).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    let gone: Vec<_> = (0..30).filter(|piece| !here(&torrent).contains(piece)).collect();
    assert!(!gone.is_empty() && gone.iter().all(|piece| piece % 2 == 0), "{gone:?}");
}

#[test]
fn a_lower_limit_holds_from_the_start() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(4 * MIB, false)], 65_536);
    let torrent = open(dir.path(), &sample);
    (0..64).for_each(|piece| store_piece(&torrent, &sample, piece));
    drop(torrent);
    assert!(du(dir.path()) > 4 * MIB);
    let _store = limited(dir.path(), 2 * MIB);
    assert!(du(dir.path()) <= 2 * MIB, "{}", du(dir.path()));
}

#[test]
fn what_a_crash_left_of_no_listed_piece_is_freed() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(4 * MIB, false)], 65_536);
    let torrent = open(dir.path(), &sample);
    (0..40).for_each(|piece| store_piece(&torrent, &sample, piece));
    drop(torrent);
    // The index of before: it lists the first two.
    let index = dir.path().join(sample.info.info_hash.to_string()).join("index");
    let mut bytes = fs::read(&index).unwrap();
    let header = bytes.len() - 8;
    bytes[header] = 0xc0;
    bytes[header + 1..].fill(0);
    fs::write(&index, bytes).unwrap();
    let torrent = limited(dir.path(), 16 * MIB).torrent(sample.info.clone()).unwrap();
    assert_eq!(here(&torrent), [0, 1]);
    assert!(du(dir.path()) < MIB / 2, "{}", du(dir.path()));
    assert!(wait(|done| torrent.verify_at_rest(sample.piece(1), None, done)));
}

/// 6 GiB in 100,000 pieces, of which only the last is known: one byte again and again.
fn of_many_pieces() -> (Sample, Vec<u8>) {
    const LENGTH: u64 = 65_536;
    let last = vec![7; LENGTH as usize];
    let sample = Sample::with_data(&[(LENGTH, false)], LENGTH, last.clone());
    let mut info = (*sample.info).clone();
    info.geometry = Geometry::new(100_000 * LENGTH, LENGTH).unwrap();
    info.piece_hashes = vec![info.piece_hashes[0]; 100_000];
    info.files[0].length = info.geometry.total();
    (Sample { info: Arc::new(info), data: Vec::new() }, last)
}

fn write_bytes(torrent: &Arc<TorrentStore>, piece: PieceIndex, bytes: &[u8]) {
    let Verdict::Verified { range, .. } = offer(torrent, piece, bytes) else { panic!("refused") };
    wait(|done| torrent.write(range, done)).unwrap();
    let_loose(torrent, piece);
}

#[test]
fn a_file_of_many_pieces_that_takes_what_it_should_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let (sample, bytes) = of_many_pieces();
    let torrent = open(dir.path(), &sample);
    write_bytes(&torrent, sample.piece(99_999), &bytes);
    let path = torrent.files.path(0).unwrap();
    drop(torrent);
    let changed = || fs::metadata(&path).map(|m| (m.ctime(), m.ctime_nsec())).unwrap();
    let before = changed();
    let torrent = limited(dir.path(), 16 * MIB).torrent(sample.info.clone()).unwrap();
    assert_eq!((here(&torrent), changed()), (vec![99_999], before));
    // In many parts too: the file system's lists of them are no waste.
    (0..99_999).step_by(1500).for_each(|piece| {
        write_bytes(&torrent, sample.piece(piece), &bytes);
        assert_eq!(torrent.sweep(), 0, "with piece {piece}");
    });
    torrent.let_all_go();
    assert!(!path.exists());
}

#[test]
fn what_a_crash_left_among_many_pieces_is_freed_in_few_holes() {
    let dir = TempDir::new().unwrap();
    let (sample, bytes) = of_many_pieces();
    let torrent = limited(dir.path(), 16 * MIB).torrent(sample.info.clone()).unwrap();
    write_bytes(&torrent, sample.piece(30_000), &bytes);
    write_bytes(&torrent, sample.piece(99_999), &bytes);
    let path = torrent.files.path(0).unwrap();
    let clean = fs::metadata(&path).unwrap().blocks();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1; 4096], 50_000 * 65_536).unwrap();
    drop((torrent, file));
    let torrent = limited(dir.path(), 16 * MIB).torrent(sample.info.clone()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().blocks(), clean);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1; 4096], 50_000 * 65_536).unwrap();
    torrent.store.ledger.measure(sample.info.info_hash, 0, &path);
    assert_eq!((torrent.sweep(), torrent.sweep()), (2, 0), "before and after the first piece");
    assert_eq!(fs::metadata(&path).unwrap().blocks(), clean);
    for piece in [30_000, 99_999] {
        assert!(wait(|done| torrent.verify_at_rest(sample.piece(piece), None, done)));
    }
}

#[test]
fn readers_see_no_wrong_byte_and_the_limit_holds_while_everything_comes_and_goes() {
    let dir = TempDir::new().unwrap();
    // Pieces that share files, and blocks of files, with their neighbours.
    let files = [(3 * MIB + 1234, false), (70_001, false), (5 * MIB - 77, false), (999, false)];
    let samples = [Sample::new(&files, 65_536), Sample::new(&files[1..], 49_152)];
    let store = limited(dir.path(), 2 * MIB);
    let torrents = samples.each_ref().map(|s| store.torrent(s.info.clone()).unwrap());
    let finished = AtomicBool::new(false);
    // A walk that is interrupted counts twice what is let go and written meanwhile: for each, nobody writes.
    let writing = RwLock::new(());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(Ordering::Acquire) {
                assert!(store.ledger.taken() <= 2 * MIB, "more is counted than the limit");
                let _nobody = writing.write().unwrap();
                let (taken, counted) = (du(dir.path()), store.ledger.taken());
                assert!(
                    taken <= 2 * MIB,
                    "{taken} bytes are more than the limit, {counted} counted"
                );
            }
        });
        for reader in 0..2u64 {
            let (torrents, samples, finished) = (&torrents, &samples, &finished);
            scope.spawn(move || {
                let mut at = reader * 7919;
                while !finished.load(Ordering::Acquire) {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12_345);
                    let (which, file) = ((at >> 40) as usize % 2, (at >> 60) as usize % 3);
                    let bytes = samples[which].file(file);
                    let offset = (at >> 20) as usize % bytes.len();
                    let length = ((at >> 30) as usize % 150_000).min(bytes.len() - offset);
                    let same = |b: &[u8]| b == &bytes[offset..offset + length];
                    let read = torrents[which].read_file(file, offset as u64, length, same);
                    assert!(read != Some(false), "wrong bytes");
                }
            });
        }
        let writers: Vec<_> = [1u64, 2, 3]
            .map(|writer| {
                let (torrents, samples, writing) = (&torrents, &samples, &writing);
                scope.spawn(move || {
                    let mut at = writer;
                    for _ in 0..400 {
                        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                        let which = (at >> 50) as usize % 2;
                        let sample = &samples[which];
                        let count = u64::from(sample.info.geometry.piece_count());
                        let _one_more = writing.read().unwrap();
                        let _ = write(&torrents[which], sample, ((at >> 33) % count) as u32);
                    }
                })
            })
            .into();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        finished.store(true, Ordering::Release);
        assert!(ended.iter().all(Result::is_ok));
    });
    for (torrent, sample) in torrents.iter().zip(&samples) {
        let here = here(torrent);
        assert!(!here.is_empty(), "all of one torrent is gone");
        for piece in here {
            let mut bytes = vec![0; sample.bytes(sample.piece(piece)).len()];
            assert!(torrent.read_block(sample.piece(piece), 0, &mut bytes).unwrap());
            assert_eq!(bytes, sample.bytes(sample.piece(piece)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_files_are_what_is_counted_is_no_less_than_what_is_taken(
        files in prop::collection::vec((prop_oneof![0..5000u64, 0..400_000u64], any::<bool>()), 1..30),
        piece_length in prop_oneof![Just(16_384u64), 10_000u64..70_000],
        ops in prop::collection::vec((0..10u8, any::<prop::sample::Index>()), 1..80),
    ) {
        const LIMIT: u64 = 3 * MIB / 2;
        let sample = Sample::new(&files, piece_length);
        prop_assume!(!sample.data.is_empty());
        let dir = TempDir::new().unwrap();
        let mut torrent = limited(dir.path(), LIMIT).torrent(sample.info.clone()).unwrap();
        let count = sample.info.geometry.piece_count() as usize;
        for (what, index) in ops {
            let piece = sample.piece(index.index(count) as u32);
            match what {
                0..5 => write(&torrent, &sample, piece.get()).unwrap(),
                5 | 6 => {
                    let_loose(&torrent, piece);
                    let here = torrent.is_here(piece);
                    prop_assert_eq!(torrent.let_go(piece), here);
                }
                7 | 8 => {
                    let mut bytes = vec![0; sample.bytes(piece).len()];
                    let read = torrent.read_block(piece, 0, &mut bytes).unwrap();
                    prop_assert!(!read || bytes == sample.bytes(piece));
                    prop_assert_eq!(read, torrent.is_verified(piece));
                }
                _ => {
                    let here = here(&torrent);
                    drop(torrent);
                    torrent = loop {
                        // Its workers may hold it for a moment still.
                        let limits = Limits { size: Some(LIMIT), free: None };
                        if let Ok(store) = Store::open_limited(dir.path(), limits) {
                            break store.torrent(sample.info.clone()).unwrap();
                        }
                    };
                    for piece in here {
                        let good = wait(|d| torrent.verify_at_rest(sample.piece(piece), None, d));
                        prop_assert!(good, "piece {} is not what it was", piece);
                    }
                }
            }
            let (taken, counted) = (du(dir.path()), torrent.store.ledger.taken());
            prop_assert!(taken <= counted && taken <= LIMIT, "{} taken, {} counted", taken, counted);
        }
        sample.info.geometry.pieces().for_each(|piece| let_loose(&torrent, piece));
        torrent.let_all_go();
        let left = torrent.store.ledger.files_of(sample.info.info_hash);
        prop_assert!(left.is_empty(), "{:?}", left);
    }
}

#[test]
fn where_no_holes_can_be_made_whole_files_go_and_the_rest_stays() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(MIB, false); 6], 65_536);
    let store = limited(dir.path(), 4 * MIB);
    store.ledger.punch_no_more();
    let torrent = store.torrent(sample.info.clone()).unwrap();
    for piece in 0..96 {
        write(&torrent, &sample, piece).unwrap();
        assert!(du(dir.path()) <= 4 * MIB, "{} after piece {piece}", du(dir.path()));
        torrent.read_file(1, 0, 100, |_| ());
    }
    let here_now = here(&torrent);
    let of = |file: u32| (file * 16..(file + 1) * 16).filter(|p| here_now.contains(p)).count();
    let whole: Vec<_> = (0..6).filter(|file| of(*file) == 16).collect();
    assert_eq!(whole.len(), here_now.len() / 16, "only whole files are here: {here_now:?}");
    assert!(whole.len() >= 2 && whole.contains(&1), "what was read last is: {whole:?}");
    // Of one that is larger than the cache nothing can go while it is read, and nothing is lost.
    let large = Sample::new(&[(8 * MIB, false)], 65_536);
    let other = store.torrent(large.info.clone()).unwrap();
    let _reading = other.guard(0..8 * MIB);
    let written = (0..128).take_while(|piece| write(&other, &large, *piece).is_ok()).count();
    assert!((16..128).contains(&written), "{written}");
    assert_eq!(here(&other).len(), written + 1, "the last is in memory");
    assert!(du(dir.path()) <= 4 * MIB);
}

#[test]
fn what_was_read_last_stays_after_a_restart_too() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(4 * MIB, false)], 65_536);
    let torrent = limited(dir.path(), 2 * MIB).torrent(sample.info.clone()).unwrap();
    (0..20).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    torrent.read_file(0, 5 * 65_536, 3 * 65_536, |_| ());
    drop(torrent);
    let torrent = limited(dir.path(), 2 * MIB).torrent(sample.info.clone()).unwrap();
    (20..50).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    let here = here(&torrent);
    assert!(here.starts_with(&[5, 6, 7]), "{here:?}");
    assert!(!here.contains(&8) && du(dir.path()) <= 2 * MIB);
    // What does not look right counts as never read.
    drop(torrent);
    let order = dir.path().join(sample.info.info_hash.to_string()).join("order");
    for wrong in [&b"p2pfsou1"[..], b"", &[9; 300]] {
        fs::write(&order, wrong).unwrap();
        assert!(
            !limited(dir.path(), 2 * MIB).torrent(sample.info.clone()).unwrap().hinted().is_empty()
        );
    }
}

#[test]
fn handles_that_are_never_closed_end_with_their_torrent() {
    let dir = TempDir::new().unwrap();
    let samples = [1, 2].map(|n| Sample::new(&[(n * MIB, false)], 65_536));
    let store = limited(dir.path(), 2 * MIB);
    let [first, second] = samples.each_ref().map(|s| store.torrent(s.info.clone()).unwrap());
    let alone = first.read_ahead(1, 0..MIB);
    assert!(second.read_ahead(2, 0..MIB).end < alone.end, "two share");
    assert!(second.read_ahead(3, 0..MIB).end < alone.end / 2);
    drop(second);
    assert_eq!(first.read_ahead(1, 0..MIB), alone);
}

#[test]
fn nothing_is_let_go_of_a_file_that_the_kernel_reads_and_such_files_take_half_at_most() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(MIB, false), (MIB, false), (8 * MIB, false)], 65_536);
    let torrent = limited(dir.path(), 4 * MIB).torrent(sample.info.clone()).unwrap();
    assert!(torrent.whole_file(0, &mut |_| {}).is_none());
    (0..31).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    assert!(torrent.whole_file(1, &mut |_| {}).is_none(), "its last piece is missing");
    write(&torrent, &sample, 31).unwrap();
    let mut length = 0;
    let mut open = |file: std::os::fd::BorrowedFd<'_>| {
        length = fs::File::from(file.try_clone_to_owned().unwrap()).metadata().unwrap().len();
    };
    let whole = torrent.whole_file(0, &mut open).unwrap();
    assert!(torrent.whole_file(1, &mut |_| {}).is_none(), "more than half of the cache");
    (32..160).for_each(|piece| write(&torrent, &sample, piece).unwrap());
    assert!((0..16).all(|piece| here(&torrent).contains(&piece)));
    assert!(!(16..32).all(|piece| here(&torrent).contains(&piece)), "others had to go");
    assert_eq!(length, MIB);
    drop(whole);
    assert!(torrent.whole_file(0, &mut |_| {}).is_some(), "there is room for it again");
}

#[test]
fn a_file_that_a_check_finds_damaged_is_whole_no_more() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(MIB, false)], 65_536);
    let store = Store::open(dir.path()).unwrap();
    let torrent = store.torrent(sample.info.clone()).unwrap();
    (0..16).for_each(|piece| store_piece(&torrent, &sample, piece));
    let whole = torrent.whole_file(0, &mut |_| {}).unwrap();
    let path = dir.path().join(sample.info.info_hash.to_string()).join("files/0");
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"?", 70_000).unwrap();
    assert!(whole.is_whole());
    store.check(&sample.info.info_hash, false, |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(!whole.is_whole() && torrent.whole_file(0, &mut |_| {}).is_none());
}
