//! One announce over the network.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{sleep_until, timeout};
use url::Url;

use super::{Clock, random_seed};
use crate::engine::http::{self, HttpError};
use crate::proto::tracker::exchange::UdpExchange;
use crate::proto::tracker::http::{announce_url, parse_announce};
use crate::proto::tracker::{
    AnnounceAnswer, AnnounceRequest, Endpoint, MAX_ANSWER_LEN, MAX_ANSWER_PEERS, TrackerError,
    endpoint,
};

/// How long an HTTP announce may take in all.
const HTTP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a name may take to be looked up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the second address family is waited for once the first has answered.
const FAMILY_GRACE: Duration = Duration::from_millis(500);

type Answer = Result<AnnounceAnswer, TrackerError>;

/// Announces to the tracker with this URL; ends within half a minute.
pub(super) async fn announce(url: &str, request: AnnounceRequest) -> Answer {
    match endpoint(url) {
        Ok(Endpoint::Http(base)) => over_http(&base, &request).await,
        Ok(Endpoint::Udp { host, port, url_data }) => {
            over_udp(&host, port, &url_data, request).await
        }
        Err(error) => Err(TrackerError::Unreachable(error.to_string())),
    }
}

async fn over_http(base: &Url, request: &AnnounceRequest) -> Answer {
    let reply = http::get(announce_url(base, request), MAX_ANSWER_LEN, HTTP_TIMEOUT).await;
    let reply = reply.map_err(|error| match error {
        HttpError::TooLong(_) => TrackerError::Malformed("too long"),
        HttpError::Failed(cause) => TrackerError::Unreachable(cause),
    })?;
    match parse_announce(&reply.body) {
        // Some trackers refuse with an error status and say why in the body.
        Err(error @ TrackerError::Refused(_)) => Err(error),
        parsed if reply.status.is_success() => parsed,
        _ => Err(TrackerError::Unreachable(format!("HTTP status {}", reply.status))),
    }
}

/// Announces over both address families where the name has both, because a tracker hands out the
/// peers of the family it was asked by.
async fn over_udp(host: &str, port: u16, url_data: &[u8], request: AnnounceRequest) -> Answer {
    let found = timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await;
    let addrs: Vec<SocketAddr> =
        found.map_err(|_| TrackerError::Silent)?.map_err(io_error)?.collect();
    let v4 = addrs.iter().copied().find(SocketAddr::is_ipv4);
    let v6 = addrs.iter().copied().find(SocketAddr::is_ipv6);
    match (v4, v6) {
        (Some(v4), Some(v6)) => {
            over_both(exchange(v4, url_data, request.clone()), exchange(v6, url_data, request))
                .await
        }
        (Some(addr), None) | (None, Some(addr)) => exchange(addr, url_data, request).await,
        (None, None) => Err(TrackerError::Unreachable("the name has no address".to_owned())),
    }
}

/// The answers of both families as one. The first counts; peers of the second are added if it comes
/// soon after.
async fn over_both(v4: impl Future<Output = Answer>, v6: impl Future<Output = Answer>) -> Answer {
    let (mut v4, mut v6) = (pin!(v4), pin!(v6));
    let (first, second) = tokio::select! {
        first = &mut v4 => match first {
            Ok(_) => (first, timeout(FAMILY_GRACE, v6).await.unwrap_or(Err(TrackerError::Silent))),
            Err(_) => (v6.await, first),
        },
        first = &mut v6 => match first {
            Ok(_) => (first, timeout(FAMILY_GRACE, v4).await.unwrap_or(Err(TrackerError::Silent))),
            Err(_) => (v4.await, first),
        },
    };
    let mut answer = first?;
    if let Ok(more) = second {
        let room = MAX_ANSWER_PEERS.saturating_sub(answer.peers.len());
        answer.peers.extend(more.peers.into_iter().take(room));
    }
    Ok(answer)
}

async fn exchange(addr: SocketAddr, url_data: &[u8], request: AnnounceRequest) -> Answer {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(io_error)?;
    // A connected socket drops datagrams from elsewhere and reports a closed port.
    socket.connect(addr).await.map_err(io_error)?;
    let clock = Clock::start();
    let seed = random_seed();
    let mut machine = UdpExchange::new(request, url_data, addr.is_ipv6(), seed, clock.now());
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn answer(peer: &str) -> Answer {
        Ok(AnnounceAnswer { peers: vec![peer.parse().unwrap()], ..AnnounceAnswer::default() })
    }

    #[tokio::test]
    async fn peers_of_both_families_are_joined() {
        let both = over_both(ready(answer("192.0.2.1:1")), ready(answer("[2001:db8::1]:1"))).await;
        assert_eq!(both.unwrap().peers.len(), 2);
    }

    #[tokio::test]
    async fn one_family_is_enough() {
        let dead = || ready(Err(TrackerError::Silent));
        assert!(over_both(dead(), ready(answer("[2001:db8::1]:1"))).await.is_ok());
        assert!(over_both(ready(answer("192.0.2.1:1")), dead()).await.is_ok());
        assert!(over_both(ready(answer("192.0.2.1:1")), pending()).await.is_ok());
        assert_eq!(over_both(dead(), dead()).await, Err(TrackerError::Silent));
    }
}
