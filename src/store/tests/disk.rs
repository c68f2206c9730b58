//! What happens to the files: restarts, crashes, links in their place, a full disk.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::super::StoreError;
use super::*;

fn torrent_dir(dir: &Path, sample: &Sample) -> PathBuf {
    dir.join(sample.info.info_hash.to_string())
}

fn file_path(dir: &Path, sample: &Sample, file: usize) -> PathBuf {
    torrent_dir(dir, sample).join("files").join(file.to_string())
}

fn hinted(torrent: &TorrentStore) -> Vec<u32> {
    torrent.hinted().iter(&torrent.info().geometry).map(PieceIndex::get).collect()
}

#[test]
fn a_second_daemon_is_told_who_has_the_cache() {
    let dir = TempDir::new().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let Err(error) = Store::open(dir.path()) else { panic!("two daemons with one cache") };
    assert!(matches!(&error, StoreError::InUse { owner, .. }
        if *owner == format!("process {}", std::process::id())));
    assert_eq!(error.to_string().lines().count(), 1);
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn the_cache_is_for_its_owner_only() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false)], 16_384);
    let torrent = open(&dir.path().join("cache"), &sample);
    store_piece(&torrent, &sample, 0);
    let dir = dir.path().join("cache");
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&torrent_dir(&dir, &sample)), 0o700);
    for name in ["index", "files/0", "info"] {
        assert_eq!(mode(&torrent_dir(&dir, &sample).join(name)), 0o600, "{name}");
    }
}

#[test]
fn files_are_made_when_written_sparse_and_with_their_full_length() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(20_000, false), (8 << 20, false), (100, true)], 16_384);
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    let at = |file| file_path(dir.path(), &sample, file);
    assert!(at(0).exists() && !at(1).exists());
    store_piece(&torrent, &sample, 500);
    let m = fs::metadata(at(1)).unwrap();
    assert_eq!(m.len(), 8 << 20);
    assert!(m.blocks() * 512 < 1 << 20, "{} blocks", m.blocks());
    store_piece(&torrent, &sample, sample.info.geometry.piece_count() - 1);
    assert!(!at(2).exists(), "padding needs no file");
    assert_eq!(read_all(&torrent, 2).unwrap(), [0; 100]);
}

#[test]
fn padding_that_is_not_zeros_is_kept_as_the_hash_says() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::with_data(&[(100, false), (50, true)], 16_384, vec![7; 150]);
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    let mut out = [0; 150];
    assert!(torrent.read_block(sample.piece(0), 0, &mut out).unwrap());
    assert_eq!(out, [7; 150]);
}

#[test]
fn a_restart_keeps_what_was_written_as_hints() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    [1, 4].iter().for_each(|&p| store_piece(&torrent, &sample, p));
    verify(&torrent, &sample, 2);
    assert!(hinted(&torrent).is_empty());
    drop(torrent);
    let torrent = open(dir.path(), &sample);
    assert_eq!(hinted(&torrent), [1, 4]);
    assert!(!torrent.is_verified(sample.piece(1)), "not before it is hashed again");
    assert!(wait(|done| torrent.verify_at_rest(sample.piece(1), None, done)));
    assert_eq!(hinted(&torrent), [4]);
    assert_eq!(
        torrent.read_file(0, 20_000, 9, <[u8]>::to_vec).unwrap(),
        &sample.data[20_000..20_009]
    );
}

#[test]
fn rot_at_rest_is_found_and_its_hint_is_gone() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    (0..3).for_each(|p| store_piece(&torrent, &sample, p));
    drop(torrent);
    let file = fs::File::options().write(true).open(file_path(dir.path(), &sample, 0)).unwrap();
    file.write_all_at(b"rot", 17_000).unwrap();
    let torrent = open(dir.path(), &sample);
    let check = |p| wait(|done| torrent.verify_at_rest(sample.piece(p), None, done));
    assert_eq!([check(0), check(1), check(2)], [true, false, true]);
    assert_eq!(torrent.read_file(0, 17_000, 3, <[u8]>::to_vec), None);
    drop(torrent);
    assert_eq!(hinted(&open(dir.path(), &sample)), [0, 2]);
}

