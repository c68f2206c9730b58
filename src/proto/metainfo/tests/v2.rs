//! BitTorrent v2 and hybrids (BEP 52).

use proptest::prelude::*;

use super::super::*;
use super::{entry, listed, single};
use crate::proto::bencode::{DictWriter, ListWriter};
use crate::proto::ids::{InfoHash, InfoHashV2};
use crate::proto::merkle::{Hash, subtree_root};

/// What the empty key of a file of `length` bytes says.
fn leaf(length: i64) -> DictWriter {
    let mut leaf = DictWriter::new();
    leaf.int(b"length", length);
    if length > 0 {
        leaf.bytes(b"pieces root", &[7; 32]);
    }
    leaf
}

fn file(leaf: &DictWriter) -> Vec<u8> {
    DictWriter::new().raw(b"", leaf.finish()).finish()
}

fn folder(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut dict = DictWriter::new();
    for (name, entry) in entries {
        dict.raw(name.as_bytes(), entry.clone());
    }
    dict.finish()
}

/// A v2-only info dictionary with pieces of 16 KiB.
fn v2(tree: Vec<u8>) -> DictWriter {
    let mut dict = DictWriter::new();
    dict.bytes(b"name", b"n").int(b"piece length", 16_384).int(b"meta version", 2);
    dict.raw(b"file tree", tree);
    dict
}

fn error(dict: &DictWriter) -> InfoError {
    Info::parse(dict.finish()).unwrap_err()
}

fn hybrid(v1: &DictWriter, tree: Vec<u8>) -> Vec<u8> {
    v1.clone().int(b"meta version", 2).raw(b"file tree", tree).finish()
}

#[test]
fn a_v2_only_torrent_is_read() {
    let link = leaf(0).bytes(b"attr", b"l").raw(b"symlink path", &b"l1:ae"[..]).clone();
    let tree = folder(&[
        ("a", folder(&[("x", file(leaf(5).bytes(b"attr", b"xh").int(b"mtime", 9)))])),
        ("b", file(&leaf(0))),
        ("c", file(&leaf(40_000))),
        ("l", file(&link)),
    ]);
    let raw = v2(tree).int(b"private", 1).finish();
    let info = Info::parse(&raw[..]).unwrap();
    let hash = InfoHashV2::of(&raw);
    assert_eq!((info.info_hash_v1(), info.info_hash_v2()), (None, Some(hash)));
    assert!(info.is_v2_only() && info.private && !info.single_file && info.piece_hashes.is_empty());
    assert_eq!(info.info_hash, hash.truncated());
    let shown: Vec<_> = info.files.iter().map(|f| (f.path.concat(), f.offset, f.length)).collect();
    let name = |n: &str| n.as_bytes().to_vec();
    assert_eq!(
        shown,
        [
            (name("ax"), 0, 5),
            (name(".pad16379"), 5, 16_379),
            (name("b"), 16_384, 0),
            (name("c"), 16_384, 40_000),
            (name(".pad9152"), 56_384, 9_152),
            (name("l"), 65_536, 0)
        ]
    );
    assert!(info.files[0].executable && info.files[0].hidden && info.files[0].mtime == Some(9));
    assert!(info.files[1].pad && info.files[4].pad);
    assert_eq!(info.files[5].symlink, Some(vec![b"a".to_vec()]));
    let geometry = &info.geometry;
    assert_eq!((geometry.total(), geometry.payload(), geometry.piece_count()), (65_536, 40_005, 4));
    let root = Some([7; 32]);
    assert_eq!(info.v2.as_ref().unwrap().roots, [root, None, None, root, None, None]);
    assert_eq!(info.files_with_layers().collect::<Vec<_>>(), [(&[7; 32], 40_000)]);
}

#[test]
fn one_file_in_the_root_is_a_single_file() {
    assert!(Info::parse(v2(folder(&[("n", file(&leaf(5)))])).finish()).unwrap().single_file);
    let nested = folder(&[("n", folder(&[("x", file(&leaf(5)))]))]);
    assert!(!Info::parse(v2(nested).finish()).unwrap().single_file);
}

