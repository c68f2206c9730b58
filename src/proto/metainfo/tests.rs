//! Tests of the info dictionary, .torrent files and the builder together.

mod v2;

use proptest::prelude::*;

use super::*;
use crate::proto::bencode::{Dict, DictWriter, Fault, Limits, ListWriter};
use crate::proto::ids::InfoHash;

/// An info dictionary of one file of `length` bytes in pieces of 16 KiB, for tests to change.
fn single(length: i64) -> DictWriter {
    let pieces = usize::try_from(length).unwrap().div_ceil(16_384);
    let mut dict = DictWriter::new();
    dict.bytes(b"name", b"n").int(b"piece length", 16_384).int(b"length", length);
    dict.bytes(b"pieces", &vec![7; pieces * 20]);
    dict
}

/// The same with a list of files, `total` bytes long.
fn listed(total: i64, files: &[Vec<u8>]) -> DictWriter {
    let mut dict = DictWriter::new();
    let mut list = ListWriter::new();
    for file in files {
        list.raw(file);
    }
    let pieces = usize::try_from(total).unwrap().div_ceil(16_384);
    dict.bytes(b"name", b"n").int(b"piece length", 16_384).raw(b"files", list.finish());
    dict.bytes(b"pieces", &vec![7; pieces * 20]);
    dict
}

fn entry(path: &[&str], length: i64) -> DictWriter {
    let mut dict = DictWriter::new();
    dict.int(b"length", length).raw(b"path", ListWriter::of_bytes(path).finish());
    dict
}

fn error(dict: &DictWriter) -> InfoError {
    Info::parse(dict.finish()).unwrap_err()
}

#[test]
fn a_single_file_is_read() {
    let raw = single(40_000).int(b"private", 1).bytes(b"attr", b"x").finish();
    let info = Info::parse(&raw[..]).unwrap();
    assert_eq!(info.info_hash, InfoHash::of(&raw));
    assert_eq!((info.raw.clone(), info.name.clone()), (raw, b"n".to_vec()));
    assert!(info.single_file && info.private);
    assert_eq!((info.geometry.total(), info.geometry.piece_count()), (40_000, 3));
    assert_eq!(info.piece_hashes, [[7; 20]; 3]);
    let expected = FileEntry { executable: true, ..FileEntry::new(vec![b"n".to_vec()], 40_000) };
    assert_eq!(info.files, [expected]);
}

#[test]
fn bitcomets_padding_is_part_of_the_pieces_and_not_shown() {
    let padding = "_____padding_file_0_if you see this file, please update to BitComet 0.85____";
    let files = [(&["a"][..], 4), (&[padding], 5), (&["d", padding], 6), (&[padding, "b"], 7)]
        .map(|(path, length)| entry(path, length).finish());
    let info = Info::parse(listed(22, &files).finish()).unwrap();
    assert_eq!(info.geometry.total(), 22);
    let shown = layout::Layout::new(&info).entries.into_iter().map(|entry| entry.path);
    assert_eq!(shown.collect::<Vec<_>>(), [path(&["a"]), path(&[padding, "b"])]);
    let alone = single(1).bytes(b"name", padding.as_bytes()).finish();
    assert_eq!(layout::Layout::new(&Info::parse(alone).unwrap()).entries.len(), 1);
}

#[test]
fn any_number_but_0_makes_a_torrent_private() {
    let private = |dict: &DictWriter| Info::parse(dict.finish()).unwrap().private;
    for yes in [1, 2, -1] {
        assert!(private(single(1).int(b"private", yes)), "{yes}");
    }
    assert!(!private(single(1).int(b"private", 0)));
    assert!(!private(single(1).bytes(b"private", b"1")));
}

#[test]
fn names_marked_as_utf8_that_are_none_give_way_to_the_others() {
    let file = |utf8: &[u8]| entry(&["a"], 1).raw(b"path.utf-8", utf8).finish();
    let target = ListWriter::of_bytes(["a"]).finish();
    let mut link = entry(&["l"], 0);
    link.bytes(b"attr", b"l").raw(b"symlink path", target).int(b"symlink path.utf-8", 1);
    let files = [file(b"1:x"), file(b"li1ee"), link.finish()];
    let info = Info::parse(listed(2, &files).int(b"name.utf-8", 1).finish()).unwrap();
    assert_eq!((&info.name[..], &info.files[2].symlink), (&b"n"[..], &Some(path(&["a"]))));
    assert_eq!([&info.files[0].path, &info.files[1].path], [&path(&["a"]), &path(&["a"])]);
}

