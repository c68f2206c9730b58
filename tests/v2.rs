//! Torrents with a v2 half (BEP 52), with libtorrent on the other side and between ourselves.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::{Path, PathBuf};

use harness::*;
use p2pfs::proto::metainfo::{Magnet, Metainfo};
use sha1::{Digest, Sha1};

/// What `p2pfs create` makes of `content` with `flag`, and where the data is.
fn created(scratch: &Scratch, content: &Content, flag: &str) -> (PathBuf, PathBuf) {
    created_with(scratch, content, &[flag])
}

fn created_with(scratch: &Scratch, content: &Content, options: &[&str]) -> (PathBuf, PathBuf) {
    let data = content.write_to(&scratch.dir("origin"));
    let torrent = scratch.path("made.torrent");
    let mut command = P2pfs::new(scratch).command_alone("create");
    command.arg(&data).args(options).arg("-o").arg(&torrent);
    run(scratch, &mut command, PATIENCE).success();
    (torrent, data)
}

fn metainfo(torrent: &Path) -> Metainfo {
    Metainfo::parse(&std::fs::read(torrent).unwrap()).unwrap()
}

/// The link with all hashes that the torrent has.
fn magnet(torrent: &Path) -> String {
    metainfo(torrent).magnet().to_string()
}

/// The link that names the v2 half alone.
fn v2_magnet(torrent: &Path) -> String {
    Magnet::from(metainfo(torrent).info.info_hash_v2().unwrap()).to_string()
}

/// Files of less than a block, of a piece, of several; links have nothing to seed.
fn content() -> Content {
    Content::album().file("one block", 16_384).file("one piece", 32_768).file("z/long", 5_000_001)
}

fn libtorrent_seeds(flag: &str) {
    let scratch = Scratch::new();
    let content = content();
    let (torrent, data) = created(&scratch, &content, flag);
    let save = data.parent().unwrap();
    let seeder = Libtorrent::start(&scratch, torrent.to_str().unwrap(), save, &[]);
    let peer = seeder.address.to_string();
    let sources = [torrent.to_str().unwrap().to_owned(), magnet(&torrent), v2_magnet(&torrent)];
    for (number, source) in sources.iter().enumerate() {
        let p2pfs = P2pfs::named(&scratch, &format!("reader {number}"));
        let mount = p2pfs.mount(source, &["--peer", &peer]);
        assert_eq!(mount.tree(), content.tree(), "{source}");
    }
}

#[test]
fn what_libtorrent_seeds_as_v2_is_mounted() {
    libtorrent_seeds("--v2");
}

#[test]
fn what_libtorrent_seeds_as_hybrid_is_mounted() {
    libtorrent_seeds("--hybrid");
}

#[test]
fn a_torrent_mounted_by_each_of_its_hashes_is_over_when_both_mounts_are() {
    let scratch = Scratch::new();
    let (torrent, data) = created(&scratch, &content(), "--hybrid");
    let seeder =
        Libtorrent::start(&scratch, torrent.to_str().unwrap(), data.parent().unwrap(), &[]);
    let peer = seeder.address.to_string();
    for sources in [
        vec![v2_magnet(&torrent)],
        vec![magnet(&torrent), v2_magnet(&torrent)],
        vec![torrent.to_str().unwrap().to_owned(); 3],
    ] {
        let p2pfs = P2pfs::named(&scratch, &format!("reader {}", sources.len()));
        let mount = |source| p2pfs.mount(source, &["--peer", &peer, "--on-demand"]);
        let mounts: Vec<_> = sources.iter().map(mount).collect();
        mounts.into_iter().for_each(Mount::umount);
        // Of a torrent that goes on, other data would be refused.
        let options = ["--use-data", data.to_str().unwrap()];
        assert_eq!(p2pfs.mount(&torrent, &options).tree(), content().tree());
    }
}

fn p2pfs_seeds(flag: &str) {
    let scratch = Scratch::new();
    let content = content();
    let (torrent, data) = created(&scratch, &content, flag);
    let seeder = P2pfs::new(&scratch);
    seeder.try_seed(&torrent, &data, &[]).success();
    let sources = [torrent.to_str().unwrap().to_owned(), magnet(&torrent), v2_magnet(&torrent)];
    for (number, source) in sources.iter().enumerate() {
        let save = scratch.dir(&format!("save {number}"));
        let mut leecher = Libtorrent::start(&scratch, source, &save, &[]);
        leecher.connect(seeder.address);
        leecher.wait_until_complete();
        assert_eq!(Tree::read(&save.join("album")), content.tree(), "{source}");
        let mounting = P2pfs::named(&scratch, &format!("reader {number}"));
        let mount = mounting.mount(source, &["--peer", &seeder.address.to_string()]);
        mount.wait();
        assert_eq!(mount.tree(), content.tree(), "{source}");
    }
}

