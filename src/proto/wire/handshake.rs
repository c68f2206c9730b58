//! The sixty-eight bytes that open a connection (BEP 3).

use super::WireError;
use crate::proto::ids::{InfoHash, PeerId};

/// The length of a handshake, in bytes.
pub const HANDSHAKE_LEN: usize = 68;

/// How every handshake begins: the length of the protocol's name, and the name.
const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// The eight bytes in which a peer says what it speaks beyond BEP 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved([u8; 8]);

impl Reserved {
    /// These bytes.
    pub const fn new(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// What we speak: the fast extension and the extension protocol.
    pub const fn ours() -> Self {
        Self([0, 0, 0, 0, 0, 0x10, 0, 0x04])
    }

    /// The same, and BitTorrent v2 (BEP 52 "upgrade path"): whoever says so is perhaps answered with the
    /// v2 hash, so it must know it.
    #[must_use]
    pub const fn with_v2(mut self) -> Self {
        self.0[7] |= 0x10;
        self
    }

    /// The same, and the DHT (BEP 5).
    #[must_use]
    pub const fn with_dht(mut self) -> Self {
        self.0[7] |= 0x01;
        self
    }

    /// The eight bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// The fast extension (BEP 6).
    pub const fn fast(self) -> bool {
        self.0[7] & 0x04 != 0
    }

    /// The extension protocol (BEP 10).
    pub const fn extended(self) -> bool {
        self.0[5] & 0x10 != 0
    }

    /// BitTorrent v2 (BEP 52 "upgrade path"): the fourth of the last byte's bits from the top.
    pub const fn v2(self) -> bool {
        self.0[7] & 0x10 != 0
    }

    /// The DHT (BEP 5).
    pub const fn dht(self) -> bool {
        self.0[7] & 0x01 != 0
    }
}

/// What each side sends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// What the sender speaks.
    pub reserved: Reserved,
    /// The torrent it is about. On an incoming connection only this says which.
    pub info_hash: InfoHash,
    /// The sender's name.
    pub peer_id: PeerId,
}

impl Handshake {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut out = [0; HANDSHAKE_LEN];
        out[..20].copy_from_slice(PROTOCOL);
        out[20..28].copy_from_slice(self.reserved.as_bytes());
        out[28..48].copy_from_slice(self.info_hash.as_bytes());
        out[48..].copy_from_slice(self.peer_id.as_bytes());
        out
    }

    /// Reads the bytes received.
    ///
    /// # Errors
    /// [`WireError::NotBitTorrent`] when they do not begin as BEP 3 says.
    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Self, WireError> {
        if !bytes.starts_with(PROTOCOL) {
            return Err(WireError::NotBitTorrent);
        }
        Ok(Self {
            reserved: Reserved::new(part(bytes, 20)),
            info_hash: InfoHash::new(part(bytes, 28)),
            peer_id: PeerId::new(part(bytes, 48)),
        })
    }
}

/// The `N` bytes of a handshake from `at`; both are constants of the layout above.
fn part<const N: usize>(bytes: &[u8; HANDSHAKE_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            reserved: [u8; 8], info_hash: [u8; 20], peer_id: [u8; 20],
        ) {
            let sent = Handshake {
                reserved: Reserved::new(reserved),
                info_hash: InfoHash::new(info_hash),
                peer_id: PeerId::new(peer_id),
            };
            prop_assert_eq!(Handshake::decode(&sent.encode()), Ok(sent));
        }

        #[test]
        fn another_protocol_is_refused(at in 0usize..20, change in 1u8..) {
            let sent = Handshake {
                reserved: Reserved::ours(),
                info_hash: InfoHash::new([1; 20]),
                peer_id: PeerId::new([2; 20]),
            };
            let mut bytes = sent.encode();
            bytes[at] ^= change;
            prop_assert_eq!(Handshake::decode(&bytes), Err(WireError::NotBitTorrent));
        }
    }

    #[test]
    fn the_layout_is_that_of_the_standard() {
        let bytes = Handshake {
            reserved: Reserved::ours(),
            info_hash: InfoHash::new(*b"iiiiiiiiiiiiiiiiiiii"),
            peer_id: PeerId::new(*b"pppppppppppppppppppp"),
        }
        .encode();
        assert_eq!(
            bytes.escape_ascii().to_string(),
            "\\x13BitTorrent protocol\\x00\\x00\\x00\\x00\\x00\\x10\\x00\\x04\
             iiiiiiiiiiiiiiiiiiiipppppppppppppppppppp"
        );
    }

    #[test]
    fn we_speak_fast_and_extended_and_where_it_is_said_more() {
        let ours = Reserved::ours();
        assert!(ours.fast() && ours.extended() && !ours.v2() && !ours.dht());
        assert!(ours.with_v2().v2() && ours.with_v2().fast() && !ours.with_v2().dht());
        assert!(Reserved::new([0, 0, 0, 0, 0, 0, 0, 1]).dht());
        assert!(!ours.dht() && ours.with_dht().dht() && ours.with_dht().fast());
    }
}
