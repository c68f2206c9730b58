//! A .torrent file (BEP 3): the info dictionary and where to find peers.

use std::sync::Arc;

use super::info::{Info, InfoError};
use super::magnet::Magnet;
use super::piece_layers::{PieceLayers, layers_of};
use super::urls::{MAX_URLS, UrlList};
use crate::proto::bencode::{BencodeError, Dict, DictWriter, Limits, ListWriter, Value};

/// The most DHT nodes taken from one file.
const MAX_NODES: usize = 100;

/// What a .torrent file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    /// What is shared.
    pub info: Arc<Info>,
    /// The hashes of the pieces of long files, where there is a v2 half and the file says them.
    pub piece_layers: PieceLayers,
    /// URLs of trackers in tiers, the first to be tried first (BEP 12). No URL occurs twice.
    pub trackers: Vec<Vec<String>>,
    /// URLs of web servers that have the files (BEP 19).
    pub web_seeds: Vec<String>,
    /// DHT nodes to start from: host and port (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// What the author says about it.
    pub comment: Option<String>,
    /// The program that made it.
    pub created_by: Option<String>,
    /// When it was made, in seconds since 1970.
    pub creation_date: Option<i64>,
}

/// Why bytes are not a .torrent file that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Not bencode, or beyond a limit.
    #[error("not a torrent file, or a damaged one ({0}); get it again")]
    Bencode(#[from] BencodeError),
    /// It has no info dictionary.
    #[error("not a torrent file: it has no `info` dictionary")]
    NoInfo,
    /// Hashes of pieces that are not what the info dictionary says they are.
    #[error("the torrent's piece layers contradict the roots of its files; do not trust it")]
    PieceLayers,
    /// Its info dictionary cannot be used.
    #[error(transparent)]
    Info(#[from] InfoError),
}

impl Metainfo {
    /// Reads a .torrent file. Only what has to be right is: an optional value that makes no sense
    /// is taken as absent, and what comes after the end is not looked at: people's tools leave
    /// newlines and worse there.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let (dict, _) = Dict::parse_prefix(bytes, Limits::TORRENT)?;
        let info = dict.dict(b"info").ok_or(MetainfoError::NoInfo)?;
        let text = |utf8: &[u8], plain: &[u8]| {
            let bytes = dict.bytes(utf8).or_else(|| dict.bytes(plain))?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let info = Info::parse(info.raw())?;
        Ok(Self {
            piece_layers: layers_of(dict, &info).ok_or(MetainfoError::PieceLayers)?,
            info: Arc::new(info),
            trackers: trackers(dict),
            web_seeds: web_seeds(dict),
            nodes: nodes(dict),
            comment: text(b"comment.utf-8", b"comment"),
            created_by: text(b"created by.utf-8", b"created by"),
            creation_date: dict.int(b"creation date"),
        })
    }

    /// The bytes of a .torrent file that says the same.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut dict = DictWriter::new();
        dict.raw(b"info", self.info.raw.clone());
        if !self.piece_layers.is_empty() {
            dict.raw(b"piece layers", self.piece_layers.to_bytes());
        }
        if let Some(first) = self.trackers.first().and_then(|tier| tier.first()) {
            dict.bytes(b"announce", first.as_bytes());
        }
        if self.trackers.iter().map(Vec::len).sum::<usize>() > 1 {
            let mut tiers = ListWriter::new();
            for tier in &self.trackers {
                tiers.raw(&ListWriter::of_bytes(tier).finish());
            }
            dict.raw(b"announce-list", tiers.finish());
        }
        if !self.web_seeds.is_empty() {
            dict.raw(b"url-list", ListWriter::of_bytes(&self.web_seeds).finish());
        }
        if !self.nodes.is_empty() {
            let mut nodes = ListWriter::new();
            for (host, port) in &self.nodes {
                let node = ListWriter::new().bytes(host.as_bytes()).int((*port).into()).finish();
                nodes.raw(&node);
            }
            dict.raw(b"nodes", nodes.finish());
        }
        if let Some(comment) = &self.comment {
            dict.bytes(b"comment", comment.as_bytes());
        }
        if let Some(program) = &self.created_by {
            dict.bytes(b"created by", program.as_bytes());
        }
        if let Some(date) = self.creation_date {
            dict.int(b"creation date", date);
        }
        dict.finish()
    }

    /// The magnet link of this torrent, with its trackers and web seeds.
    pub fn magnet(&self) -> Magnet {
        let mut magnet = Magnet::from(self.info.info_hash);
        magnet.info_hash_v2 = self.info.info_hash_v2();
        magnet.name = Some(String::from_utf8_lossy(&self.info.name).into_owned());
        magnet.trackers = self.trackers.concat();
        magnet.web_seeds = self.web_seeds.clone();
        magnet
    }
}

/// The tiers of `announce-list`, or else the one URL of `announce` (BEP 12).
fn trackers(dict: Dict<'_>) -> Vec<Vec<String>> {
    let mut urls = UrlList::default();
    let mut tiers = Vec::new();
    for tier in dict.list(b"announce-list").into_iter().flatten().take(MAX_URLS) {
        let before = urls.len();
        tier.as_list().into_iter().flatten().filter_map(Value::as_str).for_each(|u| urls.push(u));
        tiers.push(before..urls.len());
    }
    if urls.len() == 0 {
        dict.str(b"announce").into_iter().for_each(|u| urls.push(u));
        tiers.push(0..urls.len());
    }
    let urls = urls.into_vec();
    let tiers = tiers.into_iter().filter_map(|range| urls.get(range).map(<[String]>::to_vec));
    tiers.filter(|tier| !tier.is_empty()).collect()
}

/// `url-list`: one URL or a list of them (BEP 19).
fn web_seeds(dict: Dict<'_>) -> Vec<String> {
    let mut urls = UrlList::default();
    dict.str(b"url-list").into_iter().for_each(|u| urls.push(u));
    let list = dict.list(b"url-list").into_iter().flatten();
    list.filter_map(Value::as_str).for_each(|u| urls.push(u));
    urls.into_vec()
}

/// `nodes`: pairs of host and port (BEP 5).
fn nodes(dict: Dict<'_>) -> Vec<(String, u16)> {
    let node = |value: Value<'_>| {
        let mut pair = value.as_list()?;
        let host = pair.next()?.as_str()?.trim();
        let port = u16::try_from(pair.next()?.as_int()?).ok()?;
        let good = !host.is_empty() && host.len() <= 253 && port != 0;
        good.then(|| (host.to_owned(), port))
    };
    dict.list(b"nodes").into_iter().flatten().filter_map(node).take(MAX_NODES).collect()
}
