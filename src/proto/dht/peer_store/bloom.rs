//! Sets of addresses that can be counted together although they were kept apart (BEP 33).

use std::fmt;
use std::net::IpAddr;

use sha1::{Digest, Sha1};

/// The length of a filter, in bytes.
pub const BLOOM_LEN: usize = 256;

/// Its bits.
const BITS: usize = 8 * BLOOM_LEN;

/// Bits set for each address.
const HASHES: f64 = 2.0;

/// A filter of addresses. Ports do not matter.
#[derive(Clone, PartialEq, Eq)]
pub struct Bloom([u8; BLOOM_LEN]);

impl Bloom {
    /// Nobody.
    pub const EMPTY: Self = Self([0; BLOOM_LEN]);

    /// The filter with these bytes.
    pub const fn from_bytes(bytes: [u8; BLOOM_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes, as datagrams carry them.
    pub const fn as_bytes(&self) -> &[u8; BLOOM_LEN] {
        &self.0
    }

    /// Adds an address.
    pub fn insert(&mut self, ip: IpAddr) {
        for bit in bits(ip) {
            if let Some(byte) = self.0.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }

    /// Whether an address is in it, perhaps; if not, it certainly is not.
    pub fn may_contain(&self, ip: IpAddr) -> bool {
        bits(ip).iter().all(|bit| self.0.get(bit / 8).is_some_and(|b| b >> (bit % 8) & 1 == 1))
    }

    /// Adds all that are in `other`.
    pub fn unite(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// How many are in it, by estimate; of no use beyond 6,000.
    pub fn estimate(&self) -> f64 {
        let set: u32 = self.0.iter().map(|byte| byte.count_ones()).sum();
        let zeros = (BITS - 1).min(BITS - set as usize).max(1) as f64;
        if set == 0 {
            return 0.0;
        }
        (zeros / BITS as f64).ln() / (HASHES * (1.0 - 1.0 / BITS as f64).ln())
    }
}

/// The bits of an address: the first 22 of its SHA-1, in two halves of eleven.
fn bits(ip: IpAddr) -> [usize; 2] {
    let hash = match ip {
        IpAddr::V4(v4) => Sha1::digest(v4.octets()),
        IpAddr::V6(v6) => Sha1::digest(v6.octets()),
    };
    let [a, b, c, d, ..] = <[u8; 20]>::from(hash);
    [[a, b], [c, d]].map(|pair| usize::from(u16::from_le_bytes(pair)) % BITS)
}

impl fmt::Debug for Bloom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bloom(about {:.0})", self.estimate())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The addresses of the test in BEP 33.
    fn vector() -> Bloom {
        let mut bloom = Bloom::EMPTY;
        (0..=255).for_each(|last| bloom.insert(Ipv4Addr::new(192, 0, 2, last).into()));
        let net = 0x2001_0db8_u128 << 96;
        (0..=0x3e7).for_each(|low| bloom.insert(Ipv6Addr::from_bits(net | low).into()));
        bloom
    }

    #[test]
    fn the_vector_of_bep_33_comes_out() {
        let hex: String = vector().as_bytes().iter().map(|b| format!("{b:02X}")).collect();
        assert!(
            hex.starts_with("F6C3F5EAA07FFD91BDE89F777F26FB2BFF37BDB8FB2BBAA2FD3DDDE7BACFFF75")
        );
        assert!(hex.ends_with(
            "62ABE8FF237279BFEFBFEEF5FFC5FEBFDFE5ADFFADFEE1FB737FFFFBFD9F6AEFFEEE76B6FD8F72EF"
        ));
        assert!((vector().estimate() - 1224.9308).abs() < 0.0001);
    }

    #[test]
    fn who_was_added_is_found() {
        assert!(vector().may_contain(Ipv4Addr::new(192, 0, 2, 77).into()));
        assert!(!Bloom::EMPTY.may_contain(Ipv4Addr::new(192, 0, 2, 77).into()));
    }

    #[test]
    fn nobody_counts_as_none_and_a_full_filter_as_a_number() {
        assert_eq!(Bloom::EMPTY.estimate(), 0.0);
        let full = Bloom::from_bytes([0xff; BLOOM_LEN]);
        assert!(full.estimate() > 6_000.0 && full.estimate() < 10_000.0);
    }

    #[test]
    fn united_sets_count_those_they_share_once() {
        let (mut a, b) = (vector(), vector());
        a.unite(&b);
        assert_eq!(a, b);
    }
}
