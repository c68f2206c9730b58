//! Local discovery (BEP 14): carries the datagrams of [`Lsd`], the machine for all torrents of the
//! session. Without a network that takes part, or without sockets, there is none, and nothing else
//! is missing.

mod network;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use self::network::Interface;
use super::session::Shared;
use crate::proto::lsd::{Group, Lsd, MAX_RECEIVED, Message};

/// How often we look whether interfaces have come or gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// A group's socket, once it is open, and room for a datagram and one byte: what is longer than it
/// may be shows that.
struct Ears {
    group: Group,
    socket: Option<UdpSocket>,
    buffer: Vec<u8>,
}

struct Driver {
    shared: Arc<Shared>,
    machine: Lsd,
    /// The addresses that peers reach us at; empty for all.
    listen: Vec<IpAddr>,
    interfaces: Vec<Interface>,
    v4: Ears,
    v6: Ears,
}

/// Announces the torrents of the session and hears of those of others until the session ends.
pub(super) async fn run(shared: Arc<Shared>, listen: Vec<IpAddr>) {
    let machine = Lsd::new(shared.port, rand::rng().random());
    let (v4, v6, cancel) = (Ears::new(Group::V4), Ears::new(Group::V6), shared.cancel.clone());
    let driver = Driver { shared, machine, listen, interfaces: Vec::new(), v4, v6 };
    let _ = cancel.run_until_cancelled(driver.run()).await;
}

impl Driver {
    async fn run(mut self) {
        let clock = self.shared.clock;
        let mut next_look = Instant::now();
        loop {
            if next_look <= Instant::now() {
                next_look = Instant::now() + LOOK_INTERVAL;
                self.look();
            }
            if self.machine.poll_timeout() <= clock.now() {
                self.announce();
            }
            let wake = clock.instant(self.machine.poll_timeout()).min(next_look);
            let read_from = clock.instant(self.machine.receive_at());
            tokio::select! {
                () = self.shared.local_changed.notified() => self.refresh(),
                () = sleep_until(wake) => {}
                (length, from) = self.v4.hear(read_from) => {
                    self.heard(Group::V4, length, from);
                }
                (length, from) = self.v6.hear(read_from) => {
                    self.heard(Group::V6, length, from);
                }
            }
        }
    }

    /// Takes part on the interfaces that there are now, and opens again what failed.
    fn look(&mut self) {
        let interfaces = network::interfaces(&self.listen);
        if interfaces != self.interfaces {
            debug!(?interfaces, "local discovery takes part on other interfaces");
            self.interfaces = interfaces;
            self.machine.network_changed();
            // Closed before they are opened anew: both would hear everything.
            (self.v4.socket, self.v6.socket) = (None, None);
        }
        for ears in [&mut self.v4, &mut self.v6] {
            if ears.socket.is_none() {
                ears.open(&self.interfaces);
            }
        }
    }

    fn refresh(&mut self) {
        self.machine.set_torrents(&self.shared.local_torrents(), self.shared.clock.now());
    }

    fn announce(&mut self) {
        // One that is gone, or has turned out to be private, must not be among them.
        self.refresh();
        if let Some(message) = self.machine.poll_transmit(self.shared.clock.now()) {
            self.send(&message);
        }
    }

    fn send(&self, message: &Message) {
        debug!(torrents = message.torrents.len(), "local discovery announces");
        let datagrams = [Group::V4, Group::V6].map(|group| (group, message.encode(group)));
        for (interface, (group, datagram)) in
            self.interfaces.iter().flat_map(|i| datagrams.iter().map(move |d| (i, d)))
        {
            if let Err(error) = interface.send(*group, datagram) {
                debug!(?interface, ?group, %error, "a local announce could not be sent");
            }
        }
    }

    fn heard(&mut self, group: Group, length: usize, from: SocketAddr) {
        let ears = if group == Group::V4 { &self.v4 } else { &self.v6 };
        let datagram = ears.buffer.get(..length).unwrap_or_default();
        let now = self.shared.clock.now();
        for (hash, peer) in self.machine.handle_datagram(datagram, from, now) {
            debug!(%hash, %peer, "found on the local network");
            if let Some(torrent) = self.shared.find(&hash) {
                torrent.neighbour(peer);
            }
        }
    }
}

impl Ears {
    fn new(group: Group) -> Self {
        Self { group, socket: None, buffer: vec![0; MAX_RECEIVED + 1] }
    }

    fn open(&mut self, interfaces: &[Interface]) {
        let opened = network::listen(self.group, interfaces)
            .and_then(|socket| socket.map(UdpSocket::from_std).transpose());
        self.socket = opened.unwrap_or_else(|error| {
            debug!(group = ?self.group, %error, "local discovery cannot listen");
            None
        });
    }

    /// The length of the next datagram, which is in the buffer then, and whence it came.
    async fn hear(&mut self, from: Instant) -> (usize, SocketAddr) {
        sleep_until(from).await;
        let received: io::Result<_> = match &self.socket {
            Some(socket) => socket.recv_from(&mut self.buffer).await,
            None => std::future::pending().await,
        };
        match received {
            Ok(received) => received,
            Err(error) => {
                debug!(group = ?self.group, %error, "local discovery is deaf");
                self.socket = None;
                std::future::pending().await
            }
        }
    }
}
