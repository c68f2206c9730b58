//! What happens to machines and networks while a mount is read: it goes on.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use harness::*;
use nix::sys::signal::{Signal, kill};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Somebody on the first host reads, of a seeder on the second one, a file that takes a few seconds.
/// `happens` in the middle of it, on the first host; the reader must not notice.
fn is_read_though(happens: impl FnOnce(&Network, &Mount) + Send) {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let content = Content::single("film.bin", 6 * MIB);
        let torrent = Torrent::new(&scratch, &content);
        network.second().enter();
        let seeder = P2pfs::named(&scratch, "seeder").listening_on(ANY);
        seeder.seed(&torrent, &["--upload-limit", "2M"]);
        let peer = SocketAddr::new(network.second().v4.into(), seeder.address.port());
        network.first().enter();
        let p2pfs = P2pfs::new(&scratch).listening_on(ANY);
        let mount = p2pfs.mount(&torrent.file, &["--peer", &peer.to_string()]);
        let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
        wait_until("something has come", PATIENCE, || mount.status().number("downloaded") > 0);
        assert!(mount.status().number("downloaded") < torrent.length, "all has come already");
        happens(network, &mount);
        assert!(cat.wait(PATIENCE).expect("cat ends").success(), "{}", cat.stderr());
        assert!(cat.stdout() == content.bytes_of("film.bin"));
    });
}

#[test]
fn a_network_that_is_gone_for_a_while() {
    is_read_though(|network, mount| {
        network.first().link(false);
        wait_until("nothing comes", PATIENCE, || mount.status().number("download_rate") == 0);
        network.first().link(true);
    });
}

#[test]
fn an_address_that_changes() {
    is_read_though(|network, _| network.first().moves_to(Ipv4Addr::new(10, 77, 0, 3)));
}

/// A machine that was suspended finds its connections gone.
#[test]
fn a_daemon_that_was_stopped_while_its_peers_went_away() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 6 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &["--upload-limit", "2M"]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&torrent.file, &["--peer", &seeder.address.to_string()]);
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(mount.path("film.bin")));
    wait_until("something has come", PATIENCE, || mount.status().number("downloaded") > 0);
    let daemon = p2pfs.daemon();
    kill(daemon, Signal::SIGSTOP).unwrap();
    seeder.kill_daemon();
    seeder.seed(&torrent, &[]);
    kill(daemon, Signal::SIGCONT).unwrap();
    assert!(cat.wait(PATIENCE).expect("cat ends").success(), "{}", cat.stderr());
    assert!(cat.stdout() == content.bytes_of("film.bin"));
}
