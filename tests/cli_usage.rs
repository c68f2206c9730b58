//! What the command says when it is used wrongly: one line, and an exit code that is not 0. And
//! that its manual pages say what it says.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const MAGNET: &str = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";

/// Runs `p2pfs` with a socket and a cache of its own below `dir`.
fn p2pfs(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pfs"));
    command.current_dir(dir).args(arguments).arg("--socket").arg(dir.join("run/socket"));
    command.output().unwrap()
}

/// The one line on stderr of a run that failed with `code`.
fn line(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = p2pfs(dir, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert!(said.starts_with("p2pfs: "), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    said
}

#[test]
fn usage_errors_are_one_line_and_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    for wrong in [
        &["mount"][..],
        &["mount", MAGNET],
        &["mount", MAGNET, "mnt", "--nonsense"],
        &["mount", MAGNET, "mnt", "--port", "0"],
        &["mount", MAGNET, "mnt", "--umask", "9"],
        &["mount", MAGNET, "mnt", "--upload-limit", "fast"],
        &["mount", MAGNET, "mnt", "--keep", "there"],
        &["mount", MAGNET, "mnt", "--peer", "nonsense"],
        &["mount", MAGNET, "mnt", "-o", "nonsense"],
        &["mount", MAGNET, "mnt", "-o", "port=x"],
        &["mount", MAGNET, "mnt", "-o", "remount"],
        &["mount", MAGNET, "mnt", "-o", "seed_until=ratio=x"],
        &["mount", MAGNET, "mnt", "--seed-until", "ratio=0"],
        &["mount", MAGNET, "mnt", "--seed-until", "--no-seed"],
        &["mount", MAGNET, "mnt", "--seed-until", "--on-demand"],
        &["mount", MAGNET, "mnt", "--no-dht", "--dht-bootstrap", "192.0.2.1:1"],
        &["mount", MAGNET, "mnt", "--no-dht", "-o", "dht_bootstrap=192.0.2.1:1"],
        &["seed", "--no-dht", "--dht-bootstrap", "192.0.2.1:1", "mnt"],
        &["seed", "--seed-until", "mnt.torrent", "mnt"],
        &["umount"],
        &["umount", "mnt", "--force", "--lazy"],
        &["create", "mnt", "--piece-length", "1000"],
        &["create", "mnt", "--tracker", "nonsense"],
        &["dht"],
        &["dht", "ping", "nonsense"],
        &["dht", "get-peers", "nonsense"],
        &["dht", "node", "--dht-bootstrap", "2001:db8::1:6881"],
        &["scrape", MAGNET, "--no-dht", "--dht-bootstrap", "192.0.2.1:1"],
        &["nonsense", "a", "b"],
    ] {
        line(dir.path(), wrong, 2);
    }
}

#[test]
fn what_was_mistyped_is_named_with_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    for (wrong, meant) in [
        (&["mount", MAGNET, "mnt", "--no-dth"][..], "--no-dht"),
        (&["mount", MAGNET, "mnt", "--reed-timeout", "5"], "--read-timeout"),
        (&["mont", MAGNET, "mnt"], "mount"),
        (&["unmount", "mnt"], "umount"),
        (&["mount", MAGNET, "mnt", "--uid", "nobody"], "a number is needed"),
    ] {
        let said = line(dir.path(), wrong, 2);
        assert!(said.contains(meant), "{said}");
    }
}

#[test]
fn a_source_that_makes_no_sense_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    std::fs::write(dir.path().join("bad.torrent"), b"d4:infoi1ee").unwrap();
    for (source, named) in [
        ("magnet:?dn=x", "xt"),
        ("magnet:?xt=urn:btih:xyz", "xyz"),
        ("bad.torrent", "bad.torrent"),
        ("missing.torrent", "missing.torrent"),
        ("mnt", "mnt"),
        ("ftp://example.org/x", "ftp://example.org/x"),
    ] {
        let said = line(dir.path(), &["mount", source, "mnt"], 1);
        assert!(said.contains(named), "{said}");
    }
    assert!(!dir.path().join("run").exists(), "no daemon was started for that");
}

