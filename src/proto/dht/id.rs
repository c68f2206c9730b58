//! Node ids and the distance between them (BEP 5; Kademlia).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::proto::crc32c::crc32c;
use crate::proto::ids::InfoHash;

/// How many nodes a bucket and the end of a lookup hold (BEP 5, "k").
pub const K: usize = 8;

/// Where a node is in the space that info hashes share (BEP 5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 20]);

impl NodeId {
    /// The id with these bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The twenty bytes, as datagrams carry them.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// How far `other` is: XOR, compared as a big-endian number.
    pub fn distance(&self, other: &Self) -> Distance {
        Distance(std::array::from_fn(|i| self.0[i] ^ other.0[i]))
    }

    /// The same id but for one bit; 0 is the first one.
    #[must_use]
    pub fn flipped(mut self, bit: u32) -> Self {
        if let Some(byte) = self.0.get_mut((bit / 8) as usize) {
            *byte ^= 0x80 >> (bit % 8);
        }
        self
    }

    /// The id that whoever is at `ip` may have, its free bits taken from `random` (BEP 42).
    pub fn secured(ip: IpAddr, random: [u8; 20]) -> Self {
        let mut id = random;
        let [a, b, c, _] = prefix(ip, random[19] & 7).to_be_bytes();
        id[..3].copy_from_slice(&[a, b, c & 0xf8 | random[2] & 7]);
        Self(id)
    }

    /// Whether whoever is at `ip` may have this id (BEP 42); in local networks everyone may have any.
    pub fn fits(&self, ip: IpAddr) -> bool {
        let [a, b, c, _] = prefix(ip, self.0[19] & 7).to_be_bytes();
        is_local(ip) || (self.0[0], self.0[1], self.0[2] & 0xf8) == (a, b, c & 0xf8)
    }
}

/// The bits with which an id at `ip` begins, of which the first 21 count (BEP 42).
fn prefix(ip: IpAddr, r: u8) -> u32 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => crc32c(&(ip.to_bits() & 0x030f_3fff | u32::from(r) << 29).to_be_bytes()),
        IpAddr::V6(ip) => {
            let network = (ip.to_bits() >> 64) as u64 & 0x0103_070f_1f3f_7fff;
            crc32c(&(network | u64::from(r) << 61).to_be_bytes())
        }
    }
}

