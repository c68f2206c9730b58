//! What happens to machines and networks while a mount is read: it goes on.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc;

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
        network.first().has_way_out();
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
        network.first().has_way_out();
    });
}

#[test]
fn an_address_that_changes() {
    is_read_though(|network, _| {
        network.first().moves_to(Ipv4Addr::new(10, 77, 0, 3));
        network.first().has_way_out();
    });
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

#[test]
fn a_clock_that_jumps_an_hour_forth_and_back() {
    let scratch = Scratch::new();
    let content = Content::single("film.bin", 6 * MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &["--upload-limit", "100K"]);
    let (library, moved) = (scratch.path("other_clock.so"), scratch.file("moved", b"0"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/other_clock.c");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]);
    run(&scratch, &mut compile, PATIENCE).success();
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let mount = || {
        let mut mount = p2pfs.starting_command("mount");
        mount.env("LD_PRELOAD", &library).env("CLOCK_MOVED", &moved);
        mount.args(["--peer", &seeder.address.to_string()]).arg(&torrent.file).arg(&dir);
        run(&scratch, &mut mount, PATIENCE).success();
        let loaded = std::fs::read_to_string(format!("/proc/{}/maps", p2pfs.daemon())).unwrap();
        assert!(loaded.contains("other_clock.so"), "the daemon has a clock of its own");
    };
    mount();
    let file = dir.join("film.bin");
    let mut cat = Process::spawn(&scratch, Command::new("cat").arg(&file));
    let downloaded = || p2pfs.status()[0].number("downloaded");
    for seconds in ["3600", "-3600"] {
        let before = downloaded();
        std::fs::write(&moved, seconds).unwrap();
        wait_until("more comes", PATIENCE, || downloaded() > before);
    }
    seeder.run("limit", &["--up", "none"]).success();
    assert!(cat.wait(PATIENCE).expect("cat ends").success(), "{}", cat.stderr());
    assert!(cat.stdout() == content.bytes_of("film.bin"));
    // What was kept in an hour that is still to come is used.
    p2pfs.stop_daemon();
    std::fs::write(&moved, "-7200").unwrap();
    mount();
    assert_eq!(std::fs::read(&file).unwrap(), content.bytes_of("film.bin"));
    assert_eq!(downloaded(), 0);
}

/// A tracker on the host that this thread is on, which notes whence it was asked.
fn tracker(port: u16) -> mpsc::Receiver<IpAddr> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let (tell, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let body = "d8:intervali1800e5:peers0:e";
            let length = body.len();
            let _ = stream.read(&mut [0; 4096]);
            let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes());
            if tell.send(stream.peer_addr().unwrap().ip()).is_err() {
                return;
            }
        }
    });
    asked
}

#[test]
fn trackers_are_told_of_an_address_that_has_changed() {
    on_hosts(|network| {
        let scratch = Scratch::new();
        let torrent = Torrent::new(&scratch, &Content::single("film.bin", MIB));
        let other = Ipv4Addr::new(10, 77, 0, 3);
        network.second().enter();
        let asked = tracker(8080);
        network.first().enter();
        network.first().has_way_out();
        let p2pfs = P2pfs::new(&scratch).listening_on(ANY);
        let url = format!("http://{}:8080/announce", network.second().v4);
        // It has everything and wants nobody, so it would say nothing for half an hour.
        p2pfs.seed(&torrent, &["--tracker", &url, "--log", "p2pfs=trace"]);
        assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), network.first().v4);
        // Containers come and go, and the network is what it was.
        network.first().bridge(true);
        let log = || std::fs::read_to_string(scratch.path("p2pfs-home/socket.log")).unwrap();
        let looks = || log().matches("looked at the network").count();
        let before = looks();
        wait_until("the network is looked at twice", PATIENCE, || looks() >= before + 2);
        assert!(asked.try_recv().is_err(), "told of a bridge");
        network.first().moves_to(other);
        network.first().has_way_out();
        assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), other);
    });
}
