//! What reads return.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{AccessFlags, Whence, access, lseek64};

use crate::stand_in::{StandIn, file, link, noise, run, text, wait_until};

#[test]
fn every_byte_is_what_it_should_be() {
    let sizes = [0, 1, 4095, 4096, 4097, 131_072, 131_073, 3_000_001];
    let items = sizes.iter().map(|&n| file(format!("{n}"), noise(n))).collect();
    let mounted = StandIn::complete(items).mount();
    for size in sizes {
        assert!(fs::read(mounted.path(&size.to_string())).unwrap() == noise(size), "{size}");
    }
}

#[test]
fn direct_reads_end_where_the_file_ends() {
    for size in [0, 1, 511, 4096, 5000, 1_048_577] {
        let mounted = StandIn::complete(vec![file("f", noise(size))]).mount();
        let path = mounted.path("f");
        let mut direct =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let mut buffer = vec![0xee; 2 << 20];
        let mut got = vec![];
        loop {
            match direct.read(&mut buffer).unwrap() {
                0 => break,
                n => got.extend_from_slice(&buffer[..n]),
            }
        }
        assert!(got == noise(size), "{size}: {} bytes", got.len());
        assert_eq!(direct.read_at(&mut buffer, size as u64).unwrap(), 0);
        assert_eq!(direct.read_at(&mut buffer, size as u64 + 4096).unwrap(), 0);
        let tail = (size as u64).saturating_sub(1) / 512 * 512;
        assert_eq!(direct.read_at(&mut buffer, tail).unwrap() as u64, size as u64 - tail);
    }
}

#[test]
fn the_tail_of_the_last_mapped_page_is_zero() {
    let mounted = StandIn::complete(vec![file("f", noise(5000))]).mount();
    let script = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
for sharing in (1, 2):
    at = libc.mmap(None, 8192, 1, sharing, os.open(sys.argv[1], os.O_RDONLY), 0)
    got = ctypes.string_at(at, 8192)
    assert got[:5000] == open(sys.argv[1], 'rb').read(), 'mapped bytes differ'
    assert got[5000:] == bytes(3192), 'the tail is not zero'
";
    run("python3", &["-c", script, text(&mounted.path("f"))]);
}

