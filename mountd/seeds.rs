//! Seeds: data of the user's own, served where it is and never written.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use p2pfs::engine::{DataPlace, Torrent};
use p2pfs::proto::metainfo::layout::EntryKind;
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{Outcome, RpcError, SeedRequest, ShareKind, ShareStatus, WirePath};

use crate::daemon::{Adding, Daemon, Events, Lease, locked};
use crate::idle::Busy;

/// All seeds.
#[derive(Default)]
pub struct Seeds {
    table: Mutex<Vec<Arc<Seed>>>,
}

struct Seed {
    data: PathBuf,
    until: Option<SeedUntil>,
    lease: Lease,
    _busy: Busy,
}

impl Daemon {
    /// Checks data and serves it. Dropping the future leaves nothing.
    pub async fn seed(
        self: &Arc<Self>,
        request: SeedRequest,
        events: Events,
    ) -> Result<Outcome, RpcError> {
        let how = Adding {
            on_demand: false,
            upload: true,
            select: Vec::new(),
            data: DataPlace::InPlace(request.data.0.clone()),
            one_of_several: false,
        };
        let lease = self.add(&request.source, how, &events).await?;
        if let Some(bad) = first_bad_file(lease.torrent()) {
            return Err(RpcError::failed(format_args!(
                "{}: does not fit the torrent, first in {bad}; name the data it was made of, \
                 or make a new torrent with p2pfs create",
                request.data.display()
            )));
        }
        let outcome = lease.outcome();
        let _busy = self.activity.share();
        let (torrent, until) = (lease.torrent().clone(), request.seed_until);
        let seed = Arc::new(Seed { data: request.data.0, until, lease, _busy });
        if let Some(rule) = until {
            let seed = Arc::downgrade(&seed);
            tokio::spawn(Arc::clone(self).stop_when_seeded(seed, torrent, rule));
        }
        locked(&self.seeds.table).push(seed);
        Ok(outcome)
    }

    /// Stops a seed when its rule is met, if it is there still.
    async fn stop_when_seeded(
        self: Arc<Self>,
        seed: Weak<Seed>,
        torrent: Torrent,
        rule: SeedUntil,
    ) {
        // Fails only when the torrent has ended, and the seed with it.
        if torrent.wait_seeded(rule).await.is_ok() {
            let is_it = |other: &Arc<Seed>| Arc::as_ptr(other) == seed.as_ptr();
            let stopped = locked(&self.seeds.table).extract_if(.., |other| is_it(other)).next();
            if let Some(seed) = stopped {
                tracing::info!(data = %seed.data.display(), %rule, "seeded for long enough");
            }
        }
    }

    /// Stops seeding this data, or this info hash.
    pub fn stop(&self, what: &Path) -> Result<Outcome, RpcError> {
        let is_meant = |seed: &Seed| {
            let hash = seed.lease.torrent().info().info_hash.to_string();
            seed.data == what || what.as_os_str().eq_ignore_ascii_case(hash)
        };
        let stopped: Vec<_> =
            locked(&self.seeds.table).extract_if(.., |seed| is_meant(seed)).collect();
        match stopped.first() {
            Some(seed) => Ok(seed.lease.outcome()),
            None => Err(RpcError::not_here(format_args!(
                "{}: is not being seeded; p2pfs status lists what is",
                what.display()
            ))),
        }
    }

    /// Describes the seeds.
    pub fn seed_status(&self) -> Vec<ShareStatus> {
        let seeds = locked(&self.seeds.table).clone();
        let status = |seed: Arc<Seed>| ShareStatus {
            kind: ShareKind::Seed,
            path: WirePath(seed.data.clone()),
            folder_of: None,
            port: self.port(),
            pid: std::process::id(),
            dht_nodes: self.dht_nodes(),
            detached: false,
            seed_until: seed.until,
            keeping: None,
            problem: None,
            torrent: seed.lease.torrent().status(),
        };
        seeds.into_iter().map(status).collect()
    }
}

impl Seeds {
    /// The torrent whose data at `path` is seeded.
    pub fn torrent_at(&self, path: &Path) -> Option<Torrent> {
        let table = locked(&self.table);
        table.iter().find(|seed| seed.data == path).map(|seed| seed.lease.torrent().clone())
    }

    /// Ends all seeds.
    pub fn end_all(&self) {
        let all = std::mem::take(&mut *locked(&self.table));
        drop(all);
    }
}

/// The first file that is not whole.
fn first_bad_file(torrent: &Torrent) -> Option<String> {
    let files = &torrent.info().files;
    torrent.layout().entries.iter().find_map(|entry| match entry.kind {
        EntryKind::File(file) => {
            let length = files.get(file)?.length;
            let bad = torrent.verified_bytes(Some(file)) < length;
            bad.then(|| String::from_utf8_lossy(&entry.path.join(&b'/')).into_owned())
        }
        EntryKind::Symlink(_) => None,
    })
}
