//! The listening port: incoming connections are read as far as the info hash and handed to its
//! torrent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::opening::Opening;
use super::peer::{HANDSHAKE_TIMEOUT, read_handshake};
use super::session::Shared;

/// Ports tried when none is asked for, as other clients do; then any.
const USUAL_PORTS: std::ops::RangeInclusive<u16> = 6881..=6889;

/// The port, and a listener for each address.
type Listeners = (u16, Vec<std::net::TcpListener>);

/// Where a listener could not be opened, and why.
type ListenError = (String, io::Error);

/// Opens the same port on every address. Without IPv6 on this machine only IPv4 is used.
pub(super) fn open(addresses: &[IpAddr], port: Option<u16>) -> Result<Listeners, ListenError> {
    if let Some(port) = port {
        return open_port(addresses, port);
    }
    for port in USUAL_PORTS {
        match open_port(addresses, port) {
            Err((_, e)) if e.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    open_port(addresses, 0)
}

fn open_port(addresses: &[IpAddr], port: u16) -> Result<Listeners, ListenError> {
    let every = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let (addresses, all) =
        if addresses.is_empty() { (&every[..], true) } else { (addresses, false) };
    let (mut port, mut listeners) = (port, Vec::new());
    for &ip in addresses {
        let at = SocketAddr::new(ip, port);
        match bind(at).and_then(|l| Ok((l.local_addr()?.port(), l))) {
            Ok((bound, listener)) => {
                port = bound;
                listeners.push(listener);
            }
            Err(e) if all && ip.is_ipv6() && e.kind() != io::ErrorKind::AddrInUse => {
                tracing::debug!(error = %e, "no IPv6");
            }
            Err(e) if all => return Err((format!("port {port}"), e)),
            Err(e) => return Err((at.to_string(), e)),
        }
    }
    Ok((port, listeners))
}

fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(256)?;
    Ok(socket.into())
}

/// Accepts until the session ends.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let opening = Arc::new(Opening::default());
    loop {
        let accepted = tokio::select! {
            () = shared.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, addr)) => {
                let (shared, place) = (shared.clone(), opening.place(addr.ip()));
                tokio::spawn(async move {
                    tokio::select! {
                        () = place.lost.cancelled() => {}
                        () = open_incoming(stream, addr, &shared) => {}
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: give others time to close some.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
    }
}

async fn open_incoming(mut stream: TcpStream, addr: SocketAddr, shared: &Shared) {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, read_handshake(&mut stream)).await;
    let Ok(Ok(handshake)) = handshake else { return };
    if handshake.peer_id == shared.peer_id {
        // With its own handshake for an answer, our outgoing end knows this address as ours and tries
        // it never again; cut off, it would take it for a peer that has no room. Whoever else says our
        // id hears nothing that it did not say itself.
        let _ =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.write_all(&handshake.encode())).await;
        return;
    }
    if let Some(torrent) = shared.find(&handshake.info_hash) {
        torrent.incoming(stream, addr, handshake);
    }
}
