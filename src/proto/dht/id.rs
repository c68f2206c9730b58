//! Node ids and the distance between them (BEP 5; Kademlia).

use std::fmt;
use std::net::SocketAddr;

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
}

/// A node and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contact {
    /// The id it says it has.
    pub id: NodeId,
    /// Its UDP address.
    pub addr: SocketAddr,
}
