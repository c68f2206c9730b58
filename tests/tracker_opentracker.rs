//! Announces to a tracker that was not written here: opentracker, over HTTP and UDP.
#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2pfs::engine::tracker::{AnnounceStats, TrackerConfig, Trackers};
use p2pfs::proto::ids::{InfoHash, PeerId};
use p2pfs::proto::tracker::udp;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

/// The torrent that the tracker knows.
const LISTED: InfoHash = InfoHash::new([0x01; 20]);

/// A running opentracker; killed on drop.
struct OpenTracker {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl OpenTracker {
    fn start() -> Self {
        // Somebody may take the port between our look and the tracker's; then it ends at once.
        (0..5).find_map(|_| Self::try_start()).expect("opentracker (Debian: opentracker) starts")
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        std::fs::write(folder.path().join("whitelist"), format!("{LISTED}\n")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let number = port.to_string();
        let mut child = Command::new("opentracker")
            .args(["-i", "127.0.0.1", "-p", &number, "-P", &number, "-w", "whitelist", "-d", "."])
            .args(["-u", "nobody"])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("opentracker is installed (Debian: opentracker)");
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(10) {
            if knows_the_torrent(port).is_ok_and(|yes| yes) && speaks_udp(port).is_ok() {
                return Some(Self { child, port, _folder: folder });
            }
        }
        child.kill().ok();
        child.wait().ok();
        None
    }

    fn http(&self) -> String {
        format!("http://127.0.0.1:{}/announce", self.port)
    }

    fn udp(&self) -> String {
        format!("udp://127.0.0.1:{}/announce", self.port)
    }
}

/// Whether the tracker has read its whitelist, which it does after it has begun to listen, and
/// which only joining shows.
fn knows_the_torrent(port: u16) -> io::Result<bool> {
    let joined = announce_plainly(port, "started")?.contains("8:interval");
    announce_plainly(port, "stopped")?;
    Ok(joined)
}

fn announce_plainly(port: u16, event: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let hash = "%01".repeat(20);
    let query = format!("info_hash={hash}&port=1&left=1&event={event}&compact=1");
    stream.write_all(format!("GET /announce?{query} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Asks for a connection id.
fn speaks_udp(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send(&udp::connect_request(1))?;
    socket.recv(&mut [0; 16]).map(drop)
}

impl Drop for OpenTracker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Client {
    trackers: Trackers,
    peers: mpsc::Receiver<Vec<SocketAddr>>,
    stats: watch::Sender<AnnounceStats>,
    cancel: CancellationToken,
}

impl Client {
    fn start(url: &str, info_hash: InfoHash, port: u16) -> Self {
        let config = TrackerConfig {
            info_hash,
            peer_id: PeerId::ours([port as u8; 12]),
            port,
            tiers: vec![vec![url.to_owned()]],
            key: port.into(),
        };
        let first = AnnounceStats { wants_peers: true, ..AnnounceStats::default() };
        let (stats, receiver) = watch::channel(first);
        let (sender, peers) = mpsc::channel(8);
        let cancel = CancellationToken::new();
        let trackers =
            Trackers::spawn(config, receiver, watch::channel(0).1, sender, cancel.clone());
        Self { trackers, peers, stats, cancel }
    }

    /// Waits until the tracker has answered or refused.
    async fn announced(&self) {
        let mut poll = interval(Duration::from_millis(5));
        let answered = async {
            while self.trackers.status().iter().any(|s| s.peers.is_none() && s.error.is_none()) {
                poll.tick().await;
            }
        };
        timeout(Duration::from_secs(10), answered).await.expect("an answer");
    }

    async fn accepted(&self) {
        self.announced().await;
        assert_eq!(self.trackers.status().remove(0).error, None);
    }

    async fn hears_of(&mut self, port: u16) {
        let wanted = SocketAddr::from(([127, 0, 0, 1], port));
        let found = async {
            loop {
                if self.peers.recv().await.expect("the driver lives").contains(&wanted) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(10), found).await.expect("the other peer");
    }

    /// Makes an announce happen before any interval has passed.
    fn complete(&self) {
        self.stats.send_modify(|s| {
            s.complete = true;
            s.downloaded = 1;
            s.left = Some(0);
        });
    }

    async fn leave(self) {
        self.cancel.cancel();
        timeout(Duration::from_secs(4), self.trackers.join()).await.expect("a bounded farewell");
    }
}

async fn two_clients_find_each_other(first: &str, second: &str) {
    let mut a = Client::start(first, LISTED, 6_001);
    a.accepted().await;
    let mut b = Client::start(second, LISTED, 6_002);
    b.hears_of(6_001).await;
    a.complete();
    a.hears_of(6_002).await;
    let status = a.trackers.status().remove(0);
    assert_eq!((status.seeders, status.leechers), (Some(1), Some(1)), "{status:?}");
    assert!(status.next_announce.is_some_and(|s| s >= 60));

    b.leave().await;
    let c = Client::start(first, LISTED, 6_003);
    c.accepted().await;
    let status = c.trackers.status().remove(0);
    assert_eq!((status.seeders, status.leechers), (Some(1), Some(1)), "b has left, c has come");
    c.leave().await;
    a.leave().await;
}

#[tokio::test]
async fn two_clients_find_each_other_over_http() {
    let tracker = OpenTracker::start();
    two_clients_find_each_other(&tracker.http(), &tracker.http()).await;
}

#[tokio::test]
async fn two_clients_find_each_other_over_udp() {
    let tracker = OpenTracker::start();
    two_clients_find_each_other(&tracker.udp(), &tracker.udp()).await;
}

#[tokio::test]
async fn two_clients_find_each_other_across_protocols_and_by_name() {
    let tracker = OpenTracker::start();
    let by_name = tracker.udp().replace("127.0.0.1", "localhost");
    two_clients_find_each_other(&by_name, &tracker.http()).await;
}

#[tokio::test]
async fn a_torrent_that_is_not_listed_is_refused() {
    let tracker = OpenTracker::start();
    let client = Client::start(&tracker.http(), InfoHash::new([0x02; 20]), 6_001);
    client.announced().await;
    let error = client.trackers.status().remove(0).error.unwrap();
    assert!(error.starts_with("refused: "), "{error}");
    client.leave().await;
}
