//! Peer exchange (`ut_pex`, BEP 11).

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::WireError;
use crate::proto::bencode::{Dict, DictWriter, Limits};

/// The most peers taken of each kind (added or dropped, v4 or v6) from one message; BEP 11 allows
/// 50, the first message of some clients has more.
pub const MAX_PEX_PEERS: usize = 200;

/// What BEP 11 says about a peer that was added, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PexFlags(pub u8);

impl PexFlags {
    /// Prefers encryption.
    pub const ENCRYPTION: Self = Self(0x01);
    /// Only uploads.
    pub const UPLOAD_ONLY: Self = Self(0x02);
    /// Speaks uTP.
    pub const UTP: Self = Self(0x04);
    /// Helps punch holes (BEP 55).
    pub const HOLEPUNCH: Self = Self(0x08);
    /// Was reached from outside.
    pub const REACHABLE: Self = Self(0x10);

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and `flags`.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// A message of `ut_pex`: what changed among the sender's peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PexMessage {
    /// Peers the sender connected to; v4 before v6.
    pub added: Vec<(SocketAddr, PexFlags)>,
    /// Peers the sender lost; v4 before v6.
    pub dropped: Vec<SocketAddr>,
}

impl PexMessage {
    /// Reads the payload of a `ut_pex` message. Peers with port 0 and those beyond
    /// [`MAX_PEX_PEERS`] of a kind are left out.
    ///
    /// # Errors
    /// [`WireError::BadExtension`] when it is not one bencoded dictionary of at most 64 KiB.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let dict =
            Dict::parse(payload, Limits::MESSAGE).map_err(|_| WireError::BadExtension("ut_pex"))?;
        let list = |key: &[u8]| dict.bytes(key).unwrap_or_default();
        let added = with_flags(addresses::<4>(list(b"added")), list(b"added.f"))
            .chain(with_flags(addresses::<16>(list(b"added6")), list(b"added6.f")))
            .filter(|(address, _)| address.port() != 0)
            .collect();
        let dropped =
            addresses::<4>(list(b"dropped")).chain(addresses::<16>(list(b"dropped6"))).collect();
        Ok(Self { added, dropped })
    }

    /// The payload to send under the receiver's number for `ut_pex`.
    pub fn encode(&self) -> Bytes {
        let mut dict = DictWriter::new();
        let added = |v6: bool| self.added.iter().filter(move |(a, _)| a.is_ipv6() == v6);
        let dropped = |v6: bool| self.dropped.iter().filter(move |a| a.is_ipv6() == v6);
        let flags = |v6| added(v6).map(|(_, flags)| flags.0).collect::<Vec<u8>>();
        dict.bytes(b"added", &compact(added(false).map(|(a, _)| a)))
            .bytes(b"added.f", &flags(false))
            .bytes(b"added6", &compact(added(true).map(|(a, _)| a)))
            .bytes(b"added6.f", &flags(true))
            .bytes(b"dropped", &compact(dropped(false)))
            .bytes(b"dropped6", &compact(dropped(true)));
        dict.finish().into()
    }
}

/// The addresses of a compact list (BEP 23, BEP 7): `N` bytes and a port each.
fn addresses<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    bytes.chunks_exact(N + 2).take(MAX_PEX_PEERS).filter_map(|entry| {
        let (ip, port) = entry.split_first_chunk::<N>()?;
        let port = u16::from_be_bytes(port.try_into().ok()?);
        Some(SocketAddr::new(IpAddr::from(*ip), port))
    })
}

/// Pairs addresses with their flags; missing flags are none.
fn with_flags(
    addresses: impl Iterator<Item = SocketAddr>,
    flags: &[u8],
) -> impl Iterator<Item = (SocketAddr, PexFlags)> {
    let flags = flags.iter().copied().chain(std::iter::repeat(0));
    addresses.zip(flags.map(PexFlags))
}

fn compact<'a>(addresses: impl Iterator<Item = &'a SocketAddr>) -> Vec<u8> {
    let mut out = Vec::new();
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
        out.extend_from_slice(&address.port().to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn address(v6: bool) -> impl Strategy<Value = SocketAddr> {
        (any::<[u8; 16]>(), 1u16..).prop_map(move |(ip, port)| {
            let v4 = [ip[0], ip[1], ip[2], ip[3]];
            let ip = if v6 { IpAddr::from(ip) } else { IpAddr::from(v4) };
            SocketAddr::new(ip, port)
        })
    }

    fn message() -> impl Strategy<Value = PexMessage> {
        let flags = || any::<u8>().prop_map(PexFlags);
        (
            vec((address(false), flags()), 0..20),
            vec((address(true), flags()), 0..20),
            vec(address(false), 0..20),
            vec(address(true), 0..20),
        )
            .prop_map(|(added4, added6, dropped4, dropped6)| PexMessage {
                added: [added4, added6].concat(),
                dropped: [dropped4, dropped6].concat(),
            })
    }

    proptest! {
        #[test]
        fn messages_are_read_as_written(sent in message()) {
            prop_assert_eq!(PexMessage::parse(&sent.encode()), Ok(sent));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = PexMessage::parse(&bytes);
        }

        #[test]
        fn lists_of_any_length_are_bounded(list in vec(any::<u8>(), 0..4_000), flags: Vec<u8>) {
            let mut dict = DictWriter::new();
            dict.bytes(b"added", &list).bytes(b"added.f", &flags).bytes(b"dropped6", &list);
            let got = PexMessage::parse(&dict.finish()).unwrap();
            prop_assert!(got.added.len() <= MAX_PEX_PEERS.min(list.len() / 6));
            prop_assert_eq!(got.dropped.len(), MAX_PEX_PEERS.min(list.len() / 18));
        }
    }

    #[test]
    fn peers_without_flags_are_read() {
        let got = PexMessage::parse(b"d5:added6:\x7f\x00\x00\x01\x1a\xe1e").unwrap();
        assert_eq!(got.added, [("127.0.0.1:6881".parse().unwrap(), PexFlags::default())]);
        assert!(!got.added[0].1.has(PexFlags::UTP) && PexFlags(0x14).has(PexFlags::UTP));
    }
}
