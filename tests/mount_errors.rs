//! What goes wrong says so in one line that names the thing; nothing is left mounted.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::*;

/// One line, on stderr, that has all these words in it, and nothing mounted.
#[track_caller]
fn one_line(scratch: &Scratch, finished: Finished, words: &[&str]) {
    let finished = finished.failure();
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "not one line: {}", finished.stderr);
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in: {}", lines[0]);
    }
    assert_eq!(finished.stdout(), "");
    assert_eq!(mounts_below(scratch.root()), Vec::<PathBuf>::new());
}

#[test]
fn a_bad_magnet() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let finished = p2pfs.try_mount("magnet:?xt=urn:btih:12345", &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &["12345", "info hash"]);
}

#[test]
fn a_file_that_is_no_torrent() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let file = scratch.file("letter.torrent", b"Dear all,");
    let finished = p2pfs.try_mount(&file, &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &["letter.torrent"]);
}

#[test]
fn a_torrent_file_that_was_cut_off() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let bytes = std::fs::read(&torrent.file).unwrap();
    let file = scratch.file("half.torrent", &bytes[..bytes.len() / 2]);
    let finished = p2pfs.try_mount(&file, &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &["half.torrent"]);
}

#[test]
fn a_torrent_file_that_is_not_there() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let file = scratch.path("missing.torrent");
    let finished = p2pfs.try_mount(&file, &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &["missing.torrent"]);
}

#[test]
fn a_url_that_answers_404() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let server = HttpServer::start("404 Not Found", b"no".to_vec());
    let url = server.url("/gone.torrent");
    let finished = p2pfs.try_mount(&url, &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &["gone.torrent", "404"]);
}

#[test]
fn a_url_that_never_answers() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.torrent", silent.local_addr().unwrap());
    let finished = p2pfs.try_mount(&url, &p2pfs.mount_point(), &["--timeout", "1"]);
    one_line(&scratch, finished, &["a.torrent", "within 1 s", "--timeout"]);
}

#[test]
fn files_to_be_kept_in_the_mount_itself() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let dir = p2pfs.mount_point();
    let keep = ["--until-done", "--keep", dir.to_str().unwrap()];
    one_line(&scratch, p2pfs.try_mount(&torrent.file, &dir, &keep), &["in the mount itself"]);
}

#[test]
fn files_to_be_kept_where_nothing_can_be() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    std::fs::write(scratch.path("file"), b"").unwrap();
    let keep = scratch.path("file/there");
    let keep = ["--until-done", "--keep", keep.to_str().unwrap()];
    let refused = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &keep);
    one_line(&scratch, refused, &["file/there", "Not a directory"]);
}

#[test]
fn a_peer_without_a_port() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    for peer in ["127.0.0.1", "127.0.0.1:0", ":80", "[::1]"] {
        let finished = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &["--peer", peer]);
        one_line(&scratch, finished, &[peer, "PORT"]);
    }
}

#[test]
fn a_directory_that_is_not_there() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let finished = p2pfs.try_mount(&torrent.file, &scratch.path("nowhere"), &[]);
    one_line(&scratch, finished, &["nowhere"]);
}

#[test]
fn a_file_instead_of_a_directory() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let finished = p2pfs.try_mount(&torrent.file, &torrent.file, &[]);
    one_line(&scratch, finished, &["album.torrent"]);
}

#[test]
fn a_directory_that_is_not_empty() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let dir = p2pfs.mount_point();
    std::fs::write(dir.join("mine"), "").unwrap();
    let finished = p2pfs.try_mount(&torrent.file, &dir, &[]);
    one_line(&scratch, finished, &[dir.to_str().unwrap(), "empty"]);
}

#[test]
fn a_directory_that_is_a_mount_already() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let mount = p2pfs.mount(&torrent.file, &[]);
    let refused = p2pfs.try_mount(&torrent.file, mount.dir(), &[]).failure();
    assert!(refused.stderr.contains("mounted"), "{}", refused.stderr);
    assert_eq!(mounts_below(scratch.root()).len(), 1);
    mount.umount();
}

#[test]
fn no_metadata_within_the_timeout() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let dead = format!("127.0.0.1:{}", free_port());
    let begin = Instant::now();
    let options = ["--timeout", "2", "--peer", &dead];
    let finished = p2pfs.try_mount(torrent.magnet(), &p2pfs.mount_point(), &options).failure();
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
    let last = finished.stderr.lines().last().unwrap_or("");
    assert!(last.contains("metadata") && last.contains('2'), "{}", finished.stderr);
    assert_eq!(mounts_below(scratch.root()), Vec::<PathBuf>::new());
}

#[test]
fn a_magnet_without_any_way_to_peers() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let options = ["--timeout", "2"];
    let finished = p2pfs.try_mount(torrent.magnet(), &p2pfs.mount_point(), &options).failure();
    let last = finished.stderr.lines().last().unwrap_or("");
    assert!(last.contains("peer"), "{}", finished.stderr);
    assert_eq!(mounts_below(scratch.root()), Vec::<PathBuf>::new());
}

