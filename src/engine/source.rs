//! What the user named as the source of a torrent, resolved.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use url::Url;

use super::http::{self, HttpError};
use crate::proto::metainfo::{Magnet, MagnetError, Metainfo, MetainfoError};

/// The longest .torrent file, in bytes.
const MAX_TORRENT_LEN: usize = 64 * 1024 * 1024;

/// How long the download of a .torrent file may take in all.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Where a torrent comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Everything about it is known.
    Metainfo(Box<Metainfo>),
    /// Its info dictionary has to come from peers.
    Magnet(Magnet),
}

/// Why a source cannot be used: one line that names it, the cause and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A magnet link or info hash that makes no sense.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
    /// Bytes that are not a .torrent file, or one that is not supported.
    #[error("{name}: {error}")]
    Metainfo {
        /// The path or URL.
        name: String,
        /// What is wrong with it.
        error: MetainfoError,
    },
    /// A web page, as login walls and mistyped addresses give it.
    #[error("{0}: this is a web page (HTML), not a torrent file; use the link of the file itself")]
    Html(String),
    /// Too long for a .torrent file.
    #[error("{0}: longer than 64 MiB, so not a torrent file; name the .torrent, not the data")]
    TooLong(String),
    /// There is no file with this name.
    #[error(
        "{0}: no such file; give a magnet link, a .torrent file, a URL of one (http, https, file), or an info hash"
    )]
    NotFound(String),
    /// A folder, pipe or device.
    #[error("{0}: not a file; name the .torrent file itself")]
    NotAFile(String),
    /// We may not read it.
    #[error("{0}: permission denied; make the file readable for this user")]
    Permission(String),
    /// Reading it failed.
    #[error("{path}: cannot be read ({error}); check the disk")]
    Io {
        /// The path.
        path: String,
        /// The system's reason.
        error: io::Error,
    },
    /// A URL of a protocol we do not speak.
    #[error("{0}: only http and https URLs can be fetched; download it and name the file")]
    Scheme(String),
    /// Not a URL.
    #[error("{0}: not a valid URL; copy it again")]
    Url(String),
    /// The server did not give us the file.
    #[error("{url}: cannot be downloaded ({cause}); check the address and the connection")]
    Download {
        /// The URL.
        url: String,
        /// What went wrong.
        cause: String,
    },
}

/// What a person named, without what does not belong to it: a magnet link alone, or the path that a `file:`
/// URL names; any other text as it is.
pub fn local(text: &str) -> Result<Cow<'_, str>, SourceError> {
    if let Some(link) = Magnet::link_in(text) {
        return Ok(link.into());
    }
    if !starts_with(text.trim_start(), "file:/") {
        return Ok(text.into());
    }
    let path = Url::parse(text.trim()).ok().and_then(|url| url.to_file_path().ok());
    let path = path.and_then(|path| path.into_os_string().into_string().ok());
    path.map(Cow::Owned).ok_or_else(|| SourceError::Url(text.to_owned()))
}

/// Resolves a magnet link, a bare info hash, the http(s) URL of a .torrent file, or the path or `file:`
/// URL of one.
pub async fn resolve(text: &str) -> Result<Source, SourceError> {
    let text = &*local(text)?;
    let trimmed = text.trim();
    if starts_with(trimmed, "magnet:") {
        return Ok(Source::Magnet(trimmed.parse()?));
    }
    if starts_with(trimmed, "http://") || starts_with(trimmed, "https://") {
        return download(trimmed).await;
    }
    if let Ok(magnet) = Magnet::from_bare_hash(trimmed) {
        return Ok(Source::Magnet(magnet));
    }
    match open(text).await {
        Err(SourceError::NotFound(name)) if name.contains("://") => Err(SourceError::Scheme(name)),
        opened => opened,
    }
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

async fn download(text: &str) -> Result<Source, SourceError> {
    let name = text.to_owned();
    let url = Url::parse(text).map_err(|_| SourceError::Url(name.clone()))?;
    let reply = http::get(url, MAX_TORRENT_LEN, DOWNLOAD_TIMEOUT).await;
    let reply = reply.map_err(|error| match error {
        HttpError::TooLong(_) => SourceError::TooLong(name.clone()),
        HttpError::Failed(cause) => SourceError::Download { url: name.clone(), cause },
    })?;
    if let Some(link) = reply.location.filter(|l| starts_with(l, "magnet:")) {
        return Ok(Source::Magnet(link.parse()?));
    }
    if !reply.status.is_success() {
        let cause = format!("HTTP status {}", reply.status);
        return Err(SourceError::Download { url: name, cause });
    }
    parse(name, &reply.body)
}

async fn open(path: &str) -> Result<Source, SourceError> {
    let name = path.to_owned();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            SourceError::NotFound(name.clone())
        }
        // No file can have this name.
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => {
            SourceError::NotFound(name.escape_debug().take(80).collect())
        }
        io::ErrorKind::PermissionDenied => SourceError::Permission(name.clone()),
        _ => SourceError::Io { path: name.clone(), error },
    };
    // To open a pipe would wait for its writer.
    if !tokio::fs::metadata(Path::new(path)).await.map_err(failed)?.is_file() {
        return Err(SourceError::NotAFile(name));
    }
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > MAX_TORRENT_LEN {
        return Err(SourceError::TooLong(name));
    }
    parse(name, &bytes)
}

fn parse(name: String, bytes: &[u8]) -> Result<Source, SourceError> {
    match Metainfo::parse(bytes) {
        Ok(metainfo) => Ok(Source::Metainfo(Box::new(metainfo))),
        Err(_) if looks_like_html(bytes) => Err(SourceError::Html(name)),
        Err(error) => Err(SourceError::Metainfo { name, error }),
    }
}

fn looks_like_html(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let starts = |tag: &[u8]| bytes.get(..tag.len()).is_some_and(|b| b.eq_ignore_ascii_case(tag));
    [&b"<!doctype"[..], b"<html", b"<head", b"<body", b"<!--", b"<?xml"].iter().any(|t| starts(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_magnet_link_may_have_around_it_what_was_copied_with_it() {
        let link = format!("magnet:?xt=urn:btih:{}&dn=a", "0123456789".repeat(4));
        let magnet = Source::Magnet(link.parse().unwrap());
        for (before, after) in [
            ("<", ">"),
            ("\"", "\""),
            ("'", "'"),
            ("\u{feff} \u{200b}", "\n"),
            (" <\"", "\">\u{200b}"),
        ] {
            let copied = format!("{before}{link}{after}");
            assert_eq!(resolve(&copied).await.unwrap(), magnet, "{copied:?}");
            assert_eq!(local(&copied).unwrap(), link);
        }
        // Of a file whose name they are part of, they stay.
        assert_eq!(local("\"a\".torrent ").unwrap(), "\"a\".torrent ");
    }
}
