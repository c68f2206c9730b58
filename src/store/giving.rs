//! Whole files that leave the cache for good, because the user wants to keep them: shared with the cache
//! where the file system can, else moved out of it. What was moved is read where it is from then on, as
//! data of somebody else (`lent.rs`): it is the user's, who may change it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, ioctl_ficlone, renameat_with};

use super::budget::most_allocated;
use super::exclusive;
use super::files::{Found, Span, Stamp, create_own, spans, write_in_parts};
use super::torrent::TorrentStore;
use crate::proto::geometry::PieceIndex;

impl TorrentStore {
    /// Has `to`, which is empty, share the blocks of a file of the cache that is verified. The error is one if
    /// the file system cannot, or not all of the file is there.
    pub fn share_file(&self, file: usize, to: &File) -> io::Result<()> {
        let entry = self.info.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        let range = entry.offset..entry.offset + entry.length;
        let pieces = self.pieces_of(range);
        let _pins = self.states.pin(pieces.clone()).ok_or(io::ErrorKind::WouldBlock)?;
        if !self.all_at_rest(pieces) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let open = self.files.to_map(file)?.ok_or(io::ErrorKind::NotFound)?;
        ioctl_ficlone(to, &open.file)?;
        Ok(())
    }

    /// Whether files of the cache can be moved into a directory.
    pub fn can_give_to(&self, dir: &Path) -> bool {
        let Some(own) = self.files.dir().filter(|_| self.index.is_some()) else { return false };
        let name = format!(".p2pfs-{}.try", self.info.info_hash);
        let (from, to) = (own.join(&name), dir.join(&name));
        let moved = create_own(&from).and_then(|_| rename(&from, &to));
        let _ = fs::remove_file(&from);
        if moved.is_ok() {
            let _ = fs::remove_file(&to);
        }
        moved.is_ok()
    }

    /// Whether a file was moved out of the cache to `to`.
    pub fn is_given_to(&self, file: usize, to: &Path) -> bool {
        self.lent.elsewhere(file).is_some_and(|path| path == to)
    }

