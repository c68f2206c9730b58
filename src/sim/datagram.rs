//! Datagrams: real bytes between the addresses of machines. Some are lost, none is sent again by
//! the network, and a NAT lets in only what was asked for.
//!
//! A machine has one address and one port for all of its datagrams. They are small beside blocks,
//! so they take no time on a link but the way itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::event::{Agenda, What};
use crate::proto::time::Timestamp;

/// How long a NAT remembers where a machine behind it sent something (RFC 4787 asks for two minutes
/// at least).
const HOLE: Duration = Duration::from_secs(120);

/// Remote ends that a NAT remembers for a machine; beyond it the oldest is forgotten.
const MAX_HOLES: usize = 1_024;

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
}

/// The network that carries datagrams.
pub(super) struct Datagrams {
    /// The share that is lost.
    loss: f64,
    rng: ChaCha8Rng,
    pub sent: u64,
    pub lost: u64,
}

impl Datagrams {
    /// A network that loses this share of what it is given; `seed` decides which.
    pub fn new(loss: f64, seed: u64) -> Self {
        Self { loss, rng: ChaCha8Rng::seed_from_u64(seed), sent: 0, lost: 0 }
    }

    /// Sends a datagram; unless it is lost, it arrives after `latency`.
    pub fn send(&mut self, datagram: Datagram, latency: Duration, agenda: &mut Agenda) {
        self.sent += 1;
        if self.rng.random::<f64>() < self.loss {
            self.lost += 1;
        } else {
            agenda.after(latency, What::Datagram(Box::new(datagram)));
        }
    }
}

/// The NAT before a machine: whatever the machine sends has the same address and port outside, and
/// what comes is let in from where it sent something not long ago (RFC 4787: endpoint-independent
/// mapping, address and port-dependent filtering). Nobody outside can open a connection.
#[derive(Default)]
pub(super) struct Nat {
    holes: BTreeMap<SocketAddr, Timestamp>,
}

impl Nat {
    /// The machine has sent something to `to`.
    pub fn sent(&mut self, to: SocketAddr, now: Timestamp) {
        if self.holes.len() >= MAX_HOLES && !self.holes.contains_key(&to) {
            self.make_room(now);
        }
        self.holes.insert(to, now);
    }

    /// Whether a datagram from `from` reaches the machine.
    pub fn lets_in(&self, from: SocketAddr, now: Timestamp) -> bool {
        self.holes.get(&from).is_some_and(|&sent| now.since(sent) <= HOLE)
    }

    fn make_room(&mut self, now: Timestamp) {
        self.holes.retain(|_, sent| now.since(*sent) <= HOLE);
        if self.holes.len() >= MAX_HOLES {
            let oldest = self.holes.iter().min_by_key(|(_, sent)| **sent).map(|(to, _)| *to);
            oldest.map(|to| self.holes.remove(&to));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    fn arrived(loss: f64, seed: u64) -> Vec<u8> {
        let (mut net, mut agenda) = (Datagrams::new(loss, seed), Agenda::default());
        for n in 0..200 {
            let datagram = Datagram { from: addr(1), to: addr(2), payload: vec![n] };
            net.send(datagram, Duration::from_millis(20), &mut agenda);
        }
        let mut arrived = Vec::new();
        while let Some(What::Datagram(datagram)) = agenda.next() {
            assert_eq!(agenda.now(), Timestamp::ZERO + Duration::from_millis(20));
            arrived.extend(datagram.payload);
        }
        assert_eq!(net.sent - net.lost, arrived.len() as u64);
        arrived
    }

    #[test]
    fn bytes_arrive_as_they_were_sent_after_their_way() {
        assert_eq!(arrived(0.0, 1), (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn about_the_share_is_lost_and_the_seed_decides_which() {
        let some = arrived(0.3, 1);
        assert!((110..170).contains(&some.len()), "{}", some.len());
        assert_eq!(some, arrived(0.3, 1));
        assert_ne!(some, arrived(0.3, 2));
    }

    #[test]
    fn a_nat_lets_in_answers_only_and_for_two_minutes() {
        let mut nat = Nat::default();
        assert!(!nat.lets_in(addr(1), at(0)));
        nat.sent(addr(1), at(0));
        assert!(nat.lets_in(addr(1), at(120)));
        assert!(!nat.lets_in(addr(2), at(1)), "the port counts");
        assert!(!nat.lets_in(addr(1), at(121)));
    }

    #[test]
    fn what_a_nat_remembers_is_bounded_and_the_oldest_goes_first() {
        let mut nat = Nat::default();
        for n in 1..=5_000 {
            nat.sent(addr(n), Timestamp::from_nanos(n.into()));
        }
        assert_eq!(nat.holes.len(), MAX_HOLES);
        assert!(nat.lets_in(addr(5_000), at(1)) && !nat.lets_in(addr(1), at(1)));
    }
}
