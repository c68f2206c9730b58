//! Magnet links (BEP 9): an info hash and where to find peers that know the rest.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use super::link::UrlList;
use crate::proto::ids::InfoHash;

/// The longest link, in bytes.
const MAX_LEN: usize = 64 * 1024;

/// The most peers (`x.pe`) taken from a link.
const MAX_PEERS: usize = 200;

/// The most ranges of files (`so`) taken from a link.
const MAX_RANGES: usize = 1000;

/// What a value of a link is written with: everything but RFC 3986's unreserved characters.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// For addresses, which not every client decodes: as [`VALUE`], but readable.
const ADDRESS: &AsciiSet = &VALUE.remove(b':').remove(b'[').remove(b']');

/// What a magnet link says. [`fmt::Display`] writes it out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    /// The torrent (`xt=urn:btih:`).
    pub info_hash: InfoHash,
    /// A name to show until the torrent's own is known (`dn`).
    pub name: Option<String>,
    /// URLs of trackers (`tr`), each its own tier.
    pub trackers: Vec<String>,
    /// URLs of web servers that have the files (`ws`).
    pub web_seeds: Vec<String>,
    /// Peers (`x.pe`) as `1.2.3.4:5`, `[::1]:5` or `host:5`: what a resolver takes.
    pub peers: Vec<String>,
    /// The numbers of the files that are wanted (`so`, BEP 53); all of them when empty.
    pub select: Vec<RangeInclusive<u32>>,
}

/// Why text is not a magnet link that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// Does not begin with `magnet:?`.
    #[error("`{0}` is not a magnet link; one begins with `magnet:?xt=urn:btih:`")]
    NotMagnet(String),
    /// Longer than a link can sensibly be.
    #[error("the magnet link is too long ({0} bytes, at most {MAX_LEN}); leave out some trackers")]
    TooLong(usize),
    /// No `xt=urn:btih:`.
    #[error("the magnet link has no info hash (`xt=urn:btih:…`); copy the whole link again")]
    NoInfoHash,
    /// The info hash is not one.
    #[error(
        "`{0}` is not an info hash (40 hexadecimal digits or 32 base32 letters); copy it again"
    )]
    BadInfoHash(String),
    /// Only a v2 info hash (BEP 52).
    #[error(
        "BitTorrent v2 only torrents are not supported yet; use a magnet link with `urn:btih:`"
    )]
    V2Only,
}

impl From<InfoHash> for Magnet {
    fn from(info_hash: InfoHash) -> Self {
        Self {
            info_hash,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            select: Vec::new(),
        }
    }
}

impl Magnet {
    /// Reads a magnet link. What is not understood, or makes no sense besides the info hash, is
    /// ignored.
    pub fn parse(text: &str) -> Result<Self, MagnetError> {
        let text = text.trim();
        if text.len() > MAX_LEN {
            return Err(MagnetError::TooLong(text.len()));
        }
        let query = match text.split_at_checked("magnet:?".len()) {
            Some((scheme, query)) if scheme.eq_ignore_ascii_case("magnet:?") => query,
            _ => return Err(MagnetError::NotMagnet(excerpt(text))),
        };
        let mut magnet = Self::from(info_hash_of(query)?);
        let (mut trackers, mut web_seeds) = (UrlList::default(), UrlList::default());
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match plain_key(&key).as_str() {
                "dn" if magnet.name.is_none() && !value.is_empty() => {
                    magnet.name = Some(value.into_owned());
                }
                "tr" => trackers.push(&value),
                "ws" => web_seeds.push(&value),
                "x.pe" if magnet.peers.len() < MAX_PEERS => {
                    let peer = value.trim();
                    let known = magnet.peers.iter().any(|p| p == peer);
                    if is_address(peer) && !known {
                        magnet.peers.push(peer.to_owned());
                    }
                }
                "so" => {
                    let room = MAX_RANGES.saturating_sub(magnet.select.len());
                    magnet.select.extend(value.split(',').filter_map(file_range).take(room));
                }
                _ => {}
            }
        }
        magnet.trackers = trackers.into_vec();
        magnet.web_seeds = web_seeds.into_vec();
        Ok(magnet)
    }

    /// A link of nothing but an info hash, given as hexadecimal digits or base32 letters.
    pub fn from_bare_hash(text: &str) -> Result<Self, MagnetError> {
        let text = text.trim();
        if is_v2_hash(text) {
            return Err(MagnetError::V2Only);
        }
        let hash: InfoHash = text.parse().map_err(|_| MagnetError::BadInfoHash(excerpt(text)))?;
        Ok(hash.into())
    }
}

impl FromStr for Magnet {
    type Err = MagnetError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt=urn:btih:{}", self.info_hash)?;
        let name = self.name.iter().map(|v| ("dn", v, VALUE));
        let trackers = self.trackers.iter().map(|v| ("tr", v, VALUE));
        let web_seeds = self.web_seeds.iter().map(|v| ("ws", v, VALUE));
        let peers = self.peers.iter().map(|v| ("x.pe", v, ADDRESS));
        for (key, value, keep) in name.chain(trackers).chain(web_seeds).chain(peers) {
            write!(f, "&{key}={}", utf8_percent_encode(value, keep))?;
        }
        for (i, range) in self.select.iter().enumerate() {
            f.write_str(if i == 0 { "&so=" } else { "," })?;
            match (range.start(), range.end()) {
                (one, same) if one == same => write!(f, "{one}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The v1 info hash of a link: the first that is one.
fn info_hash_of(query: &str) -> Result<InfoHash, MagnetError> {
    let mut error = MagnetError::NoInfoHash;
    for (key, topic) in form_urlencoded::parse(query.as_bytes()) {
        if plain_key(&key) != "xt" {
            continue;
        }
        let topic = topic.trim();
        if let Some(text) = strip_prefix_of_any_case(topic, "urn:btih:") {
            match text.parse() {
                Ok(hash) => return Ok(hash),
                Err(_) => error = MagnetError::BadInfoHash(excerpt(text)),
            }
        } else if strip_prefix_of_any_case(topic, "urn:btmh:").is_some()
            && error == MagnetError::NoInfoHash
        {
            error = MagnetError::V2Only;
        }
    }
    Err(error)
}

fn strip_prefix_of_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// A key in lower case without the number that may follow it (`tr.1`).
fn plain_key(key: &str) -> String {
    let plain = match key.rsplit_once('.') {
        Some((plain, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => key,
    };
    plain.to_ascii_lowercase()
}

/// SHA-256 in hexadecimal digits, as it is or as a multihash (`1220…`).
fn is_v2_hash(text: &str) -> bool {
    let digits = if text.len() == 68 { text.strip_prefix("1220").unwrap_or(text) } else { text };
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether text is `1.2.3.4:5`, `[::1]:5` or `host:5`.
fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    // A name of digits and dots alone is an address gone wrong.
    let name = host.bytes().all(letter) && host.bytes().any(|b| b.is_ascii_alphabetic());
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    host.len() <= 253 && name && digits && port.parse::<u16>().is_ok_and(|p| p != 0)
}

/// One element of `so`: `4` or `4-6`.
fn file_range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// The beginning of a text, fit for one line of an error message.
fn excerpt(text: &str) -> String {
    const LENGTH: usize = 60;
    let start: String = text.chars().take(LENGTH).flat_map(char::escape_debug).collect();
    if text.chars().nth(LENGTH).is_some() { start + "…" } else { start }
}

#[cfg(test)]
mod tests;
