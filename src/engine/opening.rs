//! Incoming connections that have not said yet what they want: bounded, and none for long.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::proto::swarm::site;

/// How many there may be at once.
const MAX_OPENING: usize = 64;

/// Connections that are opening, oldest first.
#[derive(Default)]
pub(super) struct Opening(Mutex<Held>);

#[derive(Default)]
struct Held {
    last: u64,
    /// By age: where from, and how to end it.
    all: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// A place among those that are opening; given back when dropped.
pub(super) struct Place {
    number: u64,
    opening: Arc<Opening>,
    /// Cancelled when another one needs the place.
    pub lost: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.opening.held().all.remove(&self.number);
    }
}

impl Opening {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `ip`. When all are taken, the oldest of the site that has most
    /// loses its own: whoever says nothing cannot keep others out.
    pub(super) fn place(self: &Arc<Self>, ip: IpAddr) -> Place {
        let lost = CancellationToken::new();
        let mut held = self.held();
        if held.all.len() >= MAX_OPENING
            && let Some((_, lost)) = held.oldest_of_most().and_then(|n| held.all.remove(&n))
        {
            lost.cancel();
        }
        held.last += 1;
        let number = held.last;
        held.all.insert(number, (site(ip), lost.clone()));
        Place { number, opening: self.clone(), lost }
    }
}

impl Held {
    fn oldest_of_most(&self) -> Option<u64> {
        let mut counts = BTreeMap::new();
        for (site, _) in self.all.values() {
            *counts.entry(*site).or_insert(0) += 1;
        }
        let most = *counts.values().max()?;
        self.all.iter().find(|(_, (site, _))| counts.get(site) == Some(&most)).map(|(n, _)| *n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_address_that_says_nothing_does_not_keep_others_out() {
        let opening = Arc::new(Opening::default());
        let honest: Vec<_> = (1..=10).map(|n| opening.place(from(n))).collect();
        let silent: Vec<_> = (0..500).map(|_| opening.place(from(99))).collect();
        assert!(honest.iter().all(|place| !place.lost.is_cancelled()));
        let left = silent.iter().filter(|place| !place.lost.is_cancelled()).count();
        assert_eq!(left, MAX_OPENING - 10);
        let newcomer = opening.place(from(11));
        assert!(!newcomer.lost.is_cancelled());
    }

    #[test]
    fn a_place_is_given_back() {
        let opening = Arc::new(Opening::default());
        let first = opening.place(from(1));
        (0..1_000).for_each(|_| drop(opening.place(from(2))));
        assert!(!first.lost.is_cancelled());
        assert_eq!(opening.held().all.len(), 1);
    }
}
