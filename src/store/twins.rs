//! Files that another torrent of the cache has: a file of a v2 torrent is known by the root of its hash
//! tree (BEP 52), so what is here already need not be fetched.
//!
//! Nothing is taken on trust: a file of the same length is hashed, and only one with the right root is
//! copied (or shared, where the file system can). Its pieces are then hinted, so that they are hashed
//! once more before they are used. The roots of files that were hashed are kept.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::budget::{Ledger, most_allocated};
use super::files::{create_dir, create_own, open_own};
use super::index::Index;
use crate::proto::geometry::BLOCK_LEN;
use crate::proto::merkle::{Hash, Shape, block_hashes, subtree_root};
use crate::proto::metainfo::Info;

/// Shorter files are fetched as soon as they are found, in bytes.
const MIN_LENGTH: u64 = 256 << 10;

/// Files of the cache that are looked at for one torrent.
const MAX_LOOKED_AT: usize = 200_000;

/// The directory of the roots of a torrent's files, one file each, named by the number of the file.
const ROOTS: &str = "roots";

/// Root, then length, inode and modification time in nanoseconds of the file that has it.
const KEPT_LEN: usize = 32 + 8 + 8 + 16;

/// Looks for the files of a torrent of which nothing is here in the other torrents of the cache, and
/// copies and lists those that are there, as far as there is room without letting anything go. Returns
/// how many.
pub(super) fn adopt(
    cache: &Path,
    own: &Path,
    info: &Info,
    index: &Index,
    ledger: &Arc<Ledger>,
) -> usize {
    let mut missing = missing(info, index);
    if missing.is_empty() {
        return 0;
    }
    let mut adopted = 0;
    let mut looked_at = 0;
    let torrents = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    for torrent in torrents.filter(|path| path != own) {
        let files = fs::read_dir(torrent.join("files")).into_iter().flatten().flatten();
        for entry in files {
            looked_at += 1;
            if missing.is_empty() || looked_at > MAX_LOOKED_AT {
                return adopted;
            }
            let length = entry.metadata().map_or(0, |m| if is_whole(&m) { m.len() } else { 0 });
            let Some(twins) = missing.get_mut(&length) else { continue };
            let Some(root) = root_of(&torrent, &entry.path(), ledger) else { continue };
            let before = twins.len();
            twins.retain(|(file, wanted)| {
                *wanted != root || copy(&entry.path(), own, *file, info, index, ledger).is_err()
            });
            adopted += before - twins.len();
            if twins.is_empty() {
                missing.remove(&length);
            }
        }
    }
    adopted
}

/// The files of which no piece is listed, by their length: number and root.
fn missing(info: &Info, index: &Index) -> HashMap<u64, Vec<(usize, Hash)>> {
    let (listed, mut missing) = (index.pieces(), HashMap::<_, Vec<_>>::new());
    let roots = info.v2.iter().flat_map(|v2| &v2.roots);
    for ((number, file), root) in info.files.iter().enumerate().zip(roots) {
        let Some(root) = root.filter(|_| file.length >= MIN_LENGTH) else { continue };
        let mut pieces = info.geometry.pieces_of(file.offset..file.offset + file.length);
        if pieces.all(|piece| !listed.contains(piece)) {
            missing.entry(file.length).or_default().push((number, root));
        }
    }
    missing
}

/// Whether a file has no holes.
fn is_whole(m: &fs::Metadata) -> bool {
    m.is_file() && m.blocks() * 512 >= m.len()
}

