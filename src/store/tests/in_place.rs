//! Seeding what is somebody else's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::super::StoreError;
use super::*;
use crate::proto::metainfo::layout::{Entry, EntryKind, Layout};

fn layout(sample: &Sample) -> Layout {
    let files = sample.info.files.iter().enumerate().filter(|(_, f)| !f.pad);
    let entry =
        |(i, f): (usize, &FileEntry)| Entry { path: f.path.clone(), kind: EntryKind::File(i) };
    Layout { entries: files.map(entry).collect() }
}

/// The sample's files in `dir`.
fn lay_out(dir: &Path, sample: &Sample) {
    for (i, f) in sample.info.files.iter().enumerate().filter(|(_, f)| !f.pad) {
        let name = String::from_utf8(f.path[0].clone()).unwrap();
        fs::write(dir.join(name), sample.file(i)).unwrap();
    }
}

fn check_all(torrent: &Arc<TorrentStore>) -> Vec<u32> {
    let pieces = torrent.info().geometry.pieces();
    pieces
        .filter(|&p| wait(|done| torrent.verify_at_rest(p, None, done)))
        .map(PieceIndex::get)
        .collect()
}

struct Seed {
    dir: TempDir,
    _cache: TempDir,
    sample: Sample,
    torrent: Arc<TorrentStore>,
}

fn seed() -> Seed {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let files = [(20_000, false), (12_768, true), (0, false), (2 << 20, false)];
    let sample = Sample::new(&files, 16_384);
    lay_out(dir.path(), &sample);
    let store = Store::open(cache.path()).unwrap();
    let torrent = store.in_place(sample.info.clone(), &layout(&sample), dir.path()).unwrap();
    Seed { dir, _cache: cache, sample, torrent }
}

#[test]
fn data_in_place_is_checked_and_read() {
    let s = seed();
    assert!(s.torrent.hinted().is_full());
    assert!(!s.torrent.is_verified(s.sample.piece(0)));
    assert_eq!(check_all(&s.torrent).len() as u32, s.sample.info.geometry.piece_count());
    for file in 0..4 {
        assert_eq!(read_all(&s.torrent, file).unwrap(), s.sample.file(file));
    }
    let mut out = [1; 16_384];
    assert!(s.torrent.read_block(s.sample.piece(1), 0, &mut out).unwrap());
    assert_eq!(out, s.sample.bytes(s.sample.piece(1)));
}

#[test]
fn data_in_place_is_never_written() {
    let s = seed();
    let range = verify(&s.torrent, &s.sample, 0);
    let path = s.dir.path().join("file 0");
    fs::write(&path, vec![9; 20_000]).unwrap();
    assert!(wait(|done| s.torrent.write(range, done)).is_err());
    assert_eq!(fs::read(&path).unwrap(), vec![9; 20_000]);
}

#[test]
fn a_wrong_piece_in_place_is_found() {
    let s = seed();
    let path = s.dir.path().join("file 0");
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 0).unwrap();
    let store = Store::open(s._cache.path());
    assert!(store.is_err(), "the torrent still holds the cache");
    let cache = TempDir::new().unwrap();
    let store = Store::open(cache.path()).unwrap();
    let again = store.in_place(s.sample.info.clone(), &layout(&s.sample), s.dir.path()).unwrap();
    assert!(!check_all(&again).contains(&0));
    assert!(!again.hinted().contains(s.sample.piece(0)));
}

#[test]
fn a_file_that_changes_loses_its_verified_pieces_and_no_others() {
    let changes: [fn(&File); 3] =
        [|f| f.write_all_at(b"changed", 100).unwrap(), |f| f.set_len(19_999).unwrap(), |_| ()];
    for change in changes {
        let s = seed();
        let lost = lost_pieces(&s.torrent);
        check_all(&s.torrent);
        let file = File::options().write(true).open(s.dir.path().join("file 0")).unwrap();
        change(&file);
        file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        assert_eq!(s.torrent.read_file(0, 200, 10, |_| ()), None);
        assert_eq!(*lost.lock().unwrap(), [0, 1]);
        assert!(!s.torrent.read_block(s.sample.piece(1), 0, &mut [0; 10]).unwrap());
        assert!(!wait(|done| s.torrent.verify_at_rest(s.sample.piece(0), None, done)));
        assert_eq!(read_all(&s.torrent, 3).unwrap(), s.sample.file(3));
    }
}

#[test]
fn the_first_file_that_is_missing_or_too_short_is_named() {
    let s = seed();
    let cache = TempDir::new().unwrap();
    let store = Store::open(cache.path()).unwrap();
    let open = || store.in_place(s.sample.info.clone(), &layout(&s.sample), s.dir.path());
    fs::write(s.dir.path().join("file 3"), b"short").unwrap();
    let Err(StoreError::DataSize { path, found, expected }) = open() else { panic!("accepted") };
    assert!(path.ends_with("file 3"));
    assert_eq!((found, expected), (5, 2 << 20));
    fs::remove_file(s.dir.path().join("file 0")).unwrap();
    let Err(error @ StoreError::Data { .. }) = open() else { panic!("accepted") };
    assert!(error.to_string().contains("file 0"), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[test]
fn a_single_file_is_found_by_itself_in_its_directory_and_under_the_torrents_name() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let sample = Sample::new(&[(20_000, false)], 16_384);
    let store = Store::open(cache.path()).unwrap();
    lay_out(dir.path(), &sample);
    fs::create_dir(dir.path().join("up")).unwrap();
    fs::create_dir(dir.path().join("up/sample")).unwrap();
    lay_out(&dir.path().join("up/sample"), &sample);
    for path in ["", "file 0", "up", "up/sample"] {
        let path = dir.path().join(path);
        let torrent = store.in_place(sample.info.clone(), &layout(&sample), &path).unwrap();
        assert_eq!(check_all(&torrent), [0, 1], "{}", path.display());
    }
}
