//! The sockets of a node, one for each family.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// What may wait to be read, in bytes: a second's worth of a flood, while the task does other things.
const RECEIVE_BUFFER: usize = 1 << 20;

/// At most one socket for IPv4 and one for IPv6.
#[derive(Debug)]
pub(super) struct Sockets([Option<UdpSocket>; 2]);

impl Sockets {
    /// Opens one socket for each family among `listen` (empty for both), all at `port` if that is
    /// free. Fails when none can be opened.
    pub fn open(listen: &[IpAddr], port: u16) -> io::Result<Self> {
        let every = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let listen = if listen.is_empty() { &every[..] } else { listen };
        let (mut port, mut sockets, mut failed) = (port, [None, None], None);
        for (socket, v4) in sockets.iter_mut().zip([true, false]) {
            let Some(ip) = speaker(listen, v4) else { continue };
            match bind(ip, port) {
                Ok((bound, opened)) => (port, *socket) = (bound, Some(opened)),
                Err(error) => {
                    tracing::debug!(%ip, %error, "no DHT from this address");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if sockets.iter().all(Option::is_none) => Err(error),
            _ => Ok(Self(sockets)),
        }
    }

    /// Where they are bound.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.0.iter().flatten().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Waits until all can be written to: before that, nothing could be sent.
    pub async fn writable(&self) {
        for socket in self.0.iter().flatten() {
            let _ = socket.writable().await;
        }
    }

    /// Waits for a datagram; the family that has one, as an index.
    pub async fn readable(&self) -> usize {
        let [v4, v6] = &self.0;
        tokio::select! {
            () = one_readable(v4) => 0,
            () = one_readable(v6) => 1,
        }
    }

    /// The next datagram of a family that is there already: its length and whence it came.
    pub fn receive(&self, family: usize, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let socket = self.0.get(family)?.as_ref()?;
        match socket.try_recv_from(buffer) {
            Ok(received) => Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::debug!(%error, "a DHT datagram was not received");
                None
            }
        }
    }

    /// Sends a datagram now or never, as the network does.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) {
        if let Some(Some(socket)) = self.0.get(usize::from(to.is_ipv6()))
            && let Err(error) = socket.try_send_to(datagram, to)
        {
            tracing::trace!(%to, %error, "a DHT datagram was not sent");
        }
    }
}

async fn one_readable(socket: &Option<UdpSocket>) {
    match socket {
        Some(socket) if socket.readable().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// The address of a family that we speak from: rather one that others can answer to.
fn speaker(listen: &[IpAddr], v4: bool) -> Option<IpAddr> {
    let of_family = || listen.iter().filter(|ip| ip.is_ipv4() == v4);
    of_family().find(|ip| !ip.is_loopback()).or_else(|| of_family().next()).copied()
}

/// A socket at this port, or at another one if it is taken.
fn bind(ip: IpAddr, port: u16) -> io::Result<(u16, UdpSocket)> {
    let opened = match open(SocketAddr::new(ip, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => open(SocketAddr::new(ip, 0)),
        opened => opened,
    };
    let socket = opened?;
    Ok((socket.local_addr()?.port(), socket))
}

fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // As large as the system allows: the default one is full after some hundred datagrams.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_that_others_can_answer_to_is_spoken_from() {
        let listen = ips(&["127.0.0.1", "10.77.0.1", "10.77.0.2", "::1"]);
        assert_eq!(speaker(&listen, true), Some(listen[1]));
        assert_eq!(speaker(&listen, false), Some(listen[3]));
        assert_eq!(speaker(&listen[..3], false), None);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_replaced() {
        let listen = ips(&["127.0.0.1"]);
        let first = Sockets::open(&listen, 0).unwrap().addrs()[0];
        let held = Sockets::open(&listen, first.port()).unwrap();
        assert_eq!(held.addrs(), [first]);
        let second = Sockets::open(&listen, first.port()).unwrap();
        assert_ne!(second.addrs(), [first]);
    }

    #[tokio::test]
    async fn more_may_wait_to_be_read_than_by_default() {
        let size = |socket: &UdpSocket| socket2::SockRef::from(socket).recv_buffer_size().unwrap();
        let usual = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let Sockets([opened, _]) = Sockets::open(&ips(&["127.0.0.1"]), 0).unwrap();
        assert!(size(&opened.unwrap()) > size(&usual));
    }

    #[tokio::test]
    async fn no_usable_address_is_an_error() {
        assert!(Sockets::open(&ips(&["192.0.2.1"]), 0).is_err());
    }
}
