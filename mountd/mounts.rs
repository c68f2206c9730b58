//! The table of mounts: which torrent is mounted where, and how a mount comes and goes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2pfs::engine::{DataPlace, Kept, Torrent};
use p2pfs::fs::{self, Mount, MountOptions, Unmount, UnmountError};
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::metainfo::layout::EntryKind;
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{
    CheckedTorrent, ErrorKind, MountRequest, Outcome, PartStatus, Progress, Response, RpcError,
    ShareKind, ShareStatus, Unmounting, WirePath,
};
use tokio::sync::{RwLock, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::daemon::{Adding, Daemon, Events, Lease, locked};
use crate::folders::Directory;
use crate::idle::Busy;
use crate::keep;
use crate::room::Keeping;
use crate::use_data::{check_data, covered};
use crate::users::users_of;

/// How long an unmount waits for the mount to be over. It is gone from its folder before; another
/// mount namespace may hold on to it.
const END_WITHIN: Duration = Duration::from_secs(1);
/// How long it waits until the torrents are not in use any more: peers may still be sent what they
/// were promised, and a disk may be stuck.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
/// Who uses a mount is not looked for any longer.
const NAMING: Duration = Duration::from_secs(1);
/// How often those who wait are told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// What a mount shows.
pub enum Shows {
    /// One torrent.
    One(Lease),
    /// A folder for each of several.
    Folders(Arc<Directory>),
}

/// A mount that is live.
pub struct Live {
    pub dir: PathBuf,
    pub mount: Mount,
    pub seed_until: Option<SeedUntil>,
    pub shows: Shows,
    pub ended: watch::Sender<bool>,
    detached: watch::Sender<bool>,
    problem: Mutex<Option<String>>,
    pub keeping: watch::Sender<Keeping>,
    /// Of a mount whose files are to be kept, nothing is let go.
    _kept: Option<Kept>,
    _busy: Busy,
}

/// All mounts, by a number of their own: a folder may have a detached mount and a new one.
#[derive(Default)]
pub struct Mounts {
    table: Arc<Mutex<Table>>,
    /// Read by each mount that is being made.
    making: Arc<RwLock<Making>>,
}

/// Whether mounts may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Making {
    #[default]
    Allowed,
    /// All mounts are being ended.
    Over,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, Arc<Live>>,
    /// Folders for which a mount is being made.
    reserved: Vec<PathBuf>,
}

/// The right to mount on a folder, until it is dropped.
pub struct Reservation {
    dir: PathBuf,
    table: Arc<Mutex<Table>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        locked(&self.table).reserved.retain(|dir| *dir != self.dir);
    }
}

impl Daemon {
    /// Mounts a torrent. Dropping the future before the metadata is here leaves nothing.
    pub async fn mount(
        self: &Arc<Self>,
        request: MountRequest,
        events: Events,
    ) -> Result<Outcome, RpcError> {
        let mut options = mount_options(&request);
        options.dir = fs::mount::check(&options).map_err(RpcError::failed)?;
        let place = self.mounts.reserve(&options.dir)?;
        request.sources.iter().try_for_each(|source| check_data(source, &options.dir))?;
        let how = Adding {
            on_demand: request.on_demand,
            upload: !request.no_seed,
            select: request.select.clone(),
            data: DataPlace::Cache,
            one_of_several: request.sources.len() > 1,
        };
        let source = match request.sources.as_slice() {
            [source] if !request.folders => source,
            sources => return self.mount_folders(place, sources, options, how, &events).await,
        };
        let lease = self.add(source, how, &events).await?;
        if lease.torrent().lends_from(&options.dir) {
            return Err(covered(&options.dir));
        }
        options.source = String::from_utf8_lossy(&lease.torrent().info().name).into_owned();
        options.time = self.known_since(lease.torrent().info().info_hash);
        let mut keep_at = None;
        if let Some(keep) = &request.keep {
            let folder = keep.canonicalize().unwrap_or_else(|_| keep.0.clone());
            if folder.starts_with(&options.dir) {
                let message = format!("{}: is in the mount itself", keep.display());
                return Err(RpcError::failed(message + "; keep the files in another folder"));
            }
            let (torrent, keep) = (lease.torrent().clone(), keep.0.clone());
            let held = spawn_blocking(move || keep::Place::hold(&torrent, &keep));
            let held = held.await.map_err(RpcError::failed)?;
            keep_at = Some(held.map_err(|error| RpcError::failed(format_args!("{error:#}")))?);
        }
        if request.until_done || request.seed_until.is_some() {
            self.check_room(lease.torrent(), keep_at.is_some()).await?;
        }
        let (daemon, outcome) = (Arc::clone(self), lease.outcome());
        let finished = async move {
            let kept = keep_at.is_some().then(|| lease.torrent().keep());
            let torrent = lease.torrent().clone();
            let shown = torrent.clone();
            let mount = spawn_blocking(move || Mount::new(shown, options));
            let mount = mount.await.map_err(RpcError::failed)?.map_err(RpcError::failed)?;
            let live = daemon.go_live(place, mount, Shows::One(lease), request.seed_until, kept);
            if events.is_closed() {
                unmount(&live, Unmount::Force).await?;
            } else if request.until_done || request.seed_until.is_some() {
                tokio::spawn(daemon.until_done(live, torrent, keep_at));
            }
            Ok(outcome)
        };
        self.making(finished).await
    }

