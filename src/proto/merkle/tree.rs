//! The known layers of one file's tree.

use super::{Hash, HashRange, RangeError, Shape, halve, pad_hash, parent};

/// The layers of one file's tree, from some layer up to the root, less padding. It takes at most 64
/// bytes for each hash of its lowest layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    shape: Shape,
    base: u32,
    /// The layers from `base` to the root.
    layers: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree above all hashes of layer `base`; `None` if they are not as many as that has.
    pub fn new(shape: Shape, base: u32, hashes: Vec<Hash>) -> Option<Self> {
        if base > shape.height() || hashes.len() as u64 != shape.layer_len(base) {
            return None;
        }
        let mut pad = pad_hash(base);
        let mut layers = vec![hashes];
        for _ in base..shape.height() {
            let mut above = layers.last().cloned().unwrap_or_default();
            halve(&mut above, &pad);
            pad = parent(&pad, &pad);
            layers.push(above);
        }
        Some(Self { shape, base, layers })
    }

    /// Its form.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// All hashes of its lowest layer that cover something of the file.
    pub fn lowest(&self) -> &[Hash] {
        self.layers.first().map_or(&[], Vec::as_slice)
    }

    /// The root.
    pub fn root(&self) -> Hash {
        self.hash(self.shape.height(), 0).unwrap_or_default()
    }

    /// The `index`-th hash of a layer, padding included; `None` below the layers that are known and
    /// outside the tree.
    pub fn hash(&self, layer: u32, index: u64) -> Option<Hash> {
        let row = self.layers.get(layer.checked_sub(self.base)? as usize)?;
        let width = 1u64 << (self.shape.height() - layer);
        let known = usize::try_from(index).ok().and_then(|i| row.get(i)).copied();
        (index < width).then(|| known.unwrap_or_else(|| pad_hash(layer)))
    }

    /// What a peer that asks for `range` is sent: its hashes, then the uncles, lowest first.
    pub fn answer(&self, range: HashRange) -> Result<Vec<Hash>, RangeError> {
        range.answer(self.shape, |layer, index| self.hash(layer, index))
    }
}
