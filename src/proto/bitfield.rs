//! A set of pieces, in the bit order of the wire: most significant bit first (BEP 3).

use super::geometry::{Geometry, PieceIndex};

/// A set of pieces of one torrent; spare bits are always zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitfield {
    bytes: Box<[u8]>,
    pieces: u32,
    ones: u32,
}

/// The bytes do not fit the torrent: wrong length, or spare bits set (BEP 3 lets us drop the peer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bitfield that does not fit the torrent")]
pub struct BitfieldError;

impl Bitfield {
    /// The empty set over `pieces` pieces.
    pub fn empty(pieces: u32) -> Self {
        Self { bytes: vec![0; pieces.div_ceil(8) as usize].into(), pieces, ones: 0 }
    }

    /// The full set over `pieces` pieces.
    pub fn full(pieces: u32) -> Self {
        let mut bytes = vec![0xff; pieces.div_ceil(8) as usize];
        if let (Some(last), spare @ 1..) = (bytes.last_mut(), (8 - pieces % 8) % 8) {
            *last <<= spare;
        }
        Self { bytes: bytes.into(), pieces, ones: pieces }
    }

    /// Reads the payload of a bitfield message.
    pub fn from_wire(bytes: &[u8], pieces: u32) -> Result<Self, BitfieldError> {
        let full = Self::full(pieces);
        if bytes.len() != full.bytes.len()
            || bytes.iter().zip(&full.bytes).any(|(have, may)| have & !may != 0)
        {
            return Err(BitfieldError);
        }
        let ones = bytes.iter().map(|b| b.count_ones()).sum();
        Ok(Self { bytes: bytes.into(), pieces, ones })
    }

    /// The payload of a bitfield message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many pieces the torrent has.
    pub const fn piece_count(&self) -> u32 {
        self.pieces
    }

    /// How many pieces are in the set.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every piece is in the set.
    pub const fn is_full(&self) -> bool {
        self.ones == self.pieces
    }

    /// Whether no piece is in the set.
    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }

    /// Whether `piece` is in the set.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        let i = piece.index();
        self.bytes.get(i / 8).is_some_and(|b| b & (0x80 >> (i % 8)) != 0)
    }

    /// Adds `piece`; returns whether it was new.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        self.change(piece, true)
    }

    /// Removes `piece`; returns whether it was there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        self.change(piece, false)
    }

    fn change(&mut self, piece: PieceIndex, to: bool) -> bool {
        let i = piece.index();
        let mask = 0x80 >> (i % 8);
        let Some(byte) = self.bytes.get_mut(i / 8).filter(|b| (**b & mask != 0) != to) else {
            return false;
        };
        *byte ^= mask;
        if to {
            self.ones += 1;
        } else {
            self.ones -= 1;
        }
        true
    }

    /// The pieces of `geometry` in the set, in order.
    pub fn iter<'a>(&'a self, geometry: &Geometry) -> impl Iterator<Item = PieceIndex> + use<'a> {
        let count = geometry.piece_count();
        self.bytes.iter().enumerate().filter(|(_, b)| **b != 0).flat_map(move |(at, byte)| {
            (0..8u32)
                .filter(move |bit| byte & (0x80 >> bit) != 0)
                .filter_map(move |bit| PieceIndex::of(at as u32 * 8 + bit, count))
        })
    }

    /// Whether `self` holds a piece that `other` lacks: whether its owner is interesting to the
    /// owner of `other`.
    pub fn has_beyond(&self, other: &Self) -> bool {
        self.bytes.iter().zip(&other.bytes).any(|(a, b)| a & !b != 0)
    }
}

impl std::fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitfield({}/{})", self.ones, self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(pieces in 1u32..70, ops: Vec<(u32, bool)>) {
            let g = Geometry::new(u64::from(pieces), 1).unwrap();
            let (mut bits, mut model) = (Bitfield::empty(pieces), BTreeSet::new());
            for (i, add) in ops {
                let piece = g.piece(i % pieces).unwrap();
                if add {
                    prop_assert_eq!(bits.insert(piece), model.insert(piece));
                } else {
                    prop_assert_eq!(bits.remove(piece), model.remove(&piece));
                }
            }
            prop_assert_eq!(bits.count() as usize, model.len());
            prop_assert!(bits.iter(&g).eq(model.iter().copied()));
            prop_assert_eq!(Bitfield::from_wire(bits.as_bytes(), pieces), Ok(bits));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, pieces in 0u32..100) {
            if let Ok(bits) = Bitfield::from_wire(&bytes, pieces) {
                prop_assert_eq!(bits.as_bytes(), &bytes[..]);
                prop_assert!(bits.count() <= pieces);
            }
        }
    }

    #[test]
    fn spare_bits_are_refused() {
        assert_eq!(Bitfield::from_wire(&[0b0000_0001], 7), Err(BitfieldError));
        assert!(Bitfield::from_wire(&[0b1111_1110], 7).unwrap().is_full());
        assert_eq!(Bitfield::full(7).as_bytes(), &[0b1111_1110]);
        assert_eq!(Bitfield::full(16).as_bytes(), &[0xff, 0xff]);
    }
}