#[test]
fn other_versions_are_refused_before_anything_else() {
    let tree = || folder(&[("n", file(&leaf(5)))]);
    assert_eq!(error(DictWriter::new().int(b"meta version", 3)), InfoError::Newer(3));
    assert_eq!(error(v2(tree()).int(b"meta version", 1)), InfoError::Invalid("meta version"));
    let mut without = DictWriter::new();
    without.bytes(b"name", b"n").int(b"meta version", 2).int(b"piece length", 16_384);
    assert_eq!(error(&without), InfoError::Missing("file tree"));
}

#[test]
fn trees_that_make_no_sense_are_refused() {
    let one = || file(&leaf(5));
    for bad in [
        b"le".to_vec(),
        b"d1:ni5ee".to_vec(),
        b"d1:nd0:i5eee".to_vec(),
        one(),
        folder(&[("n", DictWriter::new().raw(b"", leaf(5).finish()).raw(b"x", one()).finish())]),
        [&b"d1:b"[..], &one(), b"1:a", &one(), b"e"].concat(),
    ] {
        let shown = bad.escape_ascii().to_string();
        assert_eq!(error(&v2(bad)), InfoError::Invalid("file tree"), "{shown}");
    }
    for bad in [
        DictWriter::new(),
        leaf(-1),
        DictWriter::new().int(b"length", 5).clone(),
        leaf(5).bytes(b"pieces root", &[0; 32]).clone(),
        leaf(5).bytes(b"pieces root", &[7; 31]).clone(),
        leaf(5).bytes(b"attr", b"p").clone(),
        leaf(5).bytes(b"attr", b"l").clone(),
        leaf(5).raw(b"length", &b"1:5"[..]).clone(),
    ] {
        let tree = folder(&[("a", one()), ("b", file(&bad))]);
        assert_eq!(error(&v2(tree)), InfoError::BadFile(2), "{bad:?}");
    }
    for empty in [folder(&[]), folder(&[("n", file(&leaf(0)))]), folder(&[("d", folder(&[]))])] {
        assert_eq!(error(&v2(empty)), InfoError::Empty);
    }
}

#[test]
fn numbers_beyond_reason_are_refused() {
    let tree = || folder(&[("n", file(&leaf(5)))]);
    for bad in [1, 8192, 16_385, 49_152] {
        let dict = v2(tree()).int(b"piece length", bad).clone();
        assert_eq!(error(&dict), InfoError::Invalid("piece length"), "{bad}");
    }
    for bad in [0, 1 << 27, i64::MAX] {
        assert!(matches!(error(v2(tree()).int(b"piece length", bad)), InfoError::Geometry(_)));
    }
    let huge = || file(&leaf(i64::MAX));
    assert!(matches!(error(&v2(folder(&[("a", huge())]))), InfoError::Geometry(_)));
    let overflowing = folder(&[("a", huge()), ("b", huge()), ("c", huge())]);
    assert_eq!(error(&v2(overflowing)), InfoError::Invalid("length"));
}

/// Each file has the path of its folder, which is in the description once.
#[test]
fn paths_that_would_fill_the_memory_are_refused() {
    let name = "x".repeat(1 << 20);
    let files: Vec<_> = (0..300).map(|i| (format!("{i:03}"), file(&leaf(1)))).collect();
    let files: Vec<_> = files.iter().map(|(name, f)| (&name[..], f.clone())).collect();
    assert_eq!(error(&v2(folder(&[(&name, folder(&files))]))), InfoError::TooManyFiles);
}

#[test]
fn both_halves_of_a_hybrid_must_agree() {
    let one = |name, length| folder(&[(name, file(&leaf(length)))]);
    let raw = hybrid(&single(5), one("n", 5));
    let info = Info::parse(&raw[..]).unwrap();
    assert_eq!(info.info_hash_v1(), Some(InfoHash::of(&raw)));
    assert_eq!(info.info_hash_v2(), Some(InfoHashV2::of(&raw)));
    assert_eq!(info.v2.unwrap().roots, [Some([7; 32])]);
    for bad in [one("n", 6), one("x", 5), folder(&[])] {
        assert_eq!(Info::parse(hybrid(&single(5), bad)), Err(InfoError::Inconsistent));
    }
    let odd = single(40_000).int(b"piece length", 20_000).bytes(b"pieces", &[0; 40]).clone();
    let odd = Info::parse(hybrid(&odd, one("n", 40_000)));
    assert_eq!(odd, Err(InfoError::Invalid("piece length")));
}

