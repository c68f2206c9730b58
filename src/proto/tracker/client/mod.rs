//! The client machine of one torrent: which tracker is asked when (BEP 12).
//!
//! All tiers are asked at once: many torrents list dead trackers first, and peers are spread over
//! trackers that do not know of each other. Within a tier one tracker is enough. The first in order
//! is asked; if it fails, the next at once; if it is silent for [`HEDGE`] while peers are wanted,
//! the next as well. The first that answers moves to the front and is the one asked from then on,
//! until it fails.
//!
//! The order of events is kept per tracker: `started` until it has answered once, `completed` when
//! a download ends, `stopped` to those that know us.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::{AnnounceAnswer, AnnounceRequest, Event, TrackerError, endpoint};
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::time::Timestamp;

/// The most trackers of one torrent; the rest is left out.
pub const MAX_TRACKERS: usize = 100;

/// How long a tracker may be silent before the next of its tier is asked as well. A live one
/// answers in two to four round trips; with three dead ones before it, it is still asked in time
/// for peers within five seconds.
pub const HEDGE: Duration = Duration::from_secs(1);

/// The interval when a tracker names none (the customary one).
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// The bounds of what a tracker may ask for as an interval.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

/// The first wait after a failure; doubled with each, up to [`MAX_BACK_OFF`].
const BACK_OFF: Duration = Duration::from_secs(15);

/// The first wait after a refusal, which seldom heals by itself.
const REFUSED_BACK_OFF: Duration = Duration::from_secs(60);

/// The longest wait after failures.
const MAX_BACK_OFF: Duration = Duration::from_secs(30 * 60);

/// The least time between two announces because we may be somewhere else.
const MOVES_APART: Duration = Duration::from_secs(120);

/// How many peers are asked for when any are wanted. Most trackers give 50 to 200 at most.
const NUMWANT: u32 = 200;

/// A tracker of this torrent, as announces and their answers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackerId(usize);

/// What does not change from announce to announce.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The torrent.
    pub info_hash: InfoHash,
    /// We.
    pub peer_id: PeerId,
    /// The TCP port we listen on.
    pub port: u16,
    /// Random; tells trackers that we are the same client after our address has changed.
    pub key: u32,
}

/// What the torrent says of itself now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnounceStats {
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Bytes still missing; `None` until the metadata is known.
    pub left: Option<u64>,
    /// Whether the torrent is short of peers.
    pub wants_peers: bool,
    /// Whether every wanted piece is here. When it turns true after something was downloaded, the
    /// trackers are told `completed`.
    pub complete: bool,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Announce, and give the outcome to [`TrackerClient::handle_answer`], always.
    Announce {
        /// Whom to name in the answer.
        tracker: TrackerId,
        /// The tracker's announce URL.
        url: Arc<str>,
        /// What to say.
        request: AnnounceRequest,
    },
    /// Addresses of peers, perhaps known already.
    Peers(Vec<SocketAddr>),
    /// A tracker fails, and not the same way as at its last attempt: worth a log line.
    Failed {
        /// The tracker's announce URL.
        url: Arc<str>,
        /// Why.
        error: TrackerError,
    },
}

/// One tracker, for `p2pfs status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// Its announce URL.
    pub url: String,
    /// The number of its tier, from 0.
    pub tier: usize,
    /// Whether an announce is under way.
    pub announcing: bool,
    /// Why the last announce failed; `None` after one that was answered.
    pub error: Option<String>,
    /// A warning in the last answer.
    pub warning: Option<String>,
    /// Peers in the last answer.
    pub peers: Option<usize>,
    /// Peers with everything, as the last answer counts them.
    pub seeders: Option<u32>,
    /// Peers that lack something, as the last answer counts them.
    pub leechers: Option<u32>,
    /// Seconds until it is asked (again); `None` while another of its tier serves us.
    pub next_announce: Option<u64>,
}