#[test]
fn files_follow_each_other_with_their_attributes() {
    let target = ListWriter::of_bytes(["d", "b"]).finish();
    let raw = listed(
        10,
        &[
            entry(&["a"], 0).bytes(b"attr", b"xh").int(b"mtime", 1_234).finish(),
            entry(&["d", "b"], 4).finish(),
            DictWriter::new().bytes(b"attr", b"p").int(b"length", 5).finish(),
            entry(&["l"], 0).bytes(b"attr", b"l").raw(b"symlink path", target).finish(),
            entry(&["raw"], 1).raw(b"path.utf-8", ListWriter::of_bytes(["é"]).finish()).finish(),
        ],
    );
    let files = Info::parse(raw.finish()).unwrap().files;
    assert_eq!(files.iter().map(|f| f.offset).collect::<Vec<_>>(), [0, 0, 4, 9, 9]);
    assert!(files[0].executable && files[0].hidden && files[0].mtime == Some(1_234));
    assert_eq!(files[1].path, [b"d", b"b"]);
    assert!(files[2].pad && files[2].path.is_empty());
    assert_eq!(files[3].symlink.as_deref(), Some(&[b"d".to_vec(), b"b".to_vec()][..]));
    assert_eq!(files[4].path, ["é".as_bytes()]);
}

#[test]
fn the_hash_is_that_of_the_bytes_as_found() {
    // SHA-1 by another program, of bytes that a canonical writer would sort.
    let raw = b"d6:pieces20:aaaaaaaaaaaaaaaaaaaa4:name1:n6:lengthi1e12:piece lengthi1ee";
    let file = [b"d4:info", &raw[..], b"e"].concat();
    let info = &Metainfo::parse(&file).unwrap().info;
    assert_eq!(info.raw, raw);
    assert_eq!(info.info_hash.to_string(), "70f63608f572b79356410cb1aec086add7ae237f");
}

#[test]
fn what_every_torrent_has_must_be_there() {
    for key in ["name", "piece length", "pieces", "length"] {
        let mut without = DictWriter::new();
        let all = single(1).finish();
        let all = Dict::parse(&all, Limits::INFO).unwrap();
        for (k, v) in all.iter().filter(|(k, _)| *k != key.as_bytes()) {
            without.raw(k, v.raw());
        }
        assert_eq!(error(&without), InfoError::Missing(key));
        assert_eq!(error(single(1).raw(key.as_bytes(), b"le")), InfoError::Invalid(key));
    }
    assert_eq!(error(single(1).int(b"length", -1)), InfoError::Invalid("length"));
    assert_eq!(error(single(1).int(b"files", 1)), InfoError::Invalid("files"));
}

#[test]
fn files_without_path_or_length_are_refused() {
    for bad in [
        DictWriter::new().int(b"length", 1).finish(),
        entry(&["a"], -1).finish(),
        DictWriter::new().raw(b"path", &b"l1:ae"[..]).finish(),
        DictWriter::new().raw(b"path", &b"li1ee"[..]).int(b"length", 1).finish(),
        entry(&vec!["a"; 513], 1).finish(),
        b"le".to_vec(),
    ] {
        let dict = listed(1, &[entry(&["ok"], 1).finish(), bad]);
        assert_eq!(error(&dict), InfoError::BadFile(2));
    }
}

#[test]
fn a_few_files_may_have_one_name_but_not_very_many() {
    let of = |count: i64, file: DictWriter| {
        Info::parse(listed(count, &vec![file.finish(); usize::try_from(count).unwrap()]).finish())
    };
    assert_eq!(of(50, entry(&["a"], 1)).unwrap().files.len(), 50);
    assert_eq!(of(51, entry(&["a"], 1)).unwrap_err(), InfoError::TooManyOfOneName);
    let mut padding = entry(&["pad"], 1);
    padding.bytes(b"attr", b"p");
    assert_eq!(of(51, padding).unwrap().files.len(), 51);
}

#[test]
fn there_must_be_one_hash_a_piece() {
    assert_eq!(
        error(single(40_000).bytes(b"pieces", &[0; 40])),
        InfoError::PieceHashes { found: 40, needed: 3 }
    );
    assert_eq!(
        error(single(40_000).bytes(b"pieces", &[0; 59])),
        InfoError::PieceHashes { found: 59, needed: 3 }
    );
}

#[test]
fn numbers_beyond_reason_are_refused() {
    assert_eq!(error(&single(0)), InfoError::Empty);
    assert_eq!(error(&listed(0, &[])), InfoError::Empty);
    for bad in [0, 1 << 40] {
        assert!(matches!(error(single(1).int(b"piece length", bad)), InfoError::Geometry(_)));
    }
    let huge = entry(&["a"], i64::MAX).finish();
    let overflowing = listed(1, &[huge.clone(), huge.clone(), huge]);
    assert_eq!(error(&overflowing), InfoError::Invalid("length"));
}

