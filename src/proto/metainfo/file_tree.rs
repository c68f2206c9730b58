//! The `file tree` of BitTorrent v2 (BEP 52): the files, each with the root of its hash tree, and
//! whether they are those of the v1 half.

use super::info::{FileEntry, InfoError, MAX_ALL_PATH_PARTS, MAX_FILES, path_parts};
use crate::proto::bencode::{Dict, DictWriter, Entries, Value};
use crate::proto::merkle::{Hash, Shape};

/// The most bytes of all paths together. A folder is named once and is part of the path of each of
/// its files, so the size of the description bounds them not at all.
const MAX_ALL_PATH_BYTES: usize = 256 * 1024 * 1024;

/// The files of a tree, in its order, and the root of each (`None` for those without bytes).
#[derive(Debug, Default)]
pub(super) struct FileTree {
    pub files: Vec<FileEntry>,
    pub roots: Vec<Option<Hash>>,
    path_parts: usize,
    path_bytes: usize,
}

impl FileTree {
    /// Reads a tree. Its keys have to be in order: other clients would number the pieces otherwise.
    pub fn parse(tree: Value<'_>) -> Result<Self, InfoError> {
        let bad = || InfoError::Invalid("file tree");
        let mut found = Self::default();
        let mut open: Vec<Folder<'_>> = vec![Folder::new(tree.as_dict().ok_or_else(bad)?)];
        // The names of the open folders below the root.
        let mut path: Vec<&[u8]> = Vec::new();
        while let Some(folder) = open.last_mut() {
            let Some((name, value)) = folder.entries.next() else {
                open.pop();
                path.pop();
                continue;
            };
            let in_order = folder.last.replace(name).is_none_or(|last| last < name);
            let dict = value.as_dict().ok_or_else(bad)?;
            if name.is_empty() || !in_order {
                return Err(bad());
            }
            path.push(name);
            match properties(dict).ok_or_else(bad)? {
                Some(leaf) => {
                    found.add(&path, leaf)?;
                    path.pop();
                }
                None => open.push(Folder::new(dict)),
            }
        }
        Ok(found)
    }

    /// Adds the file at `path`.
    fn add(&mut self, path: &[&[u8]], leaf: Dict<'_>) -> Result<(), InfoError> {
        self.path_parts += path.len();
        self.path_bytes += path.iter().map(|part| part.len()).sum::<usize>();
        let (file, root) = file(leaf).ok_or(InfoError::BadFile(self.files.len() + 1))?;
        self.path_parts += file.symlink.as_ref().map_or(0, Vec::len);
        if self.files.len() == MAX_FILES
            || self.path_parts > MAX_ALL_PATH_PARTS
            || self.path_bytes > MAX_ALL_PATH_BYTES
        {
            return Err(InfoError::TooManyFiles);
        }
        let path = path.iter().map(|part| part.to_vec()).collect();
        self.files.push(FileEntry { path, ..file });
        self.roots.push(root);
        Ok(())
    }

    /// The same with pad files in the gaps between files (see [`with_gaps`]), and behind the last:
    /// others may ask for whole blocks there too.
    pub fn aligned(self, piece_length: u32) -> Result<Self, InfoError> {
        let files = with_gaps(self.files, piece_length, true);
        if files.len() > MAX_FILES {
            return Err(InfoError::TooManyFiles);
        }
        let mut own = self.roots.into_iter();
        let roots = files.iter().map(|f| if f.pad { None } else { own.next().flatten() }).collect();
        Ok(Self { files, roots, ..Self::default() })
    }

    /// Checks that these are the files of the v1 half that are not padding, in the same order, and that
    /// each begins with a piece of its own; gives the roots for the v1 half's files.
    pub fn matched(
        self,
        v1: &[FileEntry],
        piece_length: u32,
    ) -> Result<Vec<Option<Hash>>, InfoError> {
        let aligned = |f: &FileEntry| f.length == 0 || f.offset.is_multiple_of(piece_length.into());
        let same = |a: &FileEntry, b: &FileEntry| {
            a.path == b.path && a.length == b.length && a.symlink == b.symlink
        };
        let mut v2 = self.files.iter().zip(self.roots);
        let mut roots = Vec::with_capacity(v1.len());
        for file in v1 {
            roots.push(match file.pad {
                true => None,
                false => match v2.next() {
                    Some((other, root)) if same(file, other) && aligned(file) => root,
                    _ => return Err(InfoError::Inconsistent),
                },
            });
        }
        if v2.next().is_some() { Err(InfoError::Inconsistent) } else { Ok(roots) }
    }
}

