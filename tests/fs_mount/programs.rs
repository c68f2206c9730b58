//! What real programs make of it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::stand_in::{Mounted, StandIn, file, link, noise, run, text};

/// A tree with a bit of everything.
fn tree() -> Mounted {
    let script = file("bin/hello", "#!/bin/sh\necho hello $1\n").executable().mtime(1_000_000_000);
    let binary = file("bin/true", fs::read("/bin/true").unwrap()).executable();
    let items = vec![
        script,
        binary,
        file("big", noise(3_000_001)).mtime(1_100_000_000),
        file("zeros", vec![0; 1 << 20]).mtime(1_200_000_000),
        file("empty", "").mtime(1_300_000_000),
        file("deep/er/and/deep er/\\n\n", noise(777)).mtime(1_400_000_000),
        link("deep/link", "er/and"),
    ];
    StandIn::complete(items).mount()
}

fn same(one: &str, other: &str) {
    run("diff", &["-r", "--no-dereference", one, other]);
}

#[test]
fn cp_copies_a_tree() {
    let (mounted, to) = (tree(), tempfile::tempdir().unwrap());
    let copy = to.path().join("copy");
    run("cp", &["-r", text(&mounted.dir), text(&copy)]);
    same(text(&mounted.dir), text(&copy));
}

#[test]
fn rsync_copies_a_tree_and_finds_nothing_to_do_the_second_time() {
    let (mounted, to) = (tree(), tempfile::tempdir().unwrap());
    let from = format!("{}/", text(&mounted.dir));
    run("rsync", &["-a", &from, text(to.path())]);
    same(text(&mounted.dir), text(to.path()));
    let again = run("rsync", &["-ai", &from, text(to.path())]);
    assert_eq!(again, "");
    assert_eq!(fs::metadata(to.path().join("big")).unwrap().mtime(), 1_100_000_000);
}

#[test]
fn tar_that_looks_for_holes_loses_nothing() {
    let (mounted, to) = (tree(), tempfile::tempdir().unwrap());
    let archive = to.path().join("a.tar");
    run("tar", &["-C", text(&mounted.dir), "-Scf", text(&archive), "."]);
    let out = to.path().join("out");
    fs::create_dir(&out).unwrap();
    run("tar", &["-C", text(&out), "-xf", text(&archive)]);
    same(text(&mounted.dir), text(&out));
}

#[test]
fn scripts_and_binaries_run() {
    let mounted = tree();
    assert_eq!(run(text(&mounted.path("bin/hello")), &["you"]), "hello you\n");
    run(text(&mounted.path("bin/true")), &[]);
    let plain = std::process::Command::new(mounted.path("big")).output().unwrap_err();
    assert_eq!(plain.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn find_sees_sizes_and_types() {
    let mounted = tree();
    let find = |arguments: &[&str]| run("find", &[&[text(&mounted.dir)], arguments].concat());
    assert_eq!(find(&["-size", "+2M", "-printf", "%P"]), "big");
    assert_eq!(find(&["-type", "f", "-empty", "-printf", "%P"]), "empty");
    assert_eq!(find(&["-type", "l", "-printf", "%P>%l"]), "deep/link>er/and");
}
