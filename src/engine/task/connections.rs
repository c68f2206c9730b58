//! Connections on their way in and out, until they are among those of the torrent.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Internal, Task};
use crate::engine::add::both_hashes;
use crate::engine::peer::{self, Connection, Lines, PeerLink};
use crate::proto::ids::InfoHash;
use crate::proto::peer::PeerSession;
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::torrent::Second;
use crate::proto::wire::handshake::{Handshake, Reserved};

/// How long a second connection waits for the first to prove that it lives. The other side gives us
/// ten seconds for our handshake.
const RIVAL_WAIT: Duration = Duration::from_secs(7);

/// A connection whose peer has said its handshake.
pub(super) struct Arrival {
    pub stream: TcpStream,
    pub addr: SocketAddr,
    pub theirs: Handshake,
    /// What we said that we speak, on a connection that we opened; others are answered later.
    pub said: Option<Reserved>,
}

impl Arrival {
    fn outgoing(&self) -> bool {
        self.said.is_some()
    }
}

/// A second connection to a peer, while the first is probed.
pub(super) struct Rival {
    arrival: Arrival,
    until: Timestamp,
}

impl Task {
    pub(super) fn connect(&self, addr: SocketAddr) {
        let greeting = Handshake {
            reserved: self.reserved(),
            info_hash: self.machine.info_hash(),
            peer_id: self.shared.peer_id,
        };
        let also = self.also();
        let (answer, cancel) = (self.internal.0.clone(), self.cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                made = peer::connect(addr, greeting, also) => {
                    let said = Some(greeting.reserved);
                    let made = made.map(|(stream, theirs)| Arrival { stream, addr, theirs, said });
                    let _ = answer.send(Internal::Connected(addr, made));
                }
            }
        });
    }

    /// The torrent's other info hash, where there are two: peers may know it by that (BEP 52).
    fn also(&self) -> Option<InfoHash> {
        let both = self.machine.info().map(|info| both_hashes(info));
        let other = both.into_iter().flatten().find(|hash| *hash != self.machine.info_hash());
        other.or(self.also)
    }

    fn reserved(&self) -> Reserved {
        let reserved = self.machine.reserved();
        if self.also().is_some() { reserved.with_v2() } else { reserved }
    }

    /// The hash with which a peer is answered: that of the v2 half to one that speaks v2 and came by
    /// the other (BEP 52 "upgrade path").
    fn answering_hash(&self, theirs: &Handshake) -> InfoHash {
        let v2 = self.machine.info().and_then(|info| info.info_hash_v2()).map(|v2| v2.truncated());
        v2.filter(|_| theirs.reserved.v2()).unwrap_or(theirs.info_hash)
    }

    /// A connection stands. It counts as a second one to a peer that is connected if id and address
    /// are the same. The same id from another address proves nothing: anybody can say it, and would
    /// shut out the peer whose it is.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        let now = self.shared.clock.now();
        let is_twin =
            |l: &PeerLink| l.peer_id == arrival.theirs.peer_id && l.addr.ip() == arrival.addr.ip();
        let first = self.links.iter().find(|(_, l)| is_twin(l)).map(|(key, _)| *key);
        if let Some(first) = first {
            let ours_is_greater = self.shared.peer_id > arrival.theirs.peer_id;
            let second =
                self.machine.second_connection(first, arrival.outgoing(), ours_is_greater, now);
            match second {
                Second::Refused => return self.turn_away(&arrival, Some(first)),
                Second::Waits => return self.wait_for_proof(first, arrival),
                Second::Replaces => {
                    // Who waits for the first to end would take its place beside this one.
                    if let Some(rival) = self.rivals.remove(&first) {
                        self.turn_away(&rival.arrival, Some(first));
                    }
                    self.link_ended(first);
                }
            }
        }
        let welcome = match arrival.outgoing() {
            true => self.machine.has_room(),
            false => self.machine.accepts(arrival.addr, now),
        };
        match welcome {
            true => self.take_in(arrival),
            false => self.turn_away(&arrival, None),
        }
    }

    /// Has `first` prove that it lives while `arrival` waits.
    fn wait_for_proof(&mut self, first: PeerKey, arrival: Arrival) {
        if self.rivals.contains_key(&first) {
            return self.turn_away(&arrival, Some(first));
        }
        if let Some(link) = self.links.get(&first) {
            link.probe();
        }
        let until = self.shared.clock.now() + RIVAL_WAIT;
        self.rivals.insert(first, Rival { arrival, until });
    }

    /// When the next of the connections that wait is to be turned away.
    pub(super) fn next_rival_ends(&self) -> Option<Timestamp> {
        self.rivals.values().map(|rival| rival.until).min()
    }

    /// Turns away those whose first connections have proved to be alive.
    pub(super) fn expire_rivals(&mut self) {
        let now = self.shared.clock.now();
        let over: Vec<_> =
            self.rivals.iter().filter(|(_, r)| r.until <= now).map(|(first, _)| *first).collect();
        for first in over {
            if let Some(rival) = self.rivals.remove(&first) {
                self.turn_away(&rival.arrival, Some(first));
            }
        }
    }

    /// A connection has ended; whoever waited for that takes its place.
    pub(super) fn link_ended(&mut self, key: PeerKey) {
        self.links.remove(&key);
        self.machine.peer_disconnected(key, self.shared.clock.now());
        if let Some(rival) = self.rivals.remove(&key) {
            self.arrived(rival.arrival);
        }
    }

    /// The machine has ended a connection.
    pub(super) fn end_link(&mut self, key: PeerKey) {
        if let Some(link) = self.links.remove(&key) {
            link.close();
        }
        if let Some(rival) = self.rivals.remove(&key) {
            self.turn_away(&rival.arrival, None);
        }
    }

    /// A connection is not kept; `first` is the one that its peer has already.
    fn turn_away(&mut self, arrival: &Arrival, first: Option<PeerKey>) {
        let now = self.shared.clock.now();
        tracing::debug!(peer = %arrival.addr, ?first, "a connection is not kept");
        match first {
            _ if !arrival.outgoing() => {}
            Some(first) => self.machine.connected_already(arrival.addr, first, now),
            None => self.machine.found_no_room(arrival.addr, now),
        }
    }

    fn take_in(&mut self, arrival: Arrival) {
        let outgoing = arrival.outgoing();
        let Arrival { stream, addr, theirs, said } = arrival;
        let said = said.unwrap_or_else(|| self.reserved());
        let now = self.shared.clock.now();
        self.last_key += 1;
        let key = PeerKey(self.last_key);
        let greeting = (!outgoing).then(|| Handshake {
            reserved: said,
            info_hash: self.answering_hash(&theirs),
            peer_id: self.shared.peer_id,
        });
        let peer_id = theirs.peer_id;
        let link = peer::spawn(
            Connection { key, stream, peer_id, addr, greeting },
            self.limits.clone(),
            Lines {
                events: self.events.0.clone(),
                store: self.store.subscribe(),
                ended: self.cancel.clone(),
                open: self.open.clone(),
            },
        );
        tracing::debug!(peer = %addr, outgoing, "connected");
        self.links.insert(key, link);
        let session = PeerSession::greeted(addr, outgoing, said, &theirs, now);
        self.machine.peer_connected(key, session, now);
    }
}
