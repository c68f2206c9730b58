use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// All layers of a tree with its padding, computed in the plainest way.
fn oracle(leaves: &[Hash]) -> Vec<Vec<Hash>> {
    let mut row = leaves.to_vec();
    row.resize(leaves.len().next_power_of_two(), [0; 32]);
    let mut layers = vec![row];
    while layers.last().unwrap().len() > 1 {
        let below = layers.last().unwrap();
        let above = below.chunks(2).map(|pair| Sha256::digest(pair.concat()).into()).collect();
        layers.push(above);
    }
    layers
}

fn leaves(count: usize) -> Vec<Hash> {
    (0..count as u64).map(|i| block_hash(&i.to_be_bytes())).collect()
}

fn shape(blocks: usize) -> Shape {
    Shape::of(blocks as u64 * u64::from(BLOCK_LEN)).unwrap()
}

#[test]
fn the_form_follows_from_the_length() {
    assert_eq!(Shape::of(0), None);
    assert_eq!(Shape::of(u64::MAX), None);
    for (length, blocks, height) in
        [(1, 1, 0), (16_384, 1, 0), (16_385, 2, 1), (81_920, 5, 3), (1 << 63, 1 << 49, 49)]
    {
        let shape = Shape::of(length).unwrap();
        assert_eq!((shape.blocks(), shape.height()), (blocks, height), "{length}");
    }
    assert_eq!([16_384, 32_768, 1 << 24].map(Shape::piece_layer), [0, 1, 10]);
}

/// The roots are those that libtorrent's `create_torrent` gave for these files.
#[test]
fn known_files_have_their_known_roots() {
    for (bytes, root) in [
        (&b"hi"[..], "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"),
        (b"h", "aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123"),
    ] {
        let root_of = Shape::of(bytes.len() as u64).unwrap().root(0, &[block_hash(bytes)]).unwrap();
        assert_eq!(root_of.map(|b| format!("{b:02x}")).concat(), root);
    }
}

#[test]
fn numbers_that_name_no_range_are_refused() {
    for length in [0, 1, 3, 1024] {
        assert_eq!(HashRange::new(0, 0, length, 0), Err(RangeError::Length(length)));
    }
    assert_eq!(HashRange::new(0, 2, 4, 0), Err(RangeError::Index(2)));
    for (layer, proof) in [(50, 0), (0, 50), (u32::MAX, u32::MAX)] {
        assert_eq!(HashRange::new(layer, 0, 2, proof), Err(RangeError::Outside));
    }
    let outside = |layer, index, length, proof| {
        HashRange::new(layer, index, length, proof).unwrap().fits(shape(5))
            == Err(RangeError::Outside)
    };
    assert!(
        outside(0, 6, 2, 0) && outside(0, 0, 16, 0) && outside(0, 0, 2, 3) && outside(4, 0, 2, 0)
    );
    assert!(!outside(0, 4, 4, 2) && !outside(2, 0, 2, 0));
}

#[test]
fn what_is_not_here_is_not_answered() {
    let tree = Tree::new(shape(8), 1, leaves(4)).unwrap();
    assert_eq!(tree.answer(HashRange::new(0, 0, 2, 0).unwrap()), Err(RangeError::Unknown));
    assert_eq!((tree.hash(0, 0), tree.hash(1, 4), tree.hash(4, 0)), (None, None, None));
    assert_eq!(Tree::new(shape(8), 1, leaves(3)), None);
    assert_eq!(Tree::new(shape(8), 4, Vec::new()), None);
}

prop_compose! {
    /// A tree of some blocks, and a range of it with any part of its proof.
    fn any_range()(blocks in 2usize..200)(
        blocks in Just(blocks),
        layer in 0..shape(blocks).height(),
        at in any::<prop::sample::Index>(),
        length in any::<prop::sample::Index>(),
        proof in any::<prop::sample::Index>(),
    ) -> (usize, HashRange) {
        let shape = shape(blocks);
        let length = 2u32 << length.index((shape.height() - layer) as usize);
        let places = shape.layer_len(layer).div_ceil(length.into()) as usize;
        let proof = proof.index((shape.height() - layer) as usize) as u32;
        (blocks, HashRange::new(layer, at.index(places) as u32 * length, length, proof).unwrap())
    }
}

