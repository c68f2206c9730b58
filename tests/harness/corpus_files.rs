//! Torrent files of other projects, each with what a good client does with it. They are no part of the
//! product: they are found beside the project, or where `P2PFS_CORPUS` says.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of the corpus, and its cases; `None` when it is not here.
pub fn corpus() -> Option<(PathBuf, Vec<Value>)> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let root = std::env::var_os("P2PFS_CORPUS").map_or_else(beside, PathBuf::from).join("torrents");
    let Ok(text) = std::fs::read_to_string(root.join("expected.json")) else {
        println!("skipped: no corpus of torrent files at {}", root.display());
        return None;
    };
    let expected: Value = serde_json::from_str(&text).unwrap();
    let cases = expected["cases"].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    Some((root, cases))
}
