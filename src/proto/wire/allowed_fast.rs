//! The pieces that a peer may ask for while it is choked (BEP 6).

use std::net::Ipv4Addr;

use sha1::{Digest, Sha1};

use crate::proto::ids::InfoHash;

/// The size of the set that BEP 6 suggests.
pub const ALLOWED_FAST_K: usize = 10;

/// The allowed-fast set for the peer at `ip`: `k` different piece indexes below `pieces`, in the
/// order in which BEP 6 finds them; all indexes when there are no more than `k`. It depends on the
/// peer's network only, so that a peer gets the same one from everybody and after reconnecting.
pub fn allowed_fast_set(info_hash: &InfoHash, ip: Ipv4Addr, pieces: u32, k: usize) -> Vec<u32> {
    if pieces as usize <= k {
        return (0..pieces).collect();
    }
    let [a, b, c, _] = ip.octets();
    let mut set = Vec::with_capacity(k);
    let mut hash = Sha1::new().chain_update([a, b, c, 0]).chain_update(info_hash.as_bytes());
    while set.len() < k {
        let digest: [u8; 20] = hash.finalize().into();
        for word in digest.as_chunks::<4>().0 {
            let index = u32::from_be_bytes(*word) % pieces;
            if set.len() < k && !set.contains(&index) {
                set.push(index);
            }
        }
        hash = Sha1::new().chain_update(digest);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_standards_example_comes_out() {
        let hash = InfoHash::new([0xaa; 20]);
        // The address is that of the example in BEP 6.
        let ip = Ipv4Addr::from([80, 4, 4, 200]);
        let nine = [1059, 431, 808, 1217, 287, 376, 1188, 353, 508];
        assert_eq!(allowed_fast_set(&hash, ip, 1313, 7), nine[..7]);
        assert_eq!(allowed_fast_set(&hash, ip, 1313, 9), nine);
    }

    proptest! {
        #[test]
        fn indexes_exist_and_differ(hash: [u8; 20], ip: [u8; 4], pieces in 0u32..2_000) {
            let set = allowed_fast_set(&InfoHash::new(hash), ip.into(), pieces, ALLOWED_FAST_K);
            prop_assert_eq!(set.len(), ALLOWED_FAST_K.min(pieces as usize));
            prop_assert!(set.iter().all(|i| *i < pieces));
            let distinct: std::collections::BTreeSet<_> = set.iter().collect();
            prop_assert_eq!(distinct.len(), set.len());
        }
    }
}
