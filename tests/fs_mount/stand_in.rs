//! A torrent without a network, and what the tests share.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use p2pfs::engine::{ReadError, ReadHandle, Waiter};
use p2pfs::fs::{Content, Mount, MountOptions};
use p2pfs::proto::geometry::Geometry;
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::metainfo::layout::{Entry, EntryKind, Layout};
use p2pfs::proto::metainfo::{FileEntry, Info};
use p2pfs::store::WholeFile;

/// What is released at a time, in bytes.
pub const BLOCK: u64 = 16 * 1024;

/// A file or link to be shown.
pub struct Item {
    path: Vec<u8>,
    data: Vec<u8>,
    executable: bool,
    mtime: Option<i64>,
    target: Option<Vec<u8>>,
}

pub fn file(path: impl AsRef<[u8]>, data: impl Into<Vec<u8>>) -> Item {
    let path = path.as_ref().to_vec();
    Item { path, data: data.into(), executable: false, mtime: None, target: None }
}

pub fn link(path: &str, target: &str) -> Item {
    Item { target: Some(target.into()), ..file(path, "") }
}

impl Item {
    pub fn executable(self) -> Self {
        Self { executable: true, ..self }
    }

    pub fn mtime(self, seconds: i64) -> Self {
        Self { mtime: Some(seconds), ..self }
    }
}

