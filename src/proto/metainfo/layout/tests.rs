use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::proto::geometry::Geometry;
use crate::proto::ids::InfoHash;
use crate::proto::metainfo::FileEntry;

fn info(files: Vec<FileEntry>) -> Info {
    Info {
        info_hash: InfoHash::new([0xab; 20]),
        raw: Vec::new(),
        name: b"name".to_vec(),
        geometry: Geometry::new(1, 1).unwrap(),
        piece_hashes: vec![[0; 20]],
        files,
        single_file: false,
        v2: None,
        private: false,
    }
}

/// A path whose parts are separated by `|`, so that `/` can be one of their bytes.
fn parts(path: &str) -> Vec<Vec<u8>> {
    path.split('|').map(|p| p.as_bytes().to_vec()).collect()
}

fn file(path: &str) -> FileEntry {
    FileEntry::new(parts(path), 1)
}

fn link(path: &str, target: &str) -> FileEntry {
    FileEntry { symlink: Some(parts(target)), ..FileEntry::new(parts(path), 0) }
}

fn shown(path: &[Vec<u8>]) -> String {
    path.iter().map(|p| String::from_utf8_lossy(p)).collect::<Vec<_>>().join("/")
}

/// What the tree shows: paths, for links with ` -> ` and the target.
fn tree(files: Vec<FileEntry>) -> Vec<String> {
    let entries = Layout::new(&info(files)).entries;
    let line = |e: Entry| match e.kind {
        EntryKind::File(_) => shown(&e.path),
        EntryKind::Symlink(to) => format!("{} -> {}", shown(&e.path), String::from_utf8_lossy(&to)),
    };
    entries.into_iter().map(line).collect()
}

fn names(paths: &[&str]) -> Vec<String> {
    tree(paths.iter().map(|p| file(p)).collect())
}

#[test]
fn ordinary_names_stay_byte_for_byte() {
    let odd = ["a\\b", "\u{1}\n", "A", "a", " ", "-", "~", "...", "é", "CON", "a."];
    assert_eq!(names(&odd), odd);
    let raw = vec![vec![0xff, 0xfe], vec![0xc3]];
    let layout = Layout::new(&info(vec![FileEntry::new(raw.clone(), 1)]));
    assert_eq!(layout.entries[0].path, raw);
}

#[test]
fn names_that_lead_elsewhere_are_made_harmless() {
    assert_eq!(names(&["..|..|bar"]), ["bar"]);
    assert_eq!(names(&["a|.||b"]), ["a/b"]);
    assert_eq!(names(&["/|\0|foo/../bar"]), ["_/_/foo_.._bar"]);
    assert_eq!(names(&["..", "x"]), ["ab".repeat(20), "x".to_owned()]);
}

#[test]
fn padding_is_left_out_and_indexes_are_kept() {
    let pad = FileEntry { pad: true, ..file("pad") };
    let layout = Layout::new(&info(vec![file("a"), pad, file("b")]));
    let kinds: Vec<_> = layout.entries.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [EntryKind::File(0), EntryKind::File(2)]);
}

#[test]
fn the_first_of_the_same_name_keeps_it() {
    assert_eq!(names(&["d|a.txt"; 3]), ["d/a.txt", "d/a.1.txt", "d/a.2.txt"]);
    assert_eq!(names(&["a", "a", "a.1"]), ["a", "a.2", "a.1"]);
    assert_eq!(names(&[".rc", ".rc"]), [".rc", ".rc.1"]);
}

#[test]
fn a_folder_keeps_its_name_against_files() {
    assert_eq!(names(&["foo", "foo|bar", "foo"]), ["foo.1", "foo/bar", "foo.2"]);
    assert_eq!(names(&["a/b|x", "a_b", "a_b|x"]), ["a_b/x", "a_b.1", "a_b/x.1"]);
}