#[test]
fn a_directory_that_cannot_be_mounted_on_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("full/of/things")).unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    for (place, cause) in
        [("missing", "no such directory"), ("full", "not empty"), ("file", "not a directory")]
    {
        let said = line(dir.path(), &["mount", MAGNET, place], 1);
        assert!(said.contains(place) && said.contains(cause), "{said}");
    }
    assert!(!dir.path().join("run").exists(), "no daemon was started for that");
}

#[test]
fn without_a_daemon_there_is_nothing_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    for arguments in [
        &["umount", "mnt"][..],
        &["abort", "mnt"],
        &["wait", "mnt"],
        &["status", "mnt"],
        &["prefetch", "mnt"],
        &["stop", "mnt"],
        &["umount", "missing"],
    ] {
        let said = line(dir.path(), arguments, 1);
        assert!(said.contains(arguments[1]), "{said}");
    }
    let all = p2pfs(dir.path(), &["status", "--json"]);
    assert_eq!((all.status.code(), all.stdout.as_slice()), (Some(0), &b"[]\n"[..]));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), b"data").unwrap();
    assert!(p2pfs(dir.path(), &["create", "data"]).status.success());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let listing = Command::new(env!("CARGO_BIN_EXE_p2pfs"))
        .current_dir(dir.path())
        .args(["ls", "data.torrent"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((listing.status.code(), listing.stderr), (Some(0), Vec::new()));
}

#[test]
fn the_manual_pages_say_what_the_programs_say() {
    for (program, arguments, page, remake) in [
        (env!("CARGO_BIN_EXE_p2pfs"), "man p2pfs", "p2pfs.1", "p2pfs man"),
        (env!("CARGO_BIN_EXE_p2pfs"), "man p2pfs.toml", "p2pfs.toml.5", "p2pfs man p2pfs.toml"),
        (env!("CARGO_BIN_EXE_p2pfs-mountd"), "--man", "p2pfs-mountd.8", "p2pfs-mountd --man"),
    ] {
        let made = Command::new(program).args(arguments.split(' ')).output().unwrap();
        assert!(made.status.success());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(page);
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let made = String::from_utf8(made.stdout).unwrap();
        assert!(made == kept, "man/{page} is not what `{remake}` prints now: write it anew");
    }
}

#[test]
fn every_shell_gets_completions_that_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let made = Command::new(env!("CARGO_BIN_EXE_p2pfs")).args(["completions", shell]).output();
        let script = String::from_utf8(made.unwrap().stdout).unwrap();
        assert!(script.contains("mount") && script.contains("read-timeout"), "{shell}: {script}");
    }
    // bash is everywhere: what it would offer after `p2pfs sta`.
    let script = "source <($1 completions bash); COMP_WORDS=(p2pfs sta) COMP_CWORD=1; \
                  _p2pfs p2pfs sta p2pfs; echo ${COMPREPLY[@]}";
    let bash = Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_p2pfs")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), "status", "{bash:?}");
}

#[test]
fn a_wrong_file_of_settings_is_one_line_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mnt")).unwrap();
    std::fs::write(dir.path().join("c.toml"), "prot = 1\n").unwrap();
    let file = dir.path().join("c.toml");
    let arguments = ["mount", "--config", file.to_str().unwrap(), MAGNET, "mnt"];
    assert!(line(dir.path(), &arguments, 1).contains("c.toml: prot: no such key"));
    std::fs::write(&file, "umask = \"9\"\n").unwrap();
    assert!(line(dir.path(), &arguments, 1).contains("c.toml: umask: "));
    assert!(
        line(dir.path(), &["mount", "-o", "config=missing", MAGNET, "mnt"], 1).contains("missing")
    );
    assert!(!dir.path().join("run").exists(), "no daemon was started for that");
}

#[test]
fn every_verb_has_help() {
    for verb in [
        "mount",
        "umount",
        "abort",
        "status",
        "wait",
        "ls",
        "prefetch",
        "create",
        "seed",
        "stop",
        "sim",
        "scrape",
        "dht",
        "show",
        "verify",
        "limit",
        "completions",
    ] {
        let help = Command::new(env!("CARGO_BIN_EXE_p2pfs")).args([verb, "--help"]).output();
        let help = help.unwrap();
        assert!(help.status.success(), "{verb}");
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(text.contains(&format!("Usage: p2pfs {verb}")), "{text}");
    }
}
