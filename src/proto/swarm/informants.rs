//! How far those are believed who tell us of peers.
//!
//! An address costs a liar nothing and us an attempt of ten seconds. So everybody's word counts for
//! a bounded number of addresses at a time, and for fewer and fewer when nobody answers there.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Addresses in the list of peers that one informant may have told us of: a liar must not fill it.
pub(super) const MAX_PER_INFORMANT: usize = 100;

/// Addresses at which nobody answered, before an informant is not listened to any more; many an
/// honest one knows of peers that nobody can reach.
const MAX_BAD: usize = 100;

/// So many of those does an address make up for at which somebody answered.
const CREDIT: usize = 4;

/// Informants remembered, beside those whose addresses are in the list.
const MAX_REMEMBERED: usize = 2_000;

/// What came of one's words.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    listed: usize,
    bad: usize,
}

/// What came of everybody's words.
#[derive(Clone, Debug, Default)]
pub(super) struct Informants(BTreeMap<IpAddr, Record>);

impl Informants {
    /// Whether one more address is taken from `from`.
    pub fn is_heard(&self, from: IpAddr) -> bool {
        let record = self.0.get(&from).copied().unwrap_or_default();
        record.listed < MAX_PER_INFORMANT && record.bad < MAX_BAD
    }

    /// An address came into the list on the word of `from`.
    pub fn listed(&mut self, from: IpAddr) {
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&from) {
            let unused = self.0.iter().find(|(_, record)| record.listed == 0).map(|(ip, _)| *ip);
            if let Some(ip) = unused {
                self.0.remove(&ip);
            }
        }
        self.0.entry(from).or_default().listed += 1;
    }

    /// An address is in the list on the word of `from` no longer.
    pub fn unlisted(&mut self, from: IpAddr) {
        if let Some(record) = self.0.get_mut(&from) {
            record.listed = record.listed.saturating_sub(1);
            if record.listed == 0 && record.bad == 0 {
                self.0.remove(&from);
            }
        }
    }

    /// Nobody answers at an address that `from` told us of.
    pub fn misled(&mut self, from: IpAddr) {
        if let Some(record) = self.0.get_mut(&from) {
            record.bad += 1;
        }
    }

    /// A peer answered at an address that `from` told us of.
    pub fn helped(&mut self, from: IpAddr) {
        if let Some(record) = self.0.get_mut(&from) {
            record.bad = record.bad.saturating_sub(CREDIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    /// Tells of `count` addresses one after the other, at each of which `answers` says who is there.
    fn told(informants: &mut Informants, count: usize, answers: impl Fn(usize) -> bool) -> usize {
        (0..count)
            .take_while(|n| {
                let heard = informants.is_heard(WHO);
                informants.listed(WHO);
                match answers(*n) {
                    true => informants.helped(WHO),
                    false => informants.misled(WHO),
                }
                informants.unlisted(WHO);
                heard
            })
            .count()
    }

    #[test]
    fn who_tells_of_nobody_but_ghosts_is_soon_not_heard() {
        assert_eq!(told(&mut Informants::default(), 1_000, |_| false), MAX_BAD);
    }

    #[test]
    fn who_is_right_once_in_five_times_is_heard_for_ever() {
        let mut informants = Informants::default();
        assert_eq!(told(&mut informants, 5_000, |n| n % 5 == 0), 5_000);
    }

    #[test]
    fn who_has_said_enough_is_heard_again_when_that_is_forgotten() {
        let mut informants = Informants::default();
        (0..MAX_PER_INFORMANT).for_each(|_| informants.listed(WHO));
        assert!(!informants.is_heard(WHO));
        informants.unlisted(WHO);
        assert!(informants.is_heard(WHO));
    }

    #[test]
    fn informants_are_bounded() {
        let mut informants = Informants::default();
        for n in 0..10_000u32 {
            let who = IpAddr::from(n.to_be_bytes());
            informants.listed(who);
            informants.misled(who);
            informants.unlisted(who);
        }
        assert!(informants.0.len() <= MAX_REMEMBERED);
    }
}
