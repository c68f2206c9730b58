//! `p2pfs verify`

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use p2pfs::engine::{Source, resolve};
use p2pfs::proto::geometry::PieceIndex;
use p2pfs::proto::merkle::{Hash, Shape};
use p2pfs::proto::metainfo::layout::{self, EntryKind, Layout};
use p2pfs::proto::metainfo::{Info, Metainfo};
use p2pfs::rpc::{size, visible};

use super::hashing::{Digests, Job, ReadError};
use super::tree;

/// Files that are looked for to find out which folder is meant.
const LOOKED_FOR: usize = 100;

/// Check files against a torrent, and print which bytes of which files are wrong
///
/// A line for each bad range, by piece, on standard output; the exit code is 1 if there is any. Nothing
/// is written, nobody is asked, and files that the torrent does not have are not looked at.
#[derive(Debug, Args)]
pub struct Verify {
    /// .torrent file, or URL of one (http, https, file)
    torrent: String,
    /// File or folder that it describes, or the folder that this is in
    path: PathBuf,
}

impl Verify {
    pub async fn run(self) -> Result<()> {
        let Source::Metainfo(metainfo) = resolve(&self.torrent).await? else {
            bail!("{}: only names a torrent; verifying needs its .torrent file", self.torrent);
        };
        let path = self.path.canonicalize().with_context(|| self.path.display().to_string())?;
        let places = places(&metainfo.info, &path);
        let bad = check(&metainfo, &places);
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut files = 0;
        for (file, faults) in &bad {
            let Some(name) = places.get(*file).and_then(|place| place.as_ref()) else { continue };
            files += 1;
            for fault in faults {
                writeln!(out, "{}: {fault}", visible(&name.shown.to_string_lossy()))?;
            }
        }
        out.flush()?;
        let count = size::count(places.iter().flatten().count() as u64, "file");
        let name = String::from_utf8_lossy(&layout::shown_name(&metainfo.info)).into_owned();
        if files > 0 {
            bail!("{}: {files} of {count} not as the torrent says", visible(&name));
        }
        eprintln!("p2pfs: {}: {count}, all good", visible(&name));
        Ok(())
    }
}

/// Where a file is, and how it is called below the torrent's root.
struct Place {
    path: PathBuf,
    shown: PathBuf,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// It cannot be read.
    Unreadable(String),
    /// It has another length.
    Length { found: u64, expected: u64 },
    /// These of its bytes are not right, or not there.
    Bytes(Range<u64>),
    /// Some of its bytes are not right; the torrent does not say which.
    Somewhere,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(cause) => write!(f, "{cause}"),
            Self::Length { found, expected } => write!(f, "{found} bytes instead of {expected}"),
            Self::Bytes(range) => write!(f, "bytes {} to {} are bad", range.start, range.end - 1),
            Self::Somewhere => {
                write!(f, "bad (the torrent has no piece layers that would say where)")
            }
        }
    }
}

/// The place of each file of the torrent, `None` for padding and links.
fn places(info: &Info, path: &Path) -> Vec<Option<Place>> {
    let layout = Layout::new(info);
    let root = root(&layout, path, &info.name);
    let mut places: Vec<Option<Place>> = info.files.iter().map(|_| None).collect();
    for entry in layout.entries {
        let EntryKind::File(file) = entry.kind else { continue };
        let alone = info.single_file && path.is_file();
        let place = if alone { path.to_owned() } else { tree::join(&root, &entry.path) };
        let shown = entry.path.iter().map(|part| OsStr::from_bytes(part)).collect();
        places[file] = Some(Place { path: place, shown });
    }
    places
}

/// `path`, or what of the torrent's name is in it, whichever has more of the first files.
fn root(layout: &Layout, path: &Path, name: &[u8]) -> PathBuf {
    let nested = path.join(OsStr::from_bytes(name));
    let has = |root: &Path| {
        let first = layout.entries.iter().take(LOOKED_FOR);
        first.filter(|e| tree::join(root, &e.path).symlink_metadata().is_ok()).count()
    };
    let plain = !name.is_empty() && !name.contains(&b'/') && name != b"..";
    if plain && has(&nested) > has(path) { nested } else { path.to_owned() }
}

/// All faults by file.
fn check(metainfo: &Metainfo, places: &[Option<Place>]) -> BTreeMap<usize, Vec<Fault>> {
    let info = &metainfo.info;
    let mut faults: BTreeMap<usize, Vec<Fault>> = BTreeMap::new();
    for (file, place) in places.iter().enumerate() {
        if let Some(place) = place
            && let Some(fault) = look_at(&place.path, info.files[file].length)
        {
            faults.entry(file).or_default().push(fault);
        }
    }
    let mut pieces = Pieces { metainfo, bad: Vec::new(), roots: BTreeMap::new() };
    pieces.hash(places);
    for (file, range) in pieces.ranges() {
        if !faults.get(&file).is_some_and(|f| matches!(f[..], [Fault::Unreadable(_), ..])) {
            faults.entry(file).or_default().push(Fault::Bytes(range));
        }
    }
    for file in pieces.bad_roots() {
        faults.entry(file).or_insert_with(|| vec![Fault::Somewhere]);
    }
    faults
}

