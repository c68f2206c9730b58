//! Mounting as an ordinary user, through fusermount3.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

/// The user's own view: whoever is not them, root included, is kept out of a FUSE mount.
fn sums_as_user(scratch: &Scratch, p2pfs: &P2pfs, mount: &Mount) -> String {
    let mut command = p2pfs.as_same_user("sh");
    command.args(["-c", "cd \"$1\" && find . -type f -exec sha256sum {} +", "sh"]);
    run(scratch, command.arg(mount.dir()), PATIENCE).success().stdout()
}

#[test]
fn an_ordinary_user_mounts_reads_and_unmounts() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::as_ordinary_user(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    let sums = sums_as_user(&scratch, &p2pfs, &mount);
    for name in ["01 first.flac", "02 second.flac", "art/cover.jpg", "art/empty", "notes.txt"] {
        let line = format!("{}  ./{name}\n", sha256(&content.bytes_of(name)));
        assert!(sums.contains(&line), "no {line} in {sums}");
    }
    mount.umount();
}

#[test]
fn an_ordinary_user_waits_until_done() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::as_ordinary_user(&scratch);
    let dir = p2pfs.mount_point();
    let options = ["--foreground", "--until-done", "--peer", &seeder.address.to_string()];
    p2pfs.try_mount(torrent.magnet(), &dir, &options).success();
    assert_eq!(mounts_below(&dir), Vec::<std::path::PathBuf>::new());
}

#[test]
fn an_ordinary_user_seeds() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let p2pfs = P2pfs::as_ordinary_user(&scratch);
    p2pfs.seed(&torrent, &[]);
    let save = scratch.dir("save");
    let magnet = torrent.magnet_with_peers(&[p2pfs.address]);
    Libtorrent::start(&scratch, &magnet, &save, &[]).wait_until_complete();
    assert_eq!(Tree::read(&save.join("album")), content.tree());
}