/// A .torrent around an info dictionary.
fn torrent(info: &DictWriter) -> DictWriter {
    let mut dict = DictWriter::new();
    dict.raw(b"info", info.finish());
    dict
}

#[test]
fn everything_around_the_info_dictionary_is_read() {
    let mut file = torrent(&single(1));
    file.bytes(b"announce", b"http://ignored.example").bytes(b"comment", b"c\xff");
    file.raw(b"announce-list", &b"ll4:a:1 3:b:2el3:a:13:c:3ei7ee"[..]);
    file.raw(b"nodes", &b"ll9:192.0.2.1i6881eel1:xi0eel1:xi65536eei1ee"[..]);
    file.raw(b"url-list", &b"l0:5:w://a5:w://ai1ee"[..]);
    file.int(b"creation date", -5).bytes(b"created by", b"p").bytes(b"created by.utf-8", b"q");
    let read = Metainfo::parse(&file.finish()).unwrap();
    assert_eq!(read.trackers, [vec!["a:1", "b:2"], vec!["c:3"]]);
    assert_eq!(read.nodes, [("192.0.2.1".to_owned(), 6881)]);
    assert_eq!(read.web_seeds, ["w://a"]);
    assert_eq!(read.comment.as_deref(), Some("c\u{fffd}"));
    assert_eq!((read.created_by.as_deref(), read.creation_date), (Some("q"), Some(-5)));
}

#[test]
fn announce_counts_when_there_is_no_list() {
    let mut file = torrent(&single(1));
    file.bytes(b"announce", b"\t udp://t.example").bytes(b"url-list", b"http://w.example/");
    file.raw(b"announce-list", &b"ll0:ee"[..]);
    let read = Metainfo::parse(&file.finish()).unwrap();
    assert_eq!(read.trackers, [["udp://t.example"]]);
    assert_eq!(read.web_seeds, ["http://w.example/"]);
}

#[test]
fn what_comes_after_the_end_of_a_torrent_file_is_not_looked_at() {
    let whole = torrent(&single(1)).finish();
    let read = Metainfo::parse(&whole);
    assert!(read.is_ok());
    for more in [&b"\n"[..], b"\0\0", b"e", &whole] {
        assert_eq!(Metainfo::parse(&[&whole[..], more].concat()), read);
    }
}

#[test]
fn what_is_no_torrent_file_is_refused_in_one_line() {
    for (bytes, what) in [
        (&b"<html>"[..], "not a torrent file"),
        (b"", "not a torrent file"),
        (b"de", "no `info`"),
        (b"d4:infoi1ee", "no `info`"),
        (b"d4:infodee", "no `name`"),
    ] {
        let error = Metainfo::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(what) && !error.contains('\n'), "{error}");
    }
    let deep = [&b"d4:info"[..], &b"l".repeat(100_000)].concat();
    let error = Metainfo::parse(&deep).unwrap_err();
    assert!(matches!(error, MetainfoError::Bencode(e) if e.fault == Fault::TooDeep));
}

#[test]
fn a_magnet_link_names_the_torrent() {
    let mut file = torrent(single(1).bytes(b"name", b"a\xff"));
    file.raw(b"announce-list", &b"ll3:a:1el3:b:2ee"[..]).bytes(b"url-list", b"w:3");
    let read = Metainfo::parse(&file.finish()).unwrap();
    let magnet = Magnet::parse(&read.magnet().to_string()).unwrap();
    assert_eq!(magnet.info_hash, read.info.info_hash);
    assert_eq!(magnet.name.as_deref(), Some("a\u{fffd}"));
    assert_eq!(
        (magnet.trackers, magnet.web_seeds),
        (vec!["a:1".into(), "b:2".into()], vec!["w:3".to_owned()])
    );
}

fn build(name: &str, files: Vec<FileEntry>, options: BuildOptions) -> Result<Metainfo, BuildError> {
    let mut builder = Builder::new(name, files, options)?;
    for i in 0..builder.geometry().piece_count() {
        builder.push_piece([i as u8; 20]);
    }
    builder.finish()
}

fn path(parts: &[&str]) -> Vec<Vec<u8>> {
    parts.iter().map(|p| p.as_bytes().to_vec()).collect()
}