#[test]
fn missing_data_is_never_a_hole() {
    let mounted = StandIn::new(vec![file("f", noise(100_000)), file("empty", "")]).mount();
    let f = File::open(mounted.path("f")).unwrap();
    assert_eq!(lseek64(&f, 0, Whence::SeekData), Ok(0));
    assert_eq!(lseek64(&f, 50_000, Whence::SeekData), Ok(50_000));
    assert_eq!(lseek64(&f, 0, Whence::SeekHole), Ok(100_000));
    assert_eq!(lseek64(&f, 99_999, Whence::SeekHole), Ok(100_000));
    assert_eq!(lseek64(&f, 100_000, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(lseek64(&f, 100_000, Whence::SeekHole), Err(Errno::ENXIO));
    assert_eq!(lseek64(&f, 0, Whence::SeekEnd), Ok(100_000));
    let empty = File::open(mounted.path("empty")).unwrap();
    assert_eq!(lseek64(&empty, 0, Whence::SeekData), Err(Errno::ENXIO));
}

#[test]
fn every_attempt_to_write_is_refused() {
    let mounted = StandIn::complete(vec![file("d/f", "x"), link("l", "d/f")]).mount();
    let (dir, f, l) = (mounted.path("d"), mounted.path("d/f"), mounted.path("l"));
    let new = mounted.path("d/new");
    let script = r#"
import errno, os, sys
d, f, l, new = sys.argv[1:]
def refused(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except OSError as e:
        assert e.errno == errno.EROFS, (what, arguments, e)
    else:
        raise AssertionError((what, arguments))
for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
    refused(os.open, f, flags)
refused(os.open, new, os.O_CREAT | os.O_WRONLY)
refused(os.mkdir, new)
refused(os.mknod, new)
refused(os.mkfifo, new)
refused(os.symlink, 'x', new)
refused(os.link, f, new)
refused(os.rename, f, new)
refused(os.unlink, f)
refused(os.unlink, l)
refused(os.rmdir, d)
refused(os.chmod, f, 0o777)
refused(os.chmod, d, 0o777)
refused(os.chown, f, 1, 1)
refused(os.utime, f, (1, 1))
refused(os.utime, l, (1, 1), follow_symlinks=False)
refused(os.truncate, f, 0)
refused(os.setxattr, f, 'user.x', b'y')
refused(os.removexattr, f, 'user.p2pfs.infohash')
fd = os.open(f, os.O_RDONLY)
refused(os.fchmod, fd, 0o777)
for call in (lambda: os.write(fd, b'x'), lambda: os.ftruncate(fd, 0), lambda: os.posix_fallocate(fd, 0, 9)):
    try:
        call()
    except OSError as e:
        assert e.errno in (errno.EBADF, errno.EINVAL, errno.EROFS), e
    else:
        raise AssertionError(call)
assert not os.access(f, os.W_OK) and os.access(f, os.R_OK)
"#;
    run("python3", &["-c", script, text(&dir), text(&f), text(&l), text(&new)]);
    assert_eq!(access(&f, AccessFlags::W_OK), Err(Errno::EROFS));
    assert_eq!(access(&dir, AccessFlags::W_OK), Err(Errno::EROFS));
    assert_eq!(fs::read(&f).unwrap(), b"x");
}

#[test]
fn a_sequential_read_is_read_ahead_of_even_while_the_data_is_here() {
    let content = StandIn::complete(vec![file("f", noise(8 << 20))]);
    let mounted = content.mount();
    fs::read(mounted.path("f")).unwrap();
    let ahead = content.state().ahead.clone();
    assert!(ahead.iter().any(|&(_, length)| length >= 2 << 20), "{ahead:?}");
    assert!(ahead.len() < 30, "{} announcements", ahead.len());
    assert_eq!(ahead.last(), Some(&(0, 0)));
}

#[test]
fn probing_head_and_tail_reads_nothing_ahead() {
    let content = StandIn::complete(vec![file("f", noise(64 << 20))]);
    let mounted = content.mount();
    let f = File::open(mounted.path("f")).unwrap();
    let mut buffer = [0; 4096];
    for offset in [0, (64 << 20) - 4096, 4096, 32 << 20] {
        f.read_exact_at(&mut buffer, offset).unwrap();
    }
    assert_eq!(content.state().ahead, []);
}

/// Whether a page of a file is in the kernel's page cache, for each of `offsets`.
fn cached(path: &Path, offsets: &[u64]) -> Vec<bool> {
    let script = "
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
size = os.stat(sys.argv[1]).st_size
at = libc.mmap(None, size, 1, 1, os.open(sys.argv[1], os.O_RDONLY), 0)
pages = (ctypes.c_ubyte * ((size + 4095) // 4096))()
assert libc.mincore(at, size, pages) == 0
print(''.join('01'[pages[int(offset) // 4096] & 1] for offset in sys.argv[2:]))
";
    let offsets: Vec<String> = offsets.iter().map(u64::to_string).collect();
    let mut arguments = vec!["-c", script, text(path)];
    arguments.extend(offsets.iter().map(String::as_str));
    run("python3", &arguments).trim().chars().map(|seen| seen == '1').collect()
}

#[test]
fn what_the_only_reader_of_an_incomplete_file_has_passed_is_not_held_twice() {
    let data = noise(32 << 20);
    let mounted = StandIn::complete(vec![file("f", data.clone())]).mount();
    let path = mounted.path("f");
    let passed = [0, 1 << 20, 16 << 20, (22 << 20) - 1];
    let mut reader = File::open(&path).unwrap();
    let mut got = vec![0; 31 << 20];
    reader.read_exact(&mut got).unwrap();
    wait_until("what was passed is forgotten", || cached(&path, &passed) == [false; 4]);
    assert_eq!(cached(&path, &[(31 << 20) - 1]), [true]);
    assert!(got == data[..31 << 20]);
    // Read a second time, they stay.
    reader.read_exact_at(&mut got, 0).unwrap();
    assert!(got == data[..31 << 20]);
    reader.read_to_end(&mut got).unwrap();
    assert_eq!(cached(&path, &passed), [true; 4]);
}

#[test]
fn what_one_of_two_readers_has_passed_stays_for_the_other() {
    let items = vec![file("f", noise(32 << 20)), file("later", noise(32 << 20))];
    let mounted = StandIn::complete(items).mount();
    let (path, later) = (mounted.path("f"), mounted.path("later"));
    let other = File::open(&path).unwrap();
    fs::read(&path).unwrap();
    drop(other);
    // What is forgotten is in the order of the reads.
    fs::read(&later).unwrap();
    wait_until("what was passed later is forgotten", || cached(&later, &[22 << 20]) == [false]);
    assert_eq!(cached(&path, &[0, 1 << 20, 16 << 20, 22 << 20]), [true; 4]);
}
