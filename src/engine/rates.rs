//! Rate limits of the session and of each torrent, which may change while connections use them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::clock::Clock;
use crate::proto::rate::TokenBucket;

/// A block: fewer bytes are of no use.
const MIN_AT_ONCE: usize = 16 << 10;

/// Most bytes a second; `None` for as many as can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Payload sent.
    pub up: Option<u64>,
    /// Everything received.
    pub down: Option<u64>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// The limits of one session or torrent, and what they leave at the moment.
pub(super) struct Rates {
    clock: Clock,
    limits: watch::Sender<RateLimits>,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    up: Option<TokenBucket>,
    down: Option<TokenBucket>,
}

impl Rates {
    pub(super) fn new(limits: RateLimits, clock: Clock) -> Arc<Self> {
        let (sender, buckets) = (watch::Sender::new(RateLimits::default()), Mutex::default());
        let this = Self { clock, limits: sender, buckets };
        this.set(limits);
        Arc::new(this)
    }

    pub(super) fn get(&self) -> RateLimits {
        *self.limits.borrow()
    }

    /// Sets new limits. What was counted against the old ones is forgotten, and who waits for them
    /// goes on.
    pub(super) fn set(&self, limits: RateLimits) {
        let bucket =
            |limit: Option<u64>| limit.map(|rate| TokenBucket::new(rate, self.clock.now()));
        *self.buckets() = Buckets { up: bucket(limits.up), down: bucket(limits.down) };
        self.limits.send_replace(limits);
    }

    /// How long to wait with these bytes, which are counted now.
    fn take(&self, way: Way, bytes: u64) -> Duration {
        let mut buckets = self.buckets();
        let bucket = match way {
            Way::Up => &mut buckets.up,
            Way::Down => &mut buckets.down,
        };
        bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.take(bytes, self.clock.now()))
    }

    fn buckets(&self) -> std::sync::MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limits that one connection keeps: those of the session and those of its torrent.
#[derive(Clone)]
pub(super) struct Throttle(pub [Arc<Rates>; 2]);

impl Throttle {
    /// How many bytes may be taken at a time: what would have to wait for long is better left with
    /// the sender.
    pub(super) fn at_once(&self, way: Way) -> usize {
        let most = |rates: &Arc<Rates>| {
            let limits = rates.get();
            let limit = if way == Way::Up { limits.up } else { limits.down };
            limit.map_or(usize::MAX, |rate| usize::try_from(rate / 4).unwrap_or(usize::MAX))
        };
        self.0.iter().map(most).min().unwrap_or(usize::MAX).max(MIN_AT_ONCE)
    }

    /// Counts these bytes; what to wait for before they are used.
    pub(super) fn take(&self, way: Way, bytes: usize) -> Hold {
        // Watched from before they are counted: no change is missed.
        let changes = self.0.each_ref().map(|rates| rates.limits.subscribe());
        let waits = self.0.each_ref().map(|rates| rates.take(way, bytes as u64));
        Hold { until: Instant::now() + waits[0].max(waits[1]), changes }
    }
}

/// Time that has to pass, unless a limit changes.
pub(super) struct Hold {
    until: Instant,
    changes: [watch::Receiver<RateLimits>; 2],
}

impl Hold {
    pub(super) fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    /// Waits until it is over.
    pub(super) async fn over(&mut self) {
        if self.is_over() {
            return;
        }
        let [session, torrent] = &mut self.changes;
        tokio::select! {
            () = sleep_until(self.until) => {}
            _ = session.changed() => {}
            _ = torrent.changed() => {}
        }
        self.until = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(down: Option<u64>) -> (Throttle, Arc<Rates>) {
        let clock = Clock::start();
        let of_torrent = Rates::new(RateLimits { up: None, down }, clock);
        (Throttle([Rates::new(RateLimits::default(), clock), of_torrent.clone()]), of_torrent)
    }

    #[tokio::test]
    async fn without_limits_nothing_waits() {
        assert!(limits(None).0.take(Way::Down, 1 << 30).is_over());
    }

    #[tokio::test]
    async fn a_wait_of_hours_ends_when_the_limit_changes() {
        let (limits, of_torrent) = limits(Some(1));
        let mut hold = limits.take(Way::Down, 1 << 20);
        assert!(!hold.is_over() && limits.take(Way::Up, 1 << 20).is_over());
        of_torrent.set(RateLimits::default());
        hold.over().await;
        assert!(hold.is_over() && limits.take(Way::Down, 1 << 20).is_over());
    }
}
