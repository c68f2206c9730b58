//! Several torrents in one directory, a folder each, which come and go while it is mounted.
//!
//! A folder is there from the moment its torrent is named, and empty until the metadata is known; an
//! extended attribute says what it waits for. Each has a number that is never used again; an inode
//! number is that and the one its torrent gives. So only the root, and folders that wait, ever change;
//! what is below the others is as lasting as in a mount of one torrent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc;

use super::content::Content;
use super::fuse::Forget;
use super::lock;
use super::ops::{Attr, BLOCK_SIZE, DirEntry, Fs, NAME_MAX, StatFs, View};
use super::reading::{ReadRequest, Reply};
use super::shown::Shown;
use super::tree::{Kind, ROOT};
use super::xattr::{self, Answer};
use crate::proto::metainfo::layout::safe_name;
use crate::store::WholeFile;

/// Bits of an inode number that are the torrent's.
const SHIFT: u32 = 32;

/// A directory of folders.
pub struct Folders {
    view: View,
    folders: Mutex<Table>,
    forget: Mutex<Option<Forget>>,
}

#[derive(Default)]
struct Table {
    last: u64,
    by_number: BTreeMap<u64, Folder>,
}

/// Names a folder for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderId(u64);

struct Folder {
    name: Vec<u8>,
    is: Is,
}

enum Is {
    /// Empty, and why.
    Waiting(String),
    /// A torrent's files.
    Ready(Arc<Fs>),
}

impl Folders {
    pub(super) fn new(view: View) -> Self {
        Self { view, folders: Mutex::default(), forget: Mutex::default() }
    }

    pub(super) fn set_forget(&self, forget: Forget) {
        *lock(&self.forget) = Some(forget);
    }

    /// Makes an empty folder for a torrent called `name`; the folder's own name is a safe one that no
    /// other folder has.
    pub fn add(&self, name: &[u8]) -> (FolderId, OsString) {
        let mut table = lock(&self.folders);
        let taken = |name: &[u8]| table.by_number.values().any(|folder| folder.name == name);
        let name = free_name(name, taken);
        table.last += 1;
        let id = table.last;
        let is = Is::Waiting(String::new());
        table.by_number.insert(id, Folder { name: name.clone(), is });
        (FolderId(id), OsString::from_vec(name))
    }

    /// Says what a folder that is still empty waits for.
    pub fn waits(&self, folder: FolderId, why: &str) {
        if let Some(Folder { is: Is::Waiting(said), .. }) =
            lock(&self.folders).by_number.get_mut(&folder.0)
        {
            why.clone_into(said);
        }
    }

    /// Shows a torrent in a folder; `false` if the folder has gone. `time` is that of what the torrent
    /// gives none for.
    pub fn show<C: Content>(&self, folder: FolderId, content: C, time: Option<SystemTime>) -> bool {
        let view = View { time: time.unwrap_or(self.view.time), ..self.view.clone() };
        let fs = Arc::new(Fs::new(Arc::new(content), view));
        let mut table = lock(&self.folders);
        let there = table.by_number.get_mut(&folder.0);
        there.map(|there| there.is = Is::Ready(fs)).is_some()
    }

    /// Open files of a folder.
    pub fn open_files(&self, folder: FolderId) -> usize {
        self.fs(folder.0).map_or(0, |fs| fs.handles.len())
    }

    /// Takes a folder away. Its reads that wait, and all later ones, fail with `EIO`.
    pub fn remove(&self, folder: FolderId) {
        let Some(gone) = lock(&self.folders).by_number.remove(&folder.0) else { return };
        if let Is::Ready(fs) = gone.is {
            fs.end_reads();
            fs.release_all();
        }
        // The kernel may have to wait for a question that it has asked us: never here.
        if let Some(forget) = lock(&self.forget).clone() {
            let thread = thread::Builder::new().name("p2pfs-forget".to_owned());
            let name = OsString::from_vec(gone.name);
            if let Err(error) = thread.spawn(move || forget.name(&name)) {
                tracing::warn!(%error, "the kernel cannot be told that a folder is gone");
            }
        }
    }

    fn fs(&self, number: u64) -> Option<Arc<Fs>> {
        match &lock(&self.folders).by_number.get(&number)?.is {
            Is::Ready(fs) => Some(Arc::clone(fs)),
            Is::Waiting(_) => None,
        }
    }

    /// The torrent that an inode is of, with its number there.
    fn inside(&self, inode: u64) -> Result<(u64, Arc<Fs>, u64), Errno> {
        let (number, local) = split(inode);
        self.fs(number).map(|fs| (number, fs, local)).ok_or(Errno::ENOENT)
    }

    /// Why a folder is empty, if it is one that waits.
    fn waiting(&self, inode: u64) -> Option<String> {
        let (number, local) = split(inode);
        match &lock(&self.folders).by_number.get(&number)?.is {
            Is::Waiting(why) if local == ROOT => Some(why.clone()),
            _ => None,
        }
    }

