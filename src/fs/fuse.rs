//! The adapter between the kernel's requests and [`Shown`]: the only file that knows the fuser crate.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, Config, CopyFileRangeFlags, FileAttr, FileHandle,
    FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::geteuid;

use super::lock;
use super::ops::{Attr, BLOCK_SIZE, NAME_MAX};
use super::reading::ReadRequest;
use super::shown::Shown;
use super::trail::Trail;
use super::tree::{Kind, ROOT};
use super::xattr::Answer;
use crate::store::WholeFile;

/// How long the kernel may believe what it was told: the tree never changes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Readahead requests that may be outstanding. Each may wait for the network, and when so many
/// wait, every other buffered read of the mount waits too.
const MAX_BACKGROUND: u16 = 16 * 1024;

/// The longest read the kernel makes, in bytes. It sets the same limit for reads and writes.
const MAX_READ: u32 = 1024 * 1024;

/// Threads that take requests. None of them ever waits; a second one helps small random reads.
const THREADS: usize = 2;

/// Ranges of files whose pages are to be forgotten and were not yet. When there are more, some are kept.
const MAX_PASSED: usize = 64;

/// A mounted filesystem whose requests nobody takes yet.
pub(super) struct Served {
    session: Session<Adapter>,
    passed: Receiver<Passed>,
}

/// What readers have passed of a file.
type Passed = (INodeNo, Range<u64>);

impl Served {
    /// Greets the kernel on the descriptor of a mount.
    pub(super) fn greet(shown: Arc<dyn Shown>, device: OwnedFd) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        // Who may enter is checked by the kernel (allow_other, default_permissions).
        let (sender, passed) = sync_channel(MAX_PASSED);
        let adapter = Adapter::new(shown, sender);
        let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
        Ok(Self { session, passed })
    }

    /// What has the kernel forget.
    pub(super) fn forget(&self) -> Forget {
        Forget(self.session.notifier())
    }

    /// Takes requests until the filesystem is unmounted everywhere.
    pub(super) fn run(self) -> io::Result<()> {
        let (forget, passed) = (self.forget(), self.passed);
        thread::Builder::new().name("p2pfs-forget".to_owned()).spawn(move || {
            passed.into_iter().for_each(|(inode, range)| forget.pages(inode.0, range));
        })?;
        self.session.run()
    }
}

/// Has the kernel forget what it was told. It may wait for a request to be answered, so it is not to be
/// asked on a thread that answers any.
#[derive(Clone)]
pub(super) struct Forget(Notifier);

impl Forget {
    /// A name in the root.
    pub(super) fn name(&self, name: &OsStr) {
        if let Err(error) = self.0.inval_entry(INodeNo(ROOT), name) {
            tracing::debug!(%error, "the kernel did not know the name");
        }
    }

    /// The pages of a range of a file. Waits for each of them that is being read.
    pub(super) fn pages(&self, inode: u64, range: Range<u64>) {
        let number = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (start, length) = (number(range.start), number(range.end - range.start));
        if let Err(error) = self.0.inval_inode(INodeNo(inode), start, length) {
            tracing::debug!(%error, inode, "the kernel did not know the file");
        }
    }
}

struct Adapter {
    shown: Arc<dyn Shown>,
    /// The files that are open.
    open: Mutex<HashMap<INodeNo, OpenFile>>,
    /// Whether the kernel can read complete files itself.
    passthrough: bool,
    /// Whether it needs to ask before it lists a directory.
    asks_to_list: bool,
    /// Takes what readers have passed.
    passed: SyncSender<Passed>,
}

/// A file that is open. The kernel reads it itself through all of its handles, or through none.
#[derive(Default)]
struct OpenFile {
    handles: usize,
    backing: Option<(BackingId, WholeFile)>,
    /// Of a file that the kernel may read itself as soon as it is complete.
    trail: Option<Arc<Mutex<Trail>>>,
}

impl OpenFile {
    /// Whether the kernel reads what a check has found to be wrong. It does so for as long as the file is open.
    fn is_damaged(&self) -> bool {
        self.backing.as_ref().is_some_and(|(_, whole)| !whole.is_whole())
    }
}

