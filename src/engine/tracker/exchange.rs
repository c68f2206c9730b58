//! One question to a tracker and its answer, over the network.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::StatusCode;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{sleep_until, timeout};
use url::Url;

use super::{Clock, random_seed};
use crate::engine::http::{self, HttpError, Reply};
use crate::proto::tracker::exchange::{Question, UdpExchange};
use crate::proto::tracker::{MAX_ANSWER_LEN, TrackerError};

/// How long a name may take to be looked up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the tracker whose announce URL is `base`, which may come out of a torrent, for `url`, within
/// `limit` in all; `parse` reads the body.
pub(super) async fn over_http<T>(
    base: &Url,
    url: Url,
    limit: Duration,
    parse: impl FnOnce(&[u8]) -> Result<T, TrackerError>,
) -> Result<T, TrackerError> {
    // A torrent must not make us press the buttons of this machine's web services.
    if http::is_local(base) && !base.path().ends_with("/announce") {
        return Err(TrackerError::Unreachable("skipped: not a tracker on this machine".to_owned()));
    }
    let reply = http::get(url, MAX_ANSWER_LEN, limit).await.map_err(|error| match error {
        HttpError::TooLong(_) => TrackerError::Malformed("too long"),
        HttpError::Failed(cause) => TrackerError::Unreachable(cause),
    })?;
    let Reply { status, body, .. } = reply;
    match parse(&body) {
        // Some trackers refuse with an error status and say why in the body.
        Err(error @ TrackerError::Refused(_)) => Err(error),
        parsed if status.is_success() => parsed,
        _ => Err(bad_status(status)),
    }
}

fn bad_status(status: StatusCode) -> TrackerError {
    TrackerError::Unreachable(format!("HTTP status {status}"))
}

/// An IPv4 and an IPv6 address of a tracker; at least one of them is there.
pub(super) async fn addresses(
    host: &str,
    port: u16,
) -> Result<(Option<SocketAddr>, Option<SocketAddr>), TrackerError> {
    let found = timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await;
    let addrs: Vec<SocketAddr> =
        found.map_err(|_| TrackerError::Silent)?.map_err(io_error)?.collect();
    let v4 = addrs.iter().copied().find(SocketAddr::is_ipv4);
    let v6 = addrs.iter().copied().find(SocketAddr::is_ipv6);
    match (v4, v6) {
        (None, None) => Err(TrackerError::Unreachable("the name has no address".to_owned())),
        some => Ok(some),
    }
}

/// Asks by UDP. Ends within 15 seconds.
pub(super) async fn over_udp<Q: Question>(
    addr: SocketAddr,
    url_data: &[u8],
    question: Q,
) -> Result<Q::Answer, TrackerError> {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(io_error)?;
    // A connected socket drops datagrams from elsewhere and reports a closed port.
    socket.connect(addr).await.map_err(io_error)?;
    let clock = Clock::start();
    let seed = random_seed();
    let mut machine = UdpExchange::new(question, url_data, addr.is_ipv6(), seed, clock.now());
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let now = clock.now();
        if let Some(result) = machine.poll_result(now) {
            return result;
        }
        while let Some(datagram) = machine.poll_transmit(now) {
            socket.send(&datagram).await.map_err(io_error)?;
        }
        tokio::select! {
            received = socket.recv(&mut buffer) => {
                let length = received.map_err(io_error)?;
                machine.handle_datagram(buffer.get(..length).unwrap_or_default(), clock.now());
            }
            () = sleep_until(clock.instant(machine.poll_timeout())) => {}
        }
    }
}

fn io_error(error: io::Error) -> TrackerError {
    TrackerError::Unreachable(error.to_string())
}