    /// Makes a mount and enters it in the table, to the end even if the client leaves meanwhile: so
    /// whoever ends all mounts finds each of them there.
    pub async fn making<T: Send + 'static>(
        &self,
        made: impl Future<Output = Result<T, RpcError>> + Send + 'static,
    ) -> Result<T, RpcError> {
        let making = Arc::clone(&self.mounts.making).read_owned().await;
        if *making == Making::Over {
            return Err(RpcError::failed("the daemon is stopping; try again"));
        }
        let made = tokio::spawn(async move {
            let made = made.await;
            drop(making);
            made
        });
        made.await.map_err(RpcError::failed)?
    }

    pub fn go_live(
        &self,
        place: Reservation,
        mount: Mount,
        shows: Shows,
        seed_until: Option<SeedUntil>,
        kept: Option<Kept>,
    ) -> Arc<Live> {
        let live = Arc::new(Live {
            dir: mount.dir().to_owned(),
            mount,
            seed_until,
            shows,
            ended: watch::Sender::new(false),
            detached: watch::Sender::new(false),
            problem: Mutex::default(),
            keeping: watch::Sender::new(if kept.is_some() { Keeping::Later } else { Keeping::Not }),
            _kept: kept,
            _busy: self.activity.share(),
        });
        self.mounts.insert(&live);
        drop(place);
        live
    }

    /// Notes why `--until-done` cannot be done. A daemon in the foreground ends with that; otherwise
    /// the mount stays, and `status` says why.
    pub fn give_up(&self, live: &Live, problem: &str) {
        *locked(&live.problem) = Some(problem.to_owned());
        self.note_problem(problem);
    }

    /// Ends a mount, after the files that are just being kept. Unless files stay open, what it had in
    /// the cache can be freed afterwards.
    pub async fn umount(
        &self,
        dir: &Path,
        how: Unmounting,
        events: &Events,
    ) -> Result<Outcome, RpcError> {
        let live = self.mounts.at(dir)?;
        if how == Unmounting::Clean {
            live.wait_kept(events, |now| now.progress().is_none()).await;
        }
        let reads = live.mount.waiting_reads() as u64;
        let how = match how {
            Unmounting::Clean => Unmount::Plain,
            Unmounting::Force => Unmount::Force,
            Unmounting::Lazy => Unmount::Lazy,
        };
        let in_use = live.shows.in_use();
        unmount(&live, how).await?;
        let ratio = match &live.shows {
            Shows::One(lease) => Some(lease.torrent().status().share_ratio),
            Shows::Folders(_) => None,
        };
        let outcome = Outcome { reads, ratio, ..live.shows.outcome() };
        let over = *live.ended.borrow();
        drop(live);
        if over {
            released(in_use).await;
        }
        Ok(outcome)
    }

    /// Ends the waiting reads of a mount.
    pub fn abort(&self, dir: &Path) -> Result<Outcome, RpcError> {
        let reads = self.mounts.at(dir)?.mount.abort_reads() as u64;
        Ok(Outcome { reads, ..Outcome::default() })
    }

    /// Waits until everything selected is verified.
    pub async fn wait(&self, dir: &Path, events: &Events) -> Result<Outcome, RpcError> {
        let (live, torrent) = self.mounts.torrent_at(dir)?;
        let keep = *live.keeping.borrow() != Keeping::Not;
        self.check_room(&torrent, keep).await?;
        let mut ended = live.ended.subscribe();
        let mut tick = tokio::time::interval(TELL_EVERY);
        let complete = torrent.wait_complete();
        tokio::pin!(complete);
        loop {
            tokio::select! {
                biased;
                done = &mut complete => {
                    let shown = dir.display();
                    done.map_err(|e| RpcError::failed(format_args!("{shown}: {e}")))?;
                    live.wait_kept(events, |now| now == Keeping::Not).await;
                    return Ok(live.shows.outcome());
                }
                () = over(&mut ended) => return Err(was_unmounted(dir)),
                _ = tick.tick() => {
                    let _ = events.try_send(Response::Progress(download(&torrent)));
                }
            }
        }
    }

    /// Has the files at or below `path` fetched now.
    pub fn prefetch(&self, path: &Path) -> Result<Outcome, RpcError> {
        let (_, torrent, files) = self.mounts.files_at(path)?;
        let lengths = files.iter().filter_map(|&file| torrent.info().files.get(file));
        let bytes = lengths.map(|file| file.length).sum();
        torrent.prefetch(&files);
        Ok(Outcome { files: files.len() as u64, bytes, ..Outcome::default() })
    }

    /// Keeps the files at or below `path` in the cache, or no longer.
    pub async fn pin(&self, path: &Path, pin: bool) -> Result<Outcome, RpcError> {
        let (_, torrent, files) = self.mounts.files_at(path)?;
        let count = files.len() as u64;
        // It waits for the disk.
        let noted = spawn_blocking(move || torrent.set_pinned(&files, pin)).await;
        noted.map_err(RpcError::failed)?.map_err(|error| {
            RpcError::failed(format_args!("{}: cannot be noted: {error}", path.display()))
        })?;
        Ok(Outcome { files: count, ..Outcome::default() })
    }

    /// Says what of a file, or of what is below a folder, is here.
    pub fn part_status(&self, path: &Path) -> Result<PartStatus, RpcError> {
        let (live, torrent, files) = self.mounts.files_at(path)?;
        let info = torrent.info();
        let pieces = torrent.pieces_of(&files);
        let lengths = files.iter().filter_map(|&file| info.files.get(file));
        Ok(PartStatus {
            path: WirePath(path.to_owned()),
            mount: WirePath(live.dir.clone()),
            info_hash: info.info_hash.to_string(),
            files: files.len() as u64,
            total: lengths.map(|file| file.length).sum(),
            verified: files.iter().map(|&file| torrent.verified_bytes(Some(file))).sum(),
            pieces: pieces.len() as u64,
            pieces_verified: pieces.iter().filter(|&&piece| torrent.is_here(piece)).count() as u64,
        })
    }

    /// Describes the mounts.
    pub fn mount_status(&self) -> Vec<ShareStatus> {
        let share = |live: &Live, torrent| ShareStatus {
            kind: ShareKind::Mount,
            path: WirePath(live.dir.clone()),
            folder_of: None,
            port: self.port(),
            pid: std::process::id(),
            dht_nodes: self.dht_nodes(),
            detached: *live.detached.borrow(),
            seed_until: live.seed_until,
            keeping: live.keeping.borrow().progress(),
            problem: locked(&live.problem).clone(),
            torrent,
        };
        let shares = |live: Arc<Live>| match &live.shows {
            Shows::One(lease) => vec![share(&live, lease.torrent().status())],
            Shows::Folders(directory) => {
                let folder = |(name, torrent, empty): (OsString, _, Option<String>)| ShareStatus {
                    path: WirePath(live.dir.join(name)),
                    folder_of: Some(WirePath(live.dir.clone())),
                    problem: empty,
                    ..share(&live, torrent)
                };
                directory.status().into_iter().map(folder).collect()
            }
        };
        self.mounts.all().into_iter().flat_map(shares).collect()
    }
}

