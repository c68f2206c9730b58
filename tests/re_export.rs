//! Mounts that are given on to other machines: what NFS servers need of a filesystem, and servers of NFS
//! and SMB where they are installed (`make test-exports`).
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command};

use harness::*;

/// Somebody who keeps handles of files (`peers/by_handle.py`).
struct Handles {
    _process: Process,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Handles {
    fn of(scratch: &Scratch, dir: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/by_handle.py");
        let mut command = Command::new("/usr/bin/python3");
        let mut process = Process::spawn_piped(scratch, command.arg(script).arg(dir));
        let (to, from) = (process.child().stdin.take(), process.child().stdout.take());
        Self { _process: process, to: to.unwrap(), from: BufReader::new(from.unwrap()) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.from.read_line(&mut line).unwrap() > 0, "it has ended");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.to, "{command}").unwrap();
    }

    fn take(&mut self) {
        self.tell("take");
        assert!(self.line().parse::<usize>().unwrap() > 1);
    }

    fn forget(&mut self) {
        self.tell("forget");
        assert_eq!(self.line(), "ok");
    }

    /// What each path's handle leads to: a hash, a folder, or an error.
    fn read(&mut self) -> BTreeMap<String, String> {
        self.tell("read");
        let mut found = BTreeMap::new();
        loop {
            let line = self.line();
            let Some((path, what)) = line.rsplit_once(' ') else { return found };
            found.insert(path.to_owned(), what.to_owned());
        }
    }
}

/// Whether this test can be run.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("left out: only root may open files by their handles");
    }
    root
}

fn album() -> Content {
    Content::folder("album").file("cd/one/a.flac", 300_000).file("b.txt", 1000).file("cd/c", 77)
}

#[test]
fn a_handle_leads_to_its_file_though_the_kernel_has_forgotten_it_and_after_a_new_mount() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let (content, other) = (album(), Content::folder("other").file("cd/one/a.flac", 300_000));
    let torrents = [&content, &other].map(|content| Torrent::new(&scratch, content));
    let seeder = P2pfs::named(&scratch, "seeder");
    torrents.iter().for_each(|torrent| seeder.seed(torrent, &[]));
    let p2pfs = P2pfs::new(&scratch);
    let (dir, peer) = (p2pfs.mount_point(), seeder.address.to_string());
    let mount = |torrent: &Torrent| {
        p2pfs.try_mount(&torrent.file, &dir, &["--peer", &peer]).success();
    };
    mount(&torrents[0]);
    let mut handles = Handles::of(&scratch, &dir);
    handles.take();
    let found = handles.read();
    let folders = |found: &BTreeMap<String, String>| {
        [".", "cd", "cd/one"].iter().all(|folder| found[*folder] == *folder)
    };
    assert!(folders(&found), "{found:?}");
    assert!(found.values().all(|what| !what.starts_with('E')), "{found:?}");
    handles.forget();
    assert_eq!(handles.read(), found);
    p2pfs.kill_daemon();
    mount(&torrents[0]);
    assert_eq!(handles.read(), found, "mounted again by another daemon");
    p2pfs.run("umount", &[dir.to_str().unwrap()]).success();
    mount(&torrents[1]);
    let stale = handles.read();
    let files = stale.iter().filter(|(path, _)| *path != ".");
    assert!(files.clone().count() > 3 && files.clone().all(|(_, what)| what == "ESTALE"));
}

#[test]
fn the_folders_of_a_mount_have_handles_of_its_own() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let torrent = Torrent::new(&scratch, &album());
    let seeder = P2pfs::named(&scratch, "seeder");
    seeder.seed(&torrent, &[]);
    let p2pfs = P2pfs::new(&scratch);
    let (dir, peer) = (p2pfs.mount_point(), seeder.address.to_string());
    p2pfs.try_mount(&torrent.file, &dir, &["--folders", "--peer", &peer]).success();
    let mut handles = Handles::of(&scratch, &dir);
    handles.take();
    let found = handles.read();
    assert_eq!(found["album/cd/one"], "album/cd/one", "{found:?}");
    handles.forget();
    assert_eq!(handles.read(), found);
    p2pfs.run("umount", &[dir.to_str().unwrap()]).success();
    p2pfs.try_mount(&torrent.file, &dir, &["--folders", "--peer", &peer]).success();
    let stale = handles.read();
    assert!(stale.iter().all(|(path, what)| path == "." || what == "ESTALE"), "{stale:?}");
}

/// Whether programs are here that are not needed for anything else.
fn are_installed(programs: &[&str]) -> bool {
    let is_there = |program: &&str| {
        ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
    };
    let all = programs.iter().all(is_there);
    if !all {
        eprintln!("left out: {} is missing (make test-exports installs it)", programs.join(" or "));
    }
    all
}

