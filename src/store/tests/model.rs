//! Any sequence of operations, against a model that knows which pieces are verified.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Verify(Index),
    Store(Index),
    Corrupt(Index, Index),
    Read(Index, Index, Index),
    ReadBlock(Index, Index, Index),
    Evict(Index),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    use any as a;
    prop_oneof![
        2 => a::<Index>().prop_map(Op::Verify),
        4 => a::<Index>().prop_map(Op::Store),
        1 => a::<(Index, Index)>().prop_map(|(p, b)| Op::Corrupt(p, b)),
        4 => a::<(Index, Index, Index)>().prop_map(|(f, o, l)| Op::Read(f, o, l)),
        2 => a::<(Index, Index, Index)>().prop_map(|(p, b, l)| Op::ReadBlock(p, b, l)),
        2 => a::<Index>().prop_map(Op::Evict),
        1 => Just(Op::Restart),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..50u64, 1..40_000u64, (1u64 << 20) - 2..(1 << 20) + 40_000]
}

/// The store, the model and a place for both.
struct World {
    dir: TempDir,
    sample: Sample,
    torrent: Arc<TorrentStore>,
    verified: BTreeSet<PieceIndex>,
    at_rest: BTreeSet<PieceIndex>,
}

impl World {
    fn apply(&mut self, op: &Op) {
        let pieces = self.sample.info.geometry.piece_count();
        let piece = |i: &Index| self.sample.piece(i.index(pieces as usize) as u32);
        match op {
            Op::Verify(p) => {
                verify(&self.torrent, &self.sample, piece(p).get());
                self.verified.insert(piece(p));
            }
            Op::Store(p) => {
                store_piece(&self.torrent, &self.sample, piece(p).get());
                self.at_rest.insert(piece(p));
                self.verified.insert(piece(p));
            }
            Op::Corrupt(p, b) => {
                let mut wrong = self.sample.bytes(piece(p)).to_vec();
                let at = b.index(wrong.len());
                wrong[at] ^= 0x40;
                let verdict = offer(&self.torrent, piece(p), &wrong);
                assert!(matches!(verdict, Verdict::Mismatch { .. }));
            }
            Op::Read(f, o, l) => self.read(f, o, l),
            Op::ReadBlock(p, b, l) => self.read_block(piece(p), b, l),
            Op::Evict(p) => {
                let_loose(&self.torrent, piece(p));
                let at_rest = self.at_rest.remove(&piece(p));
                assert_eq!(self.torrent.let_go(piece(p)), at_rest);
                if at_rest {
                    self.verified.remove(&piece(p));
                }
            }
            Op::Restart => self.restart(),
        }
    }

    fn read(&self, file: &Index, offset: &Index, length: &Index) {
        let file = file.index(self.sample.info.files.len());
        let bytes = self.sample.file(file);
        let offset = offset.index(bytes.len() + 1);
        let length = length.index(bytes.len() - offset + 1);
        let start = self.sample.info.files[file].offset + offset as u64;
        let mut touched = self.sample.info.geometry.pieces_of(start..start + length as u64);
        let expected = touched
            .all(|p| self.verified.contains(&p))
            .then(|| bytes[offset..offset + length].to_vec());
        let read = self.torrent.read_file(file, offset as u64, length, <[u8]>::to_vec);
        assert!(read == expected, "file {file}, {length} bytes from {offset}");
    }

    fn read_block(&self, piece: PieceIndex, begin: &Index, length: &Index) {
        let bytes = self.sample.bytes(piece);
        let begin = begin.index(bytes.len());
        let mut out = vec![0; length.index(bytes.len() - begin + 1)];
        let read = self.torrent.read_block(piece, begin as u32, &mut out).unwrap();
        assert_eq!(read, self.verified.contains(&piece));
        assert!(!read || out == bytes[begin..begin + out.len()]);
    }

    /// Closes and opens the cache: what was at rest is hinted, and verified again when hashed.
    fn restart(&mut self) {
        let geometry = &self.sample.info.geometry;
        let other = TempDir::new().unwrap();
        self.torrent = open(other.path(), &self.sample);
        self.torrent = open(self.dir.path(), &self.sample);
        assert!(self.torrent.hinted().iter(geometry).eq(self.at_rest.iter().copied()));
        for piece in geometry.pieces() {
            assert!(!self.torrent.is_verified(piece));
            let found = wait(|done| self.torrent.verify_at_rest(piece, None, done));
            // A piece of nothing but padding needs no disk.
            let padding = self.sample.bytes(piece).iter().all(|&b| b == 0);
            assert!(found || !padding && !self.at_rest.contains(&piece));
            // What was let go is still there if others need the same block of the disk.
            if found {
                self.at_rest.insert(piece);
            }
        }
        self.verified = self.at_rest.clone();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn reads_give_the_true_bytes_of_verified_pieces_and_no_others(
        files in prop::collection::vec((length(), any::<bool>()), 1..12),
        piece_length in prop_oneof![100u64..600, 10_000u64..70_000, Just(262_144)],
        ops in prop::collection::vec(op(), 1..60),
    ) {
        // Tiny pieces with large files would be only slow.
        let large = files.iter().any(|f| f.0 > 1 << 20);
        let piece_length = if large { piece_length.max(16_384) } else { piece_length };
        let sample = Sample::new(&files, piece_length);
        prop_assume!(!sample.data.is_empty());
        let dir = TempDir::new().unwrap();
        let torrent = open(dir.path(), &sample);
        let (verified, at_rest) = Default::default();
        let mut world = World { dir, sample, torrent, verified, at_rest };
        for op in &ops {
            world.apply(op);
            let sum: usize = world.verified.iter().map(|p| world.sample.bytes(*p).len()).sum();
            prop_assert_eq!(world.torrent.verified_bytes(None), sum as u64);
        }
        let files = 0..world.sample.info.files.len();
        let by_file: u64 = files.map(|f| world.torrent.verified_bytes(Some(f))).sum();
        prop_assert_eq!(by_file, world.torrent.verified_bytes(None));
    }
}

#[test]
fn readers_never_see_a_wrong_byte_while_pieces_arrive() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::new(&[(3 << 20, false), (70_000, false), (2 << 20, false)], 65_536);
    let torrent = open(dir.path(), &sample);
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3u64 {
            let (torrent, sample, finished) = (&torrent, &sample, &finished);
            scope.spawn(move || {
                let (mut at, mut served) = (reader * 7919, 0);
                while !finished.load(Ordering::Acquire) || served == 0 {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12_345);
                    let file = (at >> 60) as usize % 3;
                    let bytes = sample.file(file);
                    let offset = (at >> 20) as usize % bytes.len();
                    let length = ((at >> 40) as usize % 200_000).min(bytes.len() - offset);
                    let same = |b: &[u8]| b == &bytes[offset..offset + length];
                    if let Some(same) = torrent.read_file(file, offset as u64, length, same) {
                        assert!(same, "wrong bytes");
                        served += 1;
                    }
                }
            });
        }
        for piece in sample.info.geometry.pieces() {
            let mut wrong = sample.bytes(piece).to_vec();
            wrong[0] ^= 1;
            assert!(matches!(offer(&torrent, piece, &wrong), Verdict::Mismatch { .. }));
            store_piece(&torrent, &sample, piece.get());
        }
        finished.store(true, Ordering::Release);
    });
    assert_eq!(torrent.verified_bytes(None), sample.data.len() as u64);
}