#[test]
fn files_of_a_hybrid_begin_with_a_piece_and_come_in_order() {
    let tree = || {
        let a = folder(&[("x", file(&leaf(16_380))), ("y", file(&leaf(0)))]);
        folder(&[("a", a), ("b", file(&leaf(9)))])
    };
    let (x, y, b) = (entry(&["a", "x"], 16_380), entry(&["a", "y"], 0), entry(&["b"], 9));
    let (x, y, b) = (x.finish(), y.finish(), b.finish());
    let pad = |length| DictWriter::new().int(b"length", length).bytes(b"attr", b"p").finish();
    let tail = pad(16_375);
    let with_tail = [x.clone(), pad(4), y.clone(), b.clone(), tail];
    let good = Info::parse(hybrid(&listed(32_768, &with_tail), tree())).unwrap();
    assert_eq!(good.v2.unwrap().roots, [Some([7; 32]), None, None, Some([7; 32]), None]);
    for (total, bad) in [
        (16_393, vec![x.clone(), pad(4), b.clone(), y.clone()]),
        (16_384, vec![x.clone(), pad(4), y.clone()]),
        (16_402, vec![x.clone(), y.clone(), pad(13), b.clone()]),
        (16_389, vec![x.clone(), y.clone(), b.clone()]),
        (16_394, vec![x.clone(), pad(4), y.clone(), b.clone(), entry(&["c"], 1).finish()]),
    ] {
        let refused = Info::parse(hybrid(&listed(total, &bad), tree()));
        assert_eq!(refused, Err(InfoError::Inconsistent));
    }
}

#[test]
fn links_of_both_halves_lead_to_the_same() {
    let link = |to: &str| {
        let to = ListWriter::of_bytes([to]).finish();
        (leaf(0).bytes(b"attr", b"l").raw(b"symlink path", to.clone()).clone(), to)
    };
    let tree = |to| folder(&[("a", file(&leaf(5))), ("l", file(&link(to).0))]);
    let v1_link = entry(&["l"], 0).bytes(b"attr", b"l").raw(b"symlink path", link("a").1).finish();
    let v1 = listed(5, &[entry(&["a"], 5).finish(), v1_link]);
    assert!(Info::parse(hybrid(&v1, tree("a"))).is_ok());
    assert_eq!(Info::parse(hybrid(&v1, tree("b"))), Err(InfoError::Inconsistent));
}

/// A .torrent of one file of `pieces` pieces, with its layer.
fn with_layer(pieces: u8) -> (DictWriter, Vec<Hash>) {
    let layer: Vec<Hash> = (1..=pieces).map(|i| [i; 32]).collect();
    let height = layer.len().next_power_of_two().trailing_zeros();
    let root = subtree_root(&layer, 0, height);
    let length = i64::from(pieces) * 16_384 - 5;
    let info = v2(folder(&[("n", file(leaf(length).bytes(b"pieces root", &root)))]));
    let mut torrent = DictWriter::new();
    torrent.raw(b"info", info.finish());
    torrent.raw(b"piece layers", layers(&[(&root, &layer)]));
    (torrent, layer)
}

fn layers(all: &[(&[u8], &[Hash])]) -> Vec<u8> {
    let mut dict = DictWriter::new();
    for (root, layer) in all {
        dict.bytes(root, layer.as_flattened());
    }
    dict.finish()
}

#[test]
fn piece_layers_are_those_of_the_roots_or_missing() {
    let (torrent, layer) = with_layer(5);
    let read = Metainfo::parse(&torrent.finish()).unwrap();
    let root = read.info.v2.as_ref().unwrap().roots[0].unwrap();
    assert_eq!(read.piece_layers.get(&root), Some(&layer[..]));
    assert_eq!(Metainfo::parse(&read.to_bytes()), Ok(read));

    let none = Metainfo::parse(&torrent.clone().raw(b"piece layers", &b"de"[..]).finish()).unwrap();
    assert!(none.piece_layers.is_empty() && none.piece_layers.get(&root).is_none());

    let mut wrong = layer.clone();
    wrong[4][0] ^= 1;
    let other = subtree_root(&wrong, 0, 3);
    // The padding written out leads to the same root.
    let longer = [&layer[..], &[[0; 32]]].concat();
    for bad in [
        layers(&[(&root, &wrong)]),
        layers(&[(&root, &layer[..4])]),
        layers(&[(&root, &longer)]),
        layers(&[(&root, &[])]),
        layers(&[(&root, &layer), (&other, &wrong)]),
        layers(&[(&root[..31], &layer)]),
        DictWriter::new().bytes(&root, &layer.as_flattened()[1..]).finish(),
        DictWriter::new().int(&root, 5).finish(),
        b"le".to_vec(),
    ] {
        let shown = bad.escape_ascii().to_string();
        let file = torrent.clone().raw(b"piece layers", bad).finish();
        assert_eq!(Metainfo::parse(&file), Err(MetainfoError::PieceLayers), "{shown}");
    }
}