    fn directory(&self, inode: u64, directories: u32) -> Attr {
        Attr {
            inode,
            kind: Kind::Directory { first: 0, count: 0, directories },
            size: BLOCK_SIZE.into(),
            blocks: u64::from(BLOCK_SIZE) / 512,
            mode: (0o555 & !self.view.umask) as u16,
            links: 2 + directories,
            uid: self.view.uid,
            gid: self.view.gid,
            time: self.view.time,
        }
    }

    /// The folders as they are now, by number.
    fn listed(&self) -> Vec<(u64, Vec<u8>)> {
        let table = lock(&self.folders);
        table.by_number.iter().map(|(number, folder)| (*number, folder.name.clone())).collect()
    }
}

impl Shown for Folders {
    fn changes(&self, inode: u64) -> bool {
        inode == ROOT || self.waiting(inode).is_some()
    }

    fn generation(&self, inode: u64) -> u32 {
        // The numbers of folders begin anew with each mount.
        let mounted = self.view.time.duration_since(SystemTime::UNIX_EPOCH);
        let number = mounted.map_or(1, |since| since.as_nanos() as u32);
        if inode == ROOT { 0 } else { number.max(1) }
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Attr>, Errno> {
        if name.len() > NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        match name {
            b"." => return self.attr(directory).map(Some),
            b".." if split(directory).1 == ROOT => return self.attr(ROOT).map(Some),
            _ => {}
        }
        if directory == ROOT {
            let found = self.listed().into_iter().find(|(_, its)| its == name);
            return found.map(|(number, _)| self.attr(joined(number, ROOT))).transpose();
        }
        if self.waiting(directory).is_some() {
            return Ok(None);
        }
        let (number, fs, local) = self.inside(directory)?;
        Ok(fs.lookup(local, name)?.map(|attr| of(number, attr)))
    }

    fn attr(&self, inode: u64) -> Result<Attr, Errno> {
        if inode == ROOT {
            return Ok(self.directory(ROOT, lock(&self.folders).by_number.len() as u32));
        }
        if self.waiting(inode).is_some() {
            return Ok(self.directory(inode, 0));
        }
        let (number, fs, local) = self.inside(inode)?;
        fs.attr(local).map(|attr| of(number, attr))
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, Errno> {
        let (_, fs, local) = self.inside(inode)?;
        fs.readlink(local).map(<[u8]>::to_vec)
    }

    fn readdir(
        &self,
        directory: u64,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        if directory != ROOT && self.waiting(directory).is_none() {
            let (number, fs, local) = self.inside(directory)?;
            let outside = (local == ROOT).then(|| self.attr(ROOT)).transpose()?;
            let _full = fs.readdir(local, offset)?.any(|entry| match &outside {
                Some(root) if entry.name == b".." => each(DirEntry { attr: root.clone(), ..entry }),
                _ => each(DirEntry { attr: of(number, entry.attr), ..entry }),
            });
            return Ok(());
        }
        // A listing goes on behind the number it has come to, whatever has come and gone meanwhile.
        let folders = if directory == ROOT { self.listed() } else { Vec::new() };
        let dots = [(1, directory, b".".to_vec()), (2, ROOT, b"..".to_vec())];
        let folders =
            folders.into_iter().map(|(number, name)| (number + 2, joined(number, ROOT), name));
        let rest = dots.into_iter().chain(folders).filter(|(next, ..)| *next > offset);
        for (next, inode, name) in rest {
            // One may have gone just now.
            let Ok(attr) = self.attr(inode) else { continue };
            if each(DirEntry { attr, name: &name, next }) {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, inode: u64, flags: i32) -> Result<u64, Errno> {
        if self.changes(inode) {
            return Err(Errno::EISDIR);
        }
        let (_, fs, local) = self.inside(inode)?;
        fs.open(local, flags)
    }

    fn whole_file(&self, inode: u64, open: &mut dyn FnMut(BorrowedFd<'_>)) -> Option<WholeFile> {
        let (_, fs, local) = self.inside(inode).ok()?;
        fs.whole_file(local, open)
    }

    fn becomes_whole(&self, inode: u64) -> bool {
        self.inside(inode).is_ok_and(|(_, fs, local)| fs.becomes_whole(local))
    }

    fn read(&self, inode: u64, request: ReadRequest, reply: Reply) {
        match self.inside(inode) {
            Ok((_, fs, _)) => fs.read(request, reply),
            // Its folder was taken away.
            Err(_) => reply(Err(Errno::EIO)),
        }
    }

    fn flush(&self, inode: u64, handle: u64) -> Result<(), Errno> {
        match self.inside(inode) {
            Ok((_, fs, _)) => fs.flush(handle),
            Err(_) => Ok(()),
        }
    }

    fn release(&self, inode: u64, handle: u64) {
        if let Ok((_, fs, _)) = self.inside(inode) {
            fs.release(handle);
        }
    }

    fn lseek(&self, inode: u64, offset: i64, whence: i32) -> Result<i64, Errno> {
        let (_, fs, local) = self.inside(inode)?;
        fs.lseek(local, offset, whence)
    }

    fn access(&self, inode: u64, mask: i32) -> Result<(), Errno> {
        self.attr(inode)?;
        if mask & libc::W_OK != 0 { Err(Errno::EROFS) } else { Ok(()) }
    }

    fn statfs(&self) -> StatFs {
        self.all().iter().fold(StatFs { blocks: 0, files: 1 }, |sum, fs| {
            let one = fs.statfs();
            StatFs { blocks: sum.blocks + one.blocks, files: sum.files + one.files }
        })
    }

    fn getxattr(&self, inode: u64, name: &[u8], size: u32) -> Result<Answer, Errno> {
        if let Some(why) = self.waiting(inode) {
            return xattr::of_waiting(&why, name, size);
        }
        if inode == ROOT {
            return Err(xattr::absence(name));
        }
        let (_, fs, local) = self.inside(inode)?;
        fs.getxattr(local, name, size)
    }

    fn listxattr(&self, inode: u64, size: u32) -> Result<Answer, Errno> {
        if self.waiting(inode).is_some() {
            return xattr::list_of_waiting(size);
        }
        if inode == ROOT {
            return xattr::list(xattr::Of::Nothing, size);
        }
        let (_, fs, local) = self.inside(inode)?;
        fs.listxattr(local, size)
    }

    fn placed(&self) -> Vec<(u64, Arc<Fs>)> {
        let ready = |(number, folder): (&u64, &Folder)| match &folder.is {
            Is::Ready(fs) => Some((joined(*number, 0), Arc::clone(fs))),
            Is::Waiting(_) => None,
        };
        lock(&self.folders).by_number.iter().filter_map(ready).collect()
    }
}

fn joined(number: u64, local: u64) -> u64 {
    (number << SHIFT) | local
}

fn split(inode: u64) -> (u64, u64) {
    (inode >> SHIFT, inode & ((1 << SHIFT) - 1))
}

fn of(number: u64, attr: Attr) -> Attr {
    Attr { inode: joined(number, attr.inode), ..attr }
}

/// `wanted` as a name that one folder can have: safe, and with a number if it is taken.
fn free_name(wanted: &[u8], taken: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let name = safe_name(wanted).unwrap_or_else(|| b"torrent".to_vec());
    if !taken(&name) {
        return name;
    }
    let numbered = |number: u64| {
        let number = format!(".{number}");
        let room = NAME_MAX as usize - number.len();
        [name.get(..room).unwrap_or(&name), number.as_bytes()].concat()
    };
    (2..).map(numbered).find(|name| !taken(name)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders() -> Folders {
        let time = SystemTime::UNIX_EPOCH;
        Folders::new(View { uid: 0, gid: 0, umask: 0, time, read_timeout: None })
    }

    fn names(folders: &Folders, offset: u64, most: usize) -> (Vec<String>, u64) {
        let (mut names, mut last) = (Vec::new(), offset);
        let each = &mut |entry: DirEntry<'_>| {
            if names.len() == most {
                return true;
            }
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            last = entry.next;
            false
        };
        folders.readdir(ROOT, offset, each).unwrap();
        (names, last)
    }

    #[test]
    fn folders_have_safe_names_of_their_own() {
        let folders = folders();
        for name in ["a", "a", "..", "x/y", "a"] {
            folders.add(name.as_bytes());
        }
        let (names, _) = names(&folders, 0, 9);
        assert_eq!(names, [".", "..", "a", "a.2", "torrent", "x_y", "a.3"]);
    }

    #[test]
    fn a_listing_goes_on_where_it_was_though_folders_come_and_go() {
        let folders = folders();
        let ids = ["a", "b", "c", "d"].map(|name| folders.add(name.as_bytes()).0);
        let (first, next) = names(&folders, 0, 4);
        assert_eq!(first, [".", "..", "a", "b"]);
        folders.remove(ids[1]);
        folders.remove(ids[2]);
        folders.add(b"e");
        assert_eq!(names(&folders, next, 9).0, ["d", "e"]);
    }

    #[test]
    fn a_folder_that_waits_is_empty_and_says_why() {
        let folders = folders();
        let (id, _) = folders.add(b"a");
        folders.waits(id, "no peers");
        let inode = folders.lookup(ROOT, b"a").unwrap().unwrap().inode;
        assert!(folders.changes(inode) && folders.changes(ROOT));
        assert_eq!(folders.lookup(inode, b"x"), Ok(None));
        let state = folders.getxattr(inode, b"user.p2pfs.state", 100).unwrap();
        assert_eq!(state, Answer::Value(b"no peers".to_vec()));
        folders.remove(id);
        assert_eq!(folders.lookup(ROOT, b"a"), Ok(None));
        assert_eq!(folders.attr(inode), Err(Errno::ENOENT));
    }
}