impl Shows {
    /// Of each torrent, see [`Lease::in_use`].
    fn in_use(&self) -> Vec<watch::Receiver<()>> {
        match self {
            Self::One(lease) => vec![lease.in_use()],
            Self::Folders(directory) => directory.in_use(),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::One(lease) => lease.outcome(),
            Self::Folders(directory) => directory.outcome(),
        }
    }
}

impl Live {
    /// The torrent that a path in this mount is of, and the path in that torrent.
    fn torrent_below<'a>(&self, below: &'a Path) -> Option<(Torrent, &'a Path)> {
        match &self.shows {
            Shows::One(lease) => Some((lease.torrent().clone(), below)),
            Shows::Folders(directory) => {
                let name = below.components().next()?;
                let torrent = directory.torrent(name.as_os_str())?;
                Some((torrent, below.strip_prefix(name).unwrap_or(below)))
            }
        }
    }

    /// Unmounts, and waits a little for the end of it.
    pub async fn unmount(self: &Arc<Self>, how: Unmount) -> Result<(), UnmountError> {
        let live = Arc::clone(self);
        let unmounted = spawn_blocking(move || live.mount.unmount(how)).await;
        unmounted
            .map_err(|e| UnmountError::System { dir: self.dir.clone(), cause: e.to_string() })??;
        // It has left its folder, where something else may be mounted now.
        self.detached.send_replace(true);
        if how != Unmount::Lazy {
            let mut ended = self.ended.subscribe();
            let _ = timeout(END_WITHIN, over(&mut ended)).await;
        }
        Ok(())
    }
}

