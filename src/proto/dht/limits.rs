//! How much is answered and asked: nobody is flooded through us, and a flood of questions costs a
//! bounded share of our time and uplink.
//!
//! Each site (an IPv4 address or IPv6 /64) has an allowance for each short period, all together
//! have a rate, and strangers, whose addresses may be false, not all of it. The counts live in one
//! small map that is emptied with each period, so a flood from many addresses takes no more memory than
//! a quiet day. Our own host is not counted: it floods nobody else, and all that runs on it has one
//! address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::proto::rate::Tokens;
use crate::proto::swarm::site;
use crate::proto::time::Timestamp;

/// How long a site's allowance is for.
const PERIOD: Duration = Duration::from_secs(4);

/// Sites counted in a period; of those beyond, only all together are counted.
const MAX_SITES: usize = 4_096;

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Datagrams of one site in four seconds.
    pub of_site: u16,
    /// Datagrams of all sites in a second.
    pub per_second: u32,
    /// Datagrams of all sites at once, after a quiet time.
    pub burst: u32,
}

/// Counts datagrams of one direction.
#[derive(Clone, Debug)]
pub struct Limiter {
    allowance: Allowance,
    tokens: Tokens,
    sites: BTreeMap<IpAddr, u16>,
    period_began: Timestamp,
}

impl Limiter {
    /// Nothing has happened yet.
    pub const fn new(allowance: Allowance, now: Timestamp) -> Self {
        let tokens = Tokens::new(allowance.burst as f64, now);
        Self { allowance, tokens, sites: BTreeMap::new(), period_began: now }
    }

    /// Counts a datagram from or to `ip`, if it is allowed.
    pub fn take(&mut self, ip: IpAddr, now: Timestamp) -> bool {
        self.take_above(0.0, ip, now)
    }

    /// The same for somebody unknown, whose address may be false: a quarter of what may come at once
    /// is kept for others.
    pub fn take_of_stranger(&mut self, ip: IpAddr, now: Timestamp) -> bool {
        self.take_above(f64::from(self.allowance.burst) / 4.0, ip, now)
    }

    fn take_above(&mut self, kept: f64, ip: IpAddr, now: Timestamp) -> bool {
        if ip.is_loopback() {
            return true;
        }
        if self.left(now) < kept + 1.0 || !self.site_may(ip, now) {
            return false;
        }
        self.tokens.spend(1.0);
        true
    }

    /// When the next datagram is allowed, as far as all together count.
    pub fn ready(&mut self, now: Timestamp) -> Timestamp {
        let missing = (1.0 - self.left(now)).max(0.0);
        now + Duration::from_secs_f64(missing / f64::from(self.allowance.per_second.max(1)))
    }

    fn left(&mut self, now: Timestamp) -> f64 {
        let Allowance { per_second, burst, .. } = self.allowance;
        self.tokens.earn(per_second.into(), burst.into(), now)
    }

    fn site_may(&mut self, ip: IpAddr, now: Timestamp) -> bool {
        if now.since(self.period_began) >= PERIOD {
            self.sites.clear();
            self.period_began = now;
        }
        let site = site(ip);
        if self.sites.len() >= MAX_SITES && !self.sites.contains_key(&site) {
            return true;
        }
        let count = self.sites.entry(site).or_default();
        let may = *count < self.allowance.of_site;
        *count += u16::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { of_site: 10, per_second: 100, burst: 200 };

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0xc000_0200 + n).into())
    }

    #[test]
    fn a_site_has_its_allowance_again_after_the_period() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        let taken = |limiter: &mut Limiter, millis| {
            (0..50).filter(|_| limiter.take(ip(1), at(millis))).count()
        };
        assert_eq!(taken(&mut limiter, 0), 10);
        assert_eq!(taken(&mut limiter, 3_999), 0);
        assert_eq!(taken(&mut limiter, 4_000), 10);
    }

    #[test]
    fn all_addresses_of_an_ipv6_host_are_one_site() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        let host = |low: u128| std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | low).into();
        assert_eq!((0..50).filter(|n| limiter.take(host(*n), at(0))).count(), 10);
    }

    #[test]
    fn all_sites_together_have_a_rate() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        assert_eq!((0..9_999).filter(|n| limiter.take(ip(*n), at(0))).count(), 200);
        assert_eq!((0..9_999).filter(|n| limiter.take(ip(*n), at(500))).count(), 50);
        assert_eq!(limiter.ready(at(500)), at(510));
    }

    #[test]
    fn a_site_beyond_its_allowance_takes_nothing_from_others() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        for _ in 0..9_999 {
            limiter.take(ip(1), at(0));
        }
        assert_eq!((2..12).filter(|n| limiter.take(ip(*n), at(0))).count(), 10);
    }

    #[test]
    fn strangers_leave_something_to_others() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        assert_eq!((0..999).filter(|n| limiter.take_of_stranger(ip(*n), at(0))).count(), 150);
        assert_eq!((1_000..1_999).filter(|n| limiter.take(ip(*n), at(0))).count(), 50);
    }

    #[test]
    fn our_own_host_is_not_a_site() {
        let mut limiter = Limiter::new(ALLOWANCE, at(0));
        let taken = (0..500).filter(|_| limiter.take([127, 0, 0, 1].into(), at(0))).count();
        assert_eq!(taken, 500);
    }

    #[test]
    fn memory_is_flat_under_a_flood_of_addresses() {
        let mut limiter = Limiter::new(Allowance { burst: 1 << 20, ..ALLOWANCE }, at(0));
        for n in 0..100_000 {
            limiter.take(ip(n), at(0));
        }
        assert_eq!(limiter.sites.len(), MAX_SITES);
    }
}
