//! Runs of hashes from a peer are believed only when they are the file's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::merkle::{Hash, HashRange, Shape, Tree, block_hash};

fuzz_target!(|input: (u16, [u32; 4], Vec<Hash>)| {
    let (blocks, [layer, index, length, proof], hashes) = input;
    let leaves: Vec<Hash> = (0..blocks).map(|i| block_hash(&i.to_be_bytes())).collect();
    let Some(shape) = Shape::of(u64::from(blocks) << 14) else { return };
    let Some(tree) = Tree::new(shape, 0, leaves) else { panic!("all leaves are there") };
    let numbers = [(layer, index, length, proof), (layer % 16, index, 1 << (length % 10), proof % 16)];
    for (layer, index, length, proof) in numbers {
        let Ok(range) = HashRange::new(layer, index, length, proof) else { continue };
        let (top, at) = range.top();
        match (tree.answer(range), tree.hash(top, at)) {
            (Ok(answer), Some(trusted)) => {
                assert!(range.check(&trusted, &answer).is_ok());
                assert!(range.check(&trusted, &hashes).is_err() || hashes == answer);
            }
            (Ok(_), None) => panic!("the top of a range that fits is in the tree"),
            (Err(_), _) => assert!(range.fits(shape).is_err()),
        }
    }
});