impl Mounts {
    /// Keeps others from mounting on `dir` at the same time.
    fn reserve(&self, dir: &Path) -> Result<Reservation, RpcError> {
        let mut table = locked(&self.table);
        if table.reserved.iter().any(|reserved| reserved == dir) {
            let shown = dir.display();
            return Err(RpcError::new(
                ErrorKind::Busy,
                format_args!("{shown}: a torrent is just being mounted there; see p2pfs status"),
            ));
        }
        table.reserved.push(dir.to_owned());
        Ok(Reservation { dir: dir.to_owned(), table: Arc::clone(&self.table) })
    }

    /// Enters a mount, to be removed when it ends, whoever ended it.
    fn insert(&self, live: &Arc<Live>) {
        let id = {
            let mut table = locked(&self.table);
            table.next += 1;
            let id = table.next;
            table.live.insert(id, Arc::clone(live));
            id
        };
        let (table, ended) = (Arc::clone(&self.table), live.ended.clone());
        live.mount.on_end(Box::new(move || {
            let removed = locked(&table).live.remove(&id);
            drop(removed);
            ended.send_replace(true);
        }));
    }

    fn all(&self) -> Vec<Arc<Live>> {
        locked(&self.table).live.values().cloned().collect()
    }

    /// The torrent that is mounted at `path`, or shown in that folder of a mount.
    pub fn torrent_at(&self, path: &Path) -> Result<(Arc<Live>, Torrent), RpcError> {
        let nothing = |why| RpcError::not_here(format_args!("{}: {why}", path.display()));
        let live = self.holding(path).map_err(|_| nothing("no torrent is mounted there"))?;
        let below = path.strip_prefix(&live.dir).unwrap_or(path);
        let failed = |why| Err(RpcError::failed(format_args!("{}: {why}", path.display())));
        match (live.torrent_below(below), below.components().count()) {
            (Some((torrent, rest)), _) if rest.as_os_str().is_empty() => Ok((live, torrent)),
            (None, 0) => failed("holds several torrents; name one of its folders"),
            (None, 1) => failed("no torrent is there yet; see p2pfs status"),
            _ => Err(nothing("no torrent is mounted there")),
        }
    }