#[test]
fn the_piece_layer_of_a_file_of_one_piece_is_left_out() {
    let small = with_layer(1).0;
    let read = Metainfo::parse(&small.clone().raw(b"piece layers", &b"de"[..]).finish());
    let root = read.as_ref().unwrap().info.v2.as_ref().unwrap().roots[0].unwrap();
    for layer in [&[root][..], &[], &[[5; 32]]] {
        let file = small.clone().raw(b"piece layers", layers(&[(&root, layer)])).finish();
        assert_eq!(Metainfo::parse(&file), read);
    }
}

#[test]
fn the_magnet_of_a_hybrid_has_both_hashes() {
    let info = hybrid(&single(5), folder(&[("n", file(&leaf(5)))]));
    let both = Metainfo::parse(&DictWriter::new().raw(b"info", info.clone()).finish()).unwrap();
    let magnet = Magnet::parse(&both.magnet().to_string()).unwrap();
    assert_eq!(magnet.info_hash_v1(), Some(InfoHash::of(&info)));
    assert_eq!(magnet.info_hash_v2, Some(InfoHashV2::of(&info)));
    let (v2_only, _) = with_layer(3);
    let magnet = Metainfo::parse(&v2_only.finish()).unwrap().magnet().to_string();
    assert!(magnet.starts_with("magnet:?xt=urn:btmh:1220") && !magnet.contains("btih"), "{magnet}");
}

fn build(files: Vec<FileEntry>, version: Version) -> Result<Metainfo, BuildError> {
    let options = BuildOptions { version, piece_length: Some(16_384), ..BuildOptions::default() };
    let mut builder = Builder::new("n", files, options)?;
    for i in 0..builder.geometry().piece_count() {
        builder.push_piece([i as u8; 20]);
        builder.push_root([i as u8 + 1; 32]);
    }
    builder.finish()
}

fn path(parts: &str) -> Vec<Vec<u8>> {
    parts.split('/').map(|part| part.as_bytes().to_vec()).collect()
}

#[test]
fn a_hybrid_is_padded_and_its_halves_agree() {
    let link = FileEntry { symlink: Some(path("a/x")), ..FileEntry::new(path("l"), 0) };
    let tool = FileEntry { executable: true, ..FileEntry::new(path("a-b"), 5) };
    let files =
        vec![link, tool, FileEntry::new(path("a/x"), 40_000), FileEntry::new(path("a/e"), 0)];
    let built = build(files.clone(), Version::Hybrid).unwrap();
    let info = &built.info;
    let shown: Vec<_> = info.files.iter().map(|f| (f.path.join(&b'/'), f.length)).collect();
    let expected: &[(&[u8], u64)] = &[
        (b"a/e", 0),
        (b"a/x", 40_000),
        (b".pad/9152", 9152),
        (b"a-b", 5),
        (b".pad/16379", 16_379),
        (b"l", 0),
    ];
    assert_eq!(shown.iter().map(|(p, n)| (&p[..], *n)).collect::<Vec<_>>(), expected);
    let root = subtree_root(&[[1; 32], [2; 32], [3; 32]], 0, 2);
    let roots = [None, Some(root), None, Some([4; 32]), None, None];
    assert_eq!(info.v2.as_ref().unwrap().roots, roots);
    assert_eq!(built.piece_layers.get(&root), Some(&[[1; 32], [2; 32], [3; 32]][..]));
    assert_eq!(Metainfo::parse(&built.to_bytes()), Ok(built.clone()));
    assert_eq!(build(files.into_iter().rev().collect(), Version::Hybrid), Ok(built));
}