#[test]
fn a_daemon_that_was_killed_finds_what_it_had() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100_000, false), (2 << 20, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    for piece in 0..20 {
        store_piece(&torrent, &sample, piece);
        if piece % 7 != 6 {
            continue;
        }
        // A copy of the cache of a daemon that runs is what a kill would leave.
        let killed = TempDir::new().unwrap();
        copy(dir.path(), killed.path());
        let after = open(killed.path(), &sample);
        assert_eq!(hinted(&after), (0..=piece).collect::<Vec<_>>());
        for p in 0..=piece {
            assert!(wait(|done| after.verify_at_rest(sample.piece(p), None, done)));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn an_index_that_is_not_right_counts_as_empty() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100_000, false)], 16_384);
    store_piece(&open(dir.path(), &sample), &sample, 0);
    let index = torrent_dir(dir.path(), &sample).join("index");
    let whole = fs::read(&index).unwrap();
    for torn in 0..whole.len() {
        fs::write(&index, &whole[..torn]).unwrap();
        assert!(hinted(&open(dir.path(), &sample)).is_empty());
    }
    for at in 0..whole.len() - 1 {
        let mut wrong = whole.clone();
        wrong[at] ^= 1;
        fs::write(&index, &wrong).unwrap();
        assert!(hinted(&open(dir.path(), &sample)).is_empty(), "byte {at}");
    }
    store_piece(&open(dir.path(), &sample), &sample, 0);
    assert_eq!(fs::read(&index).unwrap(), whole);
}

#[test]
fn the_info_dictionary_is_given_back_only_if_it_is_whole() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(1000, false)], 16_384);
    let store = Store::open(dir.path()).unwrap();
    let hash = sample.info.info_hash;
    assert_eq!(store.saved_info(&hash), None);
    store.torrent(sample.info.clone()).unwrap();
    assert_eq!(store.saved_info(&hash).as_ref(), Some(&sample.info.raw));
    fs::write(torrent_dir(dir.path(), &sample).join("info"), b"other").unwrap();
    assert_eq!(store.saved_info(&hash), None);
    store.torrent(sample.info.clone()).unwrap();
    assert_eq!(store.saved_info(&hash).as_ref(), Some(&sample.info.raw));
}

#[test]
fn a_torrent_that_is_open_is_given_out_again() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(1000, false)], 16_384);
    let store = Store::open(dir.path()).unwrap();
    let first = store.torrent(sample.info.clone()).unwrap();
    assert!(Arc::ptr_eq(&first, &store.torrent(sample.info.clone()).unwrap()));
}

#[test]
fn whoever_opens_a_torrent_that_is_just_being_opened_is_given_the_same() {
    for _ in 0..50 {
        let dir = TempDir::new().unwrap();
        let sample = Sample::new(&[(1000, false)], 16_384);
        let store = Store::open(dir.path()).unwrap();
        let begin = std::sync::Barrier::new(4);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                begin.wait();
                store.torrent(sample.info.clone()).unwrap()
            };
            let threads = [(); 4].map(|()| scope.spawn(open));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(opened.iter().all(|torrent| Arc::ptr_eq(torrent, &opened[0])));
    }
}

#[test]
fn what_lies_in_the_place_of_a_file_is_never_written() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(300, false), (300, false), (300, false)], 16_384);
    let victim = dir.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    let files = torrent_dir(dir.path(), &sample).join("files");
    fs::create_dir_all(&files).unwrap();
    fs::hard_link(&victim, files.join("0")).unwrap();
    symlink(&victim, files.join("1")).unwrap();
    fs::create_dir(files.join("2")).unwrap();
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    for file in 0..3 {
        assert_eq!(read_all(&torrent, file).unwrap(), sample.file(file));
        assert!(fs::symlink_metadata(files.join(file.to_string())).unwrap().is_file());
    }
}

#[test]
fn a_file_that_got_a_second_name_is_written_no_more() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    let copy = dir.path().join("copy");
    fs::hard_link(file_path(dir.path(), &sample, 0), &copy).unwrap();
    let range = verify(&torrent, &sample, 1);
    assert!(wait(|done| torrent.write(range, done)).is_err());
    assert_eq!(fs::read(&copy).unwrap()[16_384..], vec![0; 40_000 - 16_384]);
    assert!(read_all(&torrent, 0).is_none());
    assert_eq!(torrent.read_file(0, 0, 20_000, <[u8]>::to_vec).unwrap(), &sample.data[..20_000]);
}

