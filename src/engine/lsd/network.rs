//! The interfaces of this machine, as far as local discovery is concerned, and its sockets.
//!
//! An interface takes part with one address of each family: one that neighbours believe
//! ([`is_local`]) and that our listening port can be reached at. A daemon that listens on a loopback
//! address only is thus neither heard nor hears anything beyond this machine.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use socket2::{Domain, Protocol, Socket, Type};

use crate::proto::lsd::{Group, is_local};

/// The most interfaces that take part: a machine with many containers has one for each, and the
/// system allows a socket twenty groups.
const MAX_INTERFACES: usize = 16;

/// Announces do not leave the network.
const HOPS: u32 = 1;

/// An interface, and our addresses there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    /// Loopback, whose neighbours are on this machine.
    loopback: bool,
    index: u32,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// The interfaces that take part when we listen on these addresses (none for all). Loopback is last:
/// a client of this machine that is heard on a network first is known by an address that others
/// can use, too.
pub(super) fn interfaces(listen: &[IpAddr]) -> Vec<Interface> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for at in getifaddrs().into_iter().flatten().filter(|at| takes_part(at.flags)) {
        let fits = |ip: &IpAddr| is_local(*ip) && is_routed(*ip) && is_reached(listen, *ip);
        let Some(ip) = address(&at).filter(fits) else { continue };
        let Ok(index) = if_nametoindex(at.interface_name.as_str()) else { continue };
        let interface = found.entry(at.interface_name).or_default();
        interface.index = index;
        interface.loopback = at.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        interface.add(ip);
    }
    let mut all: Vec<_> = found.into_values().collect();
    all.sort_by_key(|interface| (interface.loopback, interface.index));
    // Loopback is kept.
    let extra = all.len().saturating_sub(MAX_INTERFACES);
    let end = all.len().saturating_sub(1);
    all.drain(end - extra.min(end)..end);
    all
}

fn takes_part(flags: InterfaceFlags) -> bool {
    flags.contains(InterfaceFlags::IFF_UP)
        && flags.intersects(InterfaceFlags::IFF_MULTICAST | InterfaceFlags::IFF_LOOPBACK)
}

fn address(at: &InterfaceAddress) -> Option<IpAddr> {
    let address = at.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

/// Whether the system sends multicast from there: on loopback Linux does so with IPv4 only.
fn is_routed(ip: IpAddr) -> bool {
    ip != Ipv6Addr::LOCALHOST
}

/// Whether peers that connect to `ip` reach us.
fn is_reached(listen: &[IpAddr], ip: IpAddr) -> bool {
    let reaches = |l: &IpAddr| *l == ip || l.is_unspecified() && l.is_ipv4() == ip.is_ipv4();
    listen.is_empty() || listen.iter().any(reaches)
}

impl Interface {
    /// Of several addresses the first is taken; of IPv6 rather one that needs no interface beside
    /// it.
    fn add(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4 = self.v4.or(Some(ip)),
            IpAddr::V6(ip) if self.v6.is_none_or(|old| old.is_unicast_link_local()) => {
                self.v6 = Some(ip);
            }
            IpAddr::V6(_) => {}
        }
    }

    fn has(&self, group: Group) -> bool {
        match group {
            Group::V4 => self.v4.is_some(),
            Group::V6 => self.v6.is_some(),
        }
    }

    /// Sends a datagram to a group from here, if we have an address of its family here.
    pub(super) fn send(&self, group: Group, datagram: &[u8]) -> io::Result<()> {
        let socket = match (group, self.v4, self.v6) {
            (Group::V4, Some(ip), _) => self.mouth_v4(ip)?,
            (Group::V6, _, Some(ip)) => self.mouth_v6(ip)?,
            _ => return Ok(()),
        };
        socket.send_to(datagram, &group.addr().into()).map(drop)
    }

    fn mouth_v4(&self, ip: Ipv4Addr) -> io::Result<Socket> {
        let socket = socket(Domain::IPV4)?;
        socket.bind(&SocketAddr::from((ip, 0)).into())?;
        socket.set_multicast_if_v4(&ip)?;
        socket.set_multicast_ttl_v4(HOPS)?;
        Ok(socket)
    }

    fn mouth_v6(&self, ip: Ipv6Addr) -> io::Result<Socket> {
        let socket = socket(Domain::IPV6)?;
        let scope = if ip.is_unicast_link_local() { self.index } else { 0 };
        socket.bind(&SocketAddr::from(SocketAddrV6::new(ip, 0, 0, scope)).into())?;
        socket.set_multicast_if_v6(self.index)?;
        socket.set_multicast_hops_v6(HOPS)?;
        Ok(socket)
    }
}

