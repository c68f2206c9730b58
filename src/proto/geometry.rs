//! Pieces, blocks and byte ranges of one torrent: the only arithmetic on remote numbers.
//!
//! A [`PieceIndex`] or [`Block`] comes only out of a [`Geometry`], so one that exists is in range
//! for the torrent it came from.

use std::ops::Range;
use std::sync::Arc;

/// Of pieces of at least this many bytes, what has not come takes no memory.
pub const SPARSE_PIECE: u32 = 4 << 20;

/// The unit in which payload is requested, in bytes (BEP 3: "all current implementations").
pub const BLOCK_LEN: u32 = 16 * 1024;

/// The longest piece accepted, in bytes. A piece has to be held in memory whole before it can be
/// verified, so this bounds what one torrent can make us hold.
pub const MAX_PIECE_LEN: u32 = 64 * 1024 * 1024;

/// The most pieces accepted: a table of their hashes then stays below 32 MiB.
pub const MAX_PIECES: u32 = 1_600_000;

/// The index of a piece that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The index as the wire carries it.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The piece with this index in a torrent of `count` pieces.
    pub(super) fn of(index: u32, count: u32) -> Option<Self> {
        (index < count).then_some(Self(index))
    }

    /// The index for use with a table that has one entry a piece.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A block that exists: the `index`-th run of [`BLOCK_LEN`] bytes of a piece (the last of a piece
/// may be shorter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The piece it is part of.
    pub piece: PieceIndex,
    /// Its number within the piece.
    pub index: u32,
    /// Its length in bytes, never 0.
    pub length: u32,
}

impl Block {
    /// Where it begins within its piece, in bytes.
    pub const fn begin(self) -> u32 {
        self.index * BLOCK_LEN
    }
}

/// How a torrent's bytes are cut up. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    total: u64,
    piece_length: u32,
    pieces: u32,
    /// Bytes that are not padding at the end of a piece.
    payload: u64,
    /// Pieces that end in padding, in order, and how many bytes of each come before it.
    tails: Arc<[(PieceIndex, u32)]>,
}

/// Why a torrent's numbers make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The piece length is 0 or above [`MAX_PIECE_LEN`].
    #[error("a piece length of {0} bytes is not supported (1 to {MAX_PIECE_LEN})")]
    PieceLength(u64),
    /// More than [`MAX_PIECES`].
    #[error("{0} pieces are too many (at most {MAX_PIECES})")]
    TooManyPieces(u64),
}

impl Geometry {
    /// The geometry of `total` bytes in pieces of `piece_length` bytes.
    pub fn new(total: u64, piece_length: u64) -> Result<Self, GeometryError> {
        let bad = GeometryError::PieceLength(piece_length);
        let length = u32::try_from(piece_length).map_err(|_| bad)?;
        if length == 0 || length > MAX_PIECE_LEN {
            return Err(bad);
        }
        let pieces = total.div_ceil(piece_length);
        match u32::try_from(pieces) {
            Ok(n) if n <= MAX_PIECES => {
                let tails = Arc::default();
                Ok(Self { total, piece_length: length, pieces: n, payload: total, tails })
            }
            _ => Err(GeometryError::TooManyPieces(pieces)),
        }
    }

    /// The same, where from each of `ends`, positions in ascending order, to the end of its piece
    /// there is nothing but padding: zeros that nobody needs to be asked for (BEP 47, BEP 52).
    #[must_use]
    pub fn with_padding(mut self, ends: impl Iterator<Item = u64>) -> Self {
        let length = u64::from(self.piece_length);
        let tail = |end: u64| {
            let piece = self.piece(u32::try_from(end / length).ok()?)?;
            let before = (end % length) as u32;
            (before > 0 && end < self.piece_range(piece).end).then_some((piece, before))
        };
        self.tails = ends.filter_map(tail).collect();
        let padding = self.tails.iter().map(|(piece, _)| u64::from(self.padding(*piece)));
        self.payload = self.total - padding.sum::<u64>();
        self
    }

    /// Bytes in all, without the padding that pieces end in.
    pub const fn payload(&self) -> u64 {
        self.payload
    }

    /// Bytes in all, padding included.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The length of every piece but perhaps the last, in bytes.
    pub const fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// How many pieces there are (0 for a torrent of no bytes).
    pub const fn piece_count(&self) -> u32 {
        self.pieces
    }