#[test]
fn what_p2pfs_seeds_as_v2_is_downloaded_by_libtorrent_and_mounted() {
    p2pfs_seeds("--v2");
}

#[test]
fn what_p2pfs_seeds_as_hybrid_is_downloaded_by_libtorrent_and_mounted() {
    p2pfs_seeds("--hybrid");
}

const MIB: usize = 1 << 20;

#[test]
fn of_a_long_piece_only_the_flipped_block_is_fetched_again() {
    let scratch = Scratch::new();
    let content = Content::single("film", 40 * MIB + 5);
    let long_pieces = ["--v2", "--piece-length", "16777216"];
    let (torrent, data) = created_with(&scratch, &content, &long_pieces);
    // One byte in the second piece of what the liar has.
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[20 * MIB] ^= 1;
    scratch.file("liar/film", &bytes);
    let flags = ["--seed-mode"];
    let liar =
        Libtorrent::start(&scratch, torrent.to_str().unwrap(), &scratch.path("liar"), &flags);
    let honest = P2pfs::named(&scratch, "honest");
    honest.try_seed(&torrent, &data, &[]).success();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent, &["--peer", &liar.address.to_string()]);
    // All is asked of the liar before anybody else is known. It may give itself away before that, by
    // hashes that do not lead to the root either.
    wait_until("the liar has sent the bad piece", PATIENCE, || {
        let status = mount.status();
        status.number("banned") == 1 || status.number("downloaded") >= 40 * MIB as u64
    });
    let again = p2pfs.mount(&torrent, &["--peer", &honest.address.to_string()]);
    again.wait();
    assert!(std::fs::read(mount.path("film")).unwrap() == content.bytes_of("film"));
    let status = mount.status();
    assert!(status.number("wasted") <= 32 << 10, "{}", status.json());
    assert_eq!(status.number("banned"), 1, "{}", status.json());
    let again = status.number("downloaded") - (40 * MIB as u64 + 5);
    assert!(again <= 32 << 10, "{again} bytes came twice: {}", status.json());
}

#[test]
fn a_small_read_from_a_long_piece_fetches_its_block_alone() {
    for kind in ["--v2", "--hybrid"] {
        let scratch = Scratch::new();
        let content = Content::single("film", 64 * MIB);
        let (torrent, data) =
            created_with(&scratch, &content, &[kind, "--piece-length", "16777216"]);
        let seed = P2pfs::new(&scratch);
        seed.try_seed(&torrent, &data, &[]).success();
        let reader = P2pfs::named(&scratch, "reader");
        let magnet = magnet(&torrent);
        let mount = reader.mount(&magnet, &["--on-demand", "--peer", &seed.address.to_string()]);
        let (film, expected) =
            (std::fs::File::open(mount.path("film")).unwrap(), content.bytes_of("film"));
        let places = [5, 7 * MIB + 1, 33 * MIB - 4000, 48 * MIB - 100, 64 * MIB - 4096];
        for at in places {
            let mut read = [0; 4096];
            std::os::unix::fs::FileExt::read_exact_at(&film, &mut read, at as u64).unwrap();
            assert!(read == expected[at..at + 4096], "at {at}");
        }
        let fetched = mount.status().number("downloaded");
        assert!(fetched <= places.len() as u64 * (64 << 10), "{fetched} bytes, {kind}");
        // What was read stays, and the rest of a piece may come later.
        reader.run("prefetch", &[mount.path("film").to_str().unwrap()]).success();
        mount.wait();
        assert!(std::fs::read(mount.path("film")).unwrap() == expected);
        let twice = mount.status().number("downloaded") - 64 * MIB as u64;
        assert!(twice <= 1 << 20, "{twice} bytes came twice, {kind}");
    }
}

#[test]
fn a_file_that_another_torrent_of_the_cache_has_is_not_fetched_again() {
    let scratch = Scratch::new();
    let content = Content::single("film", 9 * MIB + 1);
    let (torrent, data) = created(&scratch, &content, "--v1");
    let seed = P2pfs::named(&scratch, "seed");
    seed.try_seed(&torrent, &data, &[]).success();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent, &["--peer", &seed.address.to_string()]);
    mount.wait();
    // The same file as part of another torrent, of which nobody is there.
    std::fs::create_dir(scratch.path("other")).unwrap();
    std::fs::copy(&data, scratch.path("other/a copy")).unwrap();
    scratch.file("other/new", b"something else");
    let other = scratch.path("other.torrent");
    let mut command = p2pfs.command_alone("create");
    command.arg(scratch.path("other")).arg("--v2").arg("-o").arg(&other);
    run(&scratch, &mut command, PATIENCE).success();
    let mount = p2pfs.mount(&other, &[]);
    assert!(std::fs::read(mount.path("a copy")).unwrap() == content.bytes_of("film"));
    assert_eq!(mount.status().number("downloaded"), 0);
}

