//! The canonical peer priority (BEP 40): a number on which both ends of a connection agree.
//!
//! When everybody prefers the connections of the highest priority, newcomers are on an equal
//! footing with those who came first, the connections of a swarm are like those of a random graph,
//! and whoever floods a swarm gets no more of them than the share of networks that it has.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use crate::proto::crc32c::crc32c;

/// Our addresses as others see them, where known; the ports are those where we listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ourselves {
    /// By IPv4.
    pub v4: Option<SocketAddr>,
    /// By IPv6.
    pub v6: Option<SocketAddr>,
}

impl Ourselves {
    /// The priority of a connection between us and `peer`; 0 as long as our own address is unknown.
    pub fn priority(&self, peer: SocketAddr) -> u32 {
        let ours = if peer.is_ipv4() { self.v4 } else { self.v6 };
        ours.map_or(0, |ours| priority(ours, peer))
    }
}

/// What is kept of the octets that are not compared in full: addresses of one network are alike.
const COARSE: u8 = 0x55;

/// The priority of the connection between two peers, the highest first; the same from both ends.
/// Addresses of different families have none: 0.
pub fn priority(a: SocketAddr, b: SocketAddr) -> u32 {
    match (a.ip(), b.ip()) {
        (a_ip, b_ip) if a_ip == b_ip => of_octets(a.port().to_be_bytes(), b.port().to_be_bytes()),
        // The same /16 is told apart by the third octet, the same /24 by all of them.
        (IpAddr::V4(a), IpAddr::V4(b)) => of_addresses(a.octets(), b.octets(), 2),
        // The same /48 by the seventh, the same /56 by the eighth, and so on.
        (IpAddr::V6(a), IpAddr::V6(b)) => of_addresses(a.octets(), b.octets(), 6),
        _ => 0,
    }
}

/// `always` octets count in full, and as many more as the addresses have in common beyond those,
/// plus one.
fn of_addresses<const N: usize>(a: [u8; N], b: [u8; N], always: usize) -> u32 {
    let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let full = if common < always { always } else { common + 1 };
    let mask = |octets: [u8; N]| {
        let mut masked = octets;
        masked.iter_mut().skip(full).for_each(|octet| *octet &= COARSE);
        masked
    };
    of_octets(mask(a), mask(b))
}

fn of_octets<const N: usize>(a: [u8; N], b: [u8; N]) -> u32 {
    crc32c([a.min(b), a.max(b)].as_flattened())
}
