//! Seeding what is somebody else's.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::super::{Limits, StoreError};
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
fn files_in_place_are_not_among_those_of_the_cache() {
    let s = seed();
    check_all(&s.torrent);
    assert!(s.torrent.files.open_files() > 0);
    assert_eq!(s.torrent.store.files.len(), 0, "whoever closes one might wait for it");
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
        assert_eq!(s.torrent.read_anywhere(0, 200, 10, |_| ()), None);
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

// ---- beside the cache

/// The sample's files in a directory of somebody else, and the cache of a torrent that borrows them.
struct Borrower {
    dir: TempDir,
    _cache: TempDir,
    sample: Sample,
    torrent: Arc<TorrentStore>,
}

fn borrower() -> Borrower {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let sample =
        Sample::new(&[(20_000, false), (12_768, true), (0, false), (80_000, false)], 16_384);
    lay_out(dir.path(), &sample);
    let torrent = Store::open(cache.path()).unwrap().torrent(sample.info.clone()).unwrap();
    Borrower { dir, _cache: cache, sample, torrent }
}

impl Borrower {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// The pieces that are good of those that may be there.
    fn borrow(&self) -> Vec<u32> {
        let there = self.torrent.borrow(&layout(&self.sample), self.dir.path(), &[]).unwrap();
        let good = |p: &PieceIndex| wait(|done| self.torrent.verify_lent(*p, None, done));
        there.into_iter().filter(good).map(PieceIndex::get).collect()
    }

    fn fetch(&self, piece: u32) {
        let range = verify(&self.torrent, &self.sample, piece);
        assert!(wait(|done| self.torrent.write(range, done)).is_ok());
    }
}

#[test]
fn what_is_good_elsewhere_is_read_there_and_the_rest_comes_into_the_cache() {
    let b = borrower();
    // Half a download: the second half of the last file is zeros.
    let half = File::options().write(true).open(b.path("file 3")).unwrap();
    half.write_all_at(&vec![0; 40_000], 40_000).unwrap();
    drop(half);
    let before = fs::metadata(b.path("file 3")).unwrap().modified().unwrap();
    assert_eq!(b.borrow(), [0, 1, 2, 3]);
    assert_eq!(read_all(&b.torrent, 0).unwrap(), b.sample.file(0));
    assert_eq!(b.torrent.read_file(0, 0, 1, |_| ()), None, "it might have to be waited for");
    assert_eq!(b.torrent.read_anywhere(3, 60_000, 1, |_| ()), None);
    (4..7).for_each(|piece| b.fetch(piece));
    assert_eq!(read_all(&b.torrent, 3).unwrap(), b.sample.file(3), "from both");
    assert_eq!(fs::metadata(b.path("file 3")).unwrap().modified().unwrap(), before);
    assert!(b.torrent.is_lent(b.sample.piece(3)) && !b.torrent.is_at_rest(b.sample.piece(3)));
    assert_eq!(b.torrent.lent_bytes(), 4 * 16_384);
}

#[test]
fn what_the_cache_has_already_is_not_looked_for_elsewhere() {
    let b = borrower();
    b.fetch(2);
    assert!(!b.borrow().contains(&2));
    assert!(b.torrent.is_at_rest(b.sample.piece(2)));
}

#[test]
fn a_file_elsewhere_that_changes_loses_its_pieces_which_are_fetched_into_the_cache() {
    let b = borrower();
    assert_eq!(b.borrow().len(), 7);
    let lost = lost_pieces(&b.torrent);
    File::options().write(true).open(b.path("file 0")).unwrap().write_all_at(b"new", 0).unwrap();
    assert_eq!(b.torrent.read_anywhere(0, 17_000, 10, |_| ()), None);
    assert_eq!(*lost.lock().unwrap(), [0, 1]);
    assert_eq!(read_all(&b.torrent, 3).unwrap(), b.sample.file(3));
    b.fetch(0);
    b.fetch(1);
    assert_eq!(read_all(&b.torrent, 0).unwrap(), b.sample.file(0));
    assert_eq!(&fs::read(b.path("file 0")).unwrap()[..3], b"new");
}

#[test]
fn other_data_is_borrowed_after_it_was_checked_only() {
    let b = borrower();
    assert_eq!(b.borrow().len(), 7);
    // A file with verified pieces is not taken for another one of the same name.
    let other = TempDir::new().unwrap();
    fs::write(other.path().join("file 3"), vec![7; 80_000]).unwrap();
    assert_eq!(b.torrent.borrow(&layout(&b.sample), other.path(), &[]).unwrap(), []);
    assert_eq!(read_all(&b.torrent, 3).unwrap(), b.sample.file(3));
}

#[test]
fn unfinished_files_have_other_names() {
    for name in ["file 3.part", "file 3.!qB"] {
        let b = borrower();
        fs::remove_file(b.path("file 0")).unwrap();
        fs::rename(b.path("file 3"), b.path(name)).unwrap();
        // A file of the right name that is too long is another one.
        fs::write(b.path("file 3"), vec![0; 80_001]).unwrap();
        assert_eq!(b.borrow(), [2, 3, 4, 5, 6], "{name}");
        assert_eq!(read_all(&b.torrent, 3).unwrap(), b.sample.file(3));
    }
}

#[test]
fn a_folder_without_any_file_of_the_torrent_is_refused() {
    let b = borrower();
    let empty = TempDir::new().unwrap();
    let refused = |path: &Path| match b.torrent.borrow(&layout(&b.sample), path, &[]) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(refused(empty.path()).contains("has no file of sample"), "{}", refused(empty.path()));
    assert!(refused(&empty.path().join("not there")).contains("not there"));
    let file = b.path("file 0");
    assert!(refused(&file).contains("no file"), "a file for a torrent of several");
}

// ---- given to the user

#[test]
fn whole_files_are_moved_out_of_the_cache_and_read_where_they_are() {
    let b = borrower();
    // Nothing is elsewhere; the first file shares its second piece with padding, the last has its own.
    (0..7).for_each(|piece| store_piece(&b.torrent, &b.sample, piece));
    let kept = TempDir::new().unwrap();
    let to = |file: usize| kept.path().join(format!("kept {file}"));
    assert!(b.torrent.can_give_to(kept.path()));
    b.torrent.give_away(&[(0, to(0)), (3, to(3))]).unwrap();
    for file in [0, 3] {
        assert_eq!(fs::read(to(file)).unwrap(), b.sample.file(file));
        assert_eq!(read_all(&b.torrent, file).unwrap(), b.sample.file(file));
    }
    assert_eq!(b.torrent.lent_bytes(), b.sample.data.len() as u64);
    // They are the user's now.
    File::options().write(true).open(to(3)).unwrap().write_all_at(b"mine", 0).unwrap();
    assert_eq!(b.torrent.read_anywhere(3, 70_000, 10, |_| ()), None);
    (2..7).for_each(|piece| store_piece(&b.torrent, &b.sample, piece));
    assert_eq!(read_all(&b.torrent, 3).unwrap(), b.sample.file(3));
    assert_eq!(&fs::read(to(3)).unwrap()[..4], b"mine");
}

#[test]
fn of_a_piece_that_a_moved_file_shares_its_part_stays_in_the_cache() {
    let cache = TempDir::new().unwrap();
    let sample = Sample::new(&[(20_000, false), (50_000, false), (9_000, false)], 16_384);
    let torrent = open(cache.path(), &sample);
    (0..5).for_each(|piece| store_piece(&torrent, &sample, piece));
    let to = cache.path().join("kept");
    torrent.give_away(&[(1, to.clone())]).unwrap();
    assert_eq!(fs::read(&to).unwrap(), sample.file(1));
    (0..3).for_each(|file| assert_eq!(read_all(&torrent, file).unwrap(), sample.file(file)));
    let lent = |p: &u32| torrent.is_lent(sample.piece(*p));
    assert_eq!((0..5).filter(lent).collect::<Vec<_>>(), [2, 3], "pieces of nothing else");
    fs::write(&to, b"mine").unwrap();
    assert_eq!(read_all(&torrent, 1), None);
    assert_eq!(read_all(&torrent, 0).unwrap(), sample.file(0));
    assert_eq!(read_all(&torrent, 2).unwrap(), sample.file(2));
    drop(torrent);
    let again = open(cache.path(), &sample);
    let hinted = again.hinted();
    let listed: Vec<_> = (0..5).filter(|p| hinted.contains(sample.piece(*p))).collect();
    assert_eq!(listed, [0, 1, 4]);
    assert!(listed.iter().all(|p| wait(|done| again.verify_at_rest(sample.piece(*p), None, done))));
}

#[test]
fn what_is_read_or_not_all_there_is_not_moved() {
    let cache = TempDir::new().unwrap();
    let sample = Sample::new(&[(50_000, false)], 16_384);
    let torrent = open(cache.path(), &sample);
    (0..3).for_each(|piece| store_piece(&torrent, &sample, piece));
    let to = cache.path().join("kept");
    let refused = || torrent.give_away(&[(0, to.clone())]).unwrap_err().kind();
    assert_eq!(refused(), std::io::ErrorKind::WouldBlock);
    store_piece(&torrent, &sample, 3);
    torrent.read_file(0, 0, 10, |_| assert_eq!(refused(), std::io::ErrorKind::WouldBlock));
    assert!(!to.exists());
    fs::write(&to, b"something else").unwrap();
    assert_eq!(refused(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&to).unwrap(), b"something else");
    assert_eq!(read_all(&torrent, 0).unwrap(), sample.file(0));
}

#[test]
fn a_move_that_fails_half_way_leaves_all_as_it_was() {
    let cache = TempDir::new().unwrap();
    let files = [(20_000, false), (50_000, false), (49_152, false), (9_000, false)];
    let sample = Sample::new(&files, 16_384);
    let limits = Limits { size: Some(1 << 20), free: None };
    let store = Store::open_limited(cache.path(), limits).unwrap();
    let torrent = store.torrent(sample.info.clone()).unwrap();
    let pieces = sample.info.geometry.piece_count();
    (0..pieces).for_each(|piece| store_piece(&torrent, &sample, piece));
    let own = cache.path().join(sample.info.info_hash.to_string()).join("files");
    let names = || {
        let entries = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<_> =
            entries.map(|e| (e.file_name(), e.metadata().unwrap().ino())).collect();
        names.sort();
        names
    };
    let kept = TempDir::new_in(cache.path()).unwrap();
    let (first, second) = (kept.path().join("first"), kept.path().join("second"));
    let (before, taken) = (names(), store.ledger.taken());
    // Something is there; its folder is not there; and a rest cannot be written.
    fs::write(&second, b"something else").unwrap();
    let missing = kept.path().join("no folder/second");
    let way = own.join("1.new");
    for to in [&second, &missing, &first] {
        if *to == first {
            fs::create_dir_all(way.join("full")).unwrap();
        }
        torrent.give_away(&[(1, first.clone()), (2, to.clone())]).unwrap_err();
        let _ = fs::remove_dir_all(&way);
        assert!(!first.exists() && fs::read(&second).unwrap() == b"something else");
        assert_eq!((names(), store.ledger.taken()), (before.clone(), taken));
        assert_eq!((torrent.lent_bytes(), torrent.lends_from(Path::new("/"))), (0, false));
        (0..4).for_each(|file| {
            assert_eq!(
                torrent.read_file(file, 0, 9000, |b| b == &sample.file(file)[..9000]),
                Some(true)
            );
        });
    }
    // It works when nothing is in the way, and after a restart all of the rest is listed.
    torrent.give_away(&[(1, first.clone())]).unwrap();
    assert_eq!(fs::read(&first).unwrap(), sample.file(1));
    let lent: Vec<_> = (0..pieces).filter(|p| torrent.is_lent(sample.piece(*p))).collect();
    drop((torrent, store));
    let hinted = open(cache.path(), &sample).hinted();
    let listed = |p: &u32| hinted.contains(sample.piece(*p));
    assert!((0..pieces).all(|p| listed(&p) != lent.contains(&p)), "{lent:?}");
}

#[test]
fn a_file_is_either_moved_or_read_by_the_kernel() {
    const FILES: usize = 200;
    let (cache, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let sample = Sample::new(&[(16_384, false); FILES], 16_384);
    let torrent = open(cache.path(), &sample);
    (0..FILES as u32).for_each(|piece| store_piece(&torrent, &sample, piece));
    let own = cache.path().join(sample.info.info_hash.to_string()).join("files");
    for file in 0..FILES {
        let to = kept.path().join(file.to_string());
        let inode = fs::metadata(own.join(file.to_string())).unwrap().ino();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            let moving = scope.spawn(|| {
                both.wait();
                let moved = torrent.give_away(&[(file, to.clone())]);
                moved.map_err(|error| assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock))
            });
            both.wait();
            // A move begins with a sync: sometimes earlier, sometimes later.
            (0..file * 50).for_each(|_| std::hint::spin_loop());
            let mut opened = None;
            let whole = torrent.whole_file(file, &mut |fd| opened = Some(fd.try_clone_to_owned()));
            // Held until the move has ended.
            let moved = moving.join().unwrap().is_ok();
            assert_ne!(whole.is_some(), moved, "file {file}: whole, and moved");
            assert_eq!((opened.is_some(), to.exists()), (!moved, moved));
            if let Some(whole) = whole {
                let read = File::from(opened.unwrap().unwrap());
                assert!(whole.is_whole() && read.metadata().unwrap().ino() == inode);
            }
        });
        assert_eq!(read_all(&torrent, file).unwrap(), sample.file(file));
    }
}

#[test]
fn whoever_waits_for_a_check_that_is_given_up_is_told() {
    let b = borrower();
    let there = b.torrent.borrow(&layout(&b.sample), b.dir.path(), &[]).unwrap();
    assert!(wait(|done| b.torrent.verify_lent(there[0], None, done)));
    let (release, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    for _ in 0..64 {
        let held = held.clone();
        b.torrent.wait_elsewhere(0, move || {
            let _ = held.lock().unwrap().recv();
        });
    }
    let (answers, answered) = mpsc::channel();
    let (lent, at_rest, hashes) = (answers.clone(), answers.clone(), answers);
    b.torrent.verify_lent(there[1], None, move |good| lent.send(good).unwrap());
    b.torrent.verify_at_rest(there[0], None, move |good| at_rest.send(good).unwrap());
    b.torrent.hash_blocks(there[0], move |blocks| hashes.send(blocks.is_some()).unwrap());
    b.torrent.lenders.lose_all();
    assert_eq!(answered.iter().collect::<Vec<_>>(), [false; 3]);
    drop(release);
}