proptest! {
    #[test]
    fn every_layer_is_that_of_the_plain_tree(blocks in 1usize..300) {
        let (layers, shape) = (oracle(&leaves(blocks)), shape(blocks));
        let tree = Tree::new(shape, 0, leaves(blocks)).unwrap();
        prop_assert_eq!(shape.height() as usize, layers.len() - 1);
        prop_assert_eq!(tree.root(), layers.last().unwrap()[0]);
        for (layer, row) in (0..).zip(&layers) {
            let own = &row[..shape.layer_len(layer) as usize];
            prop_assert_eq!(shape.root(layer, own), Some(tree.root()));
            prop_assert_eq!(Tree::new(shape, layer, own.to_vec()).unwrap().root(), tree.root());
            for (index, hash) in (0..).zip(row) {
                prop_assert_eq!(tree.hash(layer, index), Some(*hash));
                let missing = (index as usize) >= own.len();
                prop_assert_eq!(missing, *hash == pad_hash(layer));
            }
            for wrong in [own.len() - 1, own.len() + 1] {
                prop_assert_eq!(shape.root(layer, &vec![[1; 32]; wrong]), None);
            }
        }
    }

    #[test]
    fn a_subtree_is_part_of_the_plain_tree(blocks in 1usize..100, up in 0u32..9) {
        let row = leaves(blocks);
        let mut padded = row.clone();
        padded.resize(blocks.max(1 << up), [0; 32]);
        padded.truncate(1 << up);
        prop_assert_eq!(subtree_root(&row, 0, up), oracle(&padded).last().unwrap()[0]);
    }

    #[test]
    fn an_answer_proves_its_hashes((blocks, range) in any_range()) {
        let tree = Tree::new(shape(blocks), 0, leaves(blocks)).unwrap();
        let (layers, (layer, index)) = (oracle(&leaves(blocks)), range.top());
        let answer = tree.answer(range).unwrap();
        let trusted = layers[layer as usize][index as usize];
        let start = range.index() as usize;
        let expected = &layers[range.layer() as usize][start..start + range.length() as usize];
        for ((layer, index), hash) in range.check(&trusted, &answer).unwrap() {
            prop_assert_eq!(hash, layers[layer as usize][index as usize]);
        }
        prop_assert_eq!(&answer[..expected.len()], expected);
        let log = range.length().trailing_zeros();
        prop_assert_eq!(answer.len() - expected.len(), (range.proof_layers() + 1).saturating_sub(log) as usize);
    }

    #[test]
    fn whatever_is_lacking_is_learnt(
        blocks in 1usize..200,
        piece in 0u32..5,
        wanted in vec((any::<prop::sample::Index>(), 1u64..40), 1..12),
        with_pieces: bool,
    ) {
        let (shape, piece_length) = (shape(blocks), BLOCK_LEN << piece);
        let tree = Tree::new(shape, 0, leaves(blocks)).unwrap();
        let mut known = Known::new(shape, tree.root(), piece_length);
        let base = known.base();
        if with_pieces {
            let layer: Vec<_> = (0..shape.layer_len(base)).map(|i| tree.hash(base, i).unwrap()).collect();
            known = known.with_pieces(&layer);
        }
        for (at, length) in wanted {
            let first = at.index(blocks) as u64;
            let mut asked = 0;
            while let Some(range) = known.lacking(0, first, first + length) {
                prop_assert_eq!(range.fits(shape), Ok(()));
                let mut wrong = tree.answer(range).unwrap();
                wrong[0][0] ^= 1;
                prop_assert_eq!(known.learn(range, &wrong), Err(RangeError::Mismatch));
                known.learn(range, &tree.answer(range).unwrap()).unwrap();
                asked += 1;
                prop_assert!(asked <= 2 * length);
            }
            for index in first..(first + length).min(blocks as u64) {
                prop_assert_eq!(known.hash(0, index), tree.hash(0, index));
            }
        }
        while let Some(range) = known.lacking(base, 0, u64::MAX) {
            known.learn(range, &tree.answer(range).unwrap()).unwrap();
        }
        prop_assert_eq!(known.piece_layer().is_some(), with_pieces || base < shape.height());
        (0..shape.layer_len(base)).for_each(|piece| known.forget_below(piece));
        for layer in 0..=shape.height() {
            for index in 0..shape.layer_len(layer) {
                let expected = tree.hash(layer, index).filter(|_| layer >= base);
                prop_assert_eq!(known.hash(layer, index), expected);
            }
        }
    }

    #[test]
    fn no_other_hashes_are_believed(
        (blocks, range) in any_range(),
        at in any::<prop::sample::Index>(),
        bit in 0usize..256,
    ) {
        let tree = Tree::new(shape(blocks), 0, leaves(blocks)).unwrap();
        let (layer, index) = range.top();
        let trusted = tree.hash(layer, index).unwrap();
        let mut answer = tree.answer(range).unwrap();
        answer[at.index(range.count())][bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(range.check(&trusted, &answer), Err(RangeError::Mismatch));
        let short = &answer[1..];
        let bad = RangeError::Count { found: short.len(), expected: range.count() };
        prop_assert_eq!(range.check(&trusted, short), Err(bad));
    }

    #[test]
    fn any_numbers_are_bounded(layer: u32, index: u32, length: u32, proof: u32, bytes: u64) {
        let small = (layer % 60, index % 64, 1 << (length % 12), proof % 60);
        for (layer, index, length, proof) in [(layer, index, length, proof), small] {
            let Ok(range) = HashRange::new(layer, index, length, proof) else { continue };
            prop_assert!(range.count() <= MAX_HASHES as usize + 50);
            if let Some(shape) = Shape::of(bytes) && range.fits(shape).is_ok() {
                prop_assert!(range.top().0 <= shape.height());
            }
        }
    }
}