impl Adapter {
    fn generation(&self, inode: u64) -> Generation {
        Generation(self.shown.generation(inode).into())
    }

    fn new(shown: Arc<dyn Shown>, passed: SyncSender<Passed>) -> Self {
        Self { shown, open: Mutex::default(), passthrough: false, asks_to_list: true, passed }
    }

    /// A file that nobody has open, and what the kernel shall read itself of it.
    fn begin(&self, inode: INodeNo, flags: i32, reply: &ReplyOpen) -> OpenFile {
        let mut file = OpenFile::default();
        // Past the page cache, every file system has rules of its own for where a read begins.
        if !self.passthrough || flags & libc::O_DIRECT != 0 {
            return file;
        }
        let mut backing = None;
        let open = &mut |file: BorrowedFd<'_>| backing = Some(reply.open_backing(file));
        match (self.shown.whole_file(inode.0, open), backing) {
            (Some(whole), Some(Ok(backing))) => file.backing = Some((backing, whole)),
            (Some(_), Some(Err(error))) => {
                tracing::debug!(%error, "the kernel does not read from this cache itself");
            }
            (Some(_), None) => {}
            (None, _) => file.trail = self.shown.becomes_whole(inode.0).then(Arc::default),
        }
        file
    }

    /// Takes note of a read through the page cache; what is to be called when it was answered.
    fn note_read(&self, inode: INodeNo, offset: u64, length: u32) -> impl FnOnce() + Send + use<> {
        let open = if self.passthrough { Some(lock(&self.open)) } else { None };
        let file = open.as_ref().and_then(|open| open.get(&inode));
        let trail =
            file.and_then(|file| Some((file.handles == 1, Arc::clone(file.trail.as_ref()?))));
        if let Some((_, trail)) = &trail {
            lock(trail).asked(offset);
        }
        let passed = self.passed.clone();
        move || {
            let Some((alone, trail)) = trail else { return };
            lock(&trail).answered(offset, length.into(), |range| {
                alone && passed.try_send((inode, range)).is_ok()
            });
        }
    }

    /// One handle less; what is not open any more.
    fn closed(&self, inode: INodeNo) -> Option<OpenFile> {
        let mut open = lock(&self.open);
        let file = open.get_mut(&inode)?;
        file.handles = file.handles.saturating_sub(1);
        if file.handles == 0 { open.remove(&inode) } else { None }
    }

