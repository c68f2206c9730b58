//! Mounting and unmounting. The mount is ours, not fuser's: before anything is unmounted, it is looked
//! up in the table of mounts, so that nobody else's filesystem ever is. The kernel gives the numbers
//! of a mount away again as soon as it is gone, so they say nothing once our session has ended.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::unistd::{getegid, geteuid};

use super::automount::{self, Automount};
use super::content::Content;
use super::folders::Folders;
use super::fuse::{Forget, Served};
use super::fusermount::{self, FusermountError};
use super::lock;
use super::mountinfo::{FS_TYPE, MountEntry, mount_at, mounts};
use super::ops::{Fs, View};
use super::options::{MountOptions, OptionError, Resolved};
use super::shown::{One, Shown};
use crate::proto::ids::InfoHash;

/// The kernel's readahead for a mount, in KiB. More makes longer requests, each of which is answered
/// only when all of it is here.
const READ_AHEAD_KIB: u32 = 1024;

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory does not exist.
    #[error("{0}: no such directory; create it first: mkdir -p {0}")]
    NotFound(PathBuf),
    /// It is something else.
    #[error("{0}: not a directory; name one that is empty")]
    NotDirectory(PathBuf),
    /// There is something in it.
    #[error("{0}: directory not empty; name an empty one, or hide what is there with -o nonempty")]
    NotEmpty(PathBuf),
    /// It is a mount already.
    #[error("{dir}: already mounted ({device}); name another directory, or {command} {dir} first")]
    AlreadyMounted {
        /// The directory.
        dir: PathBuf,
        /// What is mounted there.
        device: String,
        /// The command that unmounts it.
        command: &'static str,
    },
    /// Another program's mount is there, and that program has gone.
    #[error("{dir}: a dead {fs_type} mount is there; clear it first: umount -l {dir}")]
    Dead {
        /// The directory.
        dir: PathBuf,
        /// The type of the dead filesystem.
        fs_type: String,
    },
    /// The kernel has no FUSE.
    #[error(
        "/dev/fuse: no such device; load FUSE (modprobe fuse), or give it to the container (--device /dev/fuse)"
    )]
    NoFuse,
    /// `fusermount3` is not installed.
    #[error("fusermount3: not found, and ordinary users mount through it; install fuse3")]
    NoFusermount,
    /// Ordinary users may not use FUSE.
    #[error("/dev/fuse: permission denied; have root let everybody use it: chmod 666 /dev/fuse")]
    FusePermission,
    /// Ordinary users may not use `allow_other`.
    #[error(
        "allow_other: not allowed to ordinary users here; have root add the line user_allow_other to /etc/fuse.conf"
    )]
    AllowOther,
    /// The system's rules forbid it.
    #[error(
        "{dir}: not permitted to {action} ({cause}); use a directory of your own, or root with CAP_SYS_ADMIN"
    )]
    Permission {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        cause: String,
    },
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The system failed otherwise.
    #[error("{dir}: cannot {action}: {cause}")]
    System {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        cause: String,
    },
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nothing uses the mount.
    Plain,
    /// End waiting reads with `EIO` first, and take the mount away even if it is still used.
    Force,
    /// Take the mount away; who uses it may go on.
    Lazy,
}

/// Why the mount is still there.
#[derive(Debug)]
pub enum UnmountError {
    /// Something uses it.
    Busy {
        /// The directory.
        dir: PathBuf,
        /// How many reads wait for data.
        waiting: usize,
    },
    /// Another filesystem was mounted over it.
    Covered(PathBuf),
    /// The system failed.
    System {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { dir, waiting: 0 } => write!(
                f,
                "{}: in use; leave the directory and close its files, or detach it with --lazy",
                dir.display()
            ),
            Self::Busy { dir, waiting: 1 } => {
                write!(f, "{}: in use: 1 read waits for data; --force ends it", dir.display())
            }
            Self::Busy { dir, waiting } => {
                let dir = dir.display();
                write!(f, "{dir}: in use: {waiting} reads wait for data; --force ends them")
            }
            Self::Covered(dir) => {
                let dir = dir.display();
                write!(
                    f,
                    "{dir}: something else is mounted over it; unmount that first: umount {dir}"
                )
            }
            Self::System { dir, cause } => write!(f, "{}: cannot unmount: {cause}", dir.display()),
        }
    }
}