#[test]
fn a_file_that_was_removed_while_in_use_is_not_made_again_in_secret() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false), (100, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    store_piece(&torrent, &sample, 0);
    fs::remove_file(file_path(dir.path(), &sample, 0)).unwrap();
    let range = verify(&torrent, &sample, 1);
    let error = wait(|done| torrent.write(range, done)).unwrap_err();
    assert!(error.to_string().contains("files/0 was removed"), "{error}");
    // Had a new file been made, its zeros would be taken for piece 0.
    assert_eq!(torrent.read_file(0, 0, 20_000, <[u8]>::to_vec).unwrap(), &sample.data[..20_000]);
}

#[test]
fn a_file_that_was_replaced_is_not_read_when_it_is_opened_again() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(100, false); 300], 100);
    let torrent = open(dir.path(), &sample);
    let lost = lost_pieces(&torrent);
    (0..300).for_each(|p| store_piece(&torrent, &sample, p));
    let other = dir.path().join("other");
    fs::write(&other, [9; 100]).unwrap();
    fs::rename(&other, file_path(dir.path(), &sample, 0)).unwrap();
    // More files than are kept open.
    (1..300).for_each(|file| assert_eq!(read_all(&torrent, file).unwrap(), sample.file(file)));
    assert_eq!(read_all(&torrent, 0), None);
    assert_eq!(*lost.lock().unwrap(), [0]);
    assert!(!torrent.is_verified(sample.piece(0)));
}

#[test]
fn a_piece_that_cannot_be_read_at_rest_any_more_is_lost() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(40_000, false), (20_000, false)], 16_384);
    let torrent = open(dir.path(), &sample);
    let lost = lost_pieces(&torrent);
    (0..4).for_each(|p| store_piece(&torrent, &sample, p));
    let file = fs::File::options().write(true).open(file_path(dir.path(), &sample, 0)).unwrap();
    file.set_len(20_000).unwrap();
    assert_eq!(torrent.read_file(0, 39_000, 1000, |_| ()), None);
    assert_eq!(*lost.lock().unwrap(), [2]);
    assert!(torrent.read_block(sample.piece(1), 0, &mut [0; 16_384]).is_err());
    assert_eq!(*lost.lock().unwrap(), [2, 1]);
    assert_eq!(torrent.read_file(0, 0, 16_384, <[u8]>::to_vec).unwrap(), &sample.data[..16_384]);
    [1, 2].iter().for_each(|&p| store_piece(&torrent, &sample, p));
    assert_eq!(read_all(&torrent, 0).unwrap(), sample.file(0));
}

/// A tmpfs that is unmounted when dropped.
pub(super) struct SmallDisk(pub(super) TempDir);

impl SmallDisk {
    pub(super) fn new(bytes: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("this test mounts a tmpfs and has to run as root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_disk_pieces_stay_in_memory_until_newer_ones_push_them_out() {
    const PIECE: u64 = 4 << 20;
    let disk = SmallDisk::new((PIECE + PIECE / 2) as usize);
    let sample = Sample::new(&[(13 * PIECE, false)], PIECE);
    let torrent = open(disk.0.path(), &sample);
    let lost = lost_pieces(&torrent);
    store_piece(&torrent, &sample, 0);
    for piece in 1..13 {
        let range = verify(&torrent, &sample, piece);
        let error = wait(|done| torrent.write(range, done)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
    // 32 MiB hold eight pieces.
    assert_eq!(*lost.lock().unwrap(), [1, 2, 3, 4]);
    for piece in sample.info.geometry.pieces() {
        let range = sample.info.geometry.piece_range(piece);
        let read = torrent.read_file(0, range.start, PIECE as usize, |b| b == sample.bytes(piece));
        let expected = (!(1..=4).contains(&piece.get())).then_some(true);
        assert_eq!(read, expected, "{piece:?}");
    }
    drop(torrent);
    let torrent = open(disk.0.path(), &sample);
    assert_eq!(hinted(&torrent), [0]);
    assert!(wait(|done| torrent.verify_at_rest(sample.piece(0), None, done)));
}

#[test]
fn a_hundred_thousand_small_files_work() {
    // In memory: what was synced takes a disk minutes to remove.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let files = vec![(10, false); 100_000];
    let sample = Sample::new(&files, 65_536);
    let torrent = open(dir.path(), &sample);
    sample.info.geometry.pieces().for_each(|p| store_piece(&torrent, &sample, p.get()));
    for file in (0..files.len()).step_by(37) {
        assert_eq!(read_all(&torrent, file).unwrap(), sample.file(file));
    }
    let open_files = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open_files < 900, "{open_files} descriptors");
}
