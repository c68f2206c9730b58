//! The package: what is in it, and that mount(8) and fstab mount with it.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::*;

/// What the package holds, as if it were installed, below the folder that is returned.
fn unpacked(scratch: &Scratch) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_p2pfs")).parent().unwrap();
    let root = scratch.dir("root");
    let mut deb = Command::new("sh");
    deb.arg(source.join("packaging/deb")).arg(binaries).arg(scratch.root()).env("DEB_LEVEL", "0");
    let made = run(scratch, &mut deb, PATIENCE).success().stdout();
    run(scratch, Command::new("dpkg-deb").arg("-x").arg(made.trim()).arg(&root), PATIENCE)
        .success();
    root
}

#[test]
fn the_package_has_all_that_belongs_to_the_programs() {
    let scratch = Scratch::new();
    let root = unpacked(&scratch);
    for file in [
        "bin/p2pfs",
        "bin/p2pfs-mountd",
        "lib/p2pfs/open",
        "lib/systemd/system/p2pfs-mountd.service",
        "lib/systemd/user/p2pfs-mountd.service",
        "share/applications/p2pfs.desktop",
        "share/bash-completion/completions/p2pfs",
        "share/zsh/vendor-completions/_p2pfs",
        "share/fish/vendor_completions.d/p2pfs.fish",
        "share/man/man1/p2pfs.1.gz",
        "share/man/man5/p2pfs.toml.5.gz",
        "share/man/man7/p2pfs.7.gz",
        "share/man/man8/p2pfs-mountd.8.gz",
        "share/doc/p2pfs/copyright",
    ] {
        assert!(root.join("usr").join(file).is_file(), "no {file} in the package");
    }
    for helper in ["mount.p2pfs", "mount.fuse.p2pfs"] {
        let link = std::fs::read_link(root.join("usr/sbin").join(helper)).unwrap();
        assert_eq!(link, Path::new("/usr/bin/p2pfs"));
    }
    for filled in ["lib/systemd/system/p2pfs-mountd.service", "share/applications/p2pfs.desktop"] {
        let text = std::fs::read_to_string(root.join("usr").join(filled)).unwrap();
        assert!(!text.contains('@') && text.contains("/usr/"), "{text}");
    }
}

/// In a mount namespace in which the package seems to be installed and fstab is another.
#[test]
fn mount_8_mounts_what_fstab_names() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    let root = unpacked(&scratch);
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let dirs = ["p2pfs", "fuse.p2pfs"].map(|kind| (kind, scratch.dir(&format!("by-{kind}"))));
    let options = format!(
        "nofail,_netdev,noauto,x-systemd.automount,allow_other,umask=022,socket={},data_dir={},port={},\
         listen=127.0.0.1,no_lsd,no_dht,peer={}",
        scratch.path("socket").display(),
        p2pfs.data_dir.display(),
        p2pfs.address.port(),
        seeder.address
    );
    let lines = dirs.each_ref().map(|(kind, dir)| {
        format!("{} {} {kind} {options} 0 0\n", torrent.file.display(), dir.display())
    });
    let fstab = scratch.file("fstab", lines.concat().as_bytes());
    let script = format!(
        "set -e
         for dir in bin sbin; do
             mount -t overlay -o lowerdir={root}/usr/$dir:/usr/$dir package /usr/$dir
         done
         mount --bind {fstab} /etc/fstab
         for dir in {one} {two}; do
             mount $dir
             findmnt -no FSTYPE $dir
             cp -r $dir {copies}
             umount $dir
             ! mountpoint -q $dir
         done",
        root = root.display(),
        fstab = fstab.display(),
        one = dirs[0].1.display(),
        two = dirs[1].1.display(),
        copies = scratch.dir("copies").display(),
    );
    let mut namespace = Command::new("unshare");
    namespace.args(["--mount", "sh", "-c", &script]);
    let done = run(&scratch, &mut namespace, PATIENCE).success();
    assert_eq!(done.stdout(), "fuse.p2pfs\nfuse.p2pfs\n");
    for (kind, _) in dirs {
        assert_eq!(Tree::read(&scratch.path(&format!("copies/by-{kind}"))), content.tree());
    }
}

/// A click on a magnet link: the program of the desktop entry.
#[test]
fn opening_a_magnet_link_mounts_it_below_home() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 300_000);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let root = unpacked(&scratch);
    let config = scratch.file(
        "p2pfs.toml",
        format!(
            "listen = \"127.0.0.1\"\nno-lsd = true\nno-dht = true\ndata-dir = \"{}\"\npeer = \"{}\"\n",
            scratch.path("cache").display(),
            seeder.address
        )
        .as_bytes(),
    );
    let bin = root.join("usr/bin");
    // A name that would lead elsewhere if it were taken for a path.
    let magnet = format!("{}&dn=..%2Fmy%20film", torrent.magnet());
    let mut open = Command::new("sh");
    open.arg(root.join("usr/lib/p2pfs/open")).arg(magnet);
    open.env("HOME", scratch.dir("home")).env("P2PFS_CONFIG", config);
    open.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
    open.env("P2PFS_SOCKET", scratch.path("socket"));
    run(&scratch, &mut open, PATIENCE).success();
    let shown = scratch.path("home/p2pfs/.._my film/film.bin");
    assert_eq!(std::fs::read(shown).unwrap(), content.bytes_of("film.bin"));
}