/// Puts a pad file behind each file that does not fill its last piece, so that every other begins with
/// a piece; behind the last that has bytes only if `tail` is set. They are called what libtorrent
/// calls them.
pub(super) fn with_gaps(files: Vec<FileEntry>, piece_length: u32, tail: bool) -> Vec<FileEntry> {
    let length = u64::from(piece_length);
    let last = files.iter().rposition(|file| file.length > 0);
    let padded = files.into_iter().enumerate().flat_map(|(index, file)| {
        let gap = (length - file.length % length) % length;
        let path = || vec![b".pad".to_vec(), gap.to_string().into_bytes()];
        let wanted = gap > 0 && (tail || Some(index) != last);
        let pad = wanted.then(|| FileEntry { pad: true, ..FileEntry::new(path(), gap) });
        std::iter::once(file).chain(pad)
    });
    padded.collect()
}

/// The bencoded tree of `files`, which are in the order of their paths; padding is left out. `single`
/// is the name of an only file that has no path. `describe` writes attributes.
pub(super) fn write(
    files: &[FileEntry],
    roots: &[Option<Hash>],
    single: Option<&[u8]>,
    describe: impl Fn(&mut DictWriter, &FileEntry),
) -> Vec<u8> {
    // The open folders, and the names of all but the root.
    let (mut open, mut path) = (vec![DictWriter::new()], Vec::<&[u8]>::new());
    for (file, root) in files.iter().zip(roots).filter(|(file, _)| !file.pad) {
        let (name, folders) = match (single, file.path.split_last()) {
            (Some(name), _) => (name, &[][..]),
            (None, Some((name, folders))) => (&name[..], folders),
            (None, None) => continue,
        };
        let shared = path.iter().zip(folders).take_while(|(a, b)| **a == &b[..]).count();
        close_to(shared, &mut open, &mut path);
        for folder in folders.iter().skip(shared) {
            open.push(DictWriter::new());
            path.push(folder);
        }
        let mut leaf = DictWriter::new();
        describe(&mut leaf, file);
        if file.symlink.is_none() {
            leaf.int(b"length", file.length as i64);
        }
        if let Some(root) = root {
            leaf.bytes(b"pieces root", root);
        }
        if let Some(folder) = open.last_mut() {
            folder.raw(name, DictWriter::new().raw(b"", leaf.finish()).finish());
        }
    }
    close_to(0, &mut open, &mut path);
    open.pop().unwrap_or_default().finish()
}

/// Puts folders below `depth` into those above them.
fn close_to(depth: usize, open: &mut Vec<DictWriter>, path: &mut Vec<&[u8]>) {
    while path.len() > depth {
        if let (Some(folder), Some(name)) = (open.pop(), path.pop())
            && let Some(above) = open.last_mut()
        {
            above.raw(name, folder.finish());
        }
    }
}

/// A folder whose entries are being read.
struct Folder<'a> {
    entries: Entries<'a>,
    last: Option<&'a [u8]>,
}

impl<'a> Folder<'a> {
    fn new(dict: Dict<'a>) -> Self {
        Self { entries: dict.iter(), last: None }
    }
}

/// What is said of the file that an entry is: the value of its empty key, which must be its only one.
/// `Some(None)` for a folder, `None` when it makes no sense.
fn properties(entry: Dict<'_>) -> Option<Option<Dict<'_>>> {
    let mut entries = entry.iter();
    match (entries.next(), entries.next()) {
        (Some((b"", leaf)), None) => leaf.as_dict().map(Some),
        (Some((b"", _)), Some(_)) => None,
        _ => Some(None),
    }
}

/// One file without its path, and its root; `None` when its length or root is no use. Padding is not
/// part of a tree; a link has no bytes and needs no length.
fn file(leaf: Dict<'_>) -> Option<(FileEntry, Option<Hash>)> {
    let attr = leaf.bytes(b"attr").unwrap_or_default();
    let link = attr.contains(&b'l');
    let length = match leaf.get(b"length") {
        Some(value) => u64::try_from(value.as_int()?).ok()?,
        None if link => 0,
        None => return None,
    };
    let root = match Shape::of(length) {
        Some(_) => {
            Some(Hash::try_from(leaf.bytes(b"pieces root")?).ok().filter(|r| *r != [0; 32])?)
        }
        None => None,
    };
    if attr.contains(&b'p') || (link && length > 0) {
        return None;
    }
    let mut file = FileEntry::new(Vec::new(), length);
    file.executable = attr.contains(&b'x');
    file.hidden = attr.contains(&b'h');
    file.mtime = leaf.int(b"mtime");
    if link {
        file.symlink = Some(leaf.get(b"symlink path").map_or(Some(Vec::new()), path_parts)?);
    }
    Some((file, root))
}
