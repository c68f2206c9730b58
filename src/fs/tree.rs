//! The tree of inodes, complete in memory before the mount is live.
//!
//! Inodes are numbered level by level, each directory's entries in the order of their names. So the
//! same torrent always has the same numbers, and a directory needs to know only the first number
//! and the count of its entries. Names are not copied: a node points into the [`Layout`].

use std::ops::Range;
use std::sync::Arc;

use crate::proto::metainfo::layout::{EntryKind, Layout};

/// The inode number of the mount's root.
pub const ROOT: u64 = 1;

/// All files, links and directories of a mount.
#[derive(Debug)]
pub struct Tree {
    layout: Arc<Layout>,
    /// By inode number, less one.
    nodes: Vec<Node>,
}

/// One inode.
#[derive(Clone, Copy, Debug)]
struct Node {
    parent: u32,
    /// An entry of the layout that is this node or lies below it.
    entry: u32,
    /// Parts of that entry's path down to this node; 0 for the root.
    depth: u32,
    kind: Kind,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory: its entries' inode numbers are `first..first + count`.
    Directory {
        /// The inode number of its first entry.
        first: u32,
        /// How many entries it has.
        count: u32,
        /// How many of them are directories.
        directories: u32,
    },
    /// A file: its index in the torrent's info dictionary.
    File(u32),
    /// A symbolic link.
    Symlink,
}

impl Tree {
    /// The tree of a layout.
    pub fn new(layout: Arc<Layout>) -> Self {
        let mut order: Vec<u32> = (0..layout.entries.len() as u32).collect();
        order.retain(|&entry| !path(&layout, entry).is_empty());
        order.sort_by(|&a, &b| path(&layout, a).cmp(path(&layout, b)));

        let mut nodes = vec![Node { parent: 1, entry: 0, depth: 0, kind: Kind::Symlink }];
        // The entries below each node, as a range of `order`; those of a directory are neighbours.
        let mut below: Vec<Range<usize>> = std::iter::once(0..order.len()).collect();
        let mut at = 0;
        while let (Some(node), Some(range)) = (nodes.get(at).copied(), below.get(at).cloned()) {
            let inode = at as u32 + 1;
            let is_leaf = node.depth > 0 && path(&layout, node.entry).len() == node.depth as usize;
            let kind = if is_leaf {
                leaf_kind(&layout, node.entry)
            } else {
                let first = nodes.len() as u32 + 1;
                let mut directories = 0;
                for child in groups(&layout, &order, range, node.depth as usize) {
                    let entry = order.get(child.start).copied().unwrap_or_default();
                    let depth = node.depth + 1;
                    directories += u32::from(path(&layout, entry).len() > depth as usize);
                    nodes.push(Node { parent: inode, entry, depth, kind: Kind::Symlink });
                    below.push(child);
                }
                Kind::Directory { first, count: nodes.len() as u32 + 1 - first, directories }
            };
            if let Some(node) = nodes.get_mut(at) {
                node.kind = kind;
            }
            at += 1;
        }
        nodes.shrink_to_fit();
        Self { layout, nodes }
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never true: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn node(&self, inode: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(inode.checked_sub(1)?).ok()?)
    }

    /// What an inode is, if it exists.
    pub fn kind(&self, inode: u64) -> Option<Kind> {
        self.node(inode).map(|node| node.kind)
    }

    /// The directory that an inode lies in; the root's is the root.
    pub fn parent(&self, inode: u64) -> Option<u64> {
        self.node(inode).map(|node| u64::from(node.parent))
    }

    /// The name of an inode; empty for the root.
    pub fn name(&self, inode: u64) -> &[u8] {
        let part = |node: &Node| {
            let path = path(&self.layout, node.entry);
            Some(path.get((node.depth as usize).checked_sub(1)?)?.as_slice())
        };
        self.node(inode).and_then(part).unwrap_or_default()
    }

    /// Where a symbolic link points.
    pub fn target(&self, inode: u64) -> Option<&[u8]> {
        let node = self.node(inode).filter(|node| node.kind == Kind::Symlink)?;
        match &self.layout.entries.get(node.entry as usize)?.kind {
            EntryKind::Symlink(target) => Some(target),
            EntryKind::File(_) => None,
        }
    }

    /// The inode numbers of a directory's entries, in the order of their names.
    pub fn entries(&self, directory: u64) -> Option<Range<u64>> {
        match self.kind(directory)? {
            Kind::Directory { first, count, .. } => {
                Some(u64::from(first)..u64::from(first) + u64::from(count))
            }
            Kind::File(_) | Kind::Symlink => None,
        }
    }

