//! Our own addresses as others see them: peers say in their handshake from where we reach them
//! (BEP 10, `yourip`).
//!
//! Any of them may lie, so each network has one vote and an address counts only with a majority of
//! them. What a lie can do is small: it changes in which order we prefer peers (BEP 40).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::priority::Ourselves;

/// Votes that count: the latest. Our address may change, and memory is bounded.
const MAX_VOTES: usize = 50;

/// Votes for an address before it is believed: nobody says alone what our address is.
const MIN_VOTES: usize = 2;

/// The network that one host or site has to itself: an IPv4 address, or an IPv6 /64, in which a
/// host may take as many addresses as it likes.
pub fn site(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Who said last what our address is, oldest first.
#[derive(Clone, Debug, Default)]
pub struct ExternalAddress {
    votes: VecDeque<(IpAddr, IpAddr)>,
}

impl ExternalAddress {
    /// `voter` sees us at `ours`; its earlier vote for an address of that family is void. What
    /// cannot be true is left out: nobody elsewhere sees a loopback address.
    pub fn vote(&mut self, voter: IpAddr, ours: IpAddr) {
        let voter_site = site(voter);
        if ours.is_unspecified()
            || ours.is_multicast()
            || ours.is_ipv4() != voter.is_ipv4()
            || ours.is_loopback() != voter.is_loopback()
        {
            return;
        }
        self.votes.retain(|(by, _)| *by != voter_site);
        if self.votes.len() >= MAX_VOTES {
            self.votes.pop_front();
        }
        self.votes.push_back((voter_site, ours));
    }

    /// What we know of ourselves; `port` is where we listen.
    pub fn ourselves(&self, port: u16) -> Ourselves {
        let at = |v4| self.believed(v4).map(|ip| SocketAddr::new(ip, port));
        Ourselves { v4: at(true), v6: at(false) }
    }

    /// How many networks see us at `ours`.
    pub fn voters(&self, ours: IpAddr) -> usize {
        self.votes.iter().filter(|(_, said)| *said == ours).count()
    }

    /// Our IPv4 or IPv6 address, once more than half of those who see us by that family,
    /// and at least two, agree on it.
    fn believed(&self, v4: bool) -> Option<IpAddr> {
        let said = || self.votes.iter().map(|(_, ours)| *ours).filter(|ours| ours.is_ipv4() == v4);
        let all = said().count();
        said().find(|address| {
            let votes = said().filter(|ours| ours == address).count();
            votes >= MIN_VOTES && 2 * votes > all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, last])
    }

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const LIE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 66));

    fn told_by(honest: std::ops::Range<u8>) -> ExternalAddress {
        let mut external = ExternalAddress::default();
        honest.for_each(|voter| external.vote(v4(voter), OURS));
        external
    }

    #[test]
    fn one_voice_is_not_enough() {
        assert_eq!(told_by(0..1).believed(true), None);
        assert_eq!(told_by(0..2).believed(true), Some(OURS));
    }

    #[test]
    fn a_liar_that_repeats_itself_changes_nothing() {
        let mut external = told_by(0..3);
        (0..1_000).for_each(|_| external.vote(v4(99), LIE));
        assert_eq!(external.believed(true), Some(OURS));
    }

    #[test]
    fn all_addresses_of_one_host_have_one_vote() {
        let (ours, lie): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let mut external = ExternalAddress::default();
        let host = |net: u128, low: u128| {
            IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | net << 64 | low))
        };
        (1..4).for_each(|net| external.vote(host(net, 1), ours));
        (0..1_000).for_each(|low| external.vote(host(9, low), lie));
        assert_eq!(external.believed(false), Some(ours));
    }

    #[test]
    fn an_address_that_changes_is_noticed_once_the_most_say_so() {
        let mut external = told_by(0..50);
        (0..25).for_each(|voter| external.vote(v4(voter), LIE));
        assert_eq!(external.believed(true), None);
        external.vote(v4(25), LIE);
        assert_eq!(external.believed(true), Some(LIE));
    }

    #[test]
    fn a_family_has_its_own_address() {
        let mut external = told_by(0..2);
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(external.believed(false), None);
        external.vote("2001:db8:1::".parse().unwrap(), v6);
        external.vote("2001:db8:2::".parse().unwrap(), v6);
        assert_eq!((external.believed(false), external.believed(true)), (Some(v6), Some(OURS)));
    }

    #[test]
    fn what_cannot_be_true_does_not_count() {
        let mut external = told_by(0..2);
        for nonsense in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "2001:db8::1"] {
            external.vote(v4(7), nonsense.parse().unwrap());
        }
        assert_eq!(external.votes.len(), 2);
    }

    proptest! {
        /// Whatever a minority says, and however often, the others are believed.
        #[test]
        fn a_minority_is_never_believed(
            lies in prop::collection::vec((0u8..12, any::<[u8; 4]>()), 0..200),
        ) {
            let mut external = ExternalAddress::default();
            for (liar, lie) in lies {
                external.vote(v4(100 + liar), lie.into());
                prop_assert!(external.votes.len() <= MAX_VOTES);
            }
            (0..20).for_each(|voter| external.vote(v4(voter), OURS));
            prop_assert_eq!(external.believed(true), Some(OURS));
        }
    }
}
