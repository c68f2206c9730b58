//! Peer exchange (BEP 11): who is connected to whom is told to others, so that a swarm stays
//! together without a tracker. It needs a first peer, and private torrents do without (BEP 27).
//!
//! What changes among our connections is noted once, in order, and each peer is told what has
//! changed since the change up to which it knows: nothing is compared with anything.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::{MAX_PEERS, Torrent};
use crate::proto::peer::{Disconnect, PeerSession};
use crate::proto::swarm::{PeerKey, PeerSource, can_be_meant_for};
use crate::proto::time::Timestamp;
use crate::proto::wire::Message;
use crate::proto::wire::pex::{PexFlags, PexMessage};

/// The most peers of a kind (added or dropped, by IPv4 or IPv6) that one message tells of, and that
/// are taken from one (BEP 11).
const MAX_TOLD: usize = 50;

/// Changes that are remembered. Whoever was not told for longer is told of all that are connected.
const MAX_CHANGES: usize = 4 * MAX_PEERS;

/// A peer was connected, or is so no longer.
#[derive(Clone, Copy, Debug)]
struct Change {
    key: PeerKey,
    /// Where it listens.
    addr: SocketAddr,
    came: bool,
}

/// How the peers that are connected changed, as far as it is known where they listen.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    latest: VecDeque<Change>,
    /// All that there ever were.
    count: u64,
}

impl Changes {
    pub fn note(&mut self, key: PeerKey, addr: SocketAddr, came: bool) {
        if self.latest.len() >= MAX_CHANGES {
            self.latest.pop_front();
        }
        self.latest.push_back(Change { key, addr, came });
        self.count += 1;
    }

    /// What is different after the first `known` changes; `None` if that was too long ago. Who came
    /// and went, or went and came, since then is not.
    fn since(&self, known: u64) -> Option<Vec<Change>> {
        let new = usize::try_from(self.count.checked_sub(known)?).ok()?;
        let skipped = self.latest.len().checked_sub(new)?;
        let mut first_and_last = BTreeMap::<SocketAddr, (Change, Change)>::new();
        for change in self.latest.iter().skip(skipped) {
            first_and_last.entry(change.addr).or_insert((*change, *change)).1 = *change;
        }
        let changed = first_and_last.into_values().filter(|(first, last)| first.came == last.came);
        Some(changed.map(|(_, last)| last).collect())
    }
}

impl Torrent {
    /// Whether others are told of our peers. What is private is known once the metadata is.
    fn tells_of_peers(&self) -> bool {
        self.options.pex && self.active.as_ref().is_some_and(|a| !a.info.private)
    }

    /// Whether others may tell us of peers.
    pub(super) fn hears_of_peers(&self) -> bool {
        self.options.pex && self.active.as_ref().is_none_or(|a| !a.info.private)
    }

    // ---- what we tell

    /// Tells everybody for whom it is time what has changed.
    pub(super) fn tell_of_peers(&mut self, now: Timestamp) {
        let changes = self.changes.count;
        if !self.tells_of_peers() {
            return;
        }
        let due = self.peers.iter().filter(|(_, peer)| peer.exchange.is_due(changes, now));
        let due: Vec<_> = due.map(|(key, _)| *key).collect();
        for key in due {
            let Some(peer) = self.peers.get(&key) else { continue };
            let message = self.news_for(key, peer);
            let news = !message.added.is_empty() || !message.dropped.is_empty();
            let ut_pex = peer.exchange.ut_pex;
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.exchange.note_told(changes, news, now);
            }
            if news {
                self.send(key, Message::Extended(ut_pex, message.encode()), now);
            }
        }
    }

    /// What `to` does not know yet of the others. There are no more of a kind than connections.
    fn news_for(&self, key: PeerKey, to: &PeerSession) -> PexMessage {
        let changes = to.exchange.told().and_then(|known| self.changes.since(known));
        let changes = changes.unwrap_or_else(|| self.all_connected());
        let meant = |change: &&Change| {
            let itself = change.key == key || change.addr == to.known_addr();
            !itself && can_be_meant_for(change.addr.ip(), to.addr.ip())
        };
        let mut message = PexMessage::default();
        for change in changes.iter().filter(meant) {
            match self.peers.get(&change.key) {
                Some(peer) if change.came && message.added.len() < MAX_TOLD => {
                    message.added.push((change.addr, flags(peer)));
                }
                None if !change.came && message.dropped.len() < MAX_TOLD => {
                    message.dropped.push(change.addr);
                }
                _ => {}
            }
        }
        message
    }

    fn all_connected(&self) -> Vec<Change> {
        let known = self.peers.iter().filter_map(|(key, peer)| {
            Some(Change { key: *key, addr: peer.listen_addr?, came: true })
        });
        known.collect()
    }

    /// It became known where the peer of a connection listens.
    pub(super) fn note_neighbour(&mut self, key: PeerKey) {
        if let Some(addr) = self.peers.get(&key).and_then(|peer| peer.listen_addr) {
            self.changes.note(key, addr, true);
        }
    }

    // ---- what we are told

    /// A peer tells of others. Whom it has lost we find out ourselves.
    pub(super) fn told_of_peers(
        &mut self,
        key: PeerKey,
        payload: &[u8],
        now: Timestamp,
    ) -> Result<(), Disconnect> {
        let heard = self.hears_of_peers();
        let Some(peer) = self.peers.get_mut(&key).filter(|_| heard) else { return Ok(()) };
        if !peer.exchange.note_heard(now)? {
            return Ok(());
        }
        let source = PeerSource::Pex(peer.addr.ip());
        let message = PexMessage::parse(payload)
            .map_err(|_| Disconnect::Protocol("a malformed peer exchange"))?;
        let connected = self.search().connected;
        for v6 in [false, true] {
            let told = message.added.iter().filter(|(addr, _)| addr.is_ipv6() == v6);
            for (addr, flags) in told.take(MAX_TOLD) {
                self.look_for_peers |= self.list.add(*addr, source, *flags, &connected);
            }
        }
        Ok(())
    }

    /// The metadata has come: if the torrent is private, what others said of peers is forgotten.
    pub(super) fn keep_to_privacy(&mut self) {
        if !self.hears_of_peers() {
            self.list.forget_hearsay(&self.search().connected);
        }
    }
}

/// What is told of a peer beside where it is.
fn flags(peer: &PeerSession) -> PexFlags {
    let gives =
        if peer.is_seed() || peer.upload_only { PexFlags::UPLOAD_ONLY } else { PexFlags(0) };
    let reached = if peer.outgoing { PexFlags::REACHABLE } else { PexFlags(0) };
    gives.with(reached)
}
