//! Magnet links (BEP 9, 52): an info hash and where to find peers that know the rest.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use super::urls::UrlList;
use crate::proto::ids::{InfoHash, InfoHashV2};

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
    /// The torrent as handshakes and announces name it: the v1 hash (`xt=urn:btih:`), or where the link
    /// has none the beginning of the v2 hash.
    pub info_hash: InfoHash,
    /// The v2 hash (`xt=urn:btmh:1220`).
    pub info_hash_v2: Option<InfoHashV2>,
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
    /// Neither `xt=urn:btih:` nor `xt=urn:btmh:`.
    #[error("the magnet link has no info hash (`xt=urn:btih:…`); copy the whole link again")]
    NoInfoHash,
    /// The info hash is not one.
    #[error(
        "`{0}` is not an info hash (40 or 64 hexadecimal digits or 32 base32 letters); copy it again"
    )]
    BadInfoHash(String),
}

impl From<InfoHash> for Magnet {
    fn from(info_hash: InfoHash) -> Self {
        Self {
            info_hash,
            info_hash_v2: None,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            select: Vec::new(),
        }
    }
}

impl From<InfoHashV2> for Magnet {
    fn from(hash: InfoHashV2) -> Self {
        Self { info_hash_v2: Some(hash), ..hash.truncated().into() }
    }
}

impl Magnet {
    /// The v1 info hash, if the link has it.
    pub fn info_hash_v1(&self) -> Option<InfoHash> {
        let truncated = self.info_hash_v2.map(|hash| hash.truncated());
        (truncated != Some(self.info_hash)).then_some(self.info_hash)
    }

    /// The magnet link in text as people copy it: without the brackets, quotes, blanks and invisible marks
    /// around it. `None` if what is left is none.
    pub fn link_in(text: &str) -> Option<&str> {
        let is_around = |c: char| {
            c.is_whitespace()
                || matches!(c, '<' | '>' | '"' | '\'' | '“' | '”' | '\u{feff}' | '\u{200b}')
        };
        let link = text.trim_matches(is_around);
        let scheme = link.get(.."magnet:".len())?;
        scheme.eq_ignore_ascii_case("magnet:").then_some(link)
    }

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
        let mut magnet = topics(query)?;
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

    /// A link of nothing but an info hash, given as hexadecimal digits (40, or 64 for v2) or base32
    /// letters.
    pub fn from_bare_hash(text: &str) -> Result<Self, MagnetError> {
        let text = text.trim();
        if let Ok(hash) = text.parse::<InfoHashV2>() {
            return Ok(hash.into());
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
        let v1 = self.info_hash_v1().map(|hash| format!("xt=urn:btih:{hash}"));
        let v2 = self.info_hash_v2.map(|hash| format!("xt=urn:btmh:1220{hash}"));
        let topics: Vec<_> = v1.into_iter().chain(v2).collect();
        write!(f, "magnet:?{}", topics.join("&"))?;
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

/// A link of the info hashes of `query` alone: of each kind the first that is one.
fn topics(query: &str) -> Result<Magnet, MagnetError> {
    let (mut v1, mut v2, mut error) = (None, None, MagnetError::NoInfoHash);
    for (key, topic) in form_urlencoded::parse(query.as_bytes()) {
        if plain_key(&key) != "xt" {
            continue;
        }
        let topic = topic.trim();
        let bad = if let Some(text) = strip_prefix_of_any_case(topic, "urn:btih:") {
            v1 = v1.or(text.parse::<InfoHash>().ok());
            v1.is_none().then_some(text)
        } else if let Some(text) = strip_prefix_of_any_case(topic, "urn:btmh:") {
            v2 = v2.or(text.parse::<InfoHashV2>().ok());
            v2.is_none().then_some(text)
        } else {
            None
        };
        error = bad.map_or(error, |text| MagnetError::BadInfoHash(excerpt(text)));
    }
    match (v1, v2) {
        (Some(v1), v2) => Ok(Magnet { info_hash_v2: v2, ..v1.into() }),
        (None, Some(v2)) => Ok(v2.into()),
        (None, None) => Err(error),
    }
}

fn strip_prefix_of_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// A key in lower case without the number that may follow it (`tr.1`), nor what is left before it of an
/// `&amp;` in the text of a web page.
fn plain_key(key: &str) -> String {
    let key = key.strip_prefix("amp;").unwrap_or(key);
    let plain = match key.rsplit_once('.') {
        Some((plain, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => key,
    };
    plain.to_ascii_lowercase()
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
