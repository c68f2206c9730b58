//! How a mount begins, and why it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use p2pfs::fs::{Mount, MountError, MountOptions, Unmount};

use crate::stand_in::{StandIn, file, noise, run, text, wait_until};

fn content() -> StandIn {
    StandIn::complete(vec![file("f", "x")])
}

fn error(dir: &Path, extra: &str) -> MountError {
    let extra = vec![extra.to_owned()];
    let options = MountOptions { dir: dir.to_owned(), extra, ..MountOptions::default() };
    match Mount::new(content(), options) {
        Ok(_) => panic!("{} was mounted", dir.display()),
        Err(error) => error,
    }
}

/// Runs one of the ignored tests below in a process of its own.
fn child(test: &str, dir: &Path, through: &[&str]) -> std::process::Output {
    let own = std::env::current_exe().unwrap();
    let mut words: Vec<&str> = through.to_vec();
    words.extend([text(&own), "--ignored", "--exact", test, "--nocapture"]);
    Command::new(words[0]).args(&words[1..]).env("TEST_DIR", dir).output().unwrap()
}

#[test]
fn a_directory_that_cannot_be_used_is_named_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let (none, plain, full) = (home.path().join("none"), home.path().join("f"), home.path());
    fs::write(&plain, "").unwrap();
    assert!(matches!(error(&none, ""), MountError::NotFound(_)));
    assert!(matches!(error(&plain, ""), MountError::NotDirectory(_)));
    assert!(matches!(error(&plain.join("x"), ""), MountError::NotDirectory(_)));
    assert!(matches!(error(full, ""), MountError::NotEmpty(_)));
    let said = error(&none, "").to_string();
    assert!(said.contains(text(&none)) && said.contains("mkdir"), "{said}");
    assert!(matches!(error(full, "nonsense"), MountError::Option(_)));
}

#[test]
fn a_directory_that_is_not_empty_can_be_covered() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("below"), "").unwrap();
    let extra = vec!["nonempty".to_owned()];
    let options = MountOptions { dir: home.path().to_owned(), extra, ..MountOptions::default() };
    let mount = Mount::new(content(), options).unwrap();
    assert!(home.path().join("f").exists());
    mount.unmount(Unmount::Plain).unwrap();
    assert!(home.path().join("below").exists());
}

#[test]
fn a_second_mount_at_the_same_place_is_refused() {
    let mounted = content().mount();
    let error = error(&mounted.dir, "nonempty");
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error:?}");
    assert!(error.to_string().contains("p2pfs umount"), "{error}");
}

#[test]
fn the_table_of_mounts_shows_what_it_is() {
    let options = MountOptions { extra: vec!["noexec,fsname=a b,c".into()], ..Default::default() };
    let home = tempfile::tempdir().unwrap();
    let options = MountOptions { dir: home.path().to_owned(), ..options };
    let refused = Mount::new(content(), options.clone());
    assert!(refused.is_err_and(|error| error.to_string().contains("\"c\"")));
    let options = MountOptions { extra: vec!["noexec,fsname=a b".into()], ..options };
    let mount = Mount::new(content(), options).unwrap();
    let said = run("findmnt", &["-no", "FSTYPE,SOURCE,OPTIONS", text(mount.dir())]);
    for part in ["fuse.p2pfs", "a b", "ro,", "nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn the_kernel_reads_a_mebibyte_ahead() {
    let mounted = content().mount();
    let device = p2pfs::fs::mountinfo::mount_at(&mounted.dir).unwrap().unwrap().device;
    let setting = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(setting.trim(), "1024");
}

#[test]
fn the_same_torrent_may_be_mounted_twice() {
    let content = content();
    let (one, other) = (content.mount(), content.mount());
    drop(one);
    assert_eq!(fs::read(other.path("f")).unwrap(), b"x");
}

#[test]
fn a_dead_mount_of_ours_is_cleared() {
    let home = tempfile::tempdir().unwrap();
    let output = child("mounting::mount_and_die", home.path(), &[]);
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    let dead = fs::metadata(home.path()).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(nix::libc::ENOTCONN));
    let options = MountOptions { dir: home.path().to_owned(), ..MountOptions::default() };
    let mount = Mount::new(content(), options).unwrap();
    assert!(home.path().join("f").exists());
    mount.unmount(Unmount::Plain).unwrap();
}

