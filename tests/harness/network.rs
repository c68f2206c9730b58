//! Networks of a test's own: two hosts on one link, apart from everything else on this machine.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Uid;
use socket2::{Domain, Socket, Type};

use super::wait_for;

/// What the link is called at both ends.
pub const LINK: &str = "link0";

/// Two hosts, 10.77.0.1 and 10.77.0.2, with loopback and [`LINK`] between them.
pub struct Network {
    hosts: [Host; 2],
}

/// A network namespace.
pub struct Host {
    namespace: File,
    pub v4: Ipv4Addr,
}

/// Runs `test` in a thread that is on the first of two new hosts; what it starts is there, too. Only
/// root can do that: for others the test is left out.
pub fn on_hosts(test: impl FnOnce(&Network) + Send) {
    if !Uid::effective().is_root() {
        eprintln!("left out: only root can make networks");
        return;
    }
    let ended = std::thread::scope(|scope| scope.spawn(|| test(&Network::new())).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Network {
    fn new() -> Self {
        let hosts = [1, 2].map(|number| Host::new(Ipv4Addr::new(10, 77, 0, number)));
        let [first, second] = &hosts;
        let path = format!("/proc/{}/fd/{}", std::process::id(), first.namespace.as_raw_fd());
        ip(&["link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", &path]);
        second.up();
        first.enter();
        first.up();
        // Until an address is known to be the only one, nothing can be sent from it.
        for host in &hosts {
            host.enter();
            let tentative = || ip(&["-6", "addr", "show", "dev", LINK, "tentative"]).is_empty();
            let there = || ip(&["-6", "addr", "show", "dev", LINK, "scope", "link"]);
            let ready = || (tentative() && !there().is_empty()).then_some(());
            wait_for(Duration::from_secs(20), ready).expect("an IPv6 address of the link");
        }
        first.enter();
        Self { hosts }
    }

    pub fn first(&self) -> &Host {
        &self.hosts[0]
    }

    pub fn second(&self) -> &Host {
        &self.hosts[1]
    }
}

impl Host {
    /// Leaves the thread on it.
    fn new(v4: Ipv4Addr) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Self { namespace: File::open("/proc/thread-self/ns/net").unwrap(), v4 }
    }

    /// From here on this thread, and what it starts, is on this host.
    pub fn enter(&self) {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Gives the host that this thread is on one more address, reached from that host only.
    pub fn also_at(&self, address: Ipv4Addr) {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }

    /// Takes the link of the host that this thread is on away, or gives it back.
    pub fn link(&self, up: bool) {
        ip(&["link", "set", LINK, if up { "up" } else { "down" }]);
    }

    /// Gives the host that this thread is on another address in place of its own.
    pub fn moves_to(&self, address: Ipv4Addr) {
        ip(&["addr", "del", &format!("{}/24", self.v4), "dev", LINK]);
        ip(&["addr", "add", &format!("{address}/24"), "dev", LINK]);
    }

    /// Has the host that this thread is on send over the link what is for nobody it knows.
    pub fn has_way_out(&self) {
        ip(&["route", "replace", "default", "dev", LINK]);
    }

    /// Gives the host that this thread is on a bridge with an address of its own, as containers have it, or
    /// takes it away.
    pub fn bridge(&self, there: bool) {
        if !there {
            ip(&["link", "del", "br0"]);
            return;
        }
        ip(&["link", "add", "br0", "type", "bridge"]);
        ip(&["addr", "add", "10.88.0.1/24", "dev", "br0"]);
        ip(&["link", "add", "inside", "type", "veth", "peer", "name", "outside"]);
        ip(&["link", "set", "outside", "master", "br0"]);
        ["br0", "inside", "outside"].iter().for_each(|link| drop(ip(&["link", "set", link, "up"])));
    }

    fn up(&self) {
        ip(&["link", "set", "lo", "up"]);
        ip(&["addr", "add", &format!("{}/24", self.v4), "dev", LINK]);
        ip(&["link", "set", LINK, "up"]);
    }
}

#[track_caller]
fn ip(arguments: &[&str]) -> String {
    let done = Command::new("ip").args(arguments).output().expect("ip (Debian: iproute2)");
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Hears what is announced to the IPv4 group of local discovery at one address of this host.
pub struct Eavesdropper(UdpSocket);

impl Eavesdropper {
    pub fn new(at: Ipv4Addr) -> Self {
        let group = SocketAddr::from(([239, 192, 152, 143], 6771));
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_multicast_all_v4(false).unwrap();
        socket.bind(&group.into()).unwrap();
        socket.join_multicast_v4(&Ipv4Addr::new(239, 192, 152, 143), &at).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket.into())
    }

    /// What was announced and not looked at yet.
    pub fn next(&self) -> Option<String> {
        let mut buffer = [0; 4_096];
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// What is announced next.
    #[track_caller]
    pub fn wait(&self) -> String {
        wait_for(super::PATIENCE, || self.next()).expect("an announce")
    }
}