impl std::error::Error for UnmountError {}

/// A live mount. Dropping it unmounts it as [`Unmount::Force`] does, if it is still there.
pub struct Mount {
    shown: Arc<dyn Shown>,
    place: Place,
    forget: Forget,
    /// We have unmounted it.
    gone: Mutex<bool>,
    end: Arc<Mutex<End>>,
}

/// What waits for the end of the mount.
enum End {
    NotYet(Vec<Box<dyn FnOnce() + Send>>),
    /// Nothing in the table of mounts is ours any more, whatever numbers it has.
    Over,
}

impl Mount {
    /// Mounts `content`. It is live when this returns; its threads go on until it is unmounted.
    pub fn new<C: Content>(content: C, options: MountOptions) -> Result<Self, MountError> {
        let one = |view| Arc::new(One(Arc::new(Fs::new(Arc::new(content), view))));
        Self::show(one, options).map(|(mount, _)| mount)
    }

    /// Mounts a directory of folders, of which there is none yet.
    pub fn folders(options: MountOptions) -> Result<(Self, Arc<Folders>), MountError> {
        let folders = |view| Arc::new(Folders::new(view));
        let (mount, folders) = Self::show(folders, options)?;
        folders.set_forget(mount.forget.clone());
        Ok((mount, folders))
    }

    fn show<S: Shown>(
        make: impl FnOnce(View) -> Arc<S>,
        options: MountOptions,
    ) -> Result<(Self, Arc<S>), MountError> {
        let resolved = options.resolve()?;
        let dir = usable_dir(&options.dir, options.automount.as_deref(), resolved.nonempty)?;
        let view = View {
            uid: resolved.uid.unwrap_or(geteuid().as_raw()),
            gid: resolved.gid.unwrap_or(getegid().as_raw()),
            umask: resolved.umask.unwrap_or(0),
            time: options.time.unwrap_or_else(SystemTime::now),
            read_timeout: options.read_timeout,
        };
        let made = make(view);
        let shown: Arc<dyn Shown> = made.clone();
        let system = |action, cause: String| MountError::System { dir: dir.clone(), action, cause };

        let device = attach(&dir, options.automount.as_deref(), &resolved)?;
        let entry =
            mount_at(&dir).map_err(|e| system("read the table of mounts", e.to_string()))?;
        let Some(entry) = entry.filter(|entry| entry.fs_type == FS_TYPE) else {
            return Err(system("mount", "the mount is gone already".to_owned()));
        };
        let place = Place { dir: dir.clone(), entry };
        let served = Served::greet(Arc::clone(&shown), device).map_err(|e| {
            let _ = place.unmount(true);
            system("speak FUSE with the kernel", e.to_string())
        })?;
        place.raise_readahead();

        let end = Arc::new(Mutex::new(End::NotYet(Vec::new())));
        let forget = served.forget();
        let (served_shown, served_place, served_end) =
            (Arc::clone(&shown), place.clone(), Arc::clone(&end));
        let thread = thread::Builder::new().name("p2pfs-mount".to_owned());
        let started =
            thread.spawn(move || serve(served, &*served_shown, &served_place, &served_end));
        if let Err(e) = started {
            let _ = place.unmount(true);
            return Err(system("start a thread", e.to_string()));
        }
        Ok((Self { shown, place, forget, gone: Mutex::new(false), end }, made))
    }

    /// Where it is mounted, without links.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Reads that wait for data.
    pub fn waiting_reads(&self) -> usize {
        self.shown.all().iter().map(|fs| fs.waiting_reads()).sum()
    }

    /// Ends the waiting reads with `EIO`; how many there were.
    pub fn abort_reads(&self) -> usize {
        self.shown.all().iter().map(|fs| fs.abort_reads()).sum()
    }