/// Bytes that differ everywhere.
pub fn noise(length: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64 ^ length as u64;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// The stand-in. Cheap to clone.
#[derive(Clone)]
pub struct StandIn(Arc<Inner>);

struct Inner {
    info: Arc<Info>,
    layout: Arc<Layout>,
    data: Vec<Vec<u8>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub struct State {
    /// By file and block: whether it is here.
    here: Vec<Vec<bool>>,
    waiting: BTreeMap<u64, Ticket>,
    next: u64,
    /// So many wake-ups find their bytes evicted again.
    pub evictions: usize,
    pub ahead: Vec<(u64, u64)>,
    pub flushed: usize,
    pub closed: usize,
}

struct Ticket {
    handle: ReadHandle,
    urgent: bool,
    file: usize,
    offset: u64,
    length: usize,
    timeout: Option<Duration>,
    waiter: Waiter,
}

impl StandIn {
    /// Shows these items; nothing is here yet.
    pub fn new(items: Vec<Item>) -> Self {
        let (mut files, mut entries, mut data, mut offset) = (vec![], vec![], vec![], 0);
        for (i, item) in items.into_iter().enumerate() {
            let path: Vec<_> = item.path.split(|&c| c == b'/').map(<[u8]>::to_vec).collect();
            let length = item.data.len() as u64;
            let kind = item.target.map_or(EntryKind::File(i), EntryKind::Symlink);
            entries.push(Entry { path: path.clone(), kind });
            let (executable, mtime) = (item.executable, item.mtime);
            let (pad, hidden, symlink) = (false, false, None);
            files.push(FileEntry { path, offset, length, executable, pad, hidden, symlink, mtime });
            data.push(item.data);
            offset += length;
        }
        let blocks = |file: &Vec<u8>| vec![false; file.len().div_ceil(BLOCK as usize)];
        let state = State { here: data.iter().map(blocks).collect(), ..State::default() };
        let info = Info {
            info_hash: InfoHash::new([0xab; 20]),
            raw: vec![],
            name: b"stand-in".to_vec(),
            geometry: Geometry::new(offset, 256 * 1024).unwrap(),
            piece_hashes: vec![],
            files,
            single_file: false,
            v2: None,
            private: false,
        };
        Self(Arc::new(Inner {
            info: Arc::new(info),
            layout: Arc::new(Layout { entries }),
            data,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// The same with everything here.
    pub fn complete(items: Vec<Item>) -> Self {
        let this = Self::new(items);
        this.release_all();
        this
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub fn data(&self, file: usize) -> &[u8] {
        &self.0.data[file]
    }

    pub fn release_all(&self) {
        self.state().here.iter_mut().for_each(|file| file.fill(true));
        self.wake();
    }

    /// Makes these blocks of a file be here.
    pub fn release(&self, file: usize, blocks: std::ops::Range<usize>) {
        self.state().here[file][blocks].fill(true);
        self.wake();
    }

    /// Reads that wait here.
    pub fn waiting_reads(&self) -> usize {
        self.state().waiting.len()
    }

    /// Drops the waiters as an engine does that ends without a word.
    pub fn drop_waiters(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        drop(waiting);
    }

    fn wake(&self) {
        let mut state = self.state();
        let ready: Vec<u64> = state
            .waiting
            .iter()
            .filter(|(_, t)| state.is_here(t.file, t.offset, t.length))
            .map(|(&id, _)| id)
            .collect();
        let tickets: Vec<_> = ready.iter().filter_map(|id| state.waiting.remove(id)).collect();
        drop(state);
        self.0.changed.notify_all();
        tickets.into_iter().for_each(|ticket| (ticket.waiter)(Ok(())));
    }

    fn expire(&self, id: u64, at: Instant) {
        let mut state = self.state();
        while state.waiting.contains_key(&id) {
            let Some(left) = at.checked_duration_since(Instant::now()) else {
                let ticket = state.waiting.remove(&id).unwrap();
                drop(state);
                return (ticket.waiter)(Err(ReadError::TimedOut));
            };
            state = self.0.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Mounts it in a new directory.
    pub fn mount(&self) -> Mounted {
        self.mount_with(MountOptions::default())
    }

    pub fn mount_with(&self, options: MountOptions) -> Mounted {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        let options = MountOptions { dir: dir.clone(), source: "stand-in".into(), ..options };
        let mount = Mount::new(self.clone(), options).unwrap();
        Mounted { mount, dir, _home: home }
    }
}

impl State {
    /// Waiting reads whose demand was not withdrawn.
    pub fn urgent(&self) -> usize {
        self.waiting.values().filter(|ticket| ticket.urgent).count()
    }

    /// Whether reads wait, and none of them for a limited time.
    pub fn waits_without_end(&self) -> bool {
        !self.waiting.is_empty() && self.waiting.values().all(|ticket| ticket.timeout.is_none())
    }

    fn is_here(&self, file: usize, offset: u64, length: usize) -> bool {
        let blocks = offset / BLOCK..(offset + length as u64).div_ceil(BLOCK);
        self.here[file][blocks.start as usize..blocks.end as usize].iter().all(|&here| here)
    }
}

impl Content for StandIn {
    fn info(&self) -> &Arc<Info> {
        &self.0.info
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.0.layout
    }

    fn read_now(&self, file: usize, offset: u64, length: usize, f: &mut dyn FnMut(&[u8])) -> bool {
        let data = &self.0.data[file];
        let (start, end) = (offset as usize, offset as usize + length);
        assert!(length > 0 && end <= data.len(), "a range outside of the file");
        let here = self.state().is_here(file, offset, length);
        if here {
            f(&data[start..end]);
        }
        here
    }

    fn read_later(
        &self,
        handle: ReadHandle,
        file: usize,
        offset: u64,
        length: usize,
        timeout: Option<Duration>,
        waiter: Waiter,
    ) {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let urgent = true;
        let ticket = Ticket { handle, urgent, file, offset, length, timeout, waiter };
        state.waiting.insert(id, ticket);
        if state.evictions > 0 {
            // Comes, and is gone again before it can be read.
            state.evictions -= 1;
            let ticket = state.waiting.remove(&id).unwrap();
            drop(state);
            std::thread::spawn(move || (ticket.waiter)(Ok(())));
            return;
        }
        drop(state);
        if let Some(timeout) = timeout {
            let (this, at) = (self.clone(), Instant::now() + timeout);
            std::thread::spawn(move || this.expire(id, at));
        }
        self.wake();
    }

    fn read_ahead(&self, _: ReadHandle, _: usize, offset: u64, length: u64) {
        self.state().ahead.push((offset, length));
    }

    fn flushed(&self, handle: ReadHandle) {
        let mut state = self.state();
        state.flushed += 1;
        let of_handle = state.waiting.values_mut().filter(|ticket| ticket.handle == handle);
        of_handle.for_each(|ticket| ticket.urgent = false);
    }

    fn closed(&self, _: ReadHandle) {
        self.state().closed += 1;
    }

    fn whole_file(&self, _: usize, _: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile> {
        None
    }

    fn becomes_whole(&self, _: usize) -> bool {
        true
    }

    fn verified_bytes(&self, file: Option<usize>) -> u64 {
        let state = self.state();
        let of = |file: usize| -> u64 {
            let end = self.0.data[file].len() as u64;
            let here = state.here[file].iter().enumerate().filter(|(_, here)| **here);
            here.map(|(i, _)| BLOCK.min(end - i as u64 * BLOCK)).sum()
        };
        file.map_or_else(|| (0..self.0.data.len()).map(of).sum(), of)
    }
}

/// A live mount in a directory of its own.
pub struct Mounted {
    pub mount: Mount,
    pub dir: PathBuf,
    _home: tempfile::TempDir,
}

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn is_in_table(&self) -> bool {
        p2pfs::fs::mountinfo::mount_at(&self.dir).unwrap().is_some()
    }
}

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds; how long that took.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    start.elapsed()
}

/// Runs a command that must succeed; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path as a command's argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
