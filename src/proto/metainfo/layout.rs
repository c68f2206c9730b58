//! Path safety: the one place where a torrent's names become names that are shown.
//!
//! The rules, in the order in which they are applied; what they do not mention stays as it is, byte
//! for byte:
//!
//! 1. Padding is left out. Empty parts, `.` and `..` are left out of paths; `/` and NUL within a
//!    part become `_`. A path of which nothing remains is called by the torrent's info hash.
//! 2. A part longer than 255 bytes keeps its beginning and its extension, with a digest of the whole
//!    between them. Of a path that is too long or too deep, the folders that do not fit become one
//!    whose name is a digest of them.
//! 3. Folders keep their names. Of files of the same name the first keeps it, unless a folder has
//!    it; the others become `name.1.ext`, `name.2.ext` and so on, passing over names that are taken.
//! 4. A link's target is read from the torrent's root (BEP 47) or, when that names nothing and the
//!    same from the link's own folder does, from there: older torrents have it so. Its parts follow
//!    the rules above, except that `..` goes up. A target above the root, or the root itself, or
//!    none, and the link is left out.
//!
//! **A link never leads out of the tree.** What is shown as its target goes up by `..` only through
//! real folders, no further than the root, and from there down by names alone. Each of them is a
//! file, a folder, nothing, or another such link.

mod links;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use super::Info;
use names::{Numbered, file_path};

/// The tree of a torrent: unique safe paths below the mount's root, pad files left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Files and links in torrent order. Folders are implied by the paths.
    pub entries: Vec<Entry>,
}

/// One file or symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path parts below the root, raw bytes, each 1–255 bytes, none `.` or `..`, no `/` or NUL.
    pub path: Vec<Vec<u8>>,
    /// What is there.
    pub kind: EntryKind,
}

/// What an entry of a [`Layout`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file: its index in [`Info::files`].
    File(usize),
    /// A symbolic link and its relative target, which stays inside the torrent.
    Symlink(Vec<u8>),
}

/// A name that one folder can have, by the rules for parts of paths; `None` for what names nothing.
pub fn safe_name(name: &[u8]) -> Option<Vec<u8>> {
    (!names::is_relative(name)).then(|| names::safe_name(name))
}

impl Layout {
    /// Resolves the names of `info`; the same dictionary always gives the same tree.
    pub fn new(info: &Info) -> Self {
        let mut tree = Tree::default();
        let mut placed = tree.place(info);
        tree.number_the_rest(&mut placed);
        let entries = placed.into_iter().filter_map(|Placed { index, path, .. }| {
            let kind = match info.files.get(index)?.symlink.as_deref() {
                Some(target) => EntryKind::Symlink(links::target(&tree, &path, target)?),
                None => EntryKind::File(index),
            };
            Some(Entry { path, kind })
        });
        Self { entries: entries.collect() }
    }
}

/// The torrent's name by the rules for one part of a path.
pub fn shown_name(info: &Info) -> Vec<u8> {
    let name = std::slice::from_ref(&info.name);
    file_path(name, info.info_hash.to_string().as_bytes()).concat()
}

/// A folder of the tree; the root is number 0.
type Folder = u32;

/// The names that are taken.
#[derive(Default)]
struct Tree {
    /// The folders but the root, by the folder they are in and their name.
    folders: HashMap<(Folder, Vec<u8>), Folder>,
    /// Files and links, by the folder they are in and their name.
    files: HashSet<(Folder, Vec<u8>)>,
}

/// A file or link on its way into the tree.
struct Placed {
    /// Its index in [`Info::files`].
    index: usize,
    path: Vec<Vec<u8>>,
    folder: Folder,
    /// Whether another has its name.
    in_the_way: bool,
}

impl Tree {
    /// Makes all folders, then gives every file its own name where that is free.
    fn place(&mut self, info: &Info) -> Vec<Placed> {
        let unnamed = info.info_hash.to_string().into_bytes();
        let shown = info.files.iter().enumerate().filter(|(_, f)| !f.pad);
        let mut placed: Vec<_> = shown
            .map(|(index, file)| {
                let path = file_path(&file.path, &unnamed);
                let folder = self.make_folder(path.split_last().map_or(&[], |(_, above)| above));
                Placed { index, path, folder, in_the_way: false }
            })
            .collect();
        for file in &mut placed {
            file.in_the_way = !self.take(file.folder, file.path.last().unwrap_or(&unnamed));
        }
        placed
    }

    /// Finds a free name for every file that could not have its own.
    fn number_the_rest(&mut self, placed: &mut [Placed]) {
        // The number to go on with. Names that are numbered in the same way share it, or many
        // files of one name would each try all numbers again.
        let mut next: HashMap<(Folder, Numbered), u64> = HashMap::new();
        for file in placed.iter_mut().filter(|f| f.in_the_way) {
            let Some(name) = file.path.last_mut() else { continue };
            let numbered = Numbered::new(name);
            let number = next.entry((file.folder, numbered.clone())).or_insert(1);
            loop {
                *name = numbered.name(*number);
                *number += 1;
                if self.take(file.folder, name) {
                    break;
                }
            }
        }
    }

    /// Takes a name for a file, if it is free.
    fn take(&mut self, folder: Folder, name: &[u8]) -> bool {
        let key = (folder, name.to_vec());
        !self.folders.contains_key(&key) && self.files.insert(key)
    }

    fn make_folder(&mut self, path: &[Vec<u8>]) -> Folder {
        path.iter().fold(0, |folder, part| {
            // There are fewer folders than path parts, which are bounded well below 2^32.
            let new = self.folders.len() as Folder + 1;
            *self.folders.entry((folder, part.clone())).or_insert(new)
        })
    }

    /// Whether something of the tree has this path, without following links.
    fn has(&self, path: &[Vec<u8>]) -> bool {
        let Some((name, above)) = path.split_last() else { return true };
        let folder = above
            .iter()
            .try_fold(0, |folder, part| self.folders.get(&(folder, part.clone())).copied());
        folder.is_some_and(|folder| {
            let key = (folder, name.clone());
            self.files.contains(&key) || self.folders.contains_key(&key)
        })
    }
}