fn socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A socket that hears a group on these interfaces; `None` if none of them has its family. Other
/// clients of this machine hear it as well.
pub(super) fn listen(group: Group, interfaces: &[Interface]) -> io::Result<Option<UdpSocket>> {
    if !interfaces.iter().any(|interface| interface.has(group)) {
        return Ok(None);
    }
    let socket = socket(Domain::for_address(group.addr()))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // The system's default is to hear what any program of this machine has joined.
    match group {
        Group::V4 => socket.set_multicast_all_v4(false)?,
        Group::V6 => {
            socket.set_only_v6(true)?;
            socket.set_multicast_all_v6(false)?;
        }
    }
    // Bound to the group: what is sent to us alone is not heard.
    socket.bind(&group.addr().into())?;
    for interface in interfaces.iter().filter(|interface| interface.has(group)) {
        let joined = match (group, interface.v4) {
            (Group::V4, Some(ip)) => socket.join_multicast_v4(&Group::V4_ADDR, &ip),
            _ => socket.join_multicast_v6(&Group::V6_ADDR, interface.index),
        };
        if let Err(error) = joined {
            tracing::debug!(?interface, ?group, %error, "local discovery cannot take part");
        }
    }
    Ok(Some(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_listens_on_loopback_takes_part_on_loopback_only() {
        let found = interfaces(&[ip("127.0.0.1")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].loopback && found[0].v6.is_none());
        assert_eq!(found[0].v4, Some(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn who_listens_on_an_address_that_is_not_local_takes_no_part() {
        assert_eq!(interfaces(&[ip("192.0.2.1")]), []);
    }

    #[test]
    fn an_address_is_reached_if_it_or_all_are_listened_on() {
        let (v4, v6) = (ip("10.77.0.1"), ip("fe80::1"));
        for (listen, expected) in [
            (&[][..], [true, true]),
            (&[ip("0.0.0.0")], [true, false]),
            (&[ip("::")], [false, true]),
            (&[ip("10.77.0.1")], [true, false]),
            (&[ip("10.77.0.2"), ip("::1")], [false, false]),
        ] {
            assert_eq!([v4, v6].map(|ip| is_reached(listen, ip)), expected, "{listen:?}");
        }
    }

    #[test]
    fn an_address_that_needs_no_interface_is_preferred() {
        let mut interface = Interface::default();
        for text in ["fe80::1", "fe80::2", "fd00::1", "fd00::2", "10.77.0.1", "10.77.0.2"] {
            interface.add(ip(text));
        }
        assert_eq!(interface.v6, Some("fd00::1".parse().unwrap()));
        assert_eq!(interface.v4, Some("10.77.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn what_is_said_on_loopback_is_heard_there() {
        let found = interfaces(&[ip("127.0.0.1")]);
        let ears = tokio::net::UdpSocket::from_std(listen(Group::V4, &found).unwrap().unwrap());
        let ears = ears.unwrap();
        // Other clients of this machine may be speaking as well.
        let said = format!("test {}", std::process::id());
        found[0].send(Group::V4, said.as_bytes()).unwrap();
        let heard = async {
            let mut buffer = [0; 2_000];
            loop {
                let (length, from) = ears.recv_from(&mut buffer).await.unwrap();
                if buffer[..length] == *said.as_bytes() {
                    return from.ip();
                }
            }
        };
        let from = tokio::time::timeout(std::time::Duration::from_secs(10), heard).await;
        assert_eq!(from, Ok(ip("127.0.0.1")));
    }
}