/// The SHA-1s of the pieces as a .torrent file has them, and where they are.
fn pieces(torrent: &[u8]) -> std::ops::Range<usize> {
    let key = b"6:pieces";
    let at = torrent.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    let colon = at + torrent[at..].iter().position(|&b| b == b':').unwrap();
    let length: usize = std::str::from_utf8(&torrent[at..colon]).unwrap().parse().unwrap();
    colon + 1..colon + 1 + length
}

#[test]
fn a_hybrid_that_contradicts_itself_is_given_up() {
    let scratch = Scratch::new();
    let options = ["--hybrid", "--piece-length", "65536"];
    let content = Content::single("film", MIB);
    let (torrent, data) = created_with(&scratch, &content, &options);
    let mut crafted = std::fs::read(&torrent).unwrap();
    // The v1 half of other data.
    let mut other = std::fs::read(&data).unwrap();
    other.reverse();
    let at = pieces(&crafted);
    let hashes: Vec<u8> = other.chunks(65_536).flat_map(Sha1::digest).collect();
    crafted[at].copy_from_slice(&hashes);
    let crafted = scratch.file("crafted.torrent", &crafted);
    let save = data.parent().unwrap();
    let seeder = Libtorrent::start(&scratch, crafted.to_str().unwrap(), save, &["--seed-mode"]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&crafted, &["--peer", &seeder.address.to_string()]);
    wait_until("the contradiction is found", PATIENCE, || {
        mount.status().json().contains("describe different data")
    });
    assert!(std::fs::read(mount.path("film")).is_err());
    assert_eq!((mount.status().number("peers"), mount.status().number("verified")), (0, 0));
}

#[test]
fn a_hybrid_is_announced_by_both_of_its_hashes() {
    let scratch = Scratch::new();
    let (torrent, data) = created(&scratch, &Content::single("film", MIB), "--hybrid");
    let tracker = HttpServer::serving(b"d8:intervali1800e5:peers0:e".to_vec());
    let announced = || {
        let requests = tracker.requests();
        let hash =
            |line: &String| Some(line.split_once("info_hash=")?.1.split_once('&')?.0.to_owned());
        requests.iter().filter_map(hash).collect::<std::collections::BTreeSet<_>>()
    };
    // By a link that names one of them, the other is known only when the description has come.
    let seed = P2pfs::named(&scratch, "seed");
    seed.try_seed(&torrent, &data, &[]).success();
    let mut magnet = Magnet::from(metainfo(&torrent).info.info_hash);
    magnet.trackers.push(tracker.url("/announce"));
    let p2pfs = P2pfs::new(&scratch);
    let _mount = p2pfs.mount(magnet.to_string(), &["--peer", &seed.address.to_string()]);
    wait_until("both hashes are announced", PATIENCE, || announced().len() == 2);
}

#[test]
fn the_halves_of_a_hybrid_that_were_added_apart_are_given_back_apart() {
    let scratch = Scratch::new();
    let content = content();
    let (torrent, data) = created(&scratch, &content, "--hybrid");
    let v1 = Magnet::from(metainfo(&torrent).info.info_hash).to_string();
    let seeds = ["one", "two"].map(|name| P2pfs::named(&scratch, name));
    let p2pfs = P2pfs::new(&scratch);
    let start = |source: &str, seed: &P2pfs| {
        let dir = p2pfs.mount_point();
        let mut mount = p2pfs.starting_command("mount");
        mount.args(["--on-demand", "--peer", &seed.address.to_string(), source]).arg(&dir);
        (Process::spawn(&scratch, &mut mount), dir)
    };
    let mut mounts = [start(&v1, &seeds[0]), start(&v2_magnet(&torrent), &seeds[1])];
    // Nobody can know yet that they are of one torrent.
    for (mount, _) in &mounts {
        let looks = || mount.stderr().contains("looking for the metadata");
        wait_until("it looks for the metadata", PATIENCE, looks);
    }
    seeds.iter().for_each(|seed| drop(seed.try_seed(&torrent, &data, &[]).success()));
    for (mount, _) in &mut mounts {
        assert!(mount.wait(PATIENCE).expect("it is mounted").success(), "{}", mount.stderr());
    }
    let [first, second] = mounts.map(|(_, dir)| dir);
    p2pfs.run("umount", &[second.to_str().unwrap()]).success();
    assert!(std::fs::read(first.join("z/long")).unwrap() == content.bytes_of("z/long"));
    p2pfs.run("umount", &[first.to_str().unwrap()]).success();
}