#[test]
fn a_tree_is_built_in_the_order_of_its_paths() {
    let link = FileEntry { symlink: Some(path(&["a", "x"])), ..FileEntry::new(path(&["l"]), 0) };
    let tool = FileEntry { executable: true, mtime: Some(9), ..FileEntry::new(path(&["b"]), 5) };
    let files = vec![link, tool, FileEntry::new(path(&["a", "x"]), 20_000)];
    let options = BuildOptions { private: true, ..BuildOptions::default() };
    let built = build("n", files.clone(), options.clone()).unwrap();
    let names: Vec<_> = built.info.files.iter().map(|f| f.path.concat()).collect();
    assert_eq!(names, [&b"ax"[..], b"b", b"l"]);
    assert!(built.info.files[1].executable && built.info.private);
    assert_eq!(built.info.files[2].symlink, Some(path(&["a", "x"])));
    assert_eq!(built.info.piece_hashes, [[0; 20], [1; 20]]);
    let again = build("n", files.into_iter().rev().collect(), options).unwrap();
    assert_eq!(again.to_bytes(), built.to_bytes());
}

#[test]
fn one_file_without_a_path_is_a_single_file() {
    let built = build("n", vec![FileEntry::new(vec![], 5)], BuildOptions::default()).unwrap();
    assert!(built.info.single_file);
    assert_eq!(built.info.raw, b"d6:lengthi5e4:name1:n12:piece lengthi16384e6:pieces20:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0e");
    assert_eq!(Metainfo::parse(&built.to_bytes()), Ok(built));
}

#[test]
fn what_cannot_be_a_torrent_is_not_built() {
    let one = |parts: &[&str]| vec![FileEntry::new(path(parts), 5)];
    let build = |files| build("n", files, BuildOptions::default());
    for bad in [&["..", "a"][..], &["a/b"], &["\0"], &["a", ""]] {
        assert!(matches!(build(one(bad)), Err(BuildError::Path(_))));
    }
    assert_eq!(build([one(&["a"]), one(&["a"])].concat()), Err(BuildError::Twice("a".into())));
    assert_eq!(build(vec![]), Err(BuildError::Info(InfoError::Empty)));
    for bad in [0, 8192, 16_385] {
        let options = BuildOptions { piece_length: Some(bad), ..BuildOptions::default() };
        let refused = Builder::new("n", one(&["a"]), options).err();
        assert_eq!(refused, Some(BuildError::PieceLength(bad)));
    }
    let early = Builder::new("n", one(&["a"]), BuildOptions::default()).unwrap().finish();
    assert_eq!(early, Err(BuildError::Pieces { found: 0, needed: 1 }));
}

#[test]
fn the_default_piece_length_grows_with_the_torrent() {
    const MIB: u64 = 1024 * 1024;
    for (total, length) in [
        (0, 16_384),
        (MIB, 16_384),
        (2_684_355, 16_384),
        (2_684_356, 32_768),
        (100 * MIB, 128 * 1024),
        (1024 * MIB, 512 * 1024),
        (100 * 1024 * MIB, 4 * 1024 * 1024),
        (u64::MAX, 16 * 1024 * 1024),
    ] {
        assert_eq!(default_piece_length(total), length, "{total}");
    }
}

prop_compose! {
    fn any_metainfo()(
        files in prop::collection::btree_map(
            prop::collection::vec("[a-zé\\\\ ]{1,5}", 1..4),
            (0u64..200_000, any::<bool>(), prop::option::of(any::<i64>())),
            1..8,
        ),
        private: bool,
        tiers in prop::collection::vec(1usize..3, 0..3),
        seeds in prop::collection::btree_set("[!-~]{1,20}", 0..3),
        comment in prop::option::of(".{0,20}"),
        creation_date: Option<i64>,
    ) -> Metainfo {
        let files = files.into_iter().map(|(path, (length, executable, mtime))| FileEntry {
            executable, mtime, ..FileEntry::new(path.into_iter().map(String::into_bytes).collect(), length + 1)
        }).collect();
        let trackers = tiers.iter().enumerate()
            .map(|(i, n)| (0..*n).map(|j| format!("http://t{i}.example/{j}")).collect()).collect();
        let web_seeds = seeds.into_iter().collect();
        let created_by = comment.clone();
        let options = BuildOptions { private, trackers, web_seeds, comment, created_by, creation_date, ..BuildOptions::default() };
        build("name", files, options).unwrap()
    }
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(metainfo in any_metainfo()) {
        prop_assert_eq!(Metainfo::parse(&metainfo.to_bytes()), Ok(metainfo));
    }

    #[test]
    fn mutated_torrents_are_read_or_refused(
        metainfo in any_metainfo(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = metainfo.to_bytes();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Ok(read) = Metainfo::parse(&bytes) {
            let total: u64 = read.info.files.iter().map(|f| f.length).sum();
            prop_assert_eq!(total, read.info.geometry.total());
            prop_assert_eq!(read.info.piece_hashes.len(), read.info.geometry.piece_count() as usize);
            let _ = layout::Layout::new(&read.info);
            prop_assert_eq!(Metainfo::parse(&read.to_bytes()), Ok(read));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = Metainfo::parse(&bytes);
        let _ = Info::parse(bytes);
    }
}
