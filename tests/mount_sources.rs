//! Everything that SOURCE may be.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use harness::*;

#[test]
fn a_bare_info_hash_with_a_peer() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.info_hash, &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_magnet_that_names_its_peer() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet_with_peers(&[seeder.address]), &[]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_magnet_among_whose_peers_only_one_lives() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let dead = || ([127, 0, 0, 1], free_port()).into();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet_with_peers(&[dead(), seeder.address, dead()]), &[]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_magnet_whose_info_hash_is_base32() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let magnet = format!("magnet:?xt=urn:btih:{}", base32(&torrent.info_hash));
    let mount = p2pfs.mount(magnet, &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_peer_on_ipv6() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let save_path = &torrent.save_path;
    let seeder = Libtorrent::seed_with(&scratch, &torrent, save_path, &["--host", "::1"]);
    let p2pfs = P2pfs::new(&scratch).listening_on("::1".parse().unwrap());
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_url_of_a_torrent_file() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let server = HttpServer::serving(std::fs::read(&torrent.file).unwrap());
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(server.url("/album.torrent"), &options);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn a_torrent_file_by_a_relative_path() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mut command = p2pfs.starting_command("mount");
    command.arg(torrent.file.file_name().unwrap()).arg(&dir).current_dir(scratch.root());
    run(&scratch, &mut command, PATIENCE).success();
    assert!(dir.join("notes.txt").exists());
}

#[test]
fn a_torrent_file_by_a_file_url() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let folder = scratch.dir("of downloads");
    std::fs::copy(&torrent.file, folder.join("a b.torrent")).unwrap();
    let p2pfs = P2pfs::new(&scratch);
    let url = format!("file://{}/a%20b.torrent", folder.display().to_string().replace(' ', "%20"));
    let mount = p2pfs.mount(url, &[]);
    assert!(mount.path("notes.txt").exists());
}

#[test]
fn the_same_torrent_may_be_mounted_twice() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let one = p2pfs.mount(&torrent.file, &["--peer", &seeder.address.to_string()]);
    let two = p2pfs.mount(&torrent.file, &[]);
    assert_eq!(one.tree(), content.tree());
    one.umount();
    assert_eq!(two.tree(), content.tree());
}

#[test]
fn who_mounts_it_again_brings_the_peers_that_the_magnet_names() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let alone = p2pfs.mount(&torrent.file, &[]);
    let _again = p2pfs.mount(torrent.magnet_with_peers(&[seeder.address]), &[]);
    assert_eq!(alone.tree(), content.tree());
}

#[test]
fn several_torrents_are_mounted_by_one_daemon() {
    let scratch = Scratch::new();
    let (album, film) = (Content::album(), Content::single("film.bin", 3 * MIB));
    let torrents = [Torrent::new(&scratch, &album), Torrent::new(&scratch, &film)];
    let seeders = torrents.each_ref().map(|torrent| Libtorrent::seed(&scratch, torrent));
    let p2pfs = P2pfs::new(&scratch);
    let one = p2pfs.mount(&torrents[0].file, &["--peer", &seeders[0].address.to_string()]);
    let two = p2pfs.mount(&torrents[1].file, &["--peer", &seeders[1].address.to_string()]);
    assert_eq!(one.status().number("pid"), two.status().number("pid"));
    assert_eq!(one.tree(), album.tree());
    assert_eq!(two.tree(), film.tree());
}

#[test]
fn mktorrents_torrent_is_mounted() {
    let scratch = Scratch::new();
    let content = Content::album();
    let mut torrent = Torrent::new(&scratch, &content);
    let made = scratch.path("by-mktorrent.torrent");
    let mut mktorrent = std::process::Command::new("mktorrent");
    run(&scratch, mktorrent.arg("-o").arg(&made).arg(&torrent.data), PATIENCE).success();
    torrent.file = made;
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

#[test]
fn pad_files_are_hidden() {
    let scratch = Scratch::new();
    let content =
        Content::folder("padded").file("first", 100_000).pad(31_072).file("second", 70_000);
    let torrent = Torrent::new(&scratch, &content);
    let flat = scratch.dir("flat");
    content.write_flat(&flat);
    let seeder = Libtorrent::seed_with(&scratch, &torrent, &flat, &["--flat"]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["--peer", &seeder.address.to_string()]);
    assert_eq!(mount.tree(), content.tree());
}

/// RFC 4648 base32 of hex, upper case; 20 bytes need no padding.
fn base32(hex: &str) -> String {
    let bits: String =
        hex.chars().map(|digit| format!("{:04b}", digit.to_digit(16).unwrap())).collect();
    let letter = |five: &[u8]| {
        let value = u8::from_str_radix(std::str::from_utf8(five).unwrap(), 2).unwrap();
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(value)] as char
    };
    bits.as_bytes().chunks(5).map(letter).collect()
}
