//! Addresses and nodes as the DHT writes them: 4 or 16 bytes of address and 2 of port, for a node
//! after the 20 bytes of its id (BEP 5, "Contact Encoding"; BEP 32).

use std::net::{IpAddr, SocketAddr};

use super::super::id::{Contact, NodeId};
use crate::proto::tracker::usable_peer;

/// Whether somebody can be there. An IPv4 address in the clothes of IPv6 is nobody's.
pub(crate) fn usable(addr: &SocketAddr) -> bool {
    usable_peer(addr) && addr.ip().to_canonical() == addr.ip()
}

/// Reads an address of 6 or 18 bytes, usable or not.
pub(crate) fn read_addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Appends an address.
pub(crate) fn write_addr(out: &mut Vec<u8>, addr: &SocketAddr) {
    match addr.ip() {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// The length of a node, in bytes.
pub(super) const fn contact_len(v6: bool) -> usize {
    if v6 { 38 } else { 26 }
}

/// Reads the nodes of one family, at most `max` usable ones; a rest that is no whole node is left
/// out.
pub(crate) fn read_contacts(
    bytes: &[u8],
    v6: bool,
    max: usize,
) -> impl Iterator<Item = Contact> + '_ {
    let one = |entry: &[u8]| {
        let (id, addr) = entry.split_first_chunk::<20>()?;
        Some(Contact { id: NodeId::new(*id), addr: read_addr(addr)? })
    };
    bytes.chunks_exact(contact_len(v6)).filter_map(one).filter(|c| usable(&c.addr)).take(max)
}

/// Appends nodes.
pub(crate) fn write_contacts<'a>(
    out: &mut Vec<u8>,
    contacts: impl IntoIterator<Item = &'a Contact>,
) {
    for contact in contacts {
        out.extend_from_slice(contact.id.as_bytes());
        write_addr(out, &contact.addr);
    }
}
