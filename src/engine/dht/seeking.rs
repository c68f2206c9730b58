//! The task that looks for the peers of one torrent, and announces it.

use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::{Event, Node};
use crate::engine::clock::Clock;
use crate::engine::tracker::AnnounceStats;
use crate::proto::dht::{Announce, GetPeers, Outcome, Seeker};
use crate::proto::ids::InfoHash;

/// Looks for one torrent's peers.
pub(in crate::engine) struct Seeking {
    pub node: Node,
    pub info_hash: InfoHash,
    /// The TCP port that peers are told.
    pub port: u16,
    pub stats: watch::Receiver<AnnounceStats>,
    /// Changes when the network is another one.
    pub network: watch::Receiver<u64>,
    /// Told of peers as they come.
    pub found: mpsc::Sender<Vec<SocketAddr>>,
}

impl Seeking {
    /// Looks and announces until the torrent or the node ends.
    pub async fn run(self, cancel: CancellationToken) {
        cancel.run_until_cancelled(self.seek()).await;
    }

    async fn seek(mut self) -> Option<()> {
        let clock = Clock::start();
        let mut seeker = Seeker::new(clock.now());
        loop {
            self.wait_until_due(&mut seeker, clock).await?;
            if !self.node.wait_for_nodes().await {
                return None;
            }
            seeker.begin(clock.now());
            let nodes = self.search().await?;
            let lacks = self.stats.borrow().wants_peers;
            seeker.end(nodes, lacks, clock.now());
        }
    }

    async fn wait_until_due(&mut self, seeker: &mut Seeker, clock: Clock) -> Option<()> {
        let mut lacked = self.stats.borrow_and_update().wants_peers;
        loop {
            let due = seeker.due(lacked)?;
            tokio::select! {
                () = sleep_until(clock.instant(due)) => return Some(()),
                changed = self.stats.changed() => changed.ok()?,
                Ok(()) = self.network.changed() => seeker.lacks_again(),
            }
            let lacks = self.stats.borrow_and_update().wants_peers;
            if lacks && !std::mem::replace(&mut lacked, lacks) {
                seeker.lacks_again();
            }
            lacked = lacks;
        }
    }

    /// One search; how many nodes answered.
    async fn search(&self) -> Option<usize> {
        let seed = self.stats.borrow().complete;
        let announce = Some(Announce { port: self.port, implied: false, seed });
        let options = GetPeers { announce, scrape: false, no_seed: seed };
        let mut answers = self.node.get_peers(self.info_hash, options).await;
        loop {
            match answers.next().await? {
                Event::Peers { peers, .. } => self.found.send(peers).await.ok()?,
                Event::Finished(Outcome::Peers { peers, nodes, announced, .. }) => {
                    tracing::debug!(hash = %self.info_hash, peers, nodes, announced, "searched");
                    return Some(nodes);
                }
                Event::Finished(_) => return Some(0),
            }
        }
    }
}
