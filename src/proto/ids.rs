//! Identifiers: the info hash of a torrent and the id of a peer.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The twenty bytes by which handshakes, trackers and the DHT know a torrent: SHA-1 of the bencoded
/// info dictionary, byte for byte as it was found (BEP 3), or the beginning of an [`InfoHashV2`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash([u8; 20]);

impl InfoHash {
    /// The hash with these bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Hashes the original bytes of an info dictionary.
    pub fn of(info_bytes: &[u8]) -> Self {
        Self(Sha1::digest(info_bytes).into())
    }

    /// Whether it is that of an info dictionary: its SHA-1, or the beginning of its SHA-256 (BEP 52).
    pub fn is_of(&self, info_bytes: &[u8]) -> bool {
        Self::of(info_bytes) == *self || InfoHashV2::of(info_bytes).truncated() == *self
    }

    /// The twenty bytes, as handshakes and announces carry them.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 of the bencoded info dictionary, byte for byte as it was found (BEP 52).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHashV2([u8; 32]);

impl InfoHashV2 {
    /// The hash with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes the original bytes of an info dictionary.
    pub fn of(info_bytes: &[u8]) -> Self {
        Self(Sha256::digest(info_bytes).into())
    }

    /// Its beginning, which stands for it where there is room for twenty bytes.
    pub fn truncated(&self) -> InfoHash {
        let mut start = [0; 20];
        start.copy_from_slice(&self.0[..20]);
        InfoHash(start)
    }
}

impl fmt::Display for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InfoHashV2 {
    type Err = ParseInfoHashError;

    /// Reads 64 hexadecimal digits of either case, alone or behind the `1220` that makes a multihash
    /// of them.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits = if s.len() == 68 { s.strip_prefix("1220").unwrap_or(s) } else { s };
        let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
            return Err(ParseInfoHashError);
        };
        let mut out = [0; 32];
        if pairs.len() != out.len() {
            return Err(ParseInfoHashError);
        }
        let digit = |b: u8| char::from(b).to_digit(16).ok_or(ParseInfoHashError);
        for (byte, [high, low]) in out.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self(out))
    }
}

/// The text was not an info hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an info hash is 40 hexadecimal digits or 32 base32 letters")]
pub struct ParseInfoHashError;

impl FromStr for InfoHash {
    type Err = ParseInfoHashError;

    /// Reads 40 hexadecimal digits or 32 base32 letters, of either case (BEP 9).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bits = match s.len() {
            40 => 4,
            32 => 5,
            _ => return Err(ParseInfoHashError),
        };
        let (mut out, mut acc, mut held, mut at) = ([0u8; 20], 0u16, 0u32, 0usize);
        for c in s.chars() {
            let digit = if bits == 4 { c.to_digit(16) } else { base32_digit(c) };
            acc = (acc << bits) | digit.ok_or(ParseInfoHashError)? as u16;
            held += bits;
            if held >= 8 {
                held -= 8;
                *out.get_mut(at).ok_or(ParseInfoHashError)? = (acc >> held) as u8;
                acc &= (1 << held) - 1;
                at += 1;
            }
        }
        Ok(Self(out))
    }
}

/// The value of a base32 letter (RFC 4648), of either case.
fn base32_digit(c: char) -> Option<u32> {
    match c.to_ascii_uppercase() {
        c @ 'A'..='Z' => Some(c as u32 - 'A' as u32),
        c @ '2'..='7' => Some(c as u32 - '2' as u32 + 26),
        _ => None,
    }
}

/// Twenty bytes by which a client names itself to peers and trackers (BEP 3, BEP 20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 20]);

impl PeerId {
    /// Our client prefix in Azureus style (BEP 20): "PF" and the version.
    pub const PREFIX: [u8; 8] = *b"-PF0100-";

    /// The id with these bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// An id of our own: [`Self::PREFIX`] and twelve random bytes.
    pub fn ours(random: [u8; 12]) -> Self {
        let mut id = [0; 20];
        id[..8].copy_from_slice(&Self::PREFIX);
        id[8..].copy_from_slice(&random);
        Self(id)
    }

    /// The twenty bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_and_base32_name_the_same_hash() {
        let hex: InfoHash = "0123456789abcdef0123456789ABCDEF01234567".parse().unwrap();
        let base32: InfoHash = "AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH".parse().unwrap();
        assert_eq!(hex, base32);
        assert_eq!(hex.to_string(), "0123456789abcdef0123456789abcdef01234567");
    }

    #[test]
    fn a_v2_hash_is_hex_alone_or_in_a_multihash() {
        let hex = "ab".repeat(32);
        let hash = InfoHashV2::new([0xab; 32]);
        assert_eq!(hex.to_uppercase().parse(), Ok(hash));
        assert_eq!(format!("1220{hex}").parse(), Ok(hash));
        assert_eq!((hash.to_string(), hash.truncated()), (hex, InfoHash::new([0xab; 20])));
        for bad in ["", &"a".repeat(63), &"g".repeat(64), &format!("1114{}", "ab".repeat(32))] {
            assert_eq!(bad.parse::<InfoHashV2>(), Err(ParseInfoHashError), "{bad}");
        }
    }

    #[test]
    fn other_lengths_and_letters_are_refused() {
        for bad in ["", "0123", &"g".repeat(40), &"1".repeat(32), &"é".repeat(20), &"é".repeat(16)]
        {
            assert_eq!(bad.parse::<InfoHash>(), Err(ParseInfoHashError), "{bad:?}");
        }
    }
}
