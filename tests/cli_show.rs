//! `p2pfs show`: all that a .torrent file or magnet link says, or one line why it is refused.

#![allow(clippy::unwrap_used)]

#[path = "harness/corpus_files.rs"]
mod corpus_files;

use std::process::{Command, Output};

use serde_json::{Value, json};

use corpus_files::corpus;

const V1: &str = "0123456789abcdef0123456789abcdef01234567";

fn show(source: impl AsRef<std::ffi::OsStr>, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
    command.arg("show").arg(source).args(options).output().unwrap()
}

fn json_of(source: impl AsRef<std::ffi::OsStr>) -> Value {
    let output = show(source, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line on stderr of a run that was refused.
fn refused(source: impl AsRef<std::ffi::OsStr>) -> String {
    let output = show(source, &["--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.starts_with("p2pfs: "), "{said}");
    assert!(output.stdout.is_empty());
    said
}

#[test]
fn a_magnet_is_shown_as_it_is() {
    let v2 = "ab".repeat(32);
    let shown = json_of(format!(
        "magnet:?xt=urn:btih:{V1}&xt=urn:btmh:1220{v2}&dn=a%20b&tr=udp://t.example:1&tr=http://u.example/a\
         &ws=http://w.example/&x.pe=192.0.2.1:6881&so=0,4-6,5"
    ));
    assert_eq!(shown["info_hash_v1"], V1);
    assert_eq!(shown["info_hash_v2"], v2);
    assert_eq!(shown["name"], "a b");
    assert_eq!(shown["trackers"], json!(["udp://t.example:1", "http://u.example/a"]));
    assert_eq!(shown["web_seeds"], json!(["http://w.example/"]));
    assert_eq!(shown["peers"], json!(["192.0.2.1:6881"]));
    assert_eq!(shown["select_only"], json!([0, 4, 5, 6]));
    for unknown in ["piece_length", "total_size", "private"] {
        assert_eq!(shown[unknown], Value::Null, "{unknown}");
    }
    assert_eq!(shown["files"], json!([]));
    let v2_only = json_of(format!("magnet:?xt=urn:btmh:1220{v2}"));
    assert_eq!((&v2_only["info_hash_v1"], &v2_only["info_hash_v2"]), (&Value::Null, &json!(v2)));
    let all_files = json_of(format!("magnet:?xt=urn:btih:{V1}&so=0-4294967295"));
    assert_eq!(all_files["select_only"].as_array().unwrap().len(), 1_000_000);
}

#[test]
fn what_is_refused_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(refused(dir.path().join("missing")).contains("no such file"));
    assert!(refused(file("page", b"<html>\n</html>")).contains("web page"));
    assert!(refused(file("junk", b"d4:infodee")).contains("no `name`"));
    assert!(refused("magnet:?dn=x").contains("no info hash"));
}

#[test]
fn every_torrent_of_the_corpus_is_shown_or_refused() {
    let Some((root, cases)) = corpus() else { return };
    for case in cases {
        let path = root.join(case["file"].as_str().unwrap());
        match case["policy"].as_str().unwrap() {
            "must-reject" | "should-reject" => drop(refused(&path)),
            "must-accept" => {
                let shown = json_of(&path);
                let is = |ours: &str, theirs: &str| {
                    assert_eq!(shown[ours], case[theirs], "{ours} of {}", path.display());
                };
                is("info_hash_v1", "infohash_v1");
                is("info_hash_v2", "infohash_v2");
                is("piece_length", "piece_length");
                is("total_size", "total_size");
                is("name", "name");
                let files = shown["files"].as_array().unwrap();
                assert_eq!(json!(files.len()), case["num_files"], "{}", path.display());
            }
            _ => {
                let code = show(&path, &[]).status.code();
                assert!(matches!(code, Some(0 | 1)), "{}: {code:?}", path.display());
            }
        }
    }
}

#[test]
fn for_people_it_is_lines_that_control_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.torrent");
    let pieces = "\0".repeat(20);
    let info = format!(
        "d6:lengthi5e4:name6:a\x1b[31m12:piece lengthi16384e6:pieces20:{pieces}7:privatei1ee"
    );
    std::fs::write(
        &path,
        format!("d8:announce20:http://t.example/ann7:comment3:a\nb4:info{info}e"),
    )
    .unwrap();
    let shown = String::from_utf8(show(&path, &[]).stdout).unwrap();
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines.contains(&"name:          a\\u{1b}[31m"), "{shown}");
    assert!(
        lines.contains(&"tracker:       http://t.example/ann")
            && lines.contains(&"private:       yes")
    );
    assert!(lines.contains(&"              5  a\\u{1b}[31m") && !shown.contains('\x1b'), "{shown}");
    assert!(lines.contains(&"pieces:        1 piece of 16384 bytes"), "{shown}");
}
