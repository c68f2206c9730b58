//! Reads that wait, and everything that goes on meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use p2pfs::fs::{MountOptions, Unmount};

use crate::stand_in::{BLOCK, StandIn, file, noise, run, text, wait_until};

fn spawn(program: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Sends a signal; how long the process took to go.
fn end(mut child: Child, signal: Signal) -> Duration {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    wait_until("the process ends", || child.try_wait().unwrap().is_some())
}

fn wait_for_reads(content: &StandIn, count: usize) {
    wait_until("reads wait", || content.waiting_reads() >= count);
}

#[test]
fn metadata_answers_at_once_while_64_reads_wait() {
    let mut items: Vec<_> = (0..64).map(|i| file(format!("w/{i}"), noise(100_000))).collect();
    items.extend((0..2000).map(|i| file(format!("d{}/{i}", i % 100), noise(10))));
    let content = StandIn::new(items);
    let mounted = content.mount();
    let readers: Vec<_> = (0..64)
        .map(|i| {
            let path = mounted.path(&format!("w/{i}"));
            thread::spawn(move || fs::read(path))
        })
        .collect();
    wait_for_reads(&content, 64);

    let mut took: Vec<Duration> = (0..100)
        .map(|i| {
            let start = Instant::now();
            assert_eq!(fs::read_dir(mounted.path(&format!("d{i}"))).unwrap().count(), 20);
            assert_eq!(fs::metadata(mounted.path(&format!("d{i}/{i}"))).unwrap().len(), 10);
            statvfs(&mounted.dir).unwrap();
            File::open(mounted.path(&format!("d{i}/{i}"))).unwrap();
            start.elapsed()
        })
        .collect();
    took.sort();
    assert!(took[50] < Duration::from_millis(10), "listing, stat, statfs and open: {:?}", took[50]);
    run("ls", &["-lR", text(&mounted.dir)]);
    run("stat", &[text(&mounted.path("w/1"))]);
    run("df", &[text(&mounted.dir)]);

    content.release_all();
    for (i, reader) in readers.into_iter().enumerate() {
        assert!(reader.join().unwrap().unwrap() == content.data(i));
    }
}

#[test]
fn waiting_programs_end_at_once_with_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        for program in ["cat", "cp", "dd"] {
            let content = StandIn::new(vec![file("f", noise(1 << 20))]);
            let mounted = content.mount();
            let path = mounted.path("f");
            let child = match program {
                "dd" => spawn("dd", &[&format!("if={}", text(&path)), "of=/dev/null", "bs=64k"]),
                "cp" => spawn("cp", &[text(&path), "/dev/null"]),
                _ => spawn("cat", &[text(&path)]),
            };
            wait_for_reads(&content, 1);
            let took = end(child, signal);
            assert!(took < Duration::from_secs(1), "{program} {signal}: {took:?}");
            wait_until("its demand is withdrawn", || content.state().flushed > 0);
        }
    }
}

#[test]
fn programs_that_handle_the_interrupt_themselves_get_it() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let script = "
import sys
try:
    open(sys.argv[1], 'rb').read()
except KeyboardInterrupt:
    sys.exit(42)
";
    let mut child = spawn("python3", &["-c", script, text(&mounted.path("f"))]);
    wait_for_reads(&content, 1);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let took = wait_until("it ends", || child.try_wait().unwrap().is_some());
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(child.wait().unwrap().code(), Some(42));
}

#[test]
fn a_reader_of_single_pages_can_be_killed() {
    // After an error the kernel reads page by page, and such a wait is not killable by itself.
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let mut first = spawn("cat", &[text(&path)]);
    wait_until("the first is aborted", || {
        mounted.mount.abort_reads();
        first.try_wait().unwrap().is_some()
    });
    let before = content.waiting_reads();
    // The kernel's second attempt fails at once for a second; then a read waits again.
    let mut child = spawn("cat", &[text(&path)]);
    wait_until("a read of a page waits", || {
        if child.try_wait().unwrap().is_some() {
            child = spawn("cat", &[text(&path)]);
        }
        content.waiting_reads() > before
    });
    let took = end(child, Signal::SIGKILL);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_waiting_direct_read_ends_at_once_with_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let content = StandIn::new(vec![file("f", noise(1 << 20))]);
        let mounted = content.mount();
        let from = format!("if={}", text(&mounted.path("f")));
        let child = spawn("dd", &[&from, "of=/dev/null", "iflag=direct", "bs=64k"]);
        wait_for_reads(&content, 1);
        let took = end(child, signal);
        assert!(took < Duration::from_secs(1), "{signal}: {took:?}");
    }
}