#[test]
fn web_seeds_alone_are_said_to_be_of_no_use() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let said = |rest: &str| {
        let link = format!("{}{rest}", torrent.magnet());
        let dir = p2pfs.mount_point();
        let tried = p2pfs.try_mount(link, &dir, &["--timeout", "1"]).failure();
        tried.stderr.lines().any(|line| line.contains("web seeds"))
    };
    assert!(said("&ws=http://192.0.2.1/"));
    assert!(!said("&ws=http://192.0.2.1/&x.pe=127.0.0.1:1") && !said(""));
}

#[test]
fn a_running_daemon_with_other_settings() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let _mount = p2pfs.mount(&torrent.file, &[]);
    let other = P2pfs::new(&scratch).with_data_dir(&scratch.path("elsewhere"));
    let refused = other.try_mount(&torrent.file, &other.mount_point(), &[]).failure();
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert_eq!(mounts_below(scratch.root()).len(), 1);
}

#[test]
fn a_daemon_that_nobody_uses_gives_way_to_one_with_other_settings() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let torrent = Torrent::new(&scratch, &Content::album());
    let mount = p2pfs.mount(&torrent.file, &[]);
    let first = p2pfs.daemon();
    mount.umount();
    let other = P2pfs::new(&scratch).with_data_dir(&scratch.path("elsewhere"));
    let mount = other.mount(&torrent.file, &[]);
    assert_ne!(other.daemon(), first);
    assert!(mount.is_mounted());
    assert!(scratch.path("elsewhere").exists());
}

#[test]
fn a_cache_that_another_daemon_has() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let first = P2pfs::named(&scratch, "first");
    let _mount = first.mount(&torrent.file, &[]);
    let second = P2pfs::named(&scratch, "second").with_data_dir(&first.data_dir);
    let refused = second.try_mount(&torrent.file, &second.mount_point(), &[]).failure();
    let cache = first.data_dir.to_str().unwrap();
    assert!(refused.stderr.contains(cache), "{}", refused.stderr);
    assert_eq!(mounts_below(scratch.root()).len(), 1);
}

#[test]
fn a_port_that_is_taken() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let _taken = std::net::TcpListener::bind(p2pfs.address).unwrap();
    let finished = p2pfs.try_mount(&torrent.file, &p2pfs.mount_point(), &[]);
    one_line(&scratch, finished, &[&p2pfs.address.port().to_string()]);
}

#[test]
fn no_dev_fuse() {
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &Content::album());
    let p2pfs = P2pfs::new(&scratch);
    let mut mount = p2pfs.starting_command("mount");
    mount.arg(&torrent.file).arg(p2pfs.mount_point());
    let finished = run(&scratch, &mut without_dev_fuse(&mount), PATIENCE);
    one_line(&scratch, finished, &["/dev/fuse"]);
}

/// The same command where /dev has no fuse.
fn without_dev_fuse(command: &Command) -> Command {
    const SCRIPT: &str = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
    let mut hidden = if nix::unistd::Uid::effective().is_root() {
        Command::new("unshare")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "--preserve-env", "unshare"]);
        sudo
    };
    hidden.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
    hidden.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => hidden.env(key, value),
            None => hidden.env_remove(key),
        };
    }
    hidden.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    hidden
}

#[test]
fn umount_of_what_is_no_mount() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    let finished = p2pfs.run("umount", &[dir.to_str().unwrap()]);
    one_line(&scratch, finished, &[dir.to_str().unwrap()]);
}

#[test]
fn umount_of_what_is_in_use_names_the_users() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let mount = p2pfs.mount(&Torrent::new(&scratch, &Content::album()).file, &[]);
    let file = mount.path("notes.txt");
    for (command, arguments) in [
        ("cd \"$0\" && exec sleep 1000", [mount.dir()]),
        ("exec sleep 1000 3< \"$0\"", [file.as_path()]),
    ] {
        let mut user = std::process::Command::new("sh");
        let mut user = user.arg("-c").arg(command).args(arguments).spawn().unwrap();
        let id = format!("sleep {}", user.id());
        let comm = format!("/proc/{}/comm", user.id());
        let sleeps = || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n");
        wait_until("it uses the mount", PATIENCE, sleeps);
        let refused = mount.run("umount", &[]).failure();
        user.kill().unwrap();
        user.wait().unwrap();
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(&id), "{}, not {id}", refused.stderr);
    }
}

#[test]
fn status_wait_and_abort_of_what_is_no_mount() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let _mount = p2pfs.mount(&Torrent::new(&scratch, &Content::album()).file, &[]);
    let dir = p2pfs.mount_point();
    for verb in ["status", "wait", "abort", "prefetch"] {
        let refused = p2pfs.run(verb, &[dir.to_str().unwrap()]).failure();
        assert_eq!(refused.stderr.lines().count(), 1, "{verb}: {}", refused.stderr);
        assert!(refused.stderr.contains(dir.to_str().unwrap()), "{verb}: {}", refused.stderr);
    }
}

#[test]
fn wait_and_abort_without_a_daemon() {
    let scratch = Scratch::new();
    let p2pfs = P2pfs::new(&scratch);
    let dir = p2pfs.mount_point();
    for verb in ["wait", "abort", "prefetch"] {
        let finished = p2pfs.run(verb, &[dir.to_str().unwrap()]);
        one_line(&scratch, finished, &["p2pfs"]);
        assert_eq!(scratch.processes(), [], "{verb} started a daemon");
    }
}
