//! One announce over the network.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use url::Url;

use super::exchange::{addresses, over_http, over_udp};
use crate::proto::tracker::http::{announce_url, parse_announce};
use crate::proto::tracker::{
    AnnounceAnswer, AnnounceRequest, Endpoint, MAX_ANSWER_PEERS, TrackerError, endpoint,
};

/// How long an HTTP announce may take in all.
const HTTP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the second address family is waited for once the first has answered.
const FAMILY_GRACE: Duration = Duration::from_millis(500);

type Answer = Result<AnnounceAnswer, TrackerError>;

/// Announces to the tracker with this URL; ends within half a minute.
pub(super) async fn announce(url: &str, request: AnnounceRequest) -> Answer {
    match endpoint(url) {
        Ok(Endpoint::Http(base)) => announce_http(&base, &request).await,
        Ok(Endpoint::Udp { host, port, url_data }) => {
            announce_udp(&host, port, &url_data, request).await
        }
        Err(error) => Err(TrackerError::Unreachable(error.to_string())),
    }
}

async fn announce_http(base: &Url, request: &AnnounceRequest) -> Answer {
    over_http(base, announce_url(base, request), HTTP_TIMEOUT, parse_announce).await
}

/// Announces over both address families where the name has both, because a tracker hands out the
/// peers of the family it was asked by.
async fn announce_udp(host: &str, port: u16, url_data: &[u8], request: AnnounceRequest) -> Answer {
    let (v4, v6) = addresses(host, port).await?;
    match (v4, v6) {
        (Some(v4), Some(v6)) => {
            over_both(over_udp(v4, url_data, request.clone()), over_udp(v6, url_data, request))
                .await
        }
        (Some(addr), None) | (None, Some(addr)) => over_udp(addr, url_data, request).await,
        (None, None) => Err(TrackerError::Silent),
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
