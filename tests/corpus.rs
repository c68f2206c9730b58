//! Torrent files of other projects' test suites, each with what a good client does with it.
//!
//! The corpus is not part of the product: it is found beside the project, or where
//! `P2PFS_CORPUS` says.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used)]

#[path = "harness/corpus_files.rs"]
mod corpus_files;

use std::path::Path;

use p2pfs::proto::metainfo::layout::{EntryKind, Layout};
use p2pfs::proto::metainfo::{Metainfo, MetainfoError};
use serde_json::Value;

use corpus_files::corpus;

fn parsed(root: &Path, case: &Value) -> Result<Metainfo, MetainfoError> {
    Metainfo::parse(&std::fs::read(root.join(case["file"].as_str().unwrap())).unwrap())
}

/// Collects what is wrong with each case of the chosen policies; at least one case has to be there.
fn check(
    chosen: impl Fn(&str) -> bool,
    complaint: impl Fn(&Value, Result<Metainfo, MetainfoError>) -> Option<String>,
) {
    let Some((root, cases)) = corpus() else { return };
    let text = |case: &Value, key: &str| case[key].as_str().unwrap_or_default().to_owned();
    let chosen = cases.iter().filter(|c| chosen(&text(c, "policy")));
    let checked: Vec<_> = chosen
        .map(|case| complaint(case, parsed(&root, case)).map(|why| (text(case, "file"), why)))
        .collect();
    println!("{} files checked", checked.len());
    assert!(!checked.is_empty());
    let bad: Vec<_> = checked.into_iter().flatten().collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// The paths and lengths of what is shown.
fn shown(metainfo: &Metainfo) -> Vec<(String, u64)> {
    let entries = Layout::new(&metainfo.info).entries;
    let line = |path: &[Vec<u8>]| String::from_utf8_lossy(&path.join(&b'/')).into_owned();
    entries
        .iter()
        .map(|e| match e.kind {
            EntryKind::File(index) => (line(&e.path), metainfo.info.files[index].length),
            EntryKind::Symlink(_) => (line(&e.path), 0),
        })
        .collect()
}

#[test]
fn good_torrents_are_read_as_other_parsers_read_them() {
    check(
        |policy| policy == "must-accept",
        |case, result| {
            let metainfo = match result {
                Ok(metainfo) => metainfo,
                Err(e) => return Some(e.to_string()),
            };
            let info = &metainfo.info;
            let files = shown(&metainfo);
            // Padding that is in the v1 half counts, gaps between files of a v2 torrent do not.
            let sent = info.files.iter().filter(|f| !(f.pad && info.is_v2_only()));
            let total: u64 = sent.map(|f| f.length).sum();
            let v1 = info.info_hash_v1().map(|hash| hash.to_string());
            let v2 = info.info_hash_v2().map(|hash| hash.to_string());
            // The list is cut at 300 files, and "N/o/n/e" is how one of the two parsers shows
            // padding without a path.
            let listed = case["files"].as_array().unwrap().iter();
            let mut listed = listed
                .map(|f| (f["path"].as_str().unwrap().to_owned(), f["length"].as_u64().unwrap()))
                .filter(|(path, _)| path != "N/o/n/e");
            [
                (case["infohash_v1"].as_str() == v1.as_deref(), "v1 info hash"),
                (case["infohash_v2"].as_str() == v2.as_deref(), "v2 info hash"),
                (case["name"] == *String::from_utf8_lossy(&info.name), "name"),
                (case["piece_length"] == info.geometry.piece_length(), "piece length"),
                (case["num_files"] == files.len(), "number of files"),
                (case["total_size"] == total, "size"),
                (listed.all(|file| files.contains(&file)), "files"),
            ]
            .iter()
            .find(|(right, _)| !right)
            .map(|(_, what)| (*what).to_owned())
        },
    );
}

#[test]
fn bad_and_doubtful_torrents_are_refused_in_one_line() {
    check(
        |policy| policy == "must-reject" || policy == "should-reject",
        |_, result| match result {
            Err(e) if !e.to_string().contains('\n') => None,
            other => Some(format!("{other:?}")),
        },
    );
}

#[test]
fn no_name_leads_out_of_the_tree() {
    check(
        |_| true,
        |_, result| {
            let layout = Layout::new(&result.ok()?.info);
            let unsafe_part = |part: &Vec<u8>| {
                matches!(&part[..], b"" | b"." | b"..")
                    || part.iter().any(|b| matches!(b, 0 | b'/'))
            };
            let mut paths: Vec<_> = layout.entries.iter().map(|e| &e.path).collect();
            paths.sort();
            let unsafe_path = paths.iter().any(|p| p.is_empty() || p.iter().any(unsafe_part));
            let twice = paths.windows(2).any(|pair| pair[0] == pair[1]);
            (unsafe_path || twice).then(|| format!("{paths:?}"))
        },
    );
}

#[test]
fn what_is_read_is_written_and_read_back() {
    check(
        |_| true,
        |_, result| {
            let metainfo = result.ok()?;
            let again = Metainfo::parse(&metainfo.to_bytes());
            (again.as_ref() != Ok(&metainfo)).then(|| format!("{again:?}"))
        },
    );
}
