//! What peers tell each other of the DHT (BEP 5): that they are nodes of it, and at which port.

use std::net::SocketAddr;

use super::{Output, Torrent};
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, Reserved};

impl Torrent {
    /// What our handshakes say that we speak.
    pub fn reserved(&self) -> Reserved {
        match self.dht_port() {
            Some(_) => Reserved::ours().with_dht(),
            None => Reserved::ours(),
        }
    }

    /// The port of our DHT node, if peers of this torrent may know it (BEP 27).
    fn dht_port(&self) -> Option<u16> {
        let private = self.info().is_some_and(|info| info.private);
        self.options.dht.filter(|_| !private)
    }

    /// Tells a peer where our node is, if it has one too.
    pub(super) fn name_dht_port(&mut self, key: PeerKey, now: Timestamp) {
        let speaks = self.peers.get(&key).is_some_and(|peer| peer.dht);
        if let Some(port) = self.dht_port().filter(|_| speaks) {
            self.send(key, Message::Port(port), now);
        }
    }

    /// A peer says where its node is; once is enough.
    pub(super) fn dht_port_named(&mut self, key: PeerKey, port: u16) {
        if self.dht_port().is_none() || port == 0 {
            return;
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if !std::mem::replace(&mut peer.told_dht_port, true) {
            let addr = SocketAddr::new(peer.addr.ip(), port);
            self.outputs.push_back(Output::DhtNode(addr));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::lone::{DHT_PORT, Lone};
    use super::super::tests::info;
    use super::super::{Options, PeerSession};
    use super::*;
    use crate::proto::bitfield::Bitfield;

    fn lone() -> Lone {
        Lone::new(2, 1, |_| true)
    }

    /// Makes the torrent one that is private.
    fn private() -> Lone {
        let mut lone = lone();
        let mut secret = (*info(2, 1 << 14)).clone();
        secret.private = true;
        let options = Options {
            on_demand: false,
            upload: true,
            buffer_budget: 1 << 20,
            port: 6881,
            pex: true,
            dht: Some(DHT_PORT),
        };
        lone.machine = Torrent::new(secret.info_hash, options, 1);
        lone.machine.activate(Arc::new(secret), Bitfield::empty(2), &Bitfield::full(2), lone.now);
        lone
    }

    fn meet(lone: &mut Lone, dht: bool) -> PeerKey {
        lone.last_key += 1;
        let key = PeerKey(lone.last_key);
        let addr = SocketAddr::from(([192, 0, 2, 1], 1_000 + key.0 as u16));
        let mut session = PeerSession::new(addr, true, true, true, lone.now);
        session.dht = dht;
        lone.machine.peer_connected(key, session, lone.now);
        lone.step();
        key
    }

    fn is_told(lone: &Lone, key: PeerKey) -> bool {
        lone.sent.iter().any(|(to, m)| *to == key && *m == Message::Port(DHT_PORT))
    }

    fn nodes(lone: &Lone) -> Vec<SocketAddr> {
        let node = |output: &Output| match output {
            Output::DhtNode(addr) => Some(*addr),
            _ => None,
        };
        lone.others.iter().filter_map(node).collect()
    }

    #[test]
    fn who_is_a_node_is_told_our_port_and_nobody_else() {
        let mut lone = lone();
        assert!(lone.machine.reserved().dht());
        let (node, other) = (meet(&mut lone, true), meet(&mut lone, false));
        assert_eq!((is_told(&lone, node), is_told(&lone, other)), (true, false));
    }

    #[test]
    fn of_a_peer_one_node_is_taken_and_only_at_a_port_that_can_be() {
        let mut lone = lone();
        let key = meet(&mut lone, true);
        for port in [0, 7, 8] {
            lone.say(key, Message::Port(port));
        }
        lone.step();
        assert_eq!(nodes(&lone), [SocketAddr::from(([192, 0, 2, 1], 7))]);
    }

    #[test]
    fn the_peers_of_a_private_torrent_neither_hear_of_it_nor_are_heard() {
        let mut lone = private();
        assert!(!lone.machine.reserved().dht());
        let key = meet(&mut lone, true);
        lone.say(key, Message::Port(7));
        lone.step();
        assert_eq!((is_told(&lone, key), nodes(&lone)), (false, vec![]));
    }
}