    /// The piece with this index, if there is one.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        PieceIndex::of(index, self.pieces)
    }

    /// All pieces in order.
    pub fn pieces(
        &self,
    ) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        (0..self.pieces).map(PieceIndex)
    }

    /// The length of one piece in bytes, without the padding that it ends in.
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        let range = self.piece_range(piece);
        let tail = self.tails.binary_search_by_key(&piece, |(piece, _)| *piece);
        let tail = tail.ok().and_then(|at| self.tails.get(at));
        tail.map_or((range.end - range.start) as u32, |(_, length)| *length)
    }

    /// Zeros that a piece ends in, in bytes.
    pub fn padding(&self, piece: PieceIndex) -> u32 {
        let range = self.piece_range(piece);
        (range.end - range.start) as u32 - self.piece_len(piece)
    }

    /// Where a piece lies in the torrent, in bytes, its padding included.
    pub fn piece_range(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * u64::from(self.piece_length);
        start.min(self.total)..(start + u64::from(self.piece_length)).min(self.total)
    }

    /// How many blocks a piece has.
    pub fn block_count(&self, piece: PieceIndex) -> u32 {
        self.piece_len(piece).div_ceil(BLOCK_LEN)
    }

    /// The `index`-th block of a piece, if there is one.
    pub fn block(&self, piece: PieceIndex, index: u32) -> Option<Block> {
        let begin = index.checked_mul(BLOCK_LEN)?;
        let left = self.piece_len(piece).checked_sub(begin)?;
        (left > 0).then(|| Block { piece, index, length: left.min(BLOCK_LEN) })
    }

    /// The blocks of a piece in order.
    pub fn blocks(&self, piece: PieceIndex) -> impl Iterator<Item = Block> + use<> {
        let this = self.clone();
        (0..self.block_count(piece)).filter_map(move |i| this.block(piece, i))
    }

    /// The block that three numbers from the wire name, if they name exactly one of ours.
    pub fn block_at(&self, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let block = self.block(self.piece(piece)?, begin / BLOCK_LEN)?;
        (block.begin() == begin && block.length == length).then_some(block)
    }

    /// Whether three numbers from the wire name bytes that exist within one piece. Other clients
    /// may ask us for ranges that are not our blocks, and for padding.
    pub fn contains(&self, piece: u32, begin: u32, length: u32) -> Option<PieceIndex> {
        let piece = self.piece(piece)?;
        let end = u64::from(begin.checked_add(length)?);
        let range = self.piece_range(piece);
        (length > 0 && range.start + end <= range.end).then_some(piece)
    }

    /// The pieces that a range of the torrent's bytes touches; empty for an empty range. What lies
    /// beyond the end is cut off.
    pub fn pieces_of(
        &self,
        range: Range<u64>,
    ) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        let end = range.end.min(self.total);
        let length = u64::from(self.piece_length);
        let span = if range.start >= end {
            0..0
        } else {
            (range.start / length) as u32..(end.div_ceil(length)) as u32
        };
        span.map(PieceIndex)
    }

    /// The blocks of `piece` that a range of the torrent's bytes touches.
    pub fn blocks_of(&self, piece: PieceIndex, range: Range<u64>) -> Range<u32> {
        let at = self.piece_range(piece);
        let (start, end) = (range.start.max(at.start), range.end.min(at.end));
        if start >= end {
            return 0..0;
        }
        let block = u64::from(BLOCK_LEN);
        let count = self.block_count(piece);
        let first = (((start - at.start) / block) as u32).min(count);
        first..(((end - at.start).div_ceil(block)) as u32).min(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_tile_the_torrent(total in 0u64..2_000_000, piece_length in 1u64..200_000) {
            let g = Geometry::new(total, piece_length).unwrap();
            let mut at = 0;
            for piece in g.pieces() {
                prop_assert_eq!(g.piece_range(piece).start, at);
                for block in g.blocks(piece) {
                    prop_assert_eq!(g.block_at(piece.get(), block.begin(), block.length), Some(block));
                    at += u64::from(block.length);
                }
            }
            prop_assert_eq!(at, total);
        }

        #[test]
        fn only_what_exists_is_named(piece: u32, begin: u32, length: u32) {
            let g = Geometry::new(1_000_000, 65_536).unwrap();
            if let Some(b) = g.block_at(piece, begin, length) {
                let r = g.piece_range(b.piece);
                prop_assert!(r.start + u64::from(begin) + u64::from(length) <= r.end);
            }
            if let Some(p) = g.contains(piece, begin, length) {
                prop_assert!(u64::from(begin) + u64::from(length) <= u64::from(g.piece_len(p)));
            }
        }

        #[test]
        fn a_range_touches_the_pieces_that_overlap_it(start in 0u64..500_000, len in 0u64..300_000) {
            let g = Geometry::new(400_001, 16_384 * 3).unwrap();
            let end = start + len;
            let touched: Vec<_> = g.pieces_of(start..end).collect();
            let naive: Vec<_> = g.pieces().filter(|&p| {
                let r = g.piece_range(p);
                r.start < end && start < r.end
            }).collect();
            prop_assert_eq!(touched, if len == 0 { vec![] } else { naive });
        }
    }

    #[test]
    fn padding_is_not_asked_for_but_can_be_sent() {
        // Three pieces of two blocks; the first ends in padding from its 100th byte.
        let g = Geometry::new(80_000, 32_768).unwrap().with_padding([0, 100, 65_536].into_iter());
        let [first, second, last] = [0, 1, 2].map(|i| g.piece(i).unwrap());
        assert_eq!([first, second, last].map(|p| g.piece_len(p)), [100, 32_768, 14_464]);
        assert_eq!([first, second, last].map(|p| g.padding(p)), [32_668, 0, 0]);
        assert_eq!(g.piece_range(first), 0..32_768);
        assert_eq!(
            g.blocks(first).collect::<Vec<_>>(),
            [Block { piece: first, index: 0, length: 100 }]
        );
        assert_eq!(g.block_at(0, 0, 16_384), None);
        assert_eq!(
            (g.contains(0, 16_384, 16_384), g.contains(0, 16_384, 16_385)),
            (Some(first), None)
        );
        assert_eq!(
            (g.blocks_of(first, 50..20_000), g.blocks_of(first, 20_000..32_768)),
            (0..1, 1..1)
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Geometry::new(1, 0).is_err());
        assert!(Geometry::new(1, u64::from(MAX_PIECE_LEN) + 1).is_err());
        assert!(Geometry::new(u64::MAX, 1).is_err());
        assert_eq!(Geometry::new(0, 16_384).unwrap().piece_count(), 0);
    }
}
