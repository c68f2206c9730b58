//! SHA-256 (FIPS 180-4) of two messages of one length at a time.
//!
//! Each round of a message needs the one before it, so the SHA instructions of a core are idle half of
//! the time. Trees have messages enough that do not need each other: two in turns take little longer
//! than one. Without these instructions they are hashed one after the other.
#![allow(unsafe_code)]

use sha2::{Digest, Sha256};

use super::Hash;

/// The hashes of two messages. Only for those of one length it is quicker than one by one.
pub fn pair(messages: [&[u8]; 2]) -> [Hash; 2] {
    #[cfg(target_arch = "x86_64")]
    if messages[0].len() == messages[1].len() && x86::is_there() {
        // SAFETY: the processor has the instructions, which is all that the function asks for.
        return unsafe { x86::pair(messages) };
    }
    messages.map(|message| Sha256::digest(message).into())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Hash;

    /// Bytes that are hashed at a time.
    const BLOCK: usize = 64;

    /// The state before the first block.
    #[rustfmt::skip]
    const START: [u32; 8] = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c,
        0x1f83_d9ab, 0x5be0_cd19,
    ];

    /// A number for each round.
    #[rustfmt::skip]
    const ROUNDS: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1,
        0x923f_82a4, 0xab1c_5ed5, 0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3,
        0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174, 0xe49b_69c1, 0xefbe_4786,
        0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147,
        0x06ca_6351, 0x1429_2967, 0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13,
        0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85, 0xa2bf_e8a1, 0xa81a_664b,
        0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a,
        0x5b9c_ca4f, 0x682e_6ff3, 0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208,
        0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    /// Whether the processor has what [`pair`] needs.
    pub fn is_there() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1")
    }

    /// From so many bytes on, a last block has no room for the end mark and the length.
    const ROOM: usize = BLOCK - 8;

    /// The hashes of two messages of one length.
    #[target_feature(enable = "sha,sse4.1")]
    pub fn pair(messages: [&[u8]; 2]) -> [Hash; 2] {
        let [a, b, c, d, e, f, g, h] = START.map(u32::cast_signed);
        let mut states = [[_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)]; 2];
        let [(ones, one_rest), (others, other_rest)] = messages.map(<[u8]>::as_chunks::<BLOCK>);
        for (one, other) in ones.iter().zip(others) {
            compress(&mut states, [one, other]);
        }
        let length = messages[0].len();
        let (one_end, other_end) = (end(one_rest, length), end(other_rest, length));
        for (one, other) in one_end.iter().zip(&other_end).skip(usize::from(one_rest.len() < ROOM))
        {
            compress(&mut states, [one, other]);
        }
        states.map(|state| hash(state))
    }

    /// The last bytes of a message of `length` bytes, the end mark and the length in bits. Without
    /// the first of the blocks if the second has room for all.
    fn end(rest: &[u8], length: usize) -> [[u8; BLOCK]; 2] {
        let mut blocks = [[0; BLOCK]; 2];
        let marked = &mut blocks[usize::from(rest.len() < ROOM)];
        marked[..rest.len()].copy_from_slice(rest);
        marked[rest.len()] = 0x80;
        blocks[1][ROOM..].copy_from_slice(&(8 * length as u64).to_be_bytes());
        blocks
    }

    /// A hash from the words A B E F and C D G H.
    #[target_feature(enable = "sha,sse4.1")]
    fn hash([abef, cdgh]: [__m128i; 2]) -> Hash {
        let halves = [_mm_unpackhi_epi64(cdgh, abef), _mm_unpacklo_epi64(cdgh, abef)];
        let mut hash = [0; 32];
        let (words, _) = hash.as_chunks_mut::<4>();
        for (half, words) in halves.into_iter().zip(words.chunks_exact_mut(4)) {
            words[0] = _mm_extract_epi32::<3>(half).to_be_bytes();
            words[1] = _mm_extract_epi32::<2>(half).to_be_bytes();
            words[2] = _mm_extract_epi32::<1>(half).to_be_bytes();
            words[3] = _mm_extract_epi32::<0>(half).to_be_bytes();
        }
        hash
    }

    /// Takes one block of each message into its state.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn compress(states: &mut [[__m128i; 2]; 2], blocks: [&[u8; BLOCK]; 2]) {
        let [mut one, mut other] = *states;
        let (mut ones, mut others) = (load(blocks[0]), load(blocks[1]));
        let (keys, _) = ROUNDS.as_chunks::<16>();
        for keys in &keys[..3] {
            sixteen_rounds::<true>([&mut one, &mut other], [&mut ones, &mut others], keys);
        }
        sixteen_rounds::<false>([&mut one, &mut other], [&mut ones, &mut others], &keys[3]);
        for (state, new) in states.iter_mut().zip([one, other]) {
            *state = [_mm_add_epi32(state[0], new[0]), _mm_add_epi32(state[1], new[1])];
        }
    }

    /// Sixteen rounds of both messages, and if there are `MORE` the words of the next sixteen.
    // Without loops: the words stay in registers.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn sixteen_rounds<const MORE: bool>(
        [one, other]: [&mut [__m128i; 2]; 2],
        [ones, others]: [&mut [__m128i; 4]; 2],
        keys: &[u32; 16],
    ) {
        let (keys, _) = keys.as_chunks::<4>();
        four_rounds::<MORE, 0, 1, 2, 3>(one, ones, &keys[0]);
        four_rounds::<MORE, 0, 1, 2, 3>(other, others, &keys[0]);
        four_rounds::<MORE, 1, 2, 3, 0>(one, ones, &keys[1]);
        four_rounds::<MORE, 1, 2, 3, 0>(other, others, &keys[1]);
        four_rounds::<MORE, 2, 3, 0, 1>(one, ones, &keys[2]);
        four_rounds::<MORE, 2, 3, 0, 1>(other, others, &keys[2]);
        four_rounds::<MORE, 3, 0, 1, 2>(one, ones, &keys[3]);
        four_rounds::<MORE, 3, 0, 1, 2>(other, others, &keys[3]);
    }

    /// Four rounds, with the words at `A`, which the words of sixteen rounds later replace.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn four_rounds<
        const MORE: bool,
        const A: usize,
        const B: usize,
        const C: usize,
        const D: usize,
    >(
        state: &mut [__m128i; 2],
        words: &mut [__m128i; 4],
        keys: &[u32; 4],
    ) {
        let keys = _mm_set_epi32(
            keys[3].cast_signed(),
            keys[2].cast_signed(),
            keys[1].cast_signed(),
            keys[0].cast_signed(),
        );
        let with_keys = _mm_add_epi32(words[A], keys);
        state[1] = _mm_sha256rnds2_epu32(state[1], state[0], with_keys);
        let later = _mm_shuffle_epi32::<0b1110>(with_keys);
        state[0] = _mm_sha256rnds2_epu32(state[0], state[1], later);
        if MORE {
            let sum = _mm_sha256msg1_epu32(words[A], words[B]);
            let sum = _mm_add_epi32(sum, _mm_alignr_epi8::<4>(words[D], words[C]));
            words[A] = _mm_sha256msg2_epu32(sum, words[D]);
        }
    }

    /// The sixteen words of a block.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn load(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let (quarters, _) = block.as_chunks::<16>();
        [four(&quarters[0]), four(&quarters[1]), four(&quarters[2]), four(&quarters[3])]
    }

    /// Four words, the first in the lowest bits.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn four(bytes: &[u8; 16]) -> __m128i {
        let words = u128::from_le_bytes(*bytes);
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        _mm_shuffle_epi8(_mm_set_epi64x((words >> 64) as i64, words as i64), swap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_at_a_time_have_the_hashes_of_each_alone(
            bytes in prop::collection::vec(any::<u8>(), 0..700), middle in 0usize..700,
        ) {
            for (at, to) in [(bytes.len() / 2, bytes.len() / 2 * 2), (middle.min(bytes.len()), bytes.len())] {
                let messages = [&bytes[..at], &bytes[at..to]];
                let alone = messages.map(|message| Hash::from(Sha256::digest(message)));
                prop_assert_eq!(pair(messages), alone);
            }
        }
    }
}
