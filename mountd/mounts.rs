//! The table of mounts: which torrent is mounted where, and how a mount comes and goes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2pfs::engine::{DataPlace, Kept, ReadError, Torrent};
use p2pfs::fs::{self, Mount, MountOptions, Unmount, UnmountError};
use p2pfs::proto::metainfo::layout::EntryKind;
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{
    ErrorKind, MountRequest, Outcome, Progress, Response, RpcError, ShareKind, ShareStatus,
    Unmounting, WirePath, size,
};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::daemon::{Adding, Daemon, Events, Lease, locked};
use crate::idle::Busy;
use crate::keep;

/// How long an unmount waits for the mount to be over. It is gone from its folder before; another
/// mount namespace may hold on to it.
const END_WITHIN: Duration = Duration::from_secs(1);
/// How often those who wait are told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// A mount that is live.
struct Live {
    dir: PathBuf,
    mount: Mount,
    seed_until: Option<SeedUntil>,
    lease: Lease,
    ended: watch::Sender<bool>,
    detached: watch::Sender<bool>,
    problem: Mutex<Option<String>>,
    /// Of a mount whose files are to be kept, nothing is let go.
    _kept: Option<Kept>,
    _busy: Busy,
}

/// All mounts, by a number of their own: a folder may have a detached mount and a new one.
#[derive(Default)]
pub struct Mounts {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, Arc<Live>>,
    /// Folders for which a mount is being made.
    reserved: Vec<PathBuf>,
}