/// Not a test: the process that leaves a dead mount behind.
#[test]
#[ignore = "run by a_dead_mount_of_ours_is_cleared"]
fn mount_and_die() {
    let dir = std::env::var_os("TEST_DIR").unwrap().into();
    let options = MountOptions { dir, ..MountOptions::default() };
    let _mount = Mount::new(content(), options).unwrap();
    std::process::exit(42);
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for dir in ["own", "roots"] {
        fs::create_dir(home.path().join(dir)).unwrap();
    }
    std::os::unix::fs::chown(home.path().join("own"), Some(65534), Some(65534)).unwrap();
    // As udev has it everywhere; without udev it is root's alone.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = child("mounting::mount_as_a_user", home.path(), &as_user);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
    assert!(p2pfs::fs::mountinfo::mount_at(&home.path().join("own")).unwrap().is_none());
}

/// Not a test: what an ordinary user does.
#[test]
#[ignore = "run by an_ordinary_user_mounts_through_fusermount3"]
fn mount_as_a_user() {
    assert_ne!(nix::unistd::geteuid().as_raw(), 0);
    let home: std::path::PathBuf = std::env::var_os("TEST_DIR").unwrap().into();
    let dir = home.join("own");
    let content = StandIn::complete(vec![file("d/f", noise(300_000))]);
    let options = MountOptions { dir: dir.clone(), source: "a,suid".into(), ..Default::default() };
    let mount = Mount::new(content.clone(), options.clone()).unwrap();
    assert!(fs::read(dir.join("d/f")).unwrap() == content.data(0));
    let entry = p2pfs::fs::mountinfo::mount_at(&dir).unwrap().unwrap();
    assert_eq!((entry.fs_type.as_str(), entry.source.to_str()), ("fuse.p2pfs", Some("a_suid")));
    let f = fs::File::open(dir.join("d/f")).unwrap();
    let error = mount.unmount(Unmount::Plain).unwrap_err();
    assert!(matches!(error, p2pfs::fs::UnmountError::Busy { .. }), "{error:?}");
    drop(f);
    wait_until("it is unmounted", || mount.unmount(Unmount::Plain).is_ok());

    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let options = MountOptions { allow_other: true, ..options.clone() };
        let refused = Mount::new(content.clone(), options);
        assert!(matches!(refused, Err(MountError::AllowOther)));
    }
    let options = MountOptions { dir: home.join("roots"), ..options };
    assert!(matches!(Mount::new(content, options), Err(MountError::Permission { .. })));
}

#[test]
fn an_automount_of_another_program_is_refused_and_not_waited_for() {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    if !nix::unistd::geteuid().is_root() || !known.contains("\tautofs\n") {
        eprintln!("left out: it takes root, and a kernel with autofs");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (_requests, to) = nix::unistd::pipe().unwrap();
    let mut group = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    let (fd, pgrp) = (std::os::fd::AsRawFd::as_raw_fd(&to), group.id());
    let options = format!("fd={fd},pgrp={pgrp},minproto=5,maxproto=5,direct");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("a"), home.path(), Some("autofs"), flags, Some(&*options)).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let dir = home.path().to_owned();
    std::thread::spawn(move || tell.send(error(&dir, "").to_string()));
    let said = told.recv_timeout(std::time::Duration::from_secs(60));
    // Whoever waits for it is let go.
    nix::mount::umount2(home.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    drop(to);
    group.kill().unwrap();
    group.wait().unwrap();
    let said = said.expect("it does not wait");
    assert!(said.contains("an automount that another program is to mount on"), "{said}");
}
