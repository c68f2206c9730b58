//! A .torrent written by the harness itself, so that no client's idea of names or order gets in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use super::content::Kind;
use super::{Content, Scratch};

/// A torrent on disk: its metainfo, and its data where a client can seed it.
pub struct Torrent {
    /// The .torrent file.
    pub file: PathBuf,
    /// Lower-case hex.
    pub info_hash: String,
    /// What clients call the "save path": the directory that holds the file or folder called `name`.
    pub save_path: PathBuf,
    /// The file or folder itself.
    pub data: PathBuf,
    /// Sum of the files' lengths.
    pub length: u64,
}

impl Torrent {
    /// Writes data and metainfo of `content` into the scratch directory.
    pub fn new(scratch: &Scratch, content: &Content) -> Self {
        Self::with_trackers(scratch, content, &[])
    }

    /// The same with trackers, one tier each.
    pub fn with_trackers(scratch: &Scratch, content: &Content, trackers: &[&str]) -> Self {
        let save_path = scratch.dir("origin");
        let data = content.write_to(&save_path);
        let info = info(content);
        let name = String::from_utf8_lossy(&content.name).into_owned();
        let file = scratch.file(&format!("{name}.torrent"), &metainfo(&info, trackers));
        let length = content.stream().len() as u64;
        Self { file, info_hash: hex(&Sha1::digest(&info)), save_path, data, length }
    }

    /// A magnet link with nothing but the info hash.
    pub fn magnet(&self) -> String {
        format!("magnet:?xt=urn:btih:{}", self.info_hash)
    }

    /// A magnet link with peers (`x.pe`).
    pub fn magnet_with_peers(&self, peers: &[SocketAddr]) -> String {
        peers.iter().fold(self.magnet(), |link, peer| format!("{link}&x.pe={peer}"))
    }

    /// A magnet link with trackers (`tr`).
    pub fn magnet_with_trackers(&self, trackers: &[&str]) -> String {
        trackers.iter().fold(self.magnet(), |link, tracker| {
            format!("{link}&tr={}", tracker.replace(':', "%3A").replace('/', "%2F"))
        })
    }

    /// A copy of the data whose every `step`th byte is wrong, for a seeder that lies; returns its
    /// save path. One file only.
    pub fn corrupted(&self, scratch: &Scratch, step: usize) -> PathBuf {
        let mut bytes = std::fs::read(&self.data).unwrap();
        bytes.iter_mut().step_by(step).for_each(|byte| *byte = !*byte);
        let name = Path::new("liar").join(self.data.file_name().unwrap());
        scratch.file(name.to_str().unwrap(), &bytes);
        scratch.path("liar")
    }
}

/// Writes a .torrent file for an info dictionary.
fn metainfo(info: &[u8], trackers: &[&str]) -> Vec<u8> {
    let mut out = b"d".to_vec();
    if let Some(first) = trackers.first() {
        text(&mut out, b"announce");
        text(&mut out, first.as_bytes());
        text(&mut out, b"announce-list");
        out.push(b'l');
        for tracker in trackers {
            out.push(b'l');
            text(&mut out, tracker.as_bytes());
            out.push(b'e');
        }
        out.push(b'e');
    }
    text(&mut out, b"info");
    out.extend_from_slice(info);
    out.push(b'e');
    out
}

fn info(content: &Content) -> Vec<u8> {
    let stream = content.stream();
    let pieces: Vec<u8> = stream.chunks(content.piece_length).flat_map(Sha1::digest).collect();
    let mut out = b"d".to_vec();
    if content.single {
        text(&mut out, b"length");
        number(&mut out, stream.len());
    } else {
        text(&mut out, b"files");
        files(&mut out, content);
    }
    text(&mut out, b"name");
    text(&mut out, &content.name);
    text(&mut out, b"piece length");
    number(&mut out, content.piece_length);
    text(&mut out, b"pieces");
    text(&mut out, &pieces);
    out.push(b'e');
    out
}

fn files(out: &mut Vec<u8>, content: &Content) {
    out.push(b'l');
    for item in &content.items {
        let (attr, length, target) = match &item.kind {
            Kind::File { bytes, executable } => {
                (if *executable { "x" } else { "" }, bytes.len(), None)
            }
            Kind::Symlink(target) => ("l", 0, Some(target)),
            Kind::Pad(length) => ("p", *length, None),
        };
        out.push(b'd');
        if !attr.is_empty() {
            text(out, b"attr");
            text(out, attr.as_bytes());
        }
        text(out, b"length");
        number(out, length);
        text(out, b"path");
        path(out, &item.path);
        if let Some(target) = target {
            text(out, b"symlink path");
            path(out, target);
        }
        out.push(b'e');
    }
    out.push(b'e');
}

fn path(out: &mut Vec<u8>, parts: &[Vec<u8>]) {
    out.push(b'l');
    parts.iter().for_each(|part| text(out, part));
    out.push(b'e');
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("i{number}e").as_bytes());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