#[test]
fn long_names_are_shortened_with_their_extension() {
    let (a, b) = (format!("{}a.tar", "é".repeat(200)), format!("{}b.tar", "é".repeat(200)));
    let short = names(&[&a, &b, &a]);
    assert!(short.iter().all(|n| n.len() <= 255 && n.ends_with(".tar") && n.starts_with("éé")));
    let odd = names(&[&format!("x{}", "é".repeat(200))]);
    assert!(!odd[0].contains('\u{fffd}'), "{odd:?}");
    assert!(short[0] != short[1] && short[0] != short[2] && !short[0].contains('\u{fffd}'));
    assert_eq!(names(&["x".repeat(255).as_str()]), ["x".repeat(255)]);
    let folder = format!("{}|x", "f".repeat(300));
    let same = names(&[&folder, &folder]);
    assert_eq!(same[0].split_once('/').unwrap().0, same[1].split_once('/').unwrap().0);
}

#[test]
fn long_and_deep_paths_are_bounded() {
    let long = vec!["x".repeat(250); 30].join("|");
    let other = format!("{long}|y");
    let deep = vec!["d"; 500].join("|");
    let all = names(&[&long, &other, &deep, &deep]);
    assert!(all.iter().all(|p| p.len() < 3900 && p.split('/').count() <= 128));
    assert!(all[1].ends_with("/y") && all[2] != all[3]);
    let folders = names(&[&format!("{long}|ab|c|f"), &format!("{long}|a|bc|f")]);
    assert!(folders[0] != folders[1] && folders.iter().all(|p| p.ends_with("/f")));
}

#[test]
fn links_are_relative_to_where_they_are() {
    let links = vec![
        link("Headers", "Versions|Current|Headers"),
        link("Versions|Current", "Versions|A"),
        link("Versions|A|up", "Versions"),
        link("Versions|A|here", "Versions|A"),
        file("Versions|A|Headers|h"),
    ];
    assert_eq!(
        tree(links)[..4],
        [
            "Headers -> Versions/Current/Headers",
            "Versions/Current -> A",
            "Versions/A/up -> ..",
            "Versions/A/here -> .",
        ]
    );
}

#[test]
fn a_target_beside_its_link_is_found() {
    let links = |to| vec![file("d|a"), file("d|e|b"), link("d|e|l", to)];
    assert_eq!(tree(links("b"))[2], "d/e/l -> b");
    assert_eq!(tree(links("..|a"))[2], "d/e/l -> ../a");
    assert_eq!(tree(links("d|a"))[2], "d/e/l -> ../a");
    assert_eq!(tree(links("gone"))[2], "d/e/l -> ../../gone");
}

#[test]
fn links_out_of_the_tree_are_left_out() {
    for bad in ["..", "..|..|etc|passwd", "a|..|..|x", ".", "", "a|.."] {
        assert_eq!(tree(vec![link("l", bad)]), Vec::<String>::new(), "{bad}");
    }
    let unsaid = FileEntry { symlink: Some(Vec::new()), ..file("l") };
    assert_eq!(tree(vec![unsaid]), Vec::<String>::new());
    assert_eq!(tree(vec![link("l", "/etc/passwd")]), ["l -> _etc_passwd"]);
    assert_eq!(tree(vec![link("l", "/|etc")]), ["l -> _/etc"]);
}

/// Were each name looked for from the start, this would take minutes.
#[test]
fn a_hundred_thousand_collisions_are_resolved() {
    const N: usize = 100_000;
    let long = |i: usize| format!("{}{i}", "x".repeat(249));
    let worst: Vec<Vec<FileEntry>> = vec![
        vec![file("a"); N],
        (0..N).map(|i| file(&if i % 2 == 0 { "a".into() } else { format!("a.{i}") })).collect(),
        (0..N).map(|i| file(&long(i / 2))).collect(),
        (0..N / 50).map(|i| file(&vec![i.to_string(); 50].join("|"))).collect(),
    ];
    for files in worst {
        let count = files.len();
        let layout = Layout::new(&info(files));
        let unique: HashSet<_> = layout.entries.iter().map(|e| &e.path).collect();
        assert_eq!(unique.len(), count);
    }
}