struct Tracker {
    url: Arc<str>,
    tier: usize,
    /// What is under way.
    in_flight: Option<Event>,
    /// It has answered, so it counts us among the peers.
    known: bool,
    /// When `completed` is to be sent.
    completed_at: Option<Timestamp>,
    failures: u32,
    /// Not asked before, events aside: back-off, or the minimum interval.
    not_before: Timestamp,
    /// Announces in a row that were answered while peers were wanted.
    short: u32,
    tracker_id: Option<Vec<u8>>,
    /// When it is, or was last, to be told that we may be somewhere else.
    moved_at: Option<Timestamp>,
    /// It has been asked nothing since then.
    moved: bool,
    last: TrackerStatus,
}

struct Tier {
    /// Usable trackers, the working one first.
    order: Vec<TrackerId>,
    /// None has answered since this round of announces began.
    searching: bool,
    /// When the next announce is due: of this round if `searching`, else of the next one.
    next: Timestamp,
}

/// The machine. Call a `handle_*`, then [`Self::poll_output`] until `None`, then wait for the next
/// input or [`Self::poll_timeout`].
pub struct TrackerClient {
    identity: Identity,
    stats: AnnounceStats,
    trackers: Vec<Tracker>,
    tiers: Vec<Tier>,
    rng: ChaCha8Rng,
    stopped: bool,
    outputs: VecDeque<Output>,
}

impl TrackerClient {
    /// A client that will announce to `tiers` as soon as [`Self::handle_timeout`] is called.
    /// Repeated URLs count once, and only [`MAX_TRACKERS`] are taken.
    pub fn new(
        tiers: &[Vec<String>],
        identity: Identity,
        stats: AnnounceStats,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let mut this = Self {
            identity,
            stats,
            trackers: Vec::new(),
            tiers: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            stopped: false,
            outputs: VecDeque::new(),
        };
        let mut seen = BTreeSet::new();
        for urls in tiers {
            let fresh = urls.iter().map(|u| u.trim()).filter(|u| !u.is_empty() && seen.insert(*u));
            this.add_tier(fresh, now);
        }
        this
    }

