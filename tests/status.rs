//! What people and scripts are told about mounts, seeds and files.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::io::{Read, Write};
use std::process::Command;

use harness::*;
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn a_tracker_that_is_named_at_the_mount_finds_its_peers() {
    let scratch = Scratch::new();
    let content = Content::album();
    let torrent = Torrent::new(&scratch, &content);
    let tracker = Opentracker::start(&scratch, &[&torrent.info_hash]);
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &["--tracker", &tracker.udp()]);
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(torrent.magnet(), &["-o", &format!("tracker={}", tracker.http())]);
    assert_eq!(mount.tree(), content.tree());
    assert!(mount.status().json().contains(&tracker.http()));
}

#[test]
fn status_of_a_file_says_what_of_it_is_here() {
    let scratch = Scratch::new();
    let content = Content::folder("album").file("cd/one.flac", 3 * MIB).file("two.jpg", MIB);
    let torrent = Torrent::new(&scratch, &content);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(&torrent.file, &options);
    let two = mount.path("two.jpg");
    std::fs::read(&two).unwrap();
    let part = |path: &std::path::Path| {
        let said = p2pfs.run("status", &["--json", path.to_str().unwrap()]).success().stdout();
        serde_json::from_str::<Value>(&said).unwrap()[0].clone()
    };
    wait_until("all of it is here", PATIENCE, || part(&two)["verified"] == MIB as u64);
    let said = part(&two);
    assert_eq!((&said["files"], &said["total"]), (&1.into(), &(MIB as u64).into()));
    assert_eq!(said["pieces"], said["pieces_verified"]);
    assert_eq!(said["mount"], mount.dir().to_str().unwrap());
    let folder = part(&mount.path("cd"));
    assert_eq!((&folder["files"], &folder["total"]), (&1.into(), &(3 * MIB as u64).into()));
    assert!(folder["verified"].as_u64().unwrap() < MIB as u64, "{folder}");
    let shown = p2pfs.run("status", &[two.to_str().unwrap()]).success().stdout();
    assert!(shown.contains("1.00 MiB of 1.00 MiB verified (100 %)"), "{shown}");
    let missing = p2pfs.run("status", &[mount.path("three").to_str().unwrap()]).failure();
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
}

#[test]
fn status_of_a_mount_on_demand_says_how_much_of_all_is_here() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let p2pfs = P2pfs::new(&scratch);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(&torrent.file, &options);
    let described = || mount.run("status", &[]).success().stdout();
    assert!(described().contains("  idle: 0 B of 1.00 MiB verified (0 %)\n"), "{}", described());
    std::fs::read(mount.path("film.bin")).unwrap();
    wait_until("all of it is here", PATIENCE, || mount.status().text("state") == "complete");
    assert!(described().contains("  complete: 1.00 MiB of 1.00 MiB verified (100 %)\n"));
    let table = p2pfs.run("status", &[]).success().stdout();
    assert!(table.contains("1.00 MiB  1.00 MiB  100"), "{table}");
}

#[test]
fn status_of_all_is_a_table_with_what_is_wrong_below() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let film = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    let p2pfs = P2pfs::new(&scratch);
    p2pfs.seed(&film, &[]);
    let mount = p2pfs.mount(&torrent.file, &[]);
    let shown = p2pfs.run("status", &[]).success().stdout();
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["PATH", "KIND", "STATE", "HERE"], "{shown}");
    let dir = mount.dir().to_str().unwrap();
    assert_eq!(lines[1][..3], [dir, "mount", "downloading"], "{shown}");
    assert_eq!(lines[2][..2], [film.data.to_str().unwrap(), "seed"], "{shown}");
    assert!(lines[3].join(" ").starts_with(&format!("{dir}: no peers: ")), "{shown}");
}

/// What it has written so far.
fn said(process: &Process) -> String {
    String::from_utf8_lossy(&process.stdout()).into_owned()
}

#[test]
fn watching_shows_pieces_peers_and_who_waits_until_it_is_ended() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", 4 * MIB));
    // It has the first half, and whoever reads the other one waits.
    let p2pfs = P2pfs::new(&scratch);
    let seeder = Libtorrent::seed(&scratch, &torrent);
    let options = ["--on-demand", "--peer", &seeder.address.to_string()];
    let mount = p2pfs.mount(&torrent.file, &options);
    let film = mount.path("film.bin");
    let mut part = Command::new("head");
    run(&scratch, part.args(["-c", "100000"]).arg(&film), PATIENCE).success();
    let mut watching = p2pfs.command("status");
    let mut watching = Process::spawn(&scratch, watching.arg("--watch").arg(mount.dir()));
    wait_until("its peer is shown", PATIENCE, || {
        let shown = said(&watching);
        shown.contains("CLIENT") && shown.contains(&seeder.address.to_string())
    });
    drop(seeder);
    wait_until("it is alone", PATIENCE, || mount.status().number("peers") == 0);
    let mut reader = Command::new("tail");
    let _reader = Process::spawn(&scratch, reader.args(["-c", "1000"]).arg(&film));
    wait_until("the read that waits is shown", PATIENCE, || {
        let shown = said(&watching);
        shown.contains("WAITS FOR") && shown.contains("of film.bin") && shown.contains("█")
    });
    assert!(said(&watching).contains("·"), "{}", said(&watching));
    watching.signal(Signal::SIGINT);
    assert!(watching.wait(PATIENCE).expect("it ends").success(), "{}", watching.stderr());
}

#[test]
fn prometheus_gets_its_numbers_from_the_command_and_from_the_daemon() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::single("film.bin", MIB));
    let p2pfs = P2pfs::new(&scratch);
    let address = format!("127.0.0.1:{}", free_port());
    p2pfs.seed(&torrent, &["--metrics", &address]);
    let by_command = p2pfs.run("metrics", &[]).success().stdout();
    let path = torrent.data.to_str().unwrap();
    let expected = format!(
        "p2pfs_verified_bytes{{path=\"{path}\",kind=\"seed\",name=\"film.bin\",info_hash=\"{}\"}} {MIB}\n",
        torrent.info_hash
    );
    assert!(by_command.contains(&expected), "{by_command}");
    let ask = |question: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // Somebody who has connected and says nothing holds up nobody.
    let mut slow = std::net::TcpStream::connect(&address).unwrap();
    let question = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let answer = ask(&question);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&expected), "{answer}");
    slow.write_all(question.as_bytes()).unwrap();
    let mut late = String::new();
    slow.read_to_string(&mut late).unwrap();
    assert!(late.contains(&expected), "{late}");
    let by_name = ask("GET /metrics HTTP/1.1\r\nHost: page.example\r\n\r\n");
    assert!(by_name.starts_with("HTTP/1.1 403 ") && !by_name.contains("film.bin"), "{by_name}");
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let other = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["--metrics", "127.0.0.1:1"]);
    assert!(other.failure().stderr.contains("address for metrics"));
}
