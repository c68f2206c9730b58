//! How nodes find each other: datagrams between them and the tracker.

use std::net::SocketAddr;

use rand::RngExt;

use super::PORT;
use super::announcer::Announcer;
use super::datagram::Datagram;
use super::event::{NodeId, What};
use super::tracker::TRACKER;
use super::world::{World, addr, node_of};
use crate::proto::ids::PeerId;
use crate::proto::swarm::PeerSource;
use crate::proto::time::Timestamp;
use crate::proto::tracker::client::{AnnounceStats, Identity};

/// Connections that are enough: with these the engine asks trackers for no more peers.
const ENOUGH_LINKS: usize = 10;

impl World {
    /// `id` has joined.
    pub fn begin_announcing(&mut self, id: NodeId) {
        let (now, stats) = (self.agenda.now(), self.announce_stats(id));
        let identity = Identity {
            info_hash: self.info.info_hash,
            peer_id: PeerId::ours(self.rng.random()),
            port: PORT,
            key: self.rng.random(),
        };
        let announcer = Announcer::new(identity, stats, self.rng.random(), now);
        self.node(id).announcer = Some(announcer);
        self.tracker_step(id);
    }

    /// A person names the peer that `id` knows from the start.
    pub fn be_told_of_peers(&mut self, id: NodeId) {
        let node = self.node(id);
        if let Some(known) = node.plan.knows {
            node.machine.peers_found(&[addr(known)], PeerSource::Manual);
        }
    }

    /// What the trackers are told of `id`, as the engine tells it.
    fn announce_stats(&self, id: NodeId) -> AnnounceStats {
        let node = &self.nodes[id as usize];
        let (wants_peers, complete) = self.wishes(id);
        AnnounceStats {
            uploaded: node.uploaded,
            downloaded: node.downloaded,
            left: node.machine.bytes_left(),
            wants_peers,
            complete,
        }
    }

    /// Whether `id` is short of peers, and whether it has everything.
    fn wishes(&self, id: NodeId) -> (bool, bool) {
        let node = &self.nodes[id as usize];
        let incomplete = node.machine.wants_peers();
        (incomplete && node.links.len() < ENOUGH_LINKS, !incomplete)
    }

    /// Tells the announcer of `id` what it has to know at once.
    pub fn tell_trackers(&mut self, id: NodeId) {
        let (wants_peers, complete) = self.wishes(id);
        let announcer = self.nodes[id as usize].announcer.as_ref();
        if announcer.is_some_and(|a| a.is_news(wants_peers, complete)) {
            self.tracker_step(id);
        }
    }

    /// Has the announcer of `id` do what is due.
    pub fn tracker_step(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let stats = self.announce_stats(id);
        let node = self.node(id);
        let Some(announcer) = &mut node.announcer else { return };
        if node.present {
            announcer.tell(stats, now);
        }
        let step = announcer.step(now);
        let wake = announcer.poll_timeout();
        let sooner = wake < announcer.wake_at;
        if sooner {
            announcer.wake_at = wake;
        }
        node.machine.peers_found(&step.peers, PeerSource::Tracker);
        if sooner {
            self.agenda.at(wake, What::Tracker(id));
        }
        for (to, payload) in step.datagrams {
            self.send_datagram(id, to, payload);
        }
    }

    /// The time that the announcer of `id` asked for has come.
    pub fn tracker_woken(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let woken = self.node(id).announcer.as_mut().is_some_and(|announcer| {
            let due = announcer.wake_at <= now;
            if due {
                announcer.wake_at = Timestamp::FAR_FUTURE;
            }
            due
        });
        if woken {
            self.tracker_step(id);
            self.settle(id);
        }
    }

    /// `id` sends a datagram.
    fn send_datagram(&mut self, id: NodeId, to: SocketAddr, payload: Vec<u8>) {
        let now = self.agenda.now();
        if let Some(nat) = &mut self.node(id).nat {
            nat.sent(to, now);
        }
        self.check_datagram(id, payload.len());
        self.carry(Datagram { from: addr(id), to, payload });
    }

    fn carry(&mut self, datagram: Datagram) {
        let latency = self.latency(node_of(datagram.from), node_of(datagram.to));
        self.datagrams.send(datagram, latency, &mut self.agenda);
    }

    /// A datagram has come to where it was sent.
    pub fn datagram(&mut self, datagram: Datagram) {
        let now = self.agenda.now();
        let Datagram { from, to, payload } = datagram;
        if to == TRACKER {
            if self.plan.tracker_ends.is_some_and(|end| now >= end) {
                return;
            }
            if let Some(answer) = self.tracker.answer(from, &payload, now) {
                self.check_datagram(node_of(TRACKER), answer.len());
                self.carry(Datagram { from: TRACKER, to: from, payload: answer });
            }
            return;
        }
        let id = node_of(to);
        let Some(node) = self.nodes.get_mut(id as usize) else { return };
        if node.nat.as_ref().is_some_and(|nat| !nat.lets_in(from, now)) {
            self.filtered += 1;
            return;
        }
        if let Some(announcer) = &mut node.announcer {
            announcer.handle_datagram(from, &payload, now);
            self.tracker_step(id);
            self.settle(id);
        }
    }
}