    /// How long the kernel may believe what it was told of an inode.
    fn lasts(&self, inode: u64) -> Duration {
        if self.shown.changes(inode) { Duration::ZERO } else { FOREVER }
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory { .. } => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.time,
        mtime: attr.time,
        ctime: attr.time,
        crtime: attr.time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The answer "there is no such name", which the kernel may remember: inode number 0.
fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_xattr(answer: Result<Answer, Errno>, reply: ReplyXattr) {
    match answer {
        Ok(Answer::Length(length)) => reply.size(length),
        Ok(Answer::Value(value)) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// Refuses what would change something.
macro_rules! read_only {
    ($($name:ident($($argument:ty),*) -> $reply:ty;)*) => {$(
        fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(fuser::Errno::EROFS);
        }
    )*};
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an old kernel lacks, it does without. Not FUSE_ASYNC_DIO: each direct read is waited for by
        // the thread that it names, whose signals can be seen (`signals.rs`).
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // NFS servers look for inodes by their numbers, and for their parents.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        // Of one level only, so that an overlay can be mounted over the files. The kernel lets root alone.
        self.passthrough = geteuid().is_root()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        // A tree of many small directories is listed three times as fast if it does not. Where anything ever
        // changes, the root does.
        self.asks_to_list = self.shown.changes(ROOT)
            || config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_err();
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_READ);
        if let Err(most) = config.set_max_readahead(MAX_READ) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Asked before: a directory that changes may have come to its end meanwhile.
        let changes = self.shown.changes(parent.0);
        match self.shown.lookup(parent.0, name.as_bytes()) {
            Ok(Some(attr)) => {
                let lasts = if changes { Duration::ZERO } else { self.lasts(attr.inode) };
                reply.entry(&lasts, &file_attr(&attr), self.generation(attr.inode));
            }
            Ok(None) if changes => reply.error(fuser::Errno::ENOENT),
            Ok(None) => reply.entry(&FOREVER, &no_entry(), Generation(0)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // Asked before, as above.
        let lasts = self.lasts(inode.0);
        match self.shown.attr(inode.0) {
            Ok(attr) => reply.attr(&lasts, &file_attr(&attr)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.shown.readlink(inode.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if !self.asks_to_list {
            // It does not ask again, and keeps what it has listed, as below.
            return reply.error(fuser::Errno::ENOSYS);
        }
        // The kernel lists again what cannot have changed.
        let kept = match self.shown.changes(inode.0) {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        };
        reply.opened(FileHandle(0), kept);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let added = self.shown.readdir(inode.0, offset, &mut |entry| {
            let (inode, kind) = (INodeNo(entry.attr.inode), file_type(entry.attr.kind));
            reply.add(inode, entry.next, kind, OsStr::from_bytes(entry.name))
        });
        match added {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let changes = self.shown.changes(inode.0);
        let added = self.shown.readdir(inode.0, offset, &mut |entry| {
            let (attr, name) = (file_attr(&entry.attr), OsStr::from_bytes(entry.name));
            let lasts = if changes { Duration::ZERO } else { self.lasts(entry.attr.inode) };
            let generation = self.generation(attr.ino.0);
            reply.add(attr.ino, entry.next, name, &lasts, &attr, generation)
        });
        match added {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // May look at the disk, which others shall not wait for.
        let is_open = lock(&self.open).contains_key(&inode);
        let begun = if is_open { OpenFile::default() } else { self.begin(inode, flags.0, &reply) };
        // Held until the answer is out: the kernel refuses a mixture.
        let mut open = lock(&self.open);
        if open.get(&inode).is_some_and(OpenFile::is_damaged) {
            return reply.error(fuser::Errno::EIO);
        }
        let handle = match self.shown.open(inode.0, flags.0) {
            Ok(handle) => FileHandle(handle),
            Err(e) => return reply.error(errno(e)),
        };
        let file = open.entry(inode).or_insert(begun);
        file.handles += 1;
        match &file.backing {
            Some((backing, _)) => reply.opened_passthrough(handle, FopenFlags::empty(), backing),
            // Content never changes. Without KEEP_CACHE a second open hangs while a read waits.
            None => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let direct = flags.0 & libc::O_DIRECT != 0;
        let answered = (!direct).then(|| self.note_read(inode, offset, size));
        let answer = Box::new(|result: Result<&[u8], Errno>| {
            match result {
                Ok(bytes) => reply.data(bytes),
                Err(e) => reply.error(errno(e)),
            }
            if let Some(answered) = answered {
                answered();
            }
        });
        let (handle, length, pid) = (handle.0, size, request.pid());
        self.shown.read(inode.0, ReadRequest { handle, offset, length, direct, pid }, answer);
    }

    fn flush(&self, _: &Request, inode: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply_empty(self.shown.flush(inode.0, fh.0), reply);
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shown.release(inode.0, handle.0);
        drop(self.closed(inode));
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.shown.lseek(inode.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let stat = self.shown.statfs();
        reply.statfs(stat.blocks, 0, 0, stat.files, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.shown.getxattr(inode.0, name.as_bytes(), size), reply);
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.shown.listxattr(inode.0, size), reply);
    }

    fn access(&self, _: &Request, inode: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        reply_empty(self.shown.access(inode.0, mask.bits()), reply);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    /// Not implemented: the kernel then takes files for always ready, as they are everywhere.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    read_only! {
        setattr(INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>) -> ReplyAttr;
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>)
            -> ReplyWrite;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64,
            CopyFileRangeFlags) -> ReplyWrite;
    }
}