/// Whether somebody listens on a TCP port of this network.
fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Ganesha, an NFS server in user space: it uses handles as that of the kernel does.
#[test]
fn an_nfs_server_gives_it_to_its_clients() {
    if !are_installed(&["ganesha.nfsd", "nfs-ls", "nfs-cat"]) {
        return;
    }
    on_hosts(|_| {
        let scratch = Scratch::new();
        let (content, lost) = (album(), Content::single("lost.bin", 50_000));
        let [torrent, nobodys] = [&content, &lost].map(|content| Torrent::new(&scratch, content));
        let seeder = P2pfs::named(&scratch, "seeder");
        seeder.seed(&torrent, &[]);
        let p2pfs = P2pfs::new(&scratch);
        let peer = seeder.address.to_string();
        let mount = p2pfs.mount(&torrent.file, &["--on-demand", "--peer", &peer]);
        let waiting = p2pfs.mount(&nobodys.file, &["--read-timeout", "1"]);
        let export = |number: u32, name: &str, dir: &Path| {
            format!(
                "EXPORT {{ Export_Id = {number}; Path = {}; Pseudo = /{name}; Access_Type = RO; \
                 Squash = None; SecType = sys; Protocols = 4; Transports = TCP; \
                 Filesystem_Id = {number}.0; FSAL {{ Name = VFS; }} }}\n",
                dir.display()
            )
        };
        let config = "NFS_CORE_PARAM { Protocols = 4; NFS_Port = 20490; Enable_NLM = false; \
                      Enable_RQUOTA = false; Enable_UDP = false; }\n\
                      NFSv4 { Graceless = true; RecoveryBackend = fs; }\n";
        let exports = export(7, "film", mount.dir()) + &export(8, "lost", waiting.dir());
        scratch.file("ganesha.conf", (config.to_owned() + &exports).as_bytes());
        let script = "set -e; mkdir -p /run/ganesha; mount -t tmpfs own /run/ganesha
            mount -t tmpfs own /var/lib/nfs; mkdir -p /var/lib/nfs/ganesha
            exec ganesha.nfsd -F -f \"$0/ganesha.conf\" -L \"$0/ganesha.log\" -p \"$0/ganesha.pid\"";
        let mut ganesha = Command::new("unshare");
        ganesha.args(["--mount", "sh", "-c", script]).arg(scratch.root());
        let _ganesha = Process::spawn(&scratch, &mut ganesha);
        wait_until("it listens", PATIENCE, || listens(20490));
        let url = |path: &str| format!("nfs://127.0.0.1/{path}?version=4&nfsport=20490");
        let nfs = |program: &str, arguments: &[&str]| {
            run(&scratch, Command::new(program).args(arguments), PATIENCE)
        };
        let listed = nfs("nfs-ls", &["-R", &url("film")]).success().stdout();
        assert!(listed.contains("300000 cd/one/a.flac"), "{listed}");
        for file in ["b.txt", "cd/c", "cd/one/a.flac"] {
            let got = nfs("nfs-cat", &[&url(&format!("film/{file}"))]).success().stdout;
            assert!(got == content.bytes_of(file), "{file}");
        }
        // A read that waits has the server's thread; in time it is an error for the client.
        nfs("nfs-cat", &[&url("lost/lost.bin")]).failure();
    });
}

#[test]
fn an_smb_server_gives_it_to_its_clients() {
    if !are_installed(&["smbd", "smbclient"]) {
        return;
    }
    on_hosts(|_| {
        let scratch = Scratch::new();
        let content = album();
        let torrent = Torrent::new(&scratch, &content);
        let seeder = P2pfs::named(&scratch, "seeder");
        seeder.seed(&torrent, &[]);
        let p2pfs = P2pfs::new(&scratch);
        let peer = seeder.address.to_string();
        let options = ["--on-demand", "--allow-other", "--peer", &peer];
        let mount = p2pfs.mount(&torrent.file, &options);
        let own = scratch.dir("samba");
        let dirs = ["private dir", "lock directory", "state directory", "cache directory"];
        let dirs = dirs.into_iter().chain(["pid directory", "ncalrpc dir"]);
        let dirs: String = dirs.map(|dir| format!("{dir} = {}\n", own.display())).collect();
        let config = format!(
            "[global]\n{dirs}log file = {0}/log\nsmb ports = 4450\ndisable netbios = yes\n\
             map to guest = bad user\nserver role = standalone\nload printers = no\n\
             [film]\npath = {1}\nread only = yes\nguest ok = yes\n",
            own.display(),
            mount.dir().display()
        );
        let config = scratch.file("smb.conf", config.as_bytes());
        let mut smbd = Command::new("smbd");
        smbd.args(["--foreground", "--no-process-group", "-s"]).arg(&config);
        let mut smbd = Process::spawn(&scratch, &mut smbd);
        wait_until("it listens", PATIENCE, || {
            assert!(!smbd.has_ended(), "{}", smbd.stderr());
            listens(4450)
        });
        let got = scratch.dir("got");
        let mut client = Command::new("smbclient");
        client.args(["-N", "-p", "4450", "//127.0.0.1/film", "-s"]).arg(&config);
        client.args(["-c", "recurse; prompt; mget *"]).current_dir(&got);
        run(&scratch, &mut client, PATIENCE).success();
        for file in ["b.txt", "cd/c", "cd/one/a.flac"] {
            assert!(std::fs::read(got.join(file)).unwrap() == content.bytes_of(file), "{file}");
        }
    });
}
