//! Whatever the names of a torrent, its tree is safe.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::geometry::Geometry;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::metainfo::layout::{EntryKind, Layout};
use p2pfs::proto::metainfo::{FileEntry, Info};

/// Files between 0xfe bytes; parts of paths between 0xff bytes; what follows 0xfd is a link's target.
fn files(data: &[u8]) -> Vec<FileEntry> {
    let parts = |path: &[u8]| path.split(|b| *b == 0xff).map(<[u8]>::to_vec).collect::<Vec<_>>();
    data.split(|b| *b == 0xfe)
        .map(|file| match file.iter().position(|b| *b == 0xfd) {
            Some(at) => FileEntry {
                symlink: Some(parts(&file[at + 1..])),
                ..FileEntry::new(parts(&file[..at]), 0)
            },
            None => FileEntry::new(parts(file), 1),
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let Ok(geometry) = Geometry::new(1, 1) else { return };
    let info = Info {
        info_hash: InfoHash::new([0; 20]),
        raw: Vec::new(),
        name: Vec::new(),
        geometry,
        piece_hashes: Vec::new(),
        files: files(data),
        single_file: false,
        v2: None,
        private: false,
    };
    let layout = Layout::new(&info);
    let mut taken = BTreeSet::new();
    for entry in &layout.entries {
        for part in &entry.path {
            assert!((1..=255).contains(&part.len()) && part != b"." && part != b"..");
            assert!(!part.contains(&b'/') && !part.contains(&0));
        }
        assert!(!entry.path.is_empty() && entry.path.concat().len() + entry.path.len() < 4096);
        assert!(taken.insert(entry.path.clone()));
        if let EntryKind::Symlink(target) = &entry.kind {
            // `..` comes first and no more often than there are folders above the link.
            let parts: Vec<_> = target.split(|b| *b == b'/').collect();
            let up = parts.iter().take_while(|p| **p == b"..").count();
            assert!(up < entry.path.len() && !parts[up..].contains(&&b".."[..]));
            assert!(!target.starts_with(b"/") && !target.is_empty() && target.len() < 4096);
        }
    }
    for path in &taken {
        assert!((1..path.len()).all(|above| !taken.contains(&path[..above])));
    }
});