/// Whether `ip` is of a network that is not part of the Internet, where addresses prove nothing.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// The network that one owner can be supposed to have, /24 or /64; `None` in local networks, where
/// all nodes may be behind one address.
pub fn block(ip: IpAddr) -> Option<u64> {
    if is_local(ip) {
        return None;
    }
    match ip.to_canonical() {
        IpAddr::V4(ip) => Some(u64::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => Some((ip.to_bits() >> 64) as u64),
    }
}

impl From<InfoHash> for NodeId {
    fn from(hash: InfoHash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The XOR of two ids; the smaller, the closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance([u8; 20]);

impl Distance {
    /// How many leading bits the two ids share, 0–160.
    pub fn shared_bits(&self) -> u32 {
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        8 * zeros as u32 + self.0.get(zeros).map_or(0, |byte| byte.leading_zeros())
    }

    /// The bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// The distance of which this one is the part 1 / 2^`bits`; the greatest there is if none is so
    /// great.
    pub fn farther_by(&self, bits: u32) -> Self {
        if self.shared_bits() < bits {
            return Self([0xff; 20]);
        }
        let (whole, part) = ((bits / 8) as usize, bits % 8);
        let byte = |i: usize| u32::from(self.0.get(i).copied().unwrap_or(0));
        Self(std::array::from_fn(|i| {
            ((byte(i + whole) << 8 | byte(i + whole + 1)) << part >> 8) as u8
        }))
    }

    /// The share of the space that is closer than this, 0–1.
    pub fn share(&self) -> f64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) as f64 / 2f64.powi(64)
    }

    /// The distance within which this share of the space lies.
    pub fn of_share(share: f64) -> Self {
        let mut bytes = [0xff; 20];
        let head = (share.clamp(0.0, 1.0) * 2f64.powi(64)) as u64;
        bytes[..8].copy_from_slice(&head.to_be_bytes());
        Self(bytes)
    }
}

/// A node and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contact {
    /// The id it says it has.
    pub id: NodeId,
    /// Its UDP address.
    pub addr: SocketAddr,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distances_and_shares_of_the_space_are_the_same() {
        let far = NodeId::new([0x80; 20]).distance(&NodeId::new([0; 20]));
        assert!((far.share() - 0.502).abs() < 0.001);
        assert!(Distance::of_share(0.5) < far && far < Distance::of_share(0.51));
        assert_eq!(Distance::of_share(1.0).as_bytes(), &[0xff; 20]);
    }

    #[test]
    fn the_vectors_of_bep_42_come_out() {
        for (ip, random, prefix) in [
            ("124.31.75.21", 1, [0x5f, 0xbf, 0xb8]),
            ("21.75.31.124", 86, [0x5a, 0x3c, 0xe8]),
            ("65.23.51.170", 22, [0xa5, 0xd4, 0x30]),
            ("84.124.73.14", 65, [0x1b, 0x03, 0x20]),
            ("43.213.53.83", 90, [0xe5, 0x6f, 0x68]),
        ] {
            let mut bytes = [0; 20];
            bytes[19] = random;
            let id = NodeId::secured(ip.parse().unwrap(), bytes);
            assert_eq!(id.as_bytes()[..3], prefix, "{ip}");
        }
    }

    #[test]
    fn an_id_of_another_address_does_not_fit() {
        let id = NodeId::secured("192.0.2.1".parse().unwrap(), [7; 20]);
        assert!(id.fits("192.0.2.1".parse().unwrap()));
        assert!(!id.fits("192.0.2.2".parse().unwrap()));
        assert!(!id.fits("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn any_id_fits_on_a_local_network() {
        for ip in ["127.0.0.1", "10.77.0.1", "192.168.1.1", "::1", "fe80::1", "fd00::1"] {
            assert!(NodeId::new([0xaa; 20]).fits(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn shared_bits_are_those_before_the_first_difference() {
        let (zero, mut other) = (NodeId::new([0; 20]), [0; 20]);
        assert_eq!(zero.distance(&zero).shared_bits(), 160);
        other[2] = 0x10;
        assert_eq!(zero.distance(&NodeId::new(other)).shared_bits(), 19);
    }

    #[test]
    fn a_distance_is_multiplied_until_there_is_none_so_great() {
        let one = Distance::of_share(0.01);
        assert!((one.farther_by(3).share() - 0.08).abs() < 1e-9);
        assert!((Distance::of_share(1e-6).farther_by(11).share() - 0.002048).abs() < 1e-9);
        assert_eq!(one.farther_by(0), one);
        assert_eq!(one.farther_by(7), Distance([0xff; 20]));
        assert_eq!(Distance([0; 20]).farther_by(160), Distance([0; 20]));
    }

    proptest! {
        #[test]
        fn an_id_is_secure_where_it_was_made_and_hardly_anywhere_else(
            host in any::<u64>(), elsewhere in any::<u32>(), random in any::<[u8; 20]>(),
        ) {
            let doc = 0x2001_0db8u128 << 96;
            let ip = |network: u32| IpAddr::V6((doc | u128::from(network) << 64 | u128::from(host)).into());
            let id = NodeId::secured(ip(7), random);
            prop_assert!(id.fits(ip(7)));
            // The first five bits of the third byte are proven; the last three are not.
            let mut bytes = *id.as_bytes();
            bytes[2] ^= 7;
            prop_assert!(NodeId::new(bytes).fits(ip(7)));
            bytes[2] ^= 8;
            prop_assert!(!NodeId::new(bytes).fits(ip(7)));
            let other = NodeId::secured(ip(elsewhere), random);
            prop_assert_eq!(id.fits(ip(elsewhere)), other.as_bytes()[..3] == id.as_bytes()[..3]);
        }
    }
}
