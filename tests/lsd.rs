//! Local discovery (BEP 14), in networks that the tests make: nobody names a peer or a tracker.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use harness::*;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Waits until the mount has all of `torrent`, and compares.
#[track_caller]
fn has_all(mount: &Mount, content: &Content) {
    mount.wait();
    assert_eq!(sha256(&std::fs::read(mount.path("film.bin")).unwrap()), sha256(&content.stream()));
}

fn film() -> Content {
    Content::single("film.bin", 2 * MIB)
}

/// What one daemon seeds at `address` of the first host, another mounts by its info hash alone at
/// `other`, on the second host or, with `together`, on the same.
fn one_finds_the_other(address: IpAddr, other: IpAddr, together: bool) {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = film();
        let torrent = Torrent::new(&scratch, &content);
        let seeder = P2pfs::named(&scratch, "seeder").listening_on(address).with_lsd();
        seeder.seed(&torrent, &[]);
        if !together {
            network.second().enter();
        }
        let reader = P2pfs::named(&scratch, "reader").listening_on(other).with_lsd();
        let mount = reader.mount(torrent.magnet(), &[]);
        has_all(&mount, &content);
    });
}

#[test]
fn two_mounts_of_one_machine_find_each_other_on_loopback() {
    one_finds_the_other(LOCALHOST, LOCALHOST, true);
}

#[test]
fn one_that_listens_everywhere_and_one_on_loopback_find_each_other() {
    one_finds_the_other(LOCALHOST, Ipv4Addr::UNSPECIFIED.into(), true);
}

#[test]
fn neighbours_find_each_other_over_ipv4() {
    let any = Ipv4Addr::UNSPECIFIED.into();
    one_finds_the_other(any, any, false);
}

#[test]
fn neighbours_find_each_other_over_ipv6_by_their_link_local_addresses() {
    let any = Ipv6Addr::UNSPECIFIED.into();
    one_finds_the_other(any, any, false);
}

#[test]
fn the_one_that_came_first_finds_the_one_that_comes_later() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = film();
        let torrent = Torrent::new(&scratch, &content);
        let any = Ipv4Addr::UNSPECIFIED.into();
        let reader = P2pfs::named(&scratch, "reader").listening_on(any).with_lsd();
        let mount = reader.mount(&torrent.file, &[]);
        network.second().enter();
        let seeder = P2pfs::named(&scratch, "seeder").listening_on(any).with_lsd();
        seeder.seed(&torrent, &[]);
        has_all(&mount, &content);
    });
}

#[test]
fn a_daemon_on_loopback_is_not_heard_by_neighbours() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &film());
        network.second().enter();
        let outside = Eavesdropper::new(network.second().v4);
        network.first().enter();
        let on_link = Eavesdropper::new(network.first().v4);
        let on_loopback = Eavesdropper::new(Ipv4Addr::LOCALHOST);
        P2pfs::new(&scratch).with_lsd().seed(&torrent, &[]);
        assert!(on_loopback.wait().contains(&torrent.info_hash));
        assert_eq!((outside.next(), on_link.next()), (None, None));
        let everywhere = P2pfs::named(&scratch, "everywhere");
        let everywhere = everywhere.listening_on(Ipv4Addr::UNSPECIFIED.into()).with_lsd();
        everywhere.seed(&torrent, &[]);
        let said = outside.wait();
        assert!(said.contains(&format!("Port: {}\r\n", everywhere.address.port())), "{said}");
    });
}