/// The root of a file of the cache, kept from before or computed and kept.
fn root_of(torrent: &Path, path: &Path, ledger: &Arc<Ledger>) -> Option<Hash> {
    let file = File::open(path).ok()?;
    let m = file.metadata().ok().filter(is_whole)?;
    let mut stamp = m.len().to_be_bytes().to_vec();
    stamp.extend(m.ino().to_be_bytes());
    stamp.extend(m.mtime().to_be_bytes());
    stamp.extend(m.mtime_nsec().to_be_bytes());
    let kept = torrent.join(ROOTS).join(path.file_name()?);
    if let Some(root) = read_kept(&kept, &stamp) {
        return Some(root);
    }
    let root = hash(file, m.len()).ok()??;
    let room = ledger.try_reserve(4 * ledger.block());
    let keep = || {
        create_dir(kept.parent().unwrap_or(torrent))?;
        let mut file = open_own(&kept)?;
        file.set_len(0)?;
        file.write_all(&[&root[..], &stamp].concat())
    };
    if room.is_some() {
        if let Err(error) = keep() {
            tracing::debug!(%error, path = %kept.display(), "cannot keep the root of a file");
        }
        let hash = torrent.file_name().and_then(|name| name.to_str()?.parse().ok());
        hash.into_iter().for_each(|hash| ledger.measure_rest(hash));
    }
    Some(root)
}

fn read_kept(path: &Path, stamp: &[u8]) -> Option<Hash> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(KEPT_LEN as u64 + 1).read_to_end(&mut bytes).ok()?;
    let (root, found) = bytes.split_first_chunk::<32>()?;
    (found == stamp).then_some(*root)
}

/// The root of `length` bytes. Of the hashes only one in 128 is held in memory.
fn hash(mut from: impl Read, length: u64) -> io::Result<Option<Hash>> {
    const RUN: u32 = 7;
    let Some(shape) = Shape::of(length) else { return Ok(None) };
    let layer = RUN.min(shape.height());
    let length_of_run = u64::from(BLOCK_LEN) << layer;
    let (mut runs, mut run) = (Vec::new(), vec![0; length_of_run as usize]);
    let mut left = length;
    while left > 0 {
        let bytes = run.get_mut(..left.min(length_of_run) as usize).unwrap_or_default();
        from.read_exact(bytes)?;
        runs.push(subtree_root(&block_hashes(bytes), 0, layer));
        left -= bytes.len() as u64;
    }
    Ok(shape.root(layer, &runs))
}

/// Copies a file, and lists its pieces so that they are hashed before their first use.
fn copy(
    from: &Path,
    own: &Path,
    file: usize,
    info: &Info,
    index: &Index,
    ledger: &Arc<Ledger>,
) -> io::Result<()> {
    let length = info.files.get(file).map_or(0, |entry| entry.length);
    let most = most_allocated(ledger.block(), [(0, length)].into_iter());
    let _room = ledger.try_reserve(most).ok_or(io::ErrorKind::StorageFull)?;
    let path: PathBuf = own.join("files").join(file.to_string());
    let mut to = create_own(&path)?;
    // Where the file system can, the two share their blocks.
    let copied = io::copy(&mut File::open(from)?, &mut to);
    ledger.measure(info.info_hash, file, &path);
    let entry = info.files.get(file).filter(|entry| copied.as_ref().ok() == Some(&entry.length));
    let Some(entry) = entry else {
        let _ = fs::remove_file(&path);
        ledger.measure(info.info_hash, file, &path);
        return copied.and(Err(io::ErrorKind::UnexpectedEof.into()));
    };
    for piece in info.geometry.pieces_of(entry.offset..entry.offset + entry.length) {
        index.set(piece, true);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::merkle::block_hash;

    #[test]
    fn the_root_is_that_of_all_blocks() {
        for length in [1, 16_384, 16_385, 512 * 16_384, 512 * 16_384 + 1, 1500 * 16_384 - 5] {
            let bytes: Vec<_> = (0..length).map(|i| (i % 251) as u8).collect();
            let hashes: Vec<_> = bytes.chunks(BLOCK_LEN as usize).map(block_hash).collect();
            let expected = Shape::of(length as u64).unwrap().root(0, &hashes);
            assert_eq!(hash(&bytes[..], length as u64).unwrap(), expected, "{length}");
            assert!(hash(&bytes[1..], length as u64).is_err());
        }
    }
}
