//! `p2pfs show`

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use p2pfs::engine::{Source, resolve};
use p2pfs::proto::metainfo::layout::{self, EntryKind, Layout};
use p2pfs::proto::metainfo::{Info, MAX_FILES, Magnet, Metainfo};
use p2pfs::rpc::{size, visible};
use serde::Serialize;

/// Print everything that a .torrent file or magnet link says
///
/// Nobody is asked: of a magnet link it is what the link itself says.
#[derive(Debug, Args)]
pub struct Show {
    /// .torrent file or URL of one (http, https, file), magnet link, or info hash
    #[arg(value_name = "TORRENT|MAGNET")]
    source: String,
    /// Print JSON; what a magnet link does not say is null or empty
    #[arg(long)]
    json: bool,
}

impl Show {
    pub async fn run(self) -> Result<()> {
        let shown = match resolve(&self.source).await? {
            Source::Metainfo(metainfo) => Shown::torrent(&metainfo),
            Source::Magnet(magnet) => Shown::magnet(&magnet),
        };
        let mut out = io::BufWriter::new(io::stdout().lock());
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
        } else {
            shown.print(&mut out)?;
        }
        Ok(out.flush()?)
    }
}

/// What there is to show; its names are those of the JSON.
#[derive(Debug, Default, Serialize)]
struct Shown {
    info_hash_v1: Option<String>,
    info_hash_v2: Option<String>,
    name: Option<String>,
    piece_length: Option<u32>,
    pieces: Option<u32>,
    /// Bytes of all files; padding counts where it is part of the v1 half.
    total_size: Option<u64>,
    files: Vec<ShownFile>,
    /// URLs in the order of their tiers.
    trackers: Vec<String>,
    web_seeds: Vec<String>,
    peers: Vec<String>,
    /// Numbers of the files that a magnet link selects (BEP 53); all of them when empty.
    select_only: Vec<u32>,
    private: Option<bool>,
    /// `host:port` of each DHT node.
    nodes: Vec<String>,
    comment: Option<String>,
    created_by: Option<String>,
    /// Seconds since 1970.
    creation_date: Option<i64>,
}

#[derive(Debug, Default, Serialize)]
struct ShownFile {
    path: String,
    length: u64,
    executable: bool,
    hidden: bool,
    /// Where a symbolic link leads.
    symlink: Option<String>,
    mtime: Option<i64>,
    /// The root of its hash tree, in a v2 or hybrid torrent.
    pieces_root: Option<String>,
}

impl Shown {
    fn magnet(magnet: &Magnet) -> Self {
        let last = MAX_FILES as u32 - 1;
        let mut select: Vec<u32> =
            magnet.select.iter().flat_map(|r| *r.start()..=(*r.end()).min(last)).collect();
        select.sort_unstable();
        select.dedup();
        Self {
            info_hash_v1: magnet.info_hash_v1().map(|hash| hash.to_string()),
            info_hash_v2: magnet.info_hash_v2.map(|hash| hash.to_string()),
            name: magnet.name.clone(),
            trackers: magnet.trackers.clone(),
            web_seeds: magnet.web_seeds.clone(),
            peers: magnet.peers.clone(),
            select_only: select,
            ..Self::default()
        }
    }

    fn torrent(metainfo: &Metainfo) -> Self {
        let info = &metainfo.info;
        let counted = info.files.iter().filter(|file| !(file.pad && info.is_v2_only()));
        let nodes = metainfo.nodes.iter();
        Self {
            info_hash_v1: info.info_hash_v1().map(|hash| hash.to_string()),
            info_hash_v2: info.info_hash_v2().map(|hash| hash.to_string()),
            name: Some(text(&layout::shown_name(info))),
            piece_length: Some(info.geometry.piece_length()),
            pieces: Some(info.geometry.piece_count()),
            total_size: Some(counted.map(|file| file.length).sum()),
            files: files(info),
            trackers: metainfo.trackers.concat(),
            web_seeds: metainfo.web_seeds.clone(),
            private: Some(info.private),
            nodes: nodes.map(|(host, port)| format!("{host}:{port}")).collect(),
            comment: metainfo.comment.clone(),
            created_by: metainfo.created_by.clone(),
            creation_date: metainfo.creation_date,
            ..Self::default()
        }
    }

    /// One line a fact, what is not said left out; nothing that would control a terminal.
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let texts = |all: &[String]| all.iter().map(|text| visible(text)).collect::<Vec<_>>();
        line(out, "name", self.name.as_deref().map(visible))?;
        line(out, "info hash", &self.info_hash_v1)?;
        line(out, "info hash v2", &self.info_hash_v2)?;
        if let (Some(bytes), Some(length), Some(pieces)) =
            (self.total_size, self.piece_length, self.pieces)
        {
            let (count, shown) = (size::count(self.files.len() as u64, "file"), size::show(bytes));
            line(out, "size", Some(format!("{bytes} bytes ({shown}) in {count}")))?;
            let pieces = size::count(pieces.into(), "piece");
            line(out, "pieces", Some(format!("{pieces} of {length} bytes")))?;
        }
        line(out, "private", self.private.filter(|private| *private).map(|_| "yes"))?;
        line(out, "tracker", texts(&self.trackers))?;
        line(out, "web seed", texts(&self.web_seeds))?;
        line(out, "peer", texts(&self.peers))?;
        line(out, "DHT node", texts(&self.nodes))?;
        line(out, "selected file", &self.select_only)?;
        line(out, "comment", self.comment.as_deref().map(visible))?;
        line(out, "created by", self.created_by.as_deref().map(visible))?;
        line(out, "created", self.creation_date.map(|date| format!("{date} s after 1970")))?;
        for file in &self.files {
            let link = file.symlink.iter().map(|to| format!(" -> {}", visible(to)));
            let link = link.chain(file.executable.then(|| "*".to_owned())).collect::<String>();
            writeln!(out, "{:>15}  {}{link}", file.length, visible(&file.path))?;
        }
        Ok(())
    }
}

/// A line for each of `values`.
fn line<T: Display>(
    out: &mut impl Write,
    what: &str,
    values: impl IntoIterator<Item = T>,
) -> io::Result<()> {
    values.into_iter().try_for_each(|value| writeln!(out, "{:<15}{value}", format!("{what}:")))
}

fn files(info: &Info) -> Vec<ShownFile> {
    let shown = Layout::new(info).entries.into_iter().filter_map(|entry| {
        let path = text(&entry.path.join(&b'/'));
        let index = match entry.kind {
            EntryKind::Symlink(to) => {
                return Some(ShownFile { path, symlink: Some(text(&to)), ..ShownFile::default() });
            }
            EntryKind::File(index) => index,
        };
        let file = info.files.get(index)?;
        let root = info.v2.as_ref().and_then(|v2| v2.roots.get(index)).copied().flatten();
        Some(ShownFile {
            path,
            length: file.length,
            executable: file.executable,
            hidden: file.hidden,
            symlink: None,
            mtime: file.mtime,
            pieces_root: root.map(|root| root.map(|byte| format!("{byte:02x}")).concat()),
        })
    });
    shown.collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