    /// Has the kernel read these pieces of a torrent anew, if it is shown here: what it holds of them may
    /// be bad. Waits for reads of them, so it is not to be called on a thread that those need.
    pub fn forget_pieces(&self, torrent: InfoHash, pieces: &[u32]) {
        for (first, fs) in self.shown.placed() {
            let info = fs.content.info();
            if info.info_hash != torrent {
                continue;
            }
            let pieces = pieces.iter().filter_map(|piece| info.geometry.piece(*piece));
            let ranges = pieces.map(|piece| info.geometry.piece_range(piece));
            for (inode, part) in ranges.flat_map(|range| fs.files_with(&range)) {
                self.forget.pages(first + inode, part);
            }
        }
    }

    /// Takes the mount away. Fine if somebody else has done so already.
    pub fn unmount(&self, how: Unmount) -> Result<(), UnmountError> {
        let mut gone = lock(&self.gone);
        if *gone || matches!(*lock(&self.end), End::Over) {
            return Ok(());
        }
        let done = match how {
            Unmount::Plain => self.place.unmount(false),
            Unmount::Lazy => self.place.unmount(true),
            Unmount::Force => {
                self.shown.all().iter().for_each(|fs| fs.end_reads());
                match self.place.unmount(false) {
                    Err(Refusal::Busy) => self.place.unmount(true),
                    done => done,
                }
            }
        };
        *gone = done.is_ok();
        if !*gone {
            self.shown.all().iter().for_each(|fs| fs.resume_reads());
        }
        let dir = || self.place.dir.clone();
        done.map_err(|refusal| match refusal {
            Refusal::Busy => UnmountError::Busy { dir: dir(), waiting: self.waiting_reads() },
            Refusal::Covered => UnmountError::Covered(dir()),
            Refusal::System(cause) => UnmountError::System { dir: dir(), cause },
        })
    }

    /// Has `f` called, on a thread of the mount, when the filesystem is unmounted (by whomever) and
    /// the last file of it is closed; at once if that is so already.
    pub fn on_end(&self, f: Box<dyn FnOnce() + Send>) {
        match &mut *lock(&self.end) {
            End::NotYet(waiting) => return waiting.push(f),
            End::Over => {}
        }
        f();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After a lazy unmount this does nothing, and readers go on.
        let _ = self.unmount(Unmount::Force);
    }
}

/// Answers requests until the filesystem is unmounted or its connection cut.
fn serve(served: Served, shown: &dyn Shown, place: &Place, end: &Mutex<End>) {
    if let Err(error) = served.run() {
        tracing::warn!(dir = %place.dir.display(), %error, "the mount's connection ended");
    }
    // A connection that was cut (umount -f) leaves a dead mount behind.
    // Where none is left, an automount could be waiting to be looked into.
    if place.is_mounted().unwrap_or(true) && is_dead(&place.dir) {
        let _ = place.unmount(true);
    }
    shown.all().iter().for_each(|fs| fs.release_all());
    let before = std::mem::replace(&mut *lock(end), End::Over);
    if let End::NotYet(waiting) = before {
        waiting.into_iter().for_each(|f| f());
    }
}

/// A line of the table of mounts.
#[derive(Clone, Debug)]
struct Place {
    dir: PathBuf,
    entry: MountEntry,
}

/// Why a [`Place`] is still mounted.
enum Refusal {
    Busy,
    Covered,
    System(String),
}

impl Place {
    /// Unmounts it if it is still there. The place must not have been given up before.
    fn unmount(&self, lazy: bool) -> Result<(), Refusal> {
        if !self.is_mounted()? {
            return Ok(());
        }
        match mount_at(&self.dir) {
            Ok(Some(top)) if self.is(&top) => {}
            Ok(_) => return Err(Refusal::Covered),
            Err(error) => return Err(Refusal::System(error.to_string())),
        }
        match unmount(&self.dir, lazy) {
            // Somebody else was faster.
            Err(_) if !self.is_mounted()? => Ok(()),
            done => done,
        }
    }

    fn is_mounted(&self) -> Result<bool, Refusal> {
        let table = mounts().map_err(|error| Refusal::System(error.to_string()))?;
        Ok(table.iter().any(|mount| self.is(mount)))
    }

    /// Whether it is this one; its parent changes when what it covers is unmounted, its options when it is
    /// mounted anew.
    fn is(&self, mount: &MountEntry) -> bool {
        let (parent, options) = (mount.parent, mount.options.clone());
        *mount == MountEntry { parent, options, ..self.entry.clone() }
    }

