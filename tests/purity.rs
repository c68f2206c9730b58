//! `src/proto` stays free of clocks, sockets, files, threads, runtimes, global randomness and of
//! everything above it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// What must not appear in code, and what to use instead.
const FORBIDDEN: [(&str, &str); 21] = [
    ("Instant", "time is an argument (Timestamp)"),
    ("SystemTime", "time is an argument (Timestamp)"),
    ("TcpStream", "the engine has the sockets"),
    ("TcpListener", "the engine has the sockets"),
    ("UdpSocket", "the engine has the sockets"),
    ("std::fs", "the store has the files"),
    ("std::io::", "bytes in, bytes out"),
    ("std::thread", "the engine has the threads"),
    ("std::process", "nothing is run from here"),
    ("std::env", "settings are arguments"),
    ("tokio", "the engine has the runtime"),
    ("fuser", "the filesystem is above"),
    ("memmap2", "the store has the mappings"),
    ("rand::rng(", "a machine owns its ChaCha8Rng"),
    ("thread_rng", "a machine owns its ChaCha8Rng"),
    ("rand::random", "a machine owns its ChaCha8Rng"),
    ("crate::store", "dependencies point down"),
    ("crate::engine", "dependencies point down"),
    ("crate::fs", "dependencies point down"),
    ("crate::rpc", "dependencies point down"),
    ("crate::sim", "dependencies point down"),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines with something forbidden in them, comments left out.
fn offences(path: &Path, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for (word, instead) in FORBIDDEN {
            if code.contains(word) {
                found.push(format!("{}:{}: {word}: {instead}", path.display(), number + 1));
            }
        }
    }
    found
}

#[test]
fn the_protocol_core_is_pure() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proto");
    let files = sources(&proto);
    assert!(files.len() > 10, "only {} files in {}", files.len(), proto.display());
    let found: Vec<_> =
        files.iter().flat_map(|path| offences(path, &fs::read_to_string(path).unwrap())).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_finds_a_clock_and_lets_comments_be() {
    let path = Path::new("example.rs");
    assert_eq!(offences(path, "let now = std::time::Instant::now();").len(), 1);
    assert_eq!(offences(path, "/// Never an Instant.\nuse tokio::sync;").len(), 1);
    assert!(offences(path, "// tokio is elsewhere").is_empty());
}

/// Clocks jump. What the time of day is used for are times that are shown, the order in which torrents and
/// pieces were used in all lives of the daemon, and how old the data of somebody else is.
#[test]
fn the_time_of_day_decides_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asks = |path: &PathBuf| {
        let source = fs::read_to_string(path).unwrap();
        source.lines().any(|line| line.split("//").next().unwrap_or("").contains("SystemTime::now"))
    };
    let all = ["src", "mountd"].iter().flat_map(|dir| sources(&root.join(dir)));
    let own = all.filter(|path| !path.components().any(|part| part.as_os_str() == "tests"));
    let mut found: Vec<_> = own.filter(asks).collect();
    let allowed = [
        "src/bin/p2pfs/cache.rs",
        "src/fs/mount.rs",
        "src/store/in_place.rs",
        "src/store/index.rs",
        "src/store/mod.rs",
    ];
    found.sort();
    assert_eq!(found, allowed.map(|path| root.join(path)), "use Instant, or say why here");
}