    /// Has the kernel read what was found to be bad anew, wherever it is shown.
    pub fn forget_bad(&self, checked: &CheckedTorrent) {
        let Ok(hash) = checked.info_hash.parse::<InfoHash>() else { return };
        let bad = checked.bad.clone();
        if bad.is_empty() {
            return;
        }
        let mounts = self.all();
        // It waits for the reads of these pieces: only a thread that nobody needs can do that.
        let thread = std::thread::Builder::new().name("p2pfs-forget".to_owned());
        let started = thread.spawn(move || {
            for live in mounts {
                live.mount.forget_pieces(hash, &bad);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the kernel cannot be told what is bad");
        }
    }

    /// Whether a mount with folders is at `dir`.
    pub fn has_folders(&self, dir: &Path) -> bool {
        self.at(dir).is_ok_and(|live| matches!(live.shows, Shows::Folders(_)))
    }

    /// The mount at `dir`.
    pub fn at(&self, dir: &Path) -> Result<Arc<Live>, RpcError> {
        let at = |live: &Arc<Live>| live.dir == dir && !*live.detached.borrow();
        self.all().into_iter().rev().find(at).ok_or_else(|| {
            RpcError::not_here(format_args!("{}: no torrent is mounted there", dir.display()))
        })
    }

    /// The mount that `path` lies in.
    fn holding(&self, path: &Path) -> Result<Arc<Live>, RpcError> {
        let holds = |live: &Arc<Live>| path.starts_with(&live.dir) && !*live.detached.borrow();
        let innermost = |live: &Arc<Live>| live.dir.as_os_str().len();
        self.all().into_iter().filter(holds).max_by_key(innermost).ok_or_else(|| {
            RpcError::not_here(format_args!("{}: is in no mounted torrent", path.display()))
        })
    }

    /// The files at or below `path`, the torrent that has them, and the mount that they are in.
    fn files_at(&self, path: &Path) -> Result<(Arc<Live>, Torrent, Vec<usize>), RpcError> {
        let live = self.holding(path)?;
        let found = live.torrent_below(path.strip_prefix(&live.dir).unwrap_or(path));
        let found = found.map(|(torrent, below)| {
            let files = files_below(&torrent, below);
            (torrent, files)
        });
        match found {
            Some((torrent, files)) if !files.is_empty() => Ok((live, torrent, files)),
            _ => Err(RpcError::failed(format_args!(
                "{}: no such file in the torrent; see p2pfs status and ls",
                path.display()
            ))),
        }
    }

    /// Ends all mounts, at once and at the same time; none can be made any more.
    pub async fn end_all(&self) {
        *self.making.write().await = Making::Over;
        let mut ending = JoinSet::new();
        for live in self.all() {
            ending.spawn(async move { live.unmount(Unmount::Force).await });
        }
        while let Some(ended) = ending.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Completes when the mount is over.
pub async fn over(ended: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say so, which is the same.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Waits until torrents are not in use any more, but not for ever; see [`Lease::in_use`].
pub async fn released(in_use: Vec<watch::Receiver<()>>) {
    let all = async {
        for mut one in in_use {
            while one.changed().await.is_ok() {}
        }
    };
    let _ = timeout(RELEASED_WITHIN, all).await;
}

pub fn was_unmounted(dir: &Path) -> RpcError {
    RpcError::failed(format_args!(
        "{}: was unmounted before everything was here; mount it again to go on",
        dir.display()
    ))
}

/// How far the download of a torrent is.
pub fn download(torrent: &Torrent) -> Progress {
    let status = torrent.status();
    Progress::Download {
        done: status.wanted_verified,
        of: status.wanted,
        rate: status.download_rate,
        peers: status.peers,
        nobody: status.nobody.or(status.limited),
    }
}

/// The files at or below a path of the tree.
fn files_below(torrent: &Torrent, below: &Path) -> Vec<usize> {
    let wanted: Vec<&OsStr> = below.iter().collect();
    let is_below = |path: &[Vec<u8>]| {
        path.len() >= wanted.len()
            && path.iter().zip(&wanted).all(|(part, wanted)| part == wanted.as_bytes())
    };
    let file = |kind: &EntryKind| match kind {
        EntryKind::File(file) => Some(*file),
        EntryKind::Symlink(_) => None,
    };
    let entries = torrent.layout().entries.iter();
    entries.filter(|entry| is_below(&entry.path)).filter_map(|entry| file(&entry.kind)).collect()
}

fn mount_options(request: &MountRequest) -> MountOptions {
    MountOptions {
        dir: request.dir.0.clone(),
        automount: request.automount.as_ref().map(|path| path.0.clone()),
        source: String::new(),
        allow_other: request.allow_other,
        uid: request.uid,
        gid: request.gid,
        umask: request.umask,
        extra: request.options.clone(),
        time: None,
        read_timeout: request.read_timeout.map(Duration::from_secs),
    }
}

/// Unmounts, or says why not: also who uses the mount, if that is soon known.
async fn unmount(live: &Arc<Live>, how: Unmount) -> Result<(), RpcError> {
    let Err(error) = live.unmount(how).await else { return Ok(()) };
    let UnmountError::Busy { dir, .. } = &error else { return Err(RpcError::failed(error)) };
    let dir = dir.clone();
    // What is looked at belongs to others, and may itself wait for the mount.
    let looking = timeout(NAMING, spawn_blocking(move || users_of(&dir)));
    let users = looking.await.ok().and_then(Result::ok).unwrap_or_default().join(", ");
    Err(match users.as_str() {
        "" => RpcError::new(ErrorKind::Busy, error),
        users => RpcError::new(ErrorKind::Busy, format_args!("{error} (used by {users})")),
    })
}