    /// Has the kernel read further ahead. Only root may; it is faster, not needed.
    fn raise_readahead(&self) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", self.entry.device);
        if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(setting, %error, "the kernel's readahead stays as it is");
        }
    }
}

/// Unmounts whatever is on top at `dir`.
fn unmount(dir: &Path, lazy: bool) -> Result<(), Refusal> {
    if !geteuid().is_root() {
        return fusermount::unmount(dir, lazy).map_err(|error| match error {
            FusermountError::Refused(said) if said.contains("busy") => Refusal::Busy,
            FusermountError::Missing => {
                Refusal::System("fusermount3 is not found; install fuse3".to_owned())
            }
            error => Refusal::System(error.to_string()),
        });
    }
    let lazily = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match nix::mount::umount2(dir, lazily | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(Refusal::Busy),
        Err(errno) => Err(Refusal::System(errno.desc().to_owned())),
    }
}

/// Whether a FUSE filesystem is at `dir` whose program has gone. (`stat` may still answer then, from
/// what the kernel remembers; a question that its program took with it is aborted.)
pub fn is_dead(dir: &Path) -> bool {
    matches!(nix::sys::statvfs::statvfs(dir), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Whether `options` make sense and their directory could be mounted on now; that directory without
/// links. Says early, before any metadata is fetched, what [`Mount::new`] would say late.
pub fn check(options: &MountOptions) -> Result<PathBuf, MountError> {
    let resolved = options.resolve()?;
    let dir = usable_dir(&options.dir, options.automount.as_deref(), resolved.nonempty)?;
    if Path::new("/dev/fuse").exists() { Ok(dir) } else { Err(MountError::NoFuse) }
}

/// The directory, held open, if it is an automount that waits for its mount (see [`Automount`]).
pub fn hold(dir: &Path) -> Result<Option<Automount>, MountError> {
    Automount::hold(dir).map_err(|error| unusable(dir, error))
}

/// The directory without links, if a filesystem can be mounted there. A dead mount that a p2pfs left
/// behind is cleared.
fn usable_dir(dir: &Path, automount: Option<&Path>, nonempty: bool) -> Result<PathBuf, MountError> {
    if automount::waits(dir) {
        // It is empty, and whoever looks into it waits, for us if we may.
        let may = automount.is_some() || automount::waits_for_us(dir);
        return match geteuid().is_root() && may {
            true => Ok(dir.to_owned()),
            false => Err(MountError::System {
                dir: dir.to_owned(),
                action: "mount there",
                cause: "it is an automount that another program is to mount on; end it first, or look into it"
                    .to_owned(),
            }),
        };
    }
    if is_dead(dir) {
        clear_dead(dir)?;
    }
    let path = match dir.canonicalize().and_then(|path| path.metadata().map(|of| (path, of))) {
        Ok((path, of)) if of.is_dir() => path,
        Ok((path, _)) => return Err(MountError::NotDirectory(path)),
        Err(error) => return Err(unusable(dir, error)),
    };
    match mount_at(&path) {
        Ok(Some(there)) if there.fs_type == FS_TYPE || !nonempty => {
            let command = if there.fs_type == FS_TYPE { "p2pfs umount" } else { "umount" };
            let device = format!("{} of type {}", there.source.display(), there.fs_type);
            return Err(MountError::AlreadyMounted { dir: path, device, command });
        }
        _ => {}
    }
    match path.read_dir().map(|mut entries| entries.next().is_none()) {
        Ok(false) if !nonempty => Err(MountError::NotEmpty(path)),
        Ok(_) => Ok(path),
        Err(error) => Err(unusable(dir, error)),
    }
}

fn unusable(dir: &Path, error: io::Error) -> MountError {
    let dir = dir.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => MountError::NotFound(dir),
        io::ErrorKind::NotADirectory => MountError::NotDirectory(dir),
        io::ErrorKind::PermissionDenied => {
            MountError::Permission { dir, action: "look into it", cause: error.to_string() }
        }
        _ => MountError::System { dir, action: "use it", cause: error.to_string() },
    }
}

/// Clears a dead mount ("Transport endpoint is not connected") if it is a p2pfs's.
fn clear_dead(dir: &Path) -> Result<(), MountError> {
    let failed = |cause: String| {
        let action = "clear the dead mount there";
        MountError::System { dir: dir.to_owned(), action, cause }
    };
    let path = dir.canonicalize().or_else(|_| std::path::absolute(dir));
    let path = path.map_err(|e| failed(e.to_string()))?;
    let dead = mount_at(&path).map_err(|e| failed(e.to_string()))?;
    match dead.map(|dead| dead.fs_type) {
        Some(fs_type) if fs_type == FS_TYPE => {
            unmount(&path, true).map_err(|refusal| match refusal {
                Refusal::Busy | Refusal::Covered => failed("it is in use".to_owned()),
                Refusal::System(cause) => failed(cause),
            })
        }
        Some(fs_type) => Err(MountError::Dead { dir: path, fs_type }),
        None => Err(failed("the filesystem that it is on has lost its program".to_owned())),
    }
}

/// Mounts at `dir`, which `automount` leads to where it is one; the descriptor on which the kernel's
/// requests arrive.
fn attach(
    dir: &Path,
    automount: Option<&Path>,
    resolved: &Resolved,
) -> Result<OwnedFd, MountError> {
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoFuse);
    }
    if !geteuid().is_root() {
        return attach_as_user(dir, resolved);
    }
    match automount {
        Some(path) if !automount::is_one(path) => Err(MountError::System {
            dir: dir.to_owned(),
            action: "mount there",
            cause: "it is no automount any more; try again".to_owned(),
        }),
        automount => attach_as_root(dir, automount.unwrap_or(dir), resolved),
    }
}

