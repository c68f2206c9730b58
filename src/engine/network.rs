//! Notices that this machine may be somewhere else: it has other addresses, its network came back, or it
//! was asleep. Then connections may be dead, trackers know an address that is no longer ours, and who
//! could not be reached may be reached again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use super::session::Shared;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How long after a change nobody is told of another: trackers are asked again each time.
const PAUSE: Duration = Duration::from_secs(60);

/// A machine that slept for less has lost nothing.
const NAP: Duration = Duration::from_secs(5);

/// What is looked at.
struct Seen {
    /// The addresses by which others could reach us.
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
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        let all = getifaddrs().into_iter().flatten().filter(|at| at.flags.contains(up));
        let address = |at: nix::ifaddrs::InterfaceAddress| {
            let address = at.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        };
        let addresses = all.filter_map(address).filter(is_reached_by_others).collect();
        let time = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let asleep = time(ClockId::Boottime).saturating_sub(time(ClockId::Monotonic));
        Self { addresses, asleep }
    }

    fn is_another_than(&self, before: &Self) -> bool {
        self.addresses != before.addresses || self.asleep > before.asleep + NAP
    }
}

/// Whether others may use an address. Those of links (IPv6) come and go with each container.
fn is_reached_by_others(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
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
    fn loopback_and_links_are_not_looked_at() {
        let reached = |ip: &str| is_reached_by_others(&ip.parse().unwrap());
        assert!(reached("192.0.2.1") && reached("2001:db8::1"));
        assert!(!reached("127.0.0.1") && !reached("::1") && !reached("fe80::1"));
        assert!(Seen::now().addresses.iter().all(is_reached_by_others));
    }
}
