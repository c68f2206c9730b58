//! Runs of hashes from a peer are believed only when they are the file's, and what is asked for leads to
//! all that is lacking.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::merkle::{Hash, HashRange, Known, Shape, Tree, block_hash};

/// A layer, where in it something is wanted and how much, and where a bit of the answer is flipped.
type Wanted = (u8, u16, u16, Option<u16>);

fuzz_target!(|input: (u16, [u32; 4], Vec<Hash>, u8, Vec<Wanted>)| {
    let (blocks, [layer, index, length, proof], hashes, piece, wanted) = input;
    let leaves: Vec<Hash> = (0..blocks).map(|i| block_hash(&i.to_be_bytes())).collect();
    let Some(shape) = Shape::of(u64::from(blocks) << 14) else { return };
    let Some(tree) = Tree::new(shape, 0, leaves) else { panic!("all leaves are there") };
    let mut known = Known::new(shape, tree.root(), 1 << (14 + piece % 12));
    for (layer, first, length, flipped) in wanted {
        learn(&mut known, &tree, u32::from(layer % 18), first.into(), length.into(), flipped);
        known.forget_below(u64::from(first) >> known.base());
    }
    let numbers = [(layer, index, length, proof), (layer % 16, index, 1 << (length % 10), proof % 16)];
    for (layer, index, length, proof) in numbers {
        let Ok(range) = HashRange::new(layer, index, length, proof) else { continue };
        let (top, at) = range.top();
        match (tree.answer(range), tree.hash(top, at)) {
            (Ok(answer), Some(trusted)) => {
                assert!(range.check(&trusted, &answer).is_ok());
                assert!(range.check(&trusted, &hashes).is_err() || hashes == answer);
                assert!(known.learn(range, &hashes).is_err() || hashes == answer);
                let _ = known.learn(range, &answer);
            }
            (Ok(_), None) => panic!("the top of a range that fits is in the tree"),
            (Err(_), _) => {
                assert!(range.fits(shape).is_err());
                assert!(known.learn(range, &hashes).is_err() && known.answer(range).is_err());
            }
        }
    }
    for layer in 0..=shape.height() {
        for index in 0..shape.layer_len(layer).min(64) {
            let hash = known.hash(layer, index);
            assert!(hash.is_none() || hash == tree.hash(layer, index));
        }
    }
});

/// Asks for what is lacking until all of it is known, or an answer is wrong.
fn learn(known: &mut Known, tree: &Tree, layer: u32, first: u64, length: u64, flipped: Option<u16>) {
    let mut asked = 0;
    while let Some(range) = known.lacking(layer, first, first + length) {
        let Ok(mut answer) = tree.answer(range) else { panic!("no such hashes are lacking") };
        if let Some(at) = flipped {
            let hash = usize::from(at) / 256 % answer.len();
            answer[hash][usize::from(at) % 32] ^= 1;
            assert!(known.learn(range, &answer).is_err());
            return;
        }
        assert_eq!(known.learn(range, &answer), Ok(()));
        asked += 1;
        assert!(asked <= 2 * length, "what was learnt is asked for again");
    }
    let end = (first + length).min(tree.shape().layer_len(layer));
    assert!((first..end).all(|index| known.hash(layer, index) == tree.hash(layer, index)));
}