fn attach_as_root(dir: &Path, at: &Path, resolved: &Resolved) -> Result<OwnedFd, MountError> {
    let refused =
        |action, cause: String| MountError::Permission { dir: dir.to_owned(), action, cause };
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    let device: OwnedFd = match device {
        Ok(file) => file.into(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(refused("open /dev/fuse", error.to_string()));
        }
        Err(_) => return Err(MountError::NoFuse),
    };
    let (fd, uid, gid) = (device.as_raw_fd(), geteuid(), getegid());
    let mut data =
        format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions");
    if resolved.allow_other {
        data.push_str(",allow_other");
    }
    let (source, data) = (Some(resolved.source.as_str()), Some(data.as_str()));
    match nix::mount::mount(source, at, Some(FS_TYPE), resolved.flags, data) {
        Ok(()) => Ok(device),
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => {
            Err(refused("mount there", errno.desc().to_owned()))
        }
        Err(Errno::ENODEV) => Err(MountError::NoFuse),
        Err(errno) => Err(MountError::System {
            dir: dir.to_owned(),
            action: "mount there",
            cause: errno.desc().to_owned(),
        }),
    }
}

fn attach_as_user(dir: &Path, resolved: &Resolved) -> Result<OwnedFd, MountError> {
    let mut options = vec!["ro", "nosuid", "nodev", "subtype=p2pfs", "default_permissions"];
    for (flag, option) in [(MsFlags::MS_NOEXEC, "noexec"), (MsFlags::MS_NOATIME, "noatime")] {
        if resolved.flags.contains(flag) {
            options.push(option);
        }
    }
    if resolved.allow_other {
        options.push("allow_other");
    }
    let source = format!("fsname={}", resolved.source);
    options.push(&source);
    fusermount::mount(dir, &options.join(",")).map_err(|error| {
        let dir = dir.to_owned();
        match error {
            FusermountError::Missing => MountError::NoFusermount,
            FusermountError::Refused(said) if said.contains("user_allow_other") => {
                MountError::AllowOther
            }
            FusermountError::Refused(said) if said.contains("/dev/fuse: Permission denied") => {
                MountError::FusePermission
            }
            FusermountError::Refused(cause) => {
                MountError::Permission { dir, action: "mount there", cause }
            }
            FusermountError::Io(error) => {
                let action = "run fusermount3";
                MountError::System { dir, action, cause: error.to_string() }
            }
        }
    })
}
