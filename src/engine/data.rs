//! Opening a torrent's data: in the cache, with the user, or both; what is not in the cache is checked.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use tokio::sync::watch;

use super::add::{AddError, AddProgress, AddTorrent};
use super::source::Source;
use crate::proto::geometry::PieceIndex;
use crate::proto::merkle::Trusted;
use crate::proto::metainfo::layout::{EntryKind, Layout};
use crate::proto::metainfo::{Info, PieceLayers};
use crate::proto::torrent::Trees;
use crate::store::{Store, StoreError, TorrentStore};

/// Pieces that wait to be hashed at a time: a reader's piece waits for all that were submitted before it.
const CHECKS_AT_ONCE: usize = 8;

/// Where a torrent's bytes are.
#[derive(Clone, Debug)]
pub enum DataPlace {
    /// In the cache.
    Cache,
    /// In the cache, but for what is good of the download of another client: that is used where it is,
    /// and only ever read.
    Beside {
        /// Where that is.
        path: PathBuf,
        /// Whether it is an error if no file of the torrent is there.
        needed: bool,
        /// The devices whose files are refused, wherever links lead: our own mounts.
        refused: Vec<u64>,
    },
    /// With the user: only ever read.
    InPlace(PathBuf),
}

/// Has a piece hashed, and tells whether it is good.
type Check<'a> = &'a dyn Fn(PieceIndex, Option<Trusted>, mpsc::Sender<(PieceIndex, bool)>);

/// Opens the data, with what is known of the piece layers.
pub(super) async fn open(
    store: Arc<Store>,
    add: &AddTorrent,
    info: &Arc<Info>,
    layout: &Arc<Layout>,
) -> Result<(Arc<TorrentStore>, Arc<PieceLayers>), AddError> {
    let (info, layout, data) = (info.clone(), layout.clone(), add.data.clone());
    let progress = add.progress.clone();
    let named = match &add.source {
        Source::Metainfo(metainfo) => Some(metainfo.piece_layers.clone()),
        Source::Magnet(_) => None,
    };
    let open = tokio::task::spawn_blocking(move || {
        // Else those that peers gave before.
        let named = named.filter(|layers| !layers.is_empty());
        let layers = named.unwrap_or_else(|| store.layers(&info));
        let torrent = match data {
            DataPlace::Cache => store.torrent(info)?,
            DataPlace::Beside { path, needed, refused } => {
                let torrent = store.torrent(info)?;
                let pieces = match torrent.borrow(&layout, &path, &refused) {
                    Err(StoreError::NothingFits { .. }) if !needed => Vec::new(),
                    pieces => pieces?,
                };
                check(torrent.info(), &pieces, &layers, &progress, &|piece, root, answers| {
                    torrent.verify_lent(piece, root, move |good| {
                        let _ = answers.send((piece, good));
                    });
                })?;
                torrent
            }
            DataPlace::InPlace(path) => {
                let torrent = store.in_place(info, &layout, &path)?;
                check_all(&torrent, &layers, &layout, &progress)?;
                torrent
            }
        };
        Ok((torrent, Arc::new(layers)))
    });
    open.await.unwrap_or(Err(AddError::Stopping))
}

/// Hashes all data in place; all of it has to be good.
fn check_all(
    store: &Arc<TorrentStore>,
    layers: &PieceLayers,
    layout: &Layout,
    progress: &watch::Sender<AddProgress>,
) -> Result<(), AddError> {
    let info = store.info();
    let all: Vec<_> = info.geometry.pieces().collect();
    let bad = check(info, &all, layers, progress, &|piece, root, answers| {
        store.verify_at_rest(piece, root, move |good| {
            let _ = answers.send((piece, good));
        });
    })?;
    let Some(first) = bad.iter().min() else { return Ok(()) };
    let start = info.geometry.piece_range(*first).start;
    let file = info.files.iter().rposition(|f| f.offset <= start && f.length > 0 && !f.pad);
    let (bad, pieces) = (bad.len(), info.geometry.piece_count());
    Err(AddError::DataMismatch { file: path_of(layout, file), bad, pieces })
}

/// Has pieces hashed on all workers, a few at a time. Returns those that are bad.
fn check(
    info: &Arc<Info>,
    pieces: &[PieceIndex],
    layers: &PieceLayers,
    progress: &watch::Sender<AddProgress>,
    submit: Check<'_>,
) -> Result<Vec<PieceIndex>, AddError> {
    let mut trees = Trees::new(info);
    trees.iter_mut().for_each(|trees| trees.know(layers));
    let (answers, answered) = mpsc::channel();
    let (mut bad, mut waiting, mut checked_pieces) = (Vec::new(), 0, 0);
    let mut left = pieces.iter();
    loop {
        if waiting < CHECKS_AT_ONCE
            && let Some(piece) = left.next()
        {
            let root = trees.as_mut().and_then(|trees| trees.piece_root(*piece));
            if root.is_none() && info.is_v2_only() {
                return Err(AddError::NoLayers(String::from_utf8_lossy(&info.name).into_owned()));
            }
            submit(*piece, root, answers.clone());
            waiting += 1;
            continue;
        }
        if waiting == 0 {
            return Ok(bad);
        }
        let Ok((piece, good)) = answered.recv() else { return Err(AddError::Stopping) };
        bad.extend((!good).then_some(piece));
        waiting -= 1;
        checked_pieces += 1;
        let pieces = pieces.len() as u32;
        progress.send_replace(AddProgress { checked_pieces, pieces, ..AddProgress::default() });
    }
}

fn path_of(layout: &Layout, file: Option<usize>) -> String {
    let entry =
        layout.entries.iter().find(|e| matches!(e.kind, EntryKind::File(i) if Some(i) == file));
    entry.map_or_else(String::new, |e| String::from_utf8_lossy(&e.path.join(&b'/')).into_owned())
}
