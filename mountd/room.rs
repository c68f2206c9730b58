//! Waiting for all of a torrent to be here, and for its files to be where they are to be kept.

use std::sync::Arc;

use p2pfs::engine::{ReadError, Torrent};
use p2pfs::fs::{Unmount, UnmountError};
use p2pfs::proto::cache::background_room;
use p2pfs::rpc::{Progress, Response, RpcError, size};

use tokio::task::spawn_blocking;

use crate::daemon::{Daemon, Events};
use crate::keep;
use crate::mounts::{Live, over};

/// How far the keeping of finished files is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// Done, or not wanted.
    Not,
    /// It begins when everything is here.
    Later,
    /// So many bytes of so many are there.
    Now(u64, u64),
}

impl Keeping {
    pub fn progress(self) -> Option<(u64, u64)> {
        match self {
            Self::Now(done, of) => Some((done, of)),
            Self::Not | Self::Later => None,
        }
    }
}

impl Daemon {
    /// Refuses to wait for more than the cache may have at a time; what is to be kept may take all of it.
    pub async fn check_room(&self, torrent: &Torrent, keep: bool) -> Result<(), RpcError> {
        let Some(limit) = self.cache().limit() else { return Ok(()) };
        let room = if keep { limit } else { background_room(limit, 0, 0) };
        let wanted = torrent.wanted_bytes().await.saturating_sub(torrent.lent_bytes());
        let status = torrent.status();
        if wanted <= room || status.wanted_verified == status.wanted {
            return Ok(());
        }
        Err(RpcError::failed(format_args!(
            "{} are never here at once, since the cache may take {} of that: give it more with \
             --cache-size, or --select less",
            size::show(wanted),
            size::show(room)
        )))
    }

    /// Unmounts when everything selected is verified, has been copied if that is wanted, and was
    /// seeded for as long as that is wanted.
    pub async fn until_done(
        self: Arc<Self>,
        live: Arc<Live>,
        torrent: Torrent,
        keep: Option<keep::Place>,
    ) {
        if !self.waits_for(&live, torrent.wait_complete()).await {
            return;
        }
        if let Some(keep) = keep {
            let (whole, tell) = (torrent.clone(), live.keeping.clone());
            tell.send_replace(Keeping::Now(0, 0));
            let kept = spawn_blocking(move || {
                keep::keep(&whole, keep, |done, of| {
                    tell.send_replace(Keeping::Now(done, of));
                })
            });
            let kept = kept.await;
            live.keeping.send_replace(Keeping::Not);
            if let Err(error) = kept.map_err(anyhow::Error::from).and_then(|kept| kept) {
                return self.give_up(&live, &format!("{error:#}"));
            }
        }
        if let Some(rule) = live.seed_until
            && !self.waits_for(&live, torrent.wait_seeded(rule)).await
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
}

impl Live {
    /// Waits until the keeping of files is as `far` says, telling how far it is, or the mount has ended.
    pub async fn wait_kept(&self, events: &Events, far: impl Fn(Keeping) -> bool) {
        let (mut keeping, mut ended) = (self.keeping.subscribe(), self.ended.subscribe());
        let told = async {
            loop {
                let now = *keeping.borrow_and_update();
                if far(now) || keeping.changed().await.is_err() {
                    return;
                }
                if let Some((done, of)) = now.progress() {
                    let _ = events.try_send(Response::Progress(Progress::Keeping { done, of }));
                }
            }
        };
        tokio::select! {
            () = told => {}
            () = over(&mut ended) => {}
        }
    }
}