#[test]
fn one_file_is_never_padded() {
    for name in ["", "d/x"] {
        let parts = if name.is_empty() { Vec::new() } else { path(name) };
        let info = build(vec![FileEntry::new(parts, 5)], Version::Hybrid).unwrap().info;
        assert_eq!((info.files.len(), info.geometry.total()), (1, 5));
        assert_eq!(info.single_file, name.is_empty());
    }
}

#[test]
fn what_cannot_be_a_v2_torrent_is_not_built() {
    let files = |paths: [&str; 2]| paths.map(|p| FileEntry::new(path(p), 5)).to_vec();
    assert_eq!(build(files(["a", "a/b"]), Version::V2), Err(BuildError::Twice("a".into())));
    assert!(build(files(["a", "a/b"]), Version::V1).is_ok());
    let deep = vec!["d"; 121].join("/");
    assert_eq!(build(files(["a", &deep]), Version::Hybrid), Err(BuildError::TooDeep(deep.clone())));
    assert!(build(files(["a", &deep[2..]]), Version::V2).is_ok());
    let options = BuildOptions { version: Version::V2, ..BuildOptions::default() };
    let early = Builder::new("n", files(["a", "b"]), options).unwrap().finish();
    assert_eq!(early, Err(BuildError::Pieces { found: 0, needed: 2 }));
}

/// A tree of any files and folders.
fn any_tree() -> impl Strategy<Value = Vec<u8>> {
    let leaf =
        (0i64..100_000, prop::option::of(prop::sample::select(vec!["x", "h", "l", "p", "lx"])))
            .prop_map(|(length, attr)| {
                let mut leaf = leaf(length);
                if let Some(attr) = attr {
                    leaf.bytes(b"attr", attr.as_bytes());
                }
                file(&leaf)
            });
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop::collection::btree_map("[a-c./]{0,2}", inner, 0..6).prop_map(|all| {
            let all: Vec<_> = all.iter().map(|(name, entry)| (&name[..], entry.clone())).collect();
            folder(&all)
        })
    })
}

proptest! {
    #[test]
    fn any_tree_is_read_or_refused(tree in any_tree(), piece_length in 14u32..18) {
        let mut dict = v2(tree);
        dict.int(b"piece length", 1 << piece_length);
        if let Ok(info) = Info::parse(dict.finish()) {
            let (piece, roots) = (1u64 << piece_length, &info.v2.as_ref().unwrap().roots);
            prop_assert_eq!(roots.len(), info.files.len());
            let mut end = 0;
            for (file, root) in info.files.iter().zip(roots) {
                prop_assert_eq!(file.offset, end);
                end += file.length;
                prop_assert!(file.pad || file.length == 0 || file.offset % piece == 0);
                prop_assert_eq!(root.is_some(), !file.pad && file.length > 0);
                prop_assert!(!file.pad || file.length < piece);
            }
            prop_assert_eq!(end, info.geometry.total());
            let _ = layout::Layout::new(&info);
        }
    }

    #[test]
    fn what_is_built_is_read_back(
        lengths in prop::collection::btree_map("[a-c]{1,2}(/[a-c.-]{3}){0,2}", 0u64..100_000, 1..12),
        version in prop::sample::select(vec![Version::V1, Version::V2, Version::Hybrid]),
    ) {
        let files = lengths.iter().map(|(name, length)| FileEntry::new(path(name), *length));
        let Ok(built) = build(files.collect(), version) else { return Ok(()) };
        let of_files = built.info.files.iter().filter(|f| !f.pad);
        let of_files: std::collections::BTreeMap<_, _> = of_files
            .map(|f| (String::from_utf8(f.path.join(&b'/')).unwrap(), f.length))
            .collect();
        prop_assert_eq!(of_files, lengths);
        prop_assert_eq!(built.info.info_hash_v1().is_some(), version != Version::V2);
        prop_assert_eq!(built.info.info_hash_v2().is_some(), version != Version::V1);
        prop_assert_eq!(Metainfo::parse(&built.to_bytes()), Ok(built));
    }

    #[test]
    fn mutated_torrents_are_read_or_refused(
        pieces in 2u8..20,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = with_layer(pieces).0.finish();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(read) = Metainfo::parse(&bytes) {
            prop_assert_eq!(Metainfo::parse(&read.to_bytes()), Ok(read));
        }
    }
}