fn look_at(path: &Path, expected: u64) -> Option<Fault> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Some(Fault::Unreadable("not a file".into())),
        Ok(meta) if meta.len() != expected => Some(Fault::Length { found: meta.len(), expected }),
        Ok(_) => fs::File::open(path).err().map(|error| Fault::Unreadable(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(Fault::Unreadable("missing".into()))
        }
        Err(error) => Some(Fault::Unreadable(error.to_string())),
    }
}

/// What hashing shows.
struct Pieces<'a> {
    metainfo: &'a Metainfo,
    bad: Vec<PieceIndex>,
    /// The roots of the pieces of files whose piece layer is not known, by file.
    roots: BTreeMap<usize, Vec<Option<Hash>>>,
}

impl Pieces<'_> {
    fn hash(&mut self, places: &[Option<Place>]) {
        let info = &self.metainfo.info;
        let path = |place: &Option<Place>| place.as_ref().map(|place| place.path.clone());
        let mut paths: Vec<Option<PathBuf>> = places.iter().map(path).collect();
        for (path, file) in paths.iter_mut().zip(&info.files) {
            // Links have no bytes, and if they have, nobody has them on disk.
            if path.is_none() && !file.pad && file.length > 0 {
                *path = Some(PathBuf::new());
            }
        }
        let job = Job {
            files: &info.files,
            paths: &paths,
            geometry: &info.geometry,
            v1: !info.is_v2_only(),
            v2: info.v2.is_some(),
        };
        let Ok(()) = job.run(|index, digests| {
            if let Some(piece) = info.geometry.piece(index)
                && !self.is_good(piece, digests)
            {
                self.bad.push(piece);
            }
            Ok::<_, Infallible>(())
        });
        self.bad.sort_unstable();
    }

    fn is_good(&mut self, piece: PieceIndex, digests: Result<Digests, ReadError>) -> bool {
        let info = &self.metainfo.info;
        let Ok(digests) = digests else { return false };
        let v1 = info.is_v2_only() || info.piece_hashes.get(piece.index()) == Some(&digests.v1);
        v1 && (info.v2.is_none() || self.is_good_v2(piece, digests.v2))
    }

    /// Whether the root of a piece is right, as far as is known yet.
    fn is_good_v2(&mut self, piece: PieceIndex, found: Hash) -> bool {
        let info = &self.metainfo.info;
        let at = info.geometry.piece_range(piece).start;
        // The last file that begins at or before the piece and has bytes is the one that it is of.
        let next = info.files.partition_point(|file| file.offset <= at);
        let of = |file: &usize| !info.files[*file].pad && info.files[*file].length > 0;
        let Some(file) = (0..next).rev().find(of) else { return true };
        let entry = &info.files[file];
        let Some(root) = info.v2.as_ref().and_then(|v2| v2.roots[file]) else { return true };
        let length = u64::from(info.geometry.piece_length());
        let (number, count) = ((at - entry.offset) / length, entry.length.div_ceil(length));
        match self.metainfo.piece_layers.get(&root) {
            _ if count == 1 => found == root,
            Some(layer) => layer.get(number as usize) == Some(&found),
            None => {
                let known = self.roots.entry(file).or_insert_with(|| vec![None; count as usize]);
                known[number as usize] = Some(found);
                true
            }
        }
    }

    /// The bad ranges of each file, those that touch each other as one.
    fn ranges(&self) -> Vec<(usize, Range<u64>)> {
        let info = &self.metainfo.info;
        let mut found: Vec<(usize, Range<u64>)> = Vec::new();
        for piece in &self.bad {
            let piece = info.geometry.piece_range(*piece);
            let first = info.files.partition_point(|f| f.offset + f.length <= piece.start);
            for (file, entry) in info.files.iter().enumerate().skip(first) {
                if entry.offset >= piece.end {
                    break;
                }
                let start = piece.start.max(entry.offset);
                let end = piece.end.min(entry.offset + entry.length);
                if entry.pad || start >= end {
                    continue;
                }
                let range = start - entry.offset..end - entry.offset;
                match found.last_mut() {
                    Some((of, last)) if *of == file && last.end == range.start => {
                        last.end = range.end
                    }
                    _ => found.push((file, range)),
                }
            }
        }
        found
    }

    /// The files without a piece layer that do not have their root.
    fn bad_roots(&self) -> Vec<usize> {
        let info = &self.metainfo.info;
        let layer = Shape::piece_layer(info.geometry.piece_length());
        let bad = |(file, pieces): (&usize, &Vec<Option<Hash>>)| {
            let all: Option<Vec<Hash>> = pieces.iter().copied().collect();
            let root =
                Shape::of(info.files[*file].length).and_then(|shape| shape.root(layer, &all?));
            let expected = info.v2.as_ref().and_then(|v2| v2.roots[*file]);
            (root != expected).then_some(*file)
        };
        self.roots.iter().filter_map(bad).collect()
    }
}