/// The right to mount on a folder, until it is dropped.
struct Reservation {
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
        let how = Adding {
            on_demand: request.on_demand,
            upload: !request.no_seed,
            select: request.select.clone(),
            data: DataPlace::Cache,
        };
        let lease = self.add(&request.source, how, &events).await?;
        options.source = String::from_utf8_lossy(&lease.torrent().info().name).into_owned();
        options.time = self.known_since(lease.torrent().info().info_hash);
        if let Some(keep) = &request.keep {
            let folder = keep.canonicalize().unwrap_or_else(|_| keep.0.clone());
            if folder.starts_with(&options.dir) {
                let message = format!("{}: is in the mount itself", keep.display());
                return Err(RpcError::failed(message + "; keep the files in another folder"));
            }
            keep::check(lease.torrent(), keep).map_err(RpcError::failed)?;
            self.check_room_to_keep(lease.torrent()).await?;
        }
        // From here on it is done to the end even if the client leaves.
        let (daemon, outcome) = (Arc::clone(self), lease.outcome());
        let finished = tokio::spawn(async move {
            let kept = request.keep.is_some().then(|| lease.torrent().keep());
            let live = daemon.go_live(place, lease, options, request.seed_until, kept).await?;
            if events.is_closed() {
                live.unmount(Unmount::Force).await.map_err(from_unmount)?;
            } else if request.until_done || request.seed_until.is_some() {
                tokio::spawn(daemon.until_done(live, request.keep.map(|keep| keep.0)));
            }
            Ok(outcome)
        });
        finished.await.map_err(RpcError::failed)?
    }

    /// Refuses to keep what the cache cannot hold.
    async fn check_room_to_keep(&self, torrent: &Torrent) -> Result<(), RpcError> {
        let (limit, wanted) = (self.cache().limit(), torrent.wanted_bytes().await);
        match limit {
            Some(limit) if wanted > limit => Err(RpcError::failed(format_args!(
                "{} are to be kept, and the cache may take {}: give it more with --cache-size, or \
                 --select less",
                size::show(wanted),
                size::show(limit)
            ))),
            _ => Ok(()),
        }
    }

    async fn go_live(
        &self,
        place: Reservation,
        lease: Lease,
        options: MountOptions,
        seed_until: Option<SeedUntil>,
        kept: Option<Kept>,
    ) -> Result<Arc<Live>, RpcError> {
        let torrent = lease.torrent().clone();
        let mount = spawn_blocking(move || Mount::new(torrent, options));
        let mount = mount.await.map_err(RpcError::failed)?.map_err(RpcError::failed)?;
        let live = Arc::new(Live {
            dir: mount.dir().to_owned(),
            mount,
            seed_until,
            lease,
            ended: watch::Sender::new(false),
            detached: watch::Sender::new(false),
            problem: Mutex::default(),
            _kept: kept,
            _busy: self.activity.share(),
        });
        self.mounts.insert(&live);
        drop(place);
        Ok(live)
    }

    /// Unmounts when everything selected is verified, has been copied if that is wanted, and was
    /// seeded for as long as that is wanted.
    async fn until_done(self: Arc<Self>, live: Arc<Live>, keep: Option<PathBuf>) {
        if !self.waits_for(&live, live.lease.torrent().wait_complete()).await {
            return;
        }
        if let Some(keep) = keep {
            let torrent = live.lease.torrent().clone();
            let kept = spawn_blocking(move || keep::copy(&torrent, &keep)).await;
            if let Err(error) = kept.map_err(anyhow::Error::from).and_then(|kept| kept) {
                return self.give_up(&live, &format!("{error:#}"));
            }
        }
        if let Some(rule) = live.seed_until
            && !self.waits_for(&live, live.lease.torrent().wait_seeded(rule)).await
        {
            return;
        }
        // Whoever still reads may finish.
        if let Err(UnmountError::Busy { .. }) = live.unmount(Unmount::Plain).await {
            let _ = live.unmount(Unmount::Lazy).await;
        }
    }

    /// Waits for something to become true of a mount; whether it did while the mount is there.
    async fn waits_for(
        &self,
        live: &Live,
        done: impl Future<Output = Result<(), ReadError>>,
    ) -> bool {
        let mut ended = live.ended.subscribe();
        tokio::select! {
            done = done => match done {
                Ok(()) => true,
                Err(error) => {
                    self.give_up(live, &format!("{}: {error}", live.dir.display()));
                    false
                }
            },
            () = over(&mut ended) => false,
        }
    }

    /// Notes why `--until-done` cannot be done. A daemon in the foreground ends with that; otherwise
    /// the mount stays, and `status` says why.
    fn give_up(&self, live: &Live, problem: &str) {
        *locked(&live.problem) = Some(problem.to_owned());
        self.note_problem(problem);
    }

    /// Ends a mount.
    pub async fn umount(&self, dir: &Path, how: Unmounting) -> Result<Outcome, RpcError> {
        let live = self.mounts.at(dir)?;
        let reads = live.mount.waiting_reads() as u64;
        let how = match how {
            Unmounting::Clean => Unmount::Plain,
            Unmounting::Force => Unmount::Force,
            Unmounting::Lazy => Unmount::Lazy,
        };
        live.unmount(how).await.map_err(from_unmount)?;
        Ok(Outcome { reads, ..live.lease.outcome() })
    }

    /// Ends the waiting reads of a mount.
    pub fn abort(&self, dir: &Path) -> Result<Outcome, RpcError> {
        let reads = self.mounts.at(dir)?.mount.abort_reads() as u64;
        Ok(Outcome { reads, ..Outcome::default() })
    }

    /// Waits until everything selected is verified.
    pub async fn wait(&self, dir: &Path, events: &Events) -> Result<Outcome, RpcError> {
        let live = self.mounts.at(dir)?;
        let mut ended = live.ended.subscribe();
        let mut tick = tokio::time::interval(TELL_EVERY);
        let complete = live.lease.torrent().wait_complete();
        tokio::pin!(complete);
        loop {
            tokio::select! {
                biased;
                done = &mut complete => {
                    let shown = dir.display();
                    done.map_err(|e| RpcError::failed(format_args!("{shown}: {e}")))?;
                    return Ok(live.lease.outcome());
                }
                () = over(&mut ended) => return Err(RpcError::failed(format_args!(
                    "{}: was unmounted before everything was here; mount it again to go on",
                    dir.display()
                ))),
                _ = tick.tick() => {
                    let _ = events.try_send(Response::Progress(download(live.lease.torrent())));
                }
            }
        }
    }

    /// Has the files at or below `path` fetched now.
    pub fn prefetch(&self, path: &Path) -> Result<Outcome, RpcError> {
        let (torrent, files) = self.files_at(path)?;
        let lengths = files.iter().filter_map(|&file| torrent.info().files.get(file));
        let bytes = lengths.map(|file| file.length).sum();
        torrent.prefetch(&files);
        Ok(Outcome { files: files.len() as u64, bytes, ..Outcome::default() })
    }

    /// Keeps the files at or below `path` in the cache, or no longer.
    pub fn pin(&self, path: &Path, pin: bool) -> Result<Outcome, RpcError> {
        let (torrent, files) = self.files_at(path)?;
        torrent.set_pinned(&files, pin).map_err(|error| {
            RpcError::failed(format_args!("{}: cannot be noted: {error}", path.display()))
        })?;
        Ok(Outcome { files: files.len() as u64, ..Outcome::default() })
    }

    /// The files at or below `path`, at least one, and their torrent.
    fn files_at(&self, path: &Path) -> Result<(Torrent, Vec<usize>), RpcError> {
        let live = self.mounts.holding(path)?;
        let below = path.strip_prefix(&live.dir).unwrap_or(path);
        let torrent = live.lease.torrent();
        let files = files_below(torrent, below);
        if files.is_empty() {
            return Err(RpcError::failed(format_args!(
                "{}: no such file in the torrent; see p2pfs status and ls",
                path.display()
            )));
        }
        Ok((torrent.clone(), files))
    }

    /// Describes the mount at `dir`, or all.
    pub fn mount_status(&self, dir: Option<&Path>) -> Result<Vec<ShareStatus>, RpcError> {
        let lives = match dir {
            Some(dir) => vec![self.mounts.at(dir)?],
            None => self.mounts.all(),
        };
        let status = |live: Arc<Live>| ShareStatus {
            kind: ShareKind::Mount,
            path: WirePath(live.dir.clone()),
            port: self.port(),
            pid: std::process::id(),
            dht_nodes: self.dht_nodes(),
            detached: *live.detached.borrow(),
            seed_until: live.seed_until,
            problem: locked(&live.problem).clone(),
            torrent: live.lease.torrent().status(),
        };
        Ok(lives.into_iter().map(status).collect())
    }
}

impl Live {
    /// Unmounts, and waits a little for the end of it.
    async fn unmount(self: &Arc<Self>, how: Unmount) -> Result<(), UnmountError> {
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

    /// The mount at `dir`.
    fn at(&self, dir: &Path) -> Result<Arc<Live>, RpcError> {
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

    /// Ends all mounts, at once and at the same time.
    pub async fn end_all(&self) {
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
async fn over(ended: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say so, which is the same.
    let _ = ended.wait_for(|ended| *ended).await;
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

fn from_unmount(error: UnmountError) -> RpcError {
    let kind = match error {
        UnmountError::Busy { .. } => ErrorKind::Busy,
        _ => ErrorKind::Failed,
    };
    RpcError::new(kind, error)
}