#[test]
fn a_private_torrent_is_not_announced() {
    on_hosts(|_| {
        let scratch = Scratch::new();
        let heard = Eavesdropper::new(Ipv4Addr::LOCALHOST);
        let p2pfs = P2pfs::new(&scratch).with_lsd();
        let data = scratch.file("secret", b"secret");
        let private = scratch.path("secret.torrent");
        let mut create = p2pfs.command_alone("create");
        create.args(["--private", "--tracker", "http://127.0.0.1:1/announce", "-o"]);
        run(&scratch, create.arg(&private).arg(&data), PATIENCE).success();
        p2pfs.try_seed(&private, &data, &[]).success();
        let torrent = Torrent::new(&scratch, &film());
        p2pfs.seed(&torrent, &[]);
        let said = heard.wait();
        assert!(said.contains(&torrent.info_hash), "{said}");
        assert_eq!(said.matches("Infohash").count(), 1, "{said}");
    });
}

#[test]
fn without_local_discovery_nothing_is_said() {
    on_hosts(|_| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &film());
        let heard = Eavesdropper::new(Ipv4Addr::LOCALHOST);
        P2pfs::named(&scratch, "quiet").seed(&torrent, &[]);
        let open = P2pfs::named(&scratch, "open").with_lsd();
        open.seed(&torrent, &[]);
        let said = heard.wait();
        assert!(said.contains(&format!("Port: {}\r\n", open.address.port())), "{said}");
        assert_eq!(open.status()[0].number("known_peers"), 0);
    });
}

#[test]
fn a_mount_cannot_turn_the_daemons_local_discovery_off() {
    on_hosts(|_| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &film());
        let p2pfs = P2pfs::new(&scratch).with_lsd();
        p2pfs.seed(&torrent, &[]);
        let dir = p2pfs.mount_point();
        for off in [["--no-lsd", ""], ["-o", "no-lsd"]] {
            let off: Vec<_> = off.into_iter().filter(|word| !word.is_empty()).collect();
            let refused = p2pfs.try_mount(&torrent.file, &dir, &off).failure();
            assert!(refused.stderr.contains("local discovery"), "{}", refused.stderr);
        }
        p2pfs.mount(&torrent.file, &[]);
    });
}

/// A libtorrent that takes part, on the host where this thread is.
fn libtorrent(scratch: &Scratch, torrent: &Torrent, save_path: &Path, host: &Host) -> Libtorrent {
    let options = ["--lsd", "--host", &host.v4.to_string()];
    Libtorrent::start(scratch, torrent.file.to_str().unwrap(), save_path, &options)
}

#[test]
fn libtorrent_is_found() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = film();
        let torrent = Torrent::new(&scratch, &content);
        let any = Ipv4Addr::UNSPECIFIED.into();
        let mount_on = P2pfs::new(&scratch).listening_on(any).with_lsd();
        let mount = mount_on.mount(&torrent.file, &[]);
        network.second().enter();
        let _seeder = libtorrent(&scratch, &torrent, &torrent.save_path, network.second());
        has_all(&mount, &content);
    });
}

#[test]
fn libtorrent_finds_p2pfs() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &film());
        network.second().enter();
        let save_path = scratch.dir("leecher");
        let leecher = libtorrent(&scratch, &torrent, &save_path, network.second());
        network.first().enter();
        let any = Ipv4Addr::UNSPECIFIED.into();
        let seeder = P2pfs::new(&scratch).listening_on(any).with_lsd();
        seeder.seed(&torrent, &[]);
        leecher.wait_until_complete();
    });
}

#[test]
fn aria2_and_p2pfs_find_each_other() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &film());
        network.second().enter();
        let save_path = scratch.dir("leecher");
        let (at, link) = (network.second().v4, LINK);
        let options = [format!("--interface={at}"), format!("--bt-lpd-interface={link}")];
        let options = ["--bt-enable-lpd=true", &options[0], &options[1]];
        let source = torrent.file.to_str().unwrap();
        let mut leecher = Aria2::start(&scratch, source, &save_path, &options);
        network.first().enter();
        let any = Ipv4Addr::UNSPECIFIED.into();
        let seeder = P2pfs::new(&scratch).listening_on(any).with_lsd();
        seeder.seed(&torrent, &[]);
        network.second().enter();
        leecher.wait_until_complete();
    });
}