    fn add_tier<'a>(&mut self, urls: impl Iterator<Item = &'a str>, now: Timestamp) {
        let tier = self.tiers.len();
        let mut order = Vec::new();
        for url in urls {
            if self.trackers.len() == MAX_TRACKERS {
                break;
            }
            let error = endpoint(url).err().map(|e| e.to_string());
            if error.is_none() {
                order.push(TrackerId(self.trackers.len()));
            }
            self.trackers.push(Tracker {
                url: url.into(),
                tier,
                in_flight: None,
                known: false,
                completed_at: None,
                failures: 0,
                not_before: now,
                short: 0,
                tracker_id: None,
                moved_at: None,
                moved: false,
                last: TrackerStatus { url: url.into(), tier, error, ..TrackerStatus::default() },
            });
        }
        order.shuffle(&mut self.rng);
        self.tiers.push(Tier { order, searching: false, next: now });
    }

    /// Takes new numbers. They are announced with the next announce that is due; only the end of a
    /// download is told at once.
    pub fn handle_stats(&mut self, stats: AnnounceStats, now: Timestamp) {
        if stats.complete && !self.stats.complete && stats.downloaded > 0 {
            for tracker in &mut self.trackers {
                if tracker.known || tracker.in_flight.is_some() {
                    tracker.completed_at = Some(now);
                }
            }
        }
        // Once is enough, also of what was let go meanwhile and fetched again.
        let complete = self.stats.complete || stats.complete;
        self.stats = AnnounceStats { complete, ..stats };
        self.handle_timeout(now);
    }

    /// We may be somewhere else: all are told at once, whatever they said of when, but none twice within
    /// `MOVES_APART`.
    pub fn network_changed(&mut self, now: Timestamp) {
        for tracker in &mut self.trackers {
            let at = match tracker.moved_at {
                Some(due) if due > now => due,
                Some(last) => now.max(last + MOVES_APART),
                None => now,
            };
            (tracker.moved_at, tracker.moved) = (Some(at), true);
            tracker.not_before = tracker.not_before.min(at);
        }
        for tier in &mut self.tiers {
            let moved_at = tier.order.iter().filter_map(|id| self.trackers[id.0].moved_at);
            tier.next = moved_at.min().map_or(tier.next, |at| tier.next.min(at));
        }
        self.handle_timeout(now);
    }

    /// Makes the announces that are due.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.stopped {
            return;
        }
        for id in (0..self.trackers.len()).map(TrackerId) {
            if self.completed_due(id).is_some_and(|at| at <= now) {
                self.announce(id);
            }
        }
        for tier in 0..self.tiers.len() {
            if self.tier_due(tier).is_some_and(|at| at <= now) {
                self.announce_tier(tier, now);
            }
        }
    }

    /// Takes the outcome of an announce.
    pub fn handle_answer(
        &mut self,
        tracker: TrackerId,
        result: Result<AnnounceAnswer, TrackerError>,
        now: Timestamp,
    ) {
        let Some(state) = self.trackers.get_mut(tracker.0) else { return };
        let Some(event) = state.in_flight.take() else { return };
        if self.stopped {
            return;
        }
        match result {
            Ok(answer) => self.handle_success(tracker, answer, now),
            Err(error) => self.handle_failure(tracker, event, error, now),
        }
        self.handle_timeout(now);
    }

    /// Leaves: those that know us and answered the last time are told `stopped`, and nothing else
    /// is done any more. Announces under way are forgotten; the caller drops them.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.outputs.clear();
        for id in (0..self.trackers.len()).map(TrackerId) {
            let tracker = &mut self.trackers[id.0];
            tracker.in_flight = None;
            if tracker.known && tracker.failures == 0 {
                self.announce(id);
            }
        }
    }

    /// Whether all farewells after [`Self::stop`] have been answered.
    pub fn is_finished(&self) -> bool {
        self.stopped && self.trackers.iter().all(|t| t.in_flight.is_none())
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.stopped {
            return None;
        }
        let tiers = (0..self.tiers.len()).filter_map(|tier| self.tier_due(tier));
        let completed = (0..self.trackers.len()).filter_map(|id| self.completed_due(TrackerId(id)));
        tiers.chain(completed).min()
    }

    /// Every tracker of the torrent, tier by tier in the order in which they were listed.
    pub fn status(&self, now: Timestamp) -> Vec<TrackerStatus> {
        let next = |id: TrackerId, tracker: &Tracker| {
            let tier = &self.tiers[tracker.tier];
            let asked = tier.searching || tier.order.first() == Some(&id);
            let due = self.tier_due(tracker.tier)?.max(tracker.not_before);
            (asked && tier.order.contains(&id) && !self.stopped).then(|| due.since(now).as_secs())
        };
        let status = |(index, tracker): (usize, &Tracker)| TrackerStatus {
            announcing: tracker.in_flight.is_some(),
            next_announce: next(TrackerId(index), tracker),
            ..tracker.last.clone()
        };
        self.trackers.iter().enumerate().map(status).collect()
    }

    fn handle_success(&mut self, id: TrackerId, answer: AnnounceAnswer, now: Timestamp) {
        let bound = |d: Duration| d.clamp(INTERVAL.0, INTERVAL.1);
        let min = bound(answer.min_interval.unwrap_or(INTERVAL.0));
        let interval = bound(answer.interval.unwrap_or(DEFAULT_INTERVAL)).max(min);

        let tracker = &mut self.trackers[id.0];
        tracker.known = true;
        tracker.failures = 0;
        // A swarm that has no more peers to give is asked ever less often.
        let early = min.saturating_mul(1 << tracker.short.min(16)).min(interval);
        // An answer to what was asked from elsewhere is not the last word.
        let moved_at = tracker.moved_at.filter(|_| tracker.moved);
        tracker.not_before = moved_at.unwrap_or(now + early);
        tracker.short = if self.stats.wants_peers { tracker.short + 1 } else { 0 };
        if answer.tracker_id.is_some() {
            tracker.tracker_id = answer.tracker_id;
        }
        tracker.last.error = None;
        tracker.last.warning = answer.warning;
        tracker.last.peers = Some(answer.peers.len());
        tracker.last.seeders = answer.seeders;
        tracker.last.leechers = answer.leechers;

        let tier = &mut self.tiers[tracker.tier];
        if tier.searching {
            tier.searching = false;
            let at = tier.order.iter().position(|t| *t == id).unwrap_or(0);
            tier.order[..=at].rotate_right(1);
        }
        if tier.order.first() == Some(&id) {
            tier.next = moved_at.unwrap_or(now + interval);
        }
        if !answer.peers.is_empty() {
            self.outputs.push_back(Output::Peers(answer.peers));
        }
    }

    fn handle_failure(&mut self, id: TrackerId, event: Event, error: TrackerError, now: Timestamp) {
        let tracker = &mut self.trackers[id.0];
        let base = match error {
            TrackerError::Refused(_) => REFUSED_BACK_OFF,
            _ => BACK_OFF,
        };
        let wait = base.saturating_mul(1 << tracker.failures.min(16)).min(MAX_BACK_OFF);
        let jitter = self.rng.random_range(0.8..1.2);
        tracker.not_before = now + wait.mul_f64(jitter);
        tracker.failures = tracker.failures.saturating_add(1);
        if event == Event::Completed {
            tracker.completed_at = Some(tracker.not_before);
        }
        let text = Some(error.to_string());
        if tracker.last.error != text {
            tracker.last.error = text;
            self.outputs.push_back(Output::Failed { url: tracker.url.clone(), error });
        }
        let tier = &mut self.tiers[tracker.tier];
        if tier.searching {
            tier.next = now;
        }
    }

    /// When this tracker is to be told `completed`.
    fn completed_due(&self, id: TrackerId) -> Option<Timestamp> {
        let tracker = &self.trackers[id.0];
        tracker.completed_at.filter(|_| tracker.known && tracker.in_flight.is_none())
    }

    /// When a tracker of this tier is to be asked.
    fn tier_due(&self, tier: usize) -> Option<Timestamp> {
        let tier = &self.tiers[tier];
        let front = &self.trackers[tier.order.first()?.0];
        if front.in_flight.is_some() && !tier.searching {
            return None; // it is being told `completed`; its answer sets the next time
        }
        let early = self.stats.wants_peers && !tier.searching;
        let wanted = if early { tier.next.min(front.not_before) } else { tier.next };
        let idle = tier.order.iter().map(|id| &self.trackers[id.0]);
        let ready = idle.filter(|t| t.in_flight.is_none()).map(|t| t.not_before).min()?;
        Some(wanted.max(ready)).filter(|at| *at < Timestamp::FAR_FUTURE)
    }

    /// Asks the first tracker of a tier that may be asked now.
    fn announce_tier(&mut self, tier: usize, now: Timestamp) {
        let ready = |id: &&TrackerId| {
            let tracker = &self.trackers[id.0];
            tracker.in_flight.is_none() && tracker.not_before <= now
        };
        let Some(id) = self.tiers[tier].order.iter().find(ready).copied() else { return };
        let tier = &mut self.tiers[tier];
        tier.searching = true;
        // Without a hurry only a failure makes us ask the next.
        tier.next = if self.stats.wants_peers { now + HEDGE } else { Timestamp::FAR_FUTURE };
        self.announce(id);
    }

    fn announce(&mut self, id: TrackerId) {
        let tracker = &mut self.trackers[id.0];
        let completed = tracker.completed_at.take().is_some();
        let event = match (self.stopped, tracker.known, completed) {
            (true, _, _) => Event::Stopped,
            (false, false, _) => Event::Started,
            (false, true, true) => Event::Completed,
            (false, true, false) => Event::Regular,
        };
        (tracker.in_flight, tracker.moved) = (Some(event), false);
        let request = AnnounceRequest {
            info_hash: self.identity.info_hash,
            peer_id: self.identity.peer_id,
            port: self.identity.port,
            uploaded: self.stats.uploaded,
            downloaded: self.stats.downloaded,
            left: self.stats.left,
            event,
            // Who is complete asks too: peers that cannot be reached wait to be found, and so does
            // everyone when it is us who cannot be reached.
            numwant: if self.stopped { 0 } else { NUMWANT },
            key: self.identity.key,
            tracker_id: tracker.tracker_id.clone(),
        };
        self.outputs.push_back(Output::Announce { tracker: id, url: tracker.url.clone(), request });
    }
}