/// Parts that collide, mislead, or are too long.
fn any_part() -> impl Strategy<Value = Vec<u8>> {
    let tricky: [&[u8]; 14] = [
        b"", b".", b"..", b"/", b"a", b"a", b"b", b"a.1", b"a.2", b"a.1.1", b"a/b", b"a_b", b"\0",
        b"l",
    ];
    prop_oneof![
        8 => prop::sample::select(tricky.map(<[u8]>::to_vec).to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
        1 => (240usize..270, 0u8..3).prop_map(|(n, b)| vec![b'x' + b; n]),
    ]
}

fn any_files() -> impl Strategy<Value = Vec<FileEntry>> {
    let path = || prop::collection::vec(any_part(), 0..5);
    let target = prop::option::weighted(0.3, path());
    let entry = (path(), target, prop::bool::weighted(0.1));
    prop::collection::vec(entry, 0..40).prop_map(|all| {
        all.into_iter()
            .map(|(path, symlink, pad)| FileEntry { symlink, pad, ..FileEntry::new(path, 1) })
            .collect()
    })
}

/// Follows a path as a kernel does; whether it stays at or below the root. `links` by path.
fn stays_inside(links: &BTreeMap<Vec<Vec<u8>>, Vec<u8>>, start: &[Vec<u8>], to: &[u8]) -> bool {
    let mut at = start.to_vec();
    let split = |t: &[u8]| t.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (mut todo, mut followed) = (split(to), 0);
    while let Some(part) = todo.pop() {
        match &part[..] {
            b"." => {}
            b".." => {
                if at.pop().is_none() {
                    return false;
                }
            }
            _ => at.push(part),
        }
        if let Some(to) = links.get(&at) {
            followed += 1;
            if followed > 40 {
                return true; // ELOOP
            }
            if to.first() == Some(&b'/') {
                return false;
            }
            at.pop();
            todo.extend(split(to));
        }
    }
    true
}

proptest! {
    #[test]
    fn every_tree_is_safe(files in any_files()) {
        let info = info(files);
        let layout = Layout::new(&info);
        prop_assert_eq!(&layout, &Layout::new(&info));
        let paths: HashSet<_> = layout.entries.iter().map(|e| e.path.clone()).collect();
        prop_assert_eq!(paths.len(), layout.entries.len());
        for path in &paths {
            prop_assert!(!path.is_empty() && path.len() <= 128);
            prop_assert!(path.iter().map(|p| p.len() + 1).sum::<usize>() < 3900);
            for part in path {
                prop_assert!((1..=255).contains(&part.len()));
                prop_assert!(part != b"." && part != b".." && !part.contains(&b'/') && !part.contains(&0));
            }
            // No file or link is where a folder is.
            for above in 1..path.len() {
                prop_assert!(!paths.contains(&path[..above]));
            }
        }
        let shown = info.files.iter().filter(|f| !f.pad && f.symlink.is_none()).count();
        let files = layout.entries.iter().filter(|e| matches!(e.kind, EntryKind::File(_)));
        prop_assert_eq!(files.count(), shown);
    }

    #[test]
    fn no_link_leads_out(files in any_files()) {
        let layout = Layout::new(&info(files));
        let links: BTreeMap<_, _> = layout.entries.iter().filter_map(|e| match &e.kind {
            EntryKind::Symlink(to) => Some((e.path.clone(), to.clone())),
            EntryKind::File(_) => None,
        }).collect();
        for (path, to) in &links {
            prop_assert!(!to.is_empty() && to.len() <= 4095 && !to.contains(&0));
            prop_assert!(stays_inside(&links, &path[..path.len() - 1], to), "{:?} {:?}", path, to);
        }
    }
}