    /// The entry of a directory with this name.
    pub fn lookup(&self, directory: u64, name: &[u8]) -> Option<u64> {
        let Range { start: mut low, end: mut high } = self.entries(directory)?;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

fn path(layout: &Layout, entry: u32) -> &[Vec<u8>] {
    layout.entries.get(entry as usize).map(|entry| entry.path.as_slice()).unwrap_or_default()
}

fn leaf_kind(layout: &Layout, entry: u32) -> Kind {
    match layout.entries.get(entry as usize).map(|entry| &entry.kind) {
        Some(EntryKind::File(file)) => Kind::File(*file as u32),
        Some(EntryKind::Symlink(_)) | None => Kind::Symlink,
    }
}

/// Cuts a range of the sorted entries where the path's part at `depth` changes. (A layout has no
/// file of the same name as a folder; were there one, it would hide the folder.)
fn groups<'a>(
    layout: &'a Layout,
    order: &'a [u32],
    range: Range<usize>,
    depth: usize,
) -> impl Iterator<Item = Range<usize>> + 'a {
    let start = range.start;
    let entries = order.get(range).unwrap_or_default();
    let same = move |a: &u32, b: &u32| path(layout, *a).get(depth) == path(layout, *b).get(depth);
    entries.chunk_by(same).scan(start, |at, chunk| {
        let group = *at..*at + chunk.len();
        *at = group.end;
        Some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::layout::Entry;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn tree(paths: &[&str]) -> Tree {
        let entry = |(i, path): (usize, &&str)| Entry {
            path: path.split('/').map(|part| part.as_bytes().to_vec()).collect(),
            kind: EntryKind::File(i),
        };
        Tree::new(Arc::new(Layout { entries: paths.iter().enumerate().map(entry).collect() }))
    }

    fn find(tree: &Tree, path: &str) -> Option<u64> {
        path.split('/').try_fold(ROOT, |at, part| tree.lookup(at, part.as_bytes()))
    }

    #[test]
    fn an_empty_layout_is_an_empty_directory() {
        let tree = tree(&[]);
        assert_eq!(tree.entries(ROOT).unwrap().count(), 0);
        assert_eq!(tree.parent(ROOT), Some(ROOT));
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn every_path_leads_to_its_file() {
        let paths = ["b/x/1", "b/x/2", "a", "b/y", "c/c/c/c", "b.txt", "b/x.txt"];
        let tree = tree(&paths);
        for (i, path) in paths.iter().enumerate() {
            let inode = find(&tree, path).unwrap();
            assert_eq!(tree.kind(inode), Some(Kind::File(i as u32)), "{path}");
        }
        assert_eq!(find(&tree, "b/x/3"), None);
        assert_eq!(find(&tree, "a/x"), None);
        assert_eq!(tree.kind(0), None);
        assert_eq!(tree.kind(tree.len() as u64 + 1), None);
    }

    #[test]
    fn a_directory_counts_its_directories() {
        let tree = tree(&["a/b/1", "a/c/2", "a/3", "d"]);
        let of = |inode| match tree.kind(inode) {
            Some(Kind::Directory { count, directories, .. }) => (count, directories),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(ROOT), (2, 1));
        assert_eq!(of(find(&tree, "a").unwrap()), (3, 2));
        assert_eq!(of(find(&tree, "a/b").unwrap()), (1, 0));
    }

    #[test]
    fn a_link_knows_its_target() {
        let entry = Entry { path: vec![b"l".to_vec()], kind: EntryKind::Symlink(b"../x".to_vec()) };
        let tree = Tree::new(Arc::new(Layout { entries: vec![entry] }));
        let link = find(&tree, "l").unwrap();
        assert_eq!(tree.kind(link), Some(Kind::Symlink));
        assert_eq!(tree.target(link), Some(b"../x".as_slice()));
        assert_eq!(tree.target(ROOT), None);
    }

    #[test]
    fn numbers_do_not_depend_on_the_order_of_the_files() {
        let (one, other) = (tree(&["a/1", "b", "a/2"]), tree(&["b", "a/2", "a/1"]));
        for path in ["a", "a/1", "a/2", "b"] {
            assert_eq!(find(&one, path), find(&other, path));
        }
    }

    proptest! {
        #[test]
        fn it_lists_what_a_naive_tree_lists(
            paths in prop::collection::btree_set(prop::collection::vec(0u8..6, 1..5), 0..60)
        ) {
            // A path that is a folder of another cannot be a file.
            let files: Vec<Vec<u8>> = paths.iter()
                .filter(|p| !paths.iter().any(|q| q.len() > p.len() && q.starts_with(p)))
                .cloned().collect();
            let mut naive: BTreeMap<Vec<u8>, BTreeSet<u8>> = BTreeMap::from([(vec![], BTreeSet::new())]);
            for file in &files {
                for depth in 0..file.len() {
                    naive.entry(file[..depth].to_vec()).or_default().insert(file[depth]);
                }
            }
            let text: Vec<String> = files.iter()
                .map(|f| f.iter().map(|c| ((b'a' + c) as char).to_string()).collect::<Vec<_>>().join("/"))
                .collect();
            let tree = tree(&text.iter().map(String::as_str).collect::<Vec<_>>());
            let mut todo = vec![(ROOT, Vec::new())];
            let mut seen = BTreeMap::new();
            while let Some((inode, path)) = todo.pop() {
                let Some(entries) = tree.entries(inode) else { continue };
                let mut names = BTreeSet::new();
                for child in entries {
                    let name = tree.name(child)[0] - b'a';
                    names.insert(name);
                    prop_assert_eq!(tree.parent(child), Some(inode));
                    prop_assert_eq!(tree.lookup(inode, tree.name(child)), Some(child));
                    todo.push((child, [path.as_slice(), &[name]].concat()));
                }
                seen.insert(path, names);
            }
            prop_assert_eq!(seen, naive);
        }
    }
}
