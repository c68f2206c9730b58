//! A disk that can stop answering, as a network file system does when its server is gone.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request,
};

const TTL: Duration = Duration::from_secs(1);
const FILE: INodeNo = INodeNo(2);

/// A file system with one file, whose reads can be held up.
pub struct StallingDisk {
    state: Arc<Mutex<State>>,
    _session: BackgroundSession,
}

#[derive(Default)]
struct State {
    stalls: bool,
    held: Vec<(ReplyData, Vec<u8>)>,
}

struct OneFile {
    name: String,
    bytes: Vec<u8>,
    state: Arc<Mutex<State>>,
}

impl StallingDisk {
    /// Mounts it at a directory.
    pub fn mount(dir: &Path, name: &str, bytes: Vec<u8>) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let disk = OneFile { name: name.to_owned(), bytes, state: state.clone() };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("stalling".to_owned())];
        let session = fuser::spawn_mount(disk, dir, &config).unwrap();
        Self { state, _session: session }
    }

    /// From now on no read is answered.
    pub fn stall(&self) {
        self.state.lock().unwrap().stalls = true;
    }

    /// Reads that are not answered.
    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held.len()
    }

    /// Answers all reads, and those that follow.
    pub fn go_on(&self) {
        let mut state = self.state.lock().unwrap();
        state.stalls = false;
        state.held.drain(..).for_each(|(reply, bytes)| reply.data(&bytes));
    }
}

impl Drop for StallingDisk {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl OneFile {
    fn attr(&self, inode: INodeNo) -> FileAttr {
        let file = inode == FILE;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        FileAttr {
            ino: inode,
            size: if file { self.bytes.len() as u64 } else { 0 },
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o444 } else { 0o555 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == OsStr::new(&self.name) {
            true => reply.entry(&TTL, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Each read comes here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = self.bytes.len().min(offset as usize);
        let bytes = self.bytes[start..self.bytes.len().min(start + size as usize)].to_vec();
        let mut state = self.state.lock().unwrap();
        match state.stalls {
            true => state.held.push((reply, bytes)),
            false => reply.data(&bytes),
        }
    }
}
