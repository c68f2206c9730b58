//! The tokio shell around [`TrackerClient`]: one task a torrent that makes its announces. And
//! [`scrape()`], which only asks.

mod announce;
mod exchange;
mod scrape;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};
use url::Url;

pub use self::scrape::scrape;
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::time::Timestamp;
pub use crate::proto::tracker::client::{AnnounceStats, TrackerStatus};
use crate::proto::tracker::client::{Identity, Output, TrackerClient, TrackerId};
use crate::proto::tracker::{AnnounceAnswer, TrackerError};

/// How long saying `stopped` may take in all.
const FAREWELL: Duration = Duration::from_secs(3);

/// Which trackers are told what.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    /// The torrent.
    pub info_hash: InfoHash,
    /// We.
    pub peer_id: PeerId,
    /// The TCP port we listen on.
    pub port: u16,
    /// Announce URLs in tiers (BEP 12), as the torrent has them. A magnet's are a tier each.
    pub tiers: Vec<Vec<String>>,
    /// Random; tells trackers that we are the same client after our address has changed.
    pub key: u32,
}

/// The announces of one torrent. They go on when this is dropped; cancelling ends them.
pub struct Trackers {
    /// Closed when they have ended.
    status: watch::Receiver<(Instant, Vec<TrackerStatus>)>,
}

impl Trackers {
    /// Starts announcing, at once. Peers go to `peers`, some of them perhaps repeatedly. When
    /// `cancel` is cancelled, the trackers that know us are told `stopped`, within 3 s in all.
    pub fn spawn(
        config: TrackerConfig,
        stats: watch::Receiver<AnnounceStats>,
        network: watch::Receiver<u64>,
        peers: mpsc::Sender<Vec<SocketAddr>>,
        cancel: CancellationToken,
    ) -> Self {
        let clock = Clock::start();
        let identity = Identity {
            info_hash: config.info_hash,
            peer_id: config.peer_id,
            port: config.port,
            key: config.key,
        };
        let first = *stats.borrow();
        let seed = random_seed();
        let client = TrackerClient::new(&config.tiers, identity, first, seed, clock.now());
        let (publish, status) = watch::channel((Instant::now(), client.status(clock.now())));
        let driver =
            Driver { client, clock, stats, network, peers, publish, announces: JoinSet::new() };
        tokio::spawn(driver.run(cancel).in_current_span());
        Self { status }
    }

    /// All trackers, tier by tier.
    pub fn status(&self) -> Vec<TrackerStatus> {
        let (taken, mut trackers) = self.status.borrow().clone();
        for tracker in &mut trackers {
            let left = tracker.next_announce;
            tracker.next_announce = left.map(|s| s.saturating_sub(taken.elapsed().as_secs()));
        }
        trackers
    }

    /// Waits for the end, which cancelling brings about.
    pub async fn join(&self) {
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {}
    }
}

/// What time it is, for machines.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.0 + at.since(Timestamp::ZERO)
    }
}

/// A number that others cannot guess: the standard library's hash maps are keyed from the
/// system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

type Answered = (TrackerId, Result<AnnounceAnswer, TrackerError>);

struct Driver {
    client: TrackerClient,
    clock: Clock,
    stats: watch::Receiver<AnnounceStats>,
    /// Changes when the network is another one.
    network: watch::Receiver<u64>,
    peers: mpsc::Sender<Vec<SocketAddr>>,
    publish: watch::Sender<(Instant, Vec<TrackerStatus>)>,
    announces: JoinSet<Answered>,
}

impl Driver {
    async fn run(mut self, cancel: CancellationToken) {
        // Waiting for room among the peers is given up on cancellation as everything else is.
        let _ = cancel.run_until_cancelled(self.announce_forever()).await;
        self.announces = JoinSet::new();
        self.client.stop();
        if timeout(FAREWELL, self.say_farewell()).await.is_err() {
            debug!("some trackers did not answer our farewell in time");
        }
    }

    async fn announce_forever(&mut self) {
        self.client.handle_timeout(self.clock.now());
        let mut stats_open = true;
        loop {
            self.carry_out().await;
            let wake = self.client.poll_timeout().map(|at| self.clock.instant(at));
            tokio::select! {
                Some(done) = self.announces.join_next() => {
                    if let Ok((tracker, result)) = done {
                        self.client.handle_answer(tracker, result, self.clock.now());
                    }
                }
                changed = self.stats.changed(), if stats_open => {
                    stats_open = changed.is_ok();
                    let stats = *self.stats.borrow_and_update();
                    self.client.handle_stats(stats, self.clock.now());
                }
                Ok(()) = self.network.changed() => {
                    self.client.network_changed(self.clock.now());
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.client.handle_timeout(self.clock.now());
                }
                else => std::future::pending().await,
            }
        }
    }

    async fn say_farewell(&mut self) {
        self.carry_out().await;
        while !self.client.is_finished() {
            let Some(done) = self.announces.join_next().await else { return };
            if let Ok((tracker, result)) = done {
                self.client.handle_answer(tracker, result, self.clock.now());
            }
        }
    }

    /// Does what the machine wants done.
    async fn carry_out(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Announce { tracker, url, request } => {
                    let event = request.event;
                    debug!("announce {event:?} to {}", shown(&url));
                    self.announces
                        .spawn(async move { (tracker, announce::announce(&url, request).await) });
                }
                // Nobody listens any more: the torrent is about to cancel us.
                Output::Peers(peers) => drop(self.peers.send(peers).await),
                Output::Failed { url, error: error @ TrackerError::Refused(_) } => {
                    warn!("tracker {}: {error}", shown(&url));
                }
                Output::Failed { url, error } => info!("tracker {}: {error}", shown(&url)),
            }
        }
        let status = self.client.status(self.clock.now());
        self.publish.send_replace((Instant::now(), status));
    }
}

/// A tracker's URL fit for a log: path and query often hold a passkey.
fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default()),
        Err(_) => "with a malformed URL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_do_not_show_passkeys() {
        let text = shown("https://user:pw@t.example:99/0123456789abcdef/announce?passkey=secret");
        assert_eq!(text, "https://t.example");
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
