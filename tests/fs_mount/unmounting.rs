//! How a mount ends.

use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use p2pfs::fs::{Unmount, UnmountError};

use crate::stand_in::{Mounted, StandIn, file, noise, run, text, wait_until};

/// Counts how often the end of a mount is told.
fn ends(mounted: &Mounted) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    mounted.mount.on_end(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    count
}

fn wait_for_end(ends: &AtomicUsize) {
    wait_until("the end is told", || ends.load(Ordering::SeqCst) == 1);
}

#[test]
fn an_unused_mount_is_unmounted() {
    let mounted = StandIn::complete(vec![file("f", "x")]).mount();
    let ends = ends(&mounted);
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"x");
    // The file is released a moment after it is closed.
    wait_until("it is unmounted", || mounted.mount.unmount(Unmount::Plain).is_ok());
    assert!(!mounted.is_in_table());
    assert!(fs::read_dir(&mounted.dir).unwrap().next().is_none());
    wait_for_end(&ends);
    mounted.mount.unmount(Unmount::Plain).unwrap();
    let told = Arc::clone(&ends);
    mounted.mount.on_end(Box::new(move || told.store(7, Ordering::SeqCst)));
    assert_eq!(ends.load(Ordering::SeqCst), 7);
}

#[test]
fn a_waiting_reader_keeps_it_and_force_ends_the_reader() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let ends = ends(&mounted);
    let path = mounted.path("f");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("a read waits", || mounted.mount.waiting_reads() > 0);

    let error = mounted.mount.unmount(Unmount::Plain).unwrap_err();
    assert!(matches!(error, UnmountError::Busy { waiting: 1.., .. }), "{error:?}");
    assert!(error.to_string().contains("--force"), "{error}");
    assert!(mounted.is_in_table() && !reader.is_finished());

    mounted.mount.unmount(Unmount::Force).unwrap();
    assert!(!mounted.is_in_table());
    let took = wait_until("the reader has ended", || reader.is_finished());
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    wait_for_end(&ends);
}

#[test]
fn an_open_file_keeps_it_and_force_detaches_it() {
    let content = StandIn::complete(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let ends = ends(&mounted);
    let mut f = File::open(mounted.path("f")).unwrap();
    let error = mounted.mount.unmount(Unmount::Plain).unwrap_err();
    assert!(matches!(error, UnmountError::Busy { waiting: 0, .. }), "{error:?}");
    mounted.mount.unmount(Unmount::Force).unwrap();
    assert!(!mounted.is_in_table());
    let mut all = vec![];
    f.read_to_end(&mut all).unwrap();
    assert!(all == content.data(0));
    assert_eq!(ends.load(Ordering::SeqCst), 0);
    drop(f);
    wait_for_end(&ends);
}

#[test]
fn a_reader_goes_on_after_a_lazy_unmount() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("a read waits", || content.waiting_reads() > 0);
    mounted.mount.unmount(Unmount::Lazy).unwrap();
    assert!(!mounted.is_in_table());
    drop(mounted);
    content.release_all();
    assert!(reader.join().unwrap().unwrap() == content.data(0));
}

#[test]
fn a_killed_reader_does_not_keep_it_and_its_demand_goes_with_it() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let ends = ends(&mounted);
    let path = mounted.path("f");
    let mut child = std::process::Command::new("cat").arg(path).spawn().unwrap();
    wait_until("a read waits", || content.waiting_reads() > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    mounted.mount.unmount(Unmount::Plain).unwrap();
    wait_for_end(&ends);
    assert_eq!(content.state().closed, 1);
}

#[test]
fn a_read_whose_engine_is_gone_fails() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("a read waits", || content.waiting_reads() > 0);
    content.drop_waiters();
    wait_until("the reader has ended", || reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(nix::libc::EIO));
}

#[test]
fn an_unmount_by_others_is_noticed() {
    let mounted = StandIn::complete(vec![file("f", "x")]).mount();
    let ends = ends(&mounted);
    run("umount", &[text(&mounted.dir)]);
    wait_for_end(&ends);
    mounted.mount.unmount(Unmount::Plain).unwrap();
}

#[test]
fn a_connection_that_is_cut_leaves_no_dead_mount() {
    let mounted = StandIn::complete(vec![file("f", "x")]).mount();
    let ends = ends(&mounted);
    let minor = p2pfs::fs::mountinfo::mount_at(&mounted.dir).unwrap().unwrap().device;
    let minor = minor.split(':').nth(1).unwrap();
    let control = "/sys/fs/fuse/connections";
    if !fs::exists(format!("{control}/{minor}")).unwrap() {
        run("mount", &["-t", "fusectl", "none", control]);
    }
    fs::write(format!("{control}/{minor}/abort"), "1").unwrap();
    wait_for_end(&ends);
    assert!(!mounted.is_in_table());
}

#[test]
fn somebody_elses_filesystem_at_the_same_place_is_left_alone() {
    let mounted = StandIn::complete(vec![file("f", "x")]).mount();
    run("umount", &[text(&mounted.dir)]);
    run("mount", &["-t", "tmpfs", "other", text(&mounted.dir)]);
    mounted.mount.unmount(Unmount::Force).unwrap();
    assert!(mounted.is_in_table(), "the other filesystem is gone");
    run("umount", &[text(&mounted.dir)]);
}

#[test]
fn a_mount_under_another_is_not_taken_for_it() {
    let mounted = StandIn::complete(vec![file("f", "x")]).mount();
    run("mount", &["-t", "tmpfs", "other", text(&mounted.dir)]);
    let error = mounted.mount.unmount(Unmount::Lazy).unwrap_err();
    assert!(matches!(error, UnmountError::Covered(_)), "{error:?}");
    run("umount", &[text(&mounted.dir)]);
    assert!(mounted.path("f").exists());
    mounted.mount.unmount(Unmount::Lazy).unwrap();
}