#[test]
fn a_thread_in_a_direct_read_does_not_keep_its_program() {
    let script = "
import mmap, os, sys, threading
f = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 65536)
thread = threading.Thread(target=lambda: os.preadv(f, [buffer], 0), daemon=True)
thread.start()
thread.join()
";
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let content = StandIn::new(vec![file("f", noise(1 << 20))]);
        let mounted = content.mount();
        let child = spawn("python3", &["-c", script, text(&mounted.path("f"))]);
        wait_for_reads(&content, 1);
        let took = end(child, signal);
        assert!(took < Duration::from_secs(1), "{signal}: {took:?}");
    }
}

#[test]
fn a_program_with_many_direct_reads_under_way_can_be_killed() {
    if Command::new("fio").arg("--version").output().is_err() {
        return println!("skipped: fio is not installed");
    }
    for engine in ["libaio", "io_uring"] {
        let content = StandIn::new(vec![file("f", noise(4 << 20))]);
        let mounted = content.mount();
        let name = format!("--filename={}", text(&mounted.path("f")));
        let engine = format!("--ioengine={engine}");
        let fixed =
            ["--name=f", "--readonly", "--rw=randread", "--bs=4k", "--direct=1", "--thread"];
        let depth = ["--iodepth=32", "--iodepth_batch=32", "--allow_file_create=0"];
        let child = spawn("fio", &[&fixed[..], &depth, &[&name, &engine]].concat());
        wait_for_reads(&content, 1);
        let took = end(child, Signal::SIGKILL);
        assert!(took < Duration::from_secs(2), "{engine}: {took:?}");
        mounted.mount.unmount(Unmount::Plain).unwrap();
    }
}

/// They come one after the other, and the program does not stop at the first that fails.
#[test]
fn an_abort_ends_all_direct_reads_of_a_program() {
    if Command::new("fio").arg("--version").output().is_err() {
        return println!("skipped: fio is not installed");
    }
    let content = StandIn::new(vec![file("f", noise(4 << 20))]);
    let mounted = content.mount();
    let name = format!("--filename={}", text(&mounted.path("f")));
    let fixed = ["--name=f", "--readonly", "--rw=randread", "--bs=4k", "--direct=1", "--thread"];
    let depth = ["--iodepth=32", "--iodepth_batch=32", "--allow_file_create=0"];
    let mut child = spawn("fio", &[&fixed[..], &depth, &[&name, "--ioengine=libaio"]].concat());
    wait_until("a read waits", || mounted.mount.waiting_reads() > 0);
    mounted.mount.abort_reads();
    wait_until("it has got its errors", || child.try_wait().unwrap().is_some());
}

/// A loop device and the like turn an interruption into an error, so there must be none.
#[test]
fn a_direct_read_waits_for_its_data_as_long_as_others() {
    let content = StandIn::new(vec![file("f", noise(4096))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn(move || {
        let f = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let mut buffer = vec![0; 4096];
        f.read_at(&mut buffer, 0).map(|length| buffer[..length].to_vec())
    });
    wait_for_reads(&content, 1);
    assert!(content.state().waits_without_end());
    content.release_all();
    assert!(reader.join().unwrap().unwrap() == content.data(0));
}

#[test]
fn a_direct_read_that_was_aborted_fails_and_a_later_one_succeeds() {
    let content = StandIn::new(vec![file("f", noise(4096))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let read = move || {
        let f = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path)?;
        f.read_at(&mut vec![0; 4096], 0)
    };
    let reader = thread::spawn(read.clone());
    wait_until("a read waits", || mounted.mount.waiting_reads() > 0);
    assert_eq!(mounted.mount.abort_reads(), 1);
    wait_until("the reader has ended", || reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    content.release_all();
    assert_eq!(read().unwrap(), 4096);
}

#[test]
fn a_file_opens_a_second_time_while_its_first_reader_waits() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    content.release(0, 32..64);
    let mounted = content.mount();
    let path = mounted.path("f");
    let first = thread::spawn({
        let path = path.clone();
        move || File::open(path).unwrap().read(&mut [0; 4096])
    });
    wait_for_reads(&content, 1);
    let second = thread::spawn(move || {
        let mut tail = vec![0; 4096];
        File::open(path).unwrap().read_exact_at(&mut tail, (1 << 20) - 4096).unwrap();
        tail
    });
    wait_until("the second has read", || second.is_finished());
    assert!(second.join().unwrap() == content.data(0)[(1 << 20) - 4096..]);
    content.release_all();
    assert_eq!(first.join().unwrap().unwrap(), 4096);
}

#[test]
fn a_reader_whose_descriptor_is_closed_by_another_stays_urgent() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let mut f = File::open(mounted.path("f")).unwrap();
    let copy = f.try_clone().unwrap();
    let reader = thread::spawn(move || f.read(&mut [0; 4096]));
    wait_for_reads(&content, 1);
    drop(copy);
    // And whenever another test starts a process, which closes its copies too.
    assert!(content.state().flushed >= 1);
    wait_until("the read is urgent again", || content.state().urgent() > 0);
    content.release_all();
    assert_eq!(reader.join().unwrap().unwrap(), 4096);
}

#[test]
fn a_killed_reader_leaves_the_file_usable() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let child = spawn("cat", &[text(&path)]);
    wait_for_reads(&content, 1);
    end(child, Signal::SIGKILL);
    let again = thread::spawn(move || fs::read(path));
    content.release_all();
    wait_until("the file is read", || again.is_finished());
    assert!(again.join().unwrap().unwrap() == content.data(0));
    wait_until("both handles are closed", || content.state().closed == 2);
}

#[test]
fn a_read_that_straddles_missing_data_waits_until_it_is_whole() {
    let content = StandIn::new(vec![file("f", noise(4 * BLOCK as usize))]);
    content.release(0, 0..1);
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn(move || {
        let mut all = vec![0; 4 * BLOCK as usize];
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        direct.read_at(&mut all, 0).map(|n| all[..n].to_vec())
    });
    wait_for_reads(&content, 1);
    content.release(0, 2..4);
    assert!(!reader.is_finished());
    content.release(0, 1..2);
    assert!(reader.join().unwrap().unwrap() == content.data(0));
}

#[test]
fn data_that_is_evicted_before_it_is_read_is_waited_for_again() {
    let content = StandIn::new(vec![file("f", noise(100_000))]);
    content.state().evictions = 3;
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn(move || fs::read(path));
    wait_until("the evictions are over", || content.state().evictions == 0);
    content.release_all();
    assert!(reader.join().unwrap().unwrap() == content.data(0));
}

#[test]
fn an_aborted_read_fails_and_a_later_one_succeeds() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let path = mounted.path("f");
    let reader = thread::spawn({
        let path = path.clone();
        move || fs::read(path)
    });
    wait_until("a read waits", || mounted.mount.waiting_reads() > 0);
    assert!(mounted.mount.abort_reads() >= 1);
    let took = wait_until("the reader has ended", || reader.is_finished());
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    content.release_all();
    assert!(fs::read(path).unwrap() == content.data(0));
}

