//! Notices that this machine may be somewhere else: what it sends leaves from another address, its network
//! came back, or it was asleep. Then connections may be dead, trackers know an address that is no longer
//! ours, and who could not be reached may be reached again.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use super::session::Shared;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How long after a change nobody is told of another: trackers are asked again each time.
const PAUSE: Duration = Duration::from_secs(60);

/// A machine that slept for less has lost nothing.
const NAP: Duration = Duration::from_secs(5);

/// Addresses that stand for all others: they are nobody's.
const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// What is looked at.
struct Seen {
    /// Whence what goes out into the world goes, one of each family. What else there is (containers, other
    /// links) comes and goes.
    addresses: BTreeSet<IpAddr>,
    /// How long the machine has slept since it was started.
    asleep: Duration,
}

/// Says so in [`Shared::network`] whenever it is another one, until the session ends.
pub(super) async fn watch(shared: Arc<Shared>) {
    let cancel = shared.cancel.clone();
    let _ = cancel.run_until_cancelled(look_forever(shared)).await;
}

async fn look_forever(shared: Arc<Shared>) {
    let mut seen = Seen::now();
    loop {
        sleep(LOOK_INTERVAL).await;
        let now = Seen::now();
        tracing::trace!(addresses = ?now.addresses, "looked at the network");
        // Where there is none at all, there is nobody to tell.
        if now.is_another_than(&seen) && !now.addresses.is_empty() {
            tracing::info!(addresses = ?now.addresses, "the network is another one");
            shared.network.send_modify(|changes| *changes += 1);
            sleep(PAUSE).await;
        }
        seen = now;
    }
}

impl Seen {
    fn now() -> Self {
        let addresses = WORLD.iter().filter_map(|to| way_out(*to).ok()).collect();
        let time = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let asleep = time(ClockId::Boottime).saturating_sub(time(ClockId::Monotonic));
        Self { addresses, asleep }
    }

    fn is_another_than(&self, before: &Self) -> bool {
        self.addresses != before.addresses || self.asleep > before.asleep + NAP
    }
}

/// The address from which a datagram to another one would be sent; none is.
fn way_out(to: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(addresses: &[&str], asleep: u64) -> Seen {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Seen { addresses, asleep: Duration::from_secs(asleep) }
    }

    #[test]
    fn another_address_or_a_sleep_makes_another_network() {
        let before = seen(&["192.0.2.1"], 7);
        assert!(!seen(&["192.0.2.1"], 8).is_another_than(&before));
        assert!(seen(&["192.0.2.1"], 60).is_another_than(&before));
        assert!(seen(&["192.0.2.2"], 7).is_another_than(&before));
        assert!(seen(&["192.0.2.1", "2001:db8::1"], 7).is_another_than(&before));
    }

    #[test]
    fn the_address_of_a_datagram_is_that_of_its_way() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(way_out(loopback).unwrap(), loopback);
    }
}