    /// Moves files that are verified out of the cache to paths where nothing is. From then on they are read
    /// there, unless they change. After an error all is as before, unless one could not be moved back. One of
    /// the kind `WouldBlock` means that somebody reads them now, or not all of them is verified.
    pub fn give_away(&self, files: &[(usize, PathBuf)]) -> io::Result<()> {
        let given: HashSet<_> = files.iter().map(|(file, _)| *file).collect();
        let leaves = |piece: PieceIndex| {
            let mut spans = spans(&self.info, self.info.geometry.piece_range(piece));
            spans.all(|span| given.contains(&span.file) || self.is_pad(span.file))
        };
        let mut pieces: Vec<_> = given.iter().flat_map(|file| self.pieces_of_file(*file)).collect();
        pieces.sort_unstable();
        pieces.dedup();
        let (leaving, shared): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|p| leaves(*p));
        // Parts of pieces that other files have, too, stay in the cache.
        let mut rests: HashMap<usize, Vec<Span>> = HashMap::new();
        for piece in &shared {
            let parts = spans(&self.info, self.info.geometry.piece_range(*piece));
            for part in parts.filter(|part| given.contains(&part.file)) {
                rests.entry(part.file).or_default().push(part);
            }
        }
        let parts = rests.values().flatten().map(|s| (s.offset, s.at.len() as u64));
        let _room = self.store.reserve(most_allocated(self.store.ledger.block(), parts))?;
        for file in &given {
            // What the user keeps outlasts a power cut.
            self.files.to_map(*file)?.ok_or(io::ErrorKind::NotFound)?.file.sync_all()?;
        }
        let _disk = exclusive(&self.disk);
        // The kernel may be reading a file by itself, and would read on where it is then.
        let free = |piece: &PieceIndex| self.is_at_rest(*piece) && self.states.is_evictable(*piece);
        if !shared.iter().all(free) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let rests = self.save_rests(&rests)?;
        let moved = self.lend_out(&given, &leaving).and_then(|()| {
            let moved = files.iter().try_for_each(|(file, to)| {
                self.files.replace(*file, rests.get(file).map(PathBuf::as_path), |from| {
                    self.lent.relocate(*file, to, || rename(from, to))
                })
            });
            moved.inspect_err(|_| self.take_back(files, &leaving))
        });
        rests.values().for_each(|rest| drop(fs::remove_file(rest)));
        given.iter().for_each(|file| self.measure(*file));
        moved
    }

    /// Undoes a move that went wrong. What cannot be moved back stays where it is, with all pieces that it has.
    fn take_back(&self, files: &[(usize, PathBuf)], pieces: &[PieceIndex]) {
        let back = |(file, to): &(usize, PathBuf)| {
            let back = |own: &Path| self.lent.relocate(*file, own, || fs::rename(to, own));
            !self.is_given_to(*file, to) || self.files.replace(*file, None, back).is_ok()
        };
        let gone: Vec<_> = files.iter().filter(|moved| !back(moved)).map(|(f, _)| *f).collect();
        let is_back = |piece: &PieceIndex| {
            let mut spans = spans(&self.info, self.info.geometry.piece_range(*piece));
            spans.all(|span| !gone.contains(&span.file))
        };
        for piece in pieces.iter().copied().filter(is_back) {
            self.states.take_back(piece);
            self.list(piece, true);
        }
        self.lent.remove_known(|file| !self.lends(file));
    }

    /// Writes the parts of files that stay, each into a new file; the paths of these.
    fn save_rests(&self, rests: &HashMap<usize, Vec<Span>>) -> io::Result<HashMap<usize, PathBuf>> {
        let mut saved = HashMap::new();
        for (file, parts) in rests {
            let own = self.files.path(*file).ok_or(io::ErrorKind::NotFound)?;
            let path = own.with_extension("new");
            saved.insert(*file, path.clone());
            if let Err(error) = self.save_rest(*file, parts, &path) {
                saved.values().for_each(|rest| drop(fs::remove_file(rest)));
                return Err(error);
            }
        }
        Ok(saved)
    }

    fn save_rest(&self, file: usize, parts: &[Span], path: &Path) -> io::Result<()> {
        let from = self.files.to_map(file)?.ok_or(io::ErrorKind::NotFound)?;
        let rest = create_own(path)?;
        rest.set_len(from.file.metadata()?.len())?;
        for part in parts {
            let mut bytes = self.store.buffers.take(part.at.len());
            from.file.read_exact_at(bytes.bytes_mut(), part.offset)?;
            write_in_parts(&rest, bytes.bytes(), part.offset)?;
        }
        Ok(())
    }

    /// From now on these pieces are read as those of somebody else, though their files are in the cache
    /// still. All of them or none.
    fn lend_out(&self, files: &HashSet<usize>, pieces: &[PieceIndex]) -> io::Result<()> {
        let mut found = Found::new();
        for file in files {
            let path = self.files.path(*file).ok_or(io::ErrorKind::NotFound)?;
            let m = fs::symlink_metadata(&path)?;
            if !m.is_file() || m.nlink() != 1 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            found.insert(*file, (path, Stamp::of(&m)));
        }
        self.lent.add(&found, |file| !self.lends(file));
        for (at, piece) in pieces.iter().enumerate() {
            if !self.states.give(*piece) {
                for piece in pieces.iter().take(at) {
                    self.states.take_back(*piece);
                }
                self.lent.remove_known(|file| !self.lends(file));
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        pieces.iter().for_each(|piece| self.list(*piece, false));
        Ok(())
    }

    fn pieces_of_file(&self, file: usize) -> impl Iterator<Item = PieceIndex> {
        let range = self.info.files.get(file).map_or(0..0, |f| f.offset..f.offset + f.length);
        self.info.geometry.pieces_of(range)
    }
}

/// Never over something that is there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}