#[test]
fn an_abort_leaves_other_mounts_of_the_torrent_alone() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let (one, other) = (content.mount(), content.mount());
    let reader = |path| thread::spawn(move || fs::read(path));
    let (first, second) = (reader(one.path("f")), reader(other.path("f")));
    wait_until("both wait", || [&one, &other].iter().all(|m| m.mount.waiting_reads() > 0));
    one.mount.abort_reads();
    wait_until("the one has ended", || first.is_finished());
    assert!(first.join().unwrap().is_err());
    assert!(other.mount.waiting_reads() > 0);
    content.release_all();
    assert!(second.join().unwrap().unwrap() == content.data(0));
    assert_eq!(other.mount.waiting_reads(), 0);
}

#[test]
fn an_abort_also_ends_a_reader_that_waits_for_anothers_request() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let mounted = content.mount();
    let reader = || {
        let path = mounted.path("f");
        thread::spawn(move || File::open(path).unwrap().read(&mut [0; 4096]))
    };
    let first = reader();
    wait_for_reads(&content, 1);
    let second = reader();
    wait_until("both are in the kernel", || fs::read_dir("/proc/self/task").unwrap().count() > 2);
    mounted.mount.abort_reads();
    for reader in [first, second] {
        wait_until("the reader has ended", || {
            mounted.mount.abort_reads();
            reader.is_finished()
        });
        assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}

#[test]
fn a_read_timeout_is_an_error_after_that_time() {
    let content = StandIn::new(vec![file("f", noise(1 << 20))]);
    let timeout = Duration::from_millis(600);
    let options = MountOptions { read_timeout: Some(timeout), ..MountOptions::default() };
    let mounted = content.mount_with(options);
    let start = Instant::now();
    let error = fs::read(mounted.path("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Not twice: the kernel's second attempt fails at once.
    assert!(start.elapsed() >= timeout && start.elapsed() < 2 * timeout, "{:?}", start.elapsed());
}

#[test]
fn hundreds_of_waiting_reads_do_not_stop_one_whose_data_is_here() {
    let mut items: Vec<_> = (0..200).map(|i| file(format!("w{i}"), noise(300_000))).collect();
    items.push(file("here", noise(5 << 20)));
    let content = StandIn::new(items);
    content.release(200, 0..320);
    let mounted = content.mount();
    let readers: Vec<_> = (0..200)
        .map(|i| {
            let path = mounted.path(&format!("w{i}"));
            thread::spawn(move || fs::read(path).map(|data| data.len()))
        })
        .collect();
    wait_for_reads(&content, 200);
    let path = mounted.path("here");
    let free = thread::spawn(move || fs::read(path).unwrap());
    wait_until("it has read", || free.is_finished());
    assert!(free.join().unwrap() == content.data(200));
    content.release_all();
    assert!(readers.into_iter().all(|reader| reader.join().unwrap().unwrap() == 300_000));
}
