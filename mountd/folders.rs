//! Several torrents in one directory: their folders, which come and go while it is mounted. A torrent
//! whose metadata is not known yet is looked for as long as its folder is there, and delays nobody.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use p2pfs::engine::{Source, Torrent, TorrentStatus, resolve};
use p2pfs::fs::{FolderId, Folders, Mount, MountOptions, Unmount};
use p2pfs::rpc::{ErrorKind, Outcome, Response, RpcError, SourceRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::daemon::{Adding, Daemon, Events, Lease, locked};
use crate::mounts::{Live, Reservation, Shows, over, released, was_unmounted};
use crate::use_data::check_data;

/// How long a mount or an added folder may take to have its files before the command returns.
const SETTLE: Duration = Duration::from_secs(3);
/// How long after a failure a torrent is looked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// The folders of one mount.
pub struct Directory {
    folders: Arc<Folders>,
    how: Adding,
    members: Mutex<Vec<Member>>,
    /// Told when a folder has got its files.
    ready: watch::Sender<()>,
}

struct Member {
    id: FolderId,
    name: OsString,
    /// Why it is empty, until it has its torrent.
    waits: String,
    lease: Option<Lease>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Directory {
    pub fn new(folders: Arc<Folders>, how: Adding) -> Self {
        Self { folders, how, members: Mutex::default(), ready: watch::Sender::new(()) }
    }

    /// The torrent of a folder, if it has one by now.
    pub fn torrent(&self, name: &OsStr) -> Option<Torrent> {
        let members = locked(&self.members);
        let member = members.iter().find(|member| member.name == name)?;
        member.lease.as_ref().map(|lease| lease.torrent().clone())
    }

    /// What there is to say of each folder: its name, its torrent, and why it is empty.
    pub fn status(&self) -> Vec<(OsString, TorrentStatus, Option<String>)> {
        let status = |member: &Member| match &member.lease {
            Some(lease) => (member.name.clone(), lease.torrent().status(), None),
            None => {
                let name = member.name.to_string_lossy().into_owned();
                let torrent =
                    TorrentStatus { name, state: "metadata".into(), ..TorrentStatus::default() };
                (member.name.clone(), torrent, Some(member.waits.clone()))
            }
        };
        locked(&self.members).iter().map(status).collect()
    }

    /// Of each torrent that is here, see [`Lease::in_use`].
    pub fn in_use(&self) -> Vec<watch::Receiver<()>> {
        let members = locked(&self.members);
        members.iter().filter_map(|member| member.lease.as_ref()).map(Lease::in_use).collect()
    }

    /// All of it in numbers.
    pub fn outcome(&self) -> Outcome {
        let members = locked(&self.members);
        let ready = members.iter().filter_map(|member| member.lease.as_ref());
        let sum = ready.map(Lease::outcome).fold(Outcome::default(), |sum, one| Outcome {
            files: sum.files + one.files,
            bytes: sum.bytes + one.bytes,
            ..sum
        });
        let empty = members.iter().filter(|member| member.lease.is_none()).count() as u64;
        Outcome { folders: members.len() as u64, empty, ..sum }
    }

    /// Waits a moment for the folders to have their files.
    pub async fn settle(&self) {
        let mut ready = self.ready.subscribe();
        let all = async { while self.outcome().empty > 0 && ready.changed().await.is_ok() {} };
        let _ = timeout(SETTLE, all).await;
    }

    fn waits(&self, id: FolderId, why: &str) {
        self.folders.waits(id, why);
        if let Some(member) = locked(&self.members).iter_mut().find(|member| member.id == id) {
            why.clone_into(&mut member.waits);
        }
    }

    /// Takes a folder away, and waits until its torrent is not in use any more.
    async fn remove(&self, dir: &Path, name: &OsStr, force: bool) -> Result<Outcome, RpcError> {
        let member = self.take(dir, name, force)?;
        let in_use = member.lease.iter().map(Lease::in_use).collect();
        let outcome = member.lease.as_ref().map(Lease::outcome).unwrap_or_default();
        drop(member);
        released(in_use).await;
        Ok(outcome)
    }

    fn take(&self, dir: &Path, name: &OsStr, force: bool) -> Result<Member, RpcError> {
        let shown = dir.join(name);
        let mut members = locked(&self.members);
        let at = members.iter().position(|member| member.name == name).ok_or_else(|| {
            RpcError::failed(format_args!("{}: no such folder; see p2pfs status", shown.display()))
        })?;
        let id = members[at].id;
        if let (false, open @ 1..) = (force, self.folders.open_files(id)) {
            let files = p2pfs::rpc::size::count(open as u64, "file");
            let message =
                format!("{}: in use, {files} open; --force takes it away", shown.display());
            return Err(RpcError::new(ErrorKind::Busy, message));
        }
        let member = members.remove(at);
        drop(members);
        // The files first: nothing is to be read of a torrent that ends.
        self.folders.remove(id);
        Ok(member)
    }
}

impl Daemon {
    /// Mounts a directory with a folder for each source.
    pub async fn mount_folders(
        self: &Arc<Self>,
        place: Reservation,
        sources: &[SourceRequest],
        mut options: MountOptions,
        how: Adding,
        events: &Events,
    ) -> Result<Outcome, RpcError> {
        sources.iter().try_for_each(|source| self.check_settings(&source.settings))?;
        options.source = "torrents".to_owned();
        let daemon = Arc::clone(self);
        let making = self.making(async move {
            let mount = spawn_blocking(move || Mount::folders(options)).await;
            let (mount, folders) = mount.map_err(RpcError::failed)?.map_err(RpcError::failed)?;
            let directory = Arc::new(Directory::new(folders, how));
            let shows = Shows::Folders(Arc::clone(&directory));
            Ok((daemon.go_live(place, mount, shows, None, None), directory))
        });
        let (live, directory) = making.await?;
        // A client that leaves takes the mount with it.
        let mut unfinished = Unfinished(Some(Arc::clone(&live)));
        let mut ended = live.ended.subscribe();
        let filled = tokio::select! {
            filled = self.fill_folders(&directory, sources) => filled,
            () = over(&mut ended) => return Err(was_unmounted(&live.dir)),
        };
        if let Err(error) = filled {
            let _ = live.unmount(Unmount::Force).await;
            return Err(error);
        }
        if !events.is_closed() {
            unfinished.0 = None;
        }
        Ok(directory.outcome())
    }

    /// Gives each source a folder, and them a moment to have their files. One that makes no sense is
    /// an error.
    async fn fill_folders(
        self: &Arc<Self>,
        directory: &Arc<Directory>,
        sources: &[SourceRequest],
    ) -> Result<(), RpcError> {
        for source in sources {
            self.add_folder(directory, source.clone()).await?;
        }
        directory.settle().await;
        Ok(())
    }

    /// Makes a folder for a torrent, and has it looked for.
    pub async fn add_folder(
        self: &Arc<Self>,
        directory: &Arc<Directory>,
        request: SourceRequest,
    ) -> Result<OsString, RpcError> {
        self.check_settings(&request.settings)?;
        let name = name_of(&request.source).await?;
        let (id, name) = directory.folders.add(&name);
        let look = Arc::clone(self).look_for(Arc::downgrade(directory), id, request);
        // It is entered before its task can look for it.
        let mut members = locked(&directory.members);
        let task = tokio::spawn(look);
        members.push(Member { id, name: name.clone(), waits: String::new(), lease: None, task });
        Ok(name)
    }

    /// Adds the torrent of a folder, as often as it takes.
    async fn look_for(
        self: Arc<Self>,
        directory: Weak<Directory>,
        id: FolderId,
        request: SourceRequest,
    ) {
        loop {
            let Some(how) = directory.upgrade().map(|directory| directory.how.clone()) else {
                return;
            };
            let (events, mut told) = mpsc::channel(4);
            let add = self.add(&request, how, &events);
            tokio::pin!(add);
            let added = loop {
                tokio::select! {
                    biased;
                    added = &mut add => break added,
                    Some(event) = told.recv() => {
                        if let (Response::Progress(progress), Some(directory)) =
                            (event, directory.upgrade())
                        {
                            directory.waits(id, &progress.to_string());
                        }
                    }
                }
            };
            let Some(directory) = directory.upgrade() else { return };
            match added {
                Ok(lease) => return self.fill(&directory, id, lease),
                Err(error) => directory.waits(id, &error.message),
            }
            drop(directory);
            sleep(AGAIN).await;
        }
    }

    fn fill(&self, directory: &Directory, id: FolderId, lease: Lease) {
        let time = self.known_since(lease.torrent().info().info_hash);
        let mut members = locked(&directory.members);
        // Unless it was taken away just now.
        if let Some(member) = members.iter_mut().find(|member| member.id == id) {
            directory.folders.show(id, lease.torrent().clone(), time);
            member.lease = Some(lease);
        }
        drop(members);
        directory.ready.send_replace(());
    }

    /// Adds a torrent to a mount of folders.
    pub async fn add_to(
        self: &Arc<Self>,
        dir: &Path,
        request: SourceRequest,
    ) -> Result<Outcome, RpcError> {
        let live = self.mounts.at(dir)?;
        let directory = folders_of(&live)?;
        check_data(&request, dir)?;
        let name = self.add_folder(directory, request).await?;
        let mut ready = directory.ready.subscribe();
        let all =
            async { while directory.torrent(&name).is_none() && ready.changed().await.is_ok() {} };
        let _ = timeout(SETTLE, all).await;
        let empty = u64::from(directory.torrent(&name).is_none());
        let name = name.to_string_lossy().into_owned();
        Ok(Outcome { name, folders: 1, empty, ..Outcome::default() })
    }

    /// Takes a folder out of a mount of folders.
    pub async fn remove_from(
        &self,
        dir: &Path,
        name: &OsStr,
        force: bool,
    ) -> Result<Outcome, RpcError> {
        let live = self.mounts.at(dir)?;
        folders_of(&live)?.remove(dir, name, force).await
    }
}

/// A mount that is ended unless it is taken out.
struct Unfinished(Option<Arc<Live>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(live) = self.0.take() {
            // Unmounting may take a moment: not on a thread of the runtime.
            std::thread::spawn(move || live.mount.unmount(Unmount::Force));
        }
    }
}

fn folders_of(live: &Live) -> Result<&Arc<Directory>, RpcError> {
    match &live.shows {
        Shows::Folders(directory) => Ok(directory),
        Shows::One(_) => Err(RpcError::failed(format_args!(
            "{}: is one torrent, without folders; mount several in one directory, or one with --folders",
            live.dir.display()
        ))),
    }
}

/// What the folder of a source is called. A file that makes no sense is an error now.
async fn name_of(source: &str) -> Result<Vec<u8>, RpcError> {
    let begins =
        |scheme: &str| source.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
    if begins("http://") || begins("https://") {
        let path = PathBuf::from(source.split(['?', '#']).next().unwrap_or_default());
        return Ok(path
            .file_stem()
            .map(|name| name.as_encoded_bytes().to_vec())
            .unwrap_or_default());
    }
    Ok(match resolve(source).await.map_err(RpcError::failed)? {
        Source::Metainfo(metainfo) => metainfo.info.name.clone(),
        Source::Magnet(magnet) => {
            magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string()).into_bytes()
        }
    })
}
