//! How a node announces: the real client machine and its exchanges, over the datagrams of the
//! simulation. It is driven as the engine drives it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::tracker;
use crate::proto::time::Timestamp;
use crate::proto::tracker::client::{AnnounceStats, Identity, Output, TrackerClient, TrackerId};
use crate::proto::tracker::exchange::UdpExchange;
use crate::proto::tracker::{AnnounceRequest, Endpoint, TrackerError, endpoint};

/// How long saying `stopped` may take in all.
const FAREWELL: Duration = Duration::from_secs(3);

/// An announce under way.
struct Exchange {
    tracker: TrackerId,
    remote: SocketAddr,
    machine: UdpExchange,
}

/// What a node's trackers are told, and what they say.
pub(super) struct Announcer {
    client: TrackerClient,
    exchanges: Vec<Exchange>,
    rng: ChaCha8Rng,
    /// What was last told of the need of peers, and of being complete.
    told: (bool, bool),
    /// When it is to be woken, if it is.
    pub wake_at: Timestamp,
    /// When everything ends, said or not.
    ends: Timestamp,
}

/// What came of a step.
#[derive(Default)]
pub(super) struct Step {
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub peers: Vec<SocketAddr>,
}

impl Announcer {
    pub fn new(identity: Identity, stats: AnnounceStats, seed: u64, now: Timestamp) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tiers = [vec![tracker::URL.to_owned()]];
        Self {
            client: TrackerClient::new(&tiers, identity, stats, rng.random(), now),
            exchanges: Vec::new(),
            rng,
            told: (stats.wants_peers, stats.complete),
            wake_at: Timestamp::FAR_FUTURE,
            ends: Timestamp::FAR_FUTURE,
        }
    }

    /// Whether the trackers should be told before the next announce is due.
    pub fn is_news(&self, wants_peers: bool, complete: bool) -> bool {
        self.told != (wants_peers, complete)
    }

    pub fn tell(&mut self, stats: AnnounceStats, now: Timestamp) {
        self.told = (stats.wants_peers, stats.complete);
        self.client.handle_stats(stats, now);
    }

    /// The node leaves: those who know it are told, for a while.
    pub fn leave(&mut self, now: Timestamp) {
        self.exchanges.clear();
        self.client.stop();
        self.ends = now + FAREWELL;
    }

    pub fn handle_datagram(&mut self, from: SocketAddr, payload: &[u8], now: Timestamp) {
        // Each exchange of the engine has a socket that hears its tracker alone.
        for exchange in self.exchanges.iter_mut().filter(|e| e.remote == from) {
            exchange.machine.handle_datagram(payload, now);
        }
    }

    /// Does what is due.
    pub fn step(&mut self, now: Timestamp) -> Step {
        let mut step = Step::default();
        if now >= self.ends {
            self.exchanges.clear();
            return step;
        }
        self.client.handle_timeout(now);
        loop {
            self.take_results(now);
            while let Some(output) = self.client.poll_output() {
                match output {
                    Output::Announce { tracker, url, request } => {
                        self.begin(tracker, &url, request, now);
                    }
                    Output::Peers(peers) => step.peers.extend(peers),
                    Output::Failed { .. } => {}
                }
            }
            let before = step.datagrams.len();
            for exchange in &mut self.exchanges {
                while let Some(datagram) = exchange.machine.poll_transmit(now) {
                    step.datagrams.push((exchange.remote, datagram));
                }
            }
            if step.datagrams.len() == before {
                return step;
            }
        }
    }

    fn begin(&mut self, tracker: TrackerId, url: &str, request: AnnounceRequest, now: Timestamp) {
        let Ok(Endpoint::Udp { host, port, url_data }) = endpoint(url) else {
            let error = TrackerError::Unreachable("not a UDP tracker".to_owned());
            return self.client.handle_answer(tracker, Err(error), now);
        };
        let Ok(ip) = host.parse::<IpAddr>() else {
            let error = TrackerError::Unreachable("no address".to_owned());
            return self.client.handle_answer(tracker, Err(error), now);
        };
        let seed = self.rng.random();
        let machine = UdpExchange::new(request, &url_data, ip.is_ipv6(), seed, now);
        self.exchanges.push(Exchange { tracker, remote: SocketAddr::new(ip, port), machine });
    }

    fn take_results(&mut self, now: Timestamp) {
        let mut results = Vec::new();
        self.exchanges.retain_mut(|exchange| {
            let result = exchange.machine.poll_result(now);
            let over = result.is_some();
            results.extend(result.map(|result| (exchange.tracker, result)));
            !over
        });
        for (tracker, result) in results {
            self.client.handle_answer(tracker, result, now);
        }
    }

    /// When [`Self::step`] is due if nothing arrives before.
    pub fn poll_timeout(&self) -> Timestamp {
        let exchanges = self.exchanges.iter().map(|e| e.machine.poll_timeout());
        let next = exchanges.chain(self.client.poll_timeout()).min();
        next.map_or(Timestamp::FAR_FUTURE, |at| at.min(self.ends))
    }
}
