//! Asking a tracker how many peers a torrent has, without joining them (BEP 15, 48).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use url::Url;

use super::exchange::{addresses, over_http, over_udp};
use crate::proto::ids::InfoHash;
use crate::proto::tracker::exchange::Scrape;
use crate::proto::tracker::http::{parse_scrape, scrape_url};
use crate::proto::tracker::{Endpoint, ScrapeEntry, TrackerError, endpoint};

type Answer = Result<ScrapeEntry, TrackerError>;

/// Asks the tracker with this announce URL about a torrent; ends within `limit`.
pub async fn scrape(url: &str, torrent: InfoHash, limit: Duration) -> Answer {
    let asked = async {
        match endpoint(url) {
            Ok(Endpoint::Http(base)) => scrape_http(&base, torrent, limit).await,
            Ok(Endpoint::Udp { host, port, url_data }) => {
                let (v4, v6) = addresses(&host, port).await?;
                first_answer(scrape_udp(v4, &url_data, torrent), scrape_udp(v6, &url_data, torrent))
                    .await
            }
            Err(error) => Err(TrackerError::Unreachable(error.to_string())),
        }
    };
    timeout(limit, asked).await.unwrap_or(Err(TrackerError::Silent))
}

async fn scrape_http(base: &Url, torrent: InfoHash, limit: Duration) -> Answer {
    let Some(url) = scrape_url(base, &[torrent]) else {
        let cause = "cannot be scraped: its URL has no `announce` as its last part";
        return Err(TrackerError::Unreachable(cause.to_owned()));
    };
    let found = over_http(base, url, limit, |body| parse_scrape(body, &[torrent])).await?;
    let entry = found.into_iter().find(|(hash, _)| *hash == torrent).map(|(_, entry)| entry);
    entry.ok_or_else(|| TrackerError::Refused("it does not know the torrent".to_owned()))
}

/// The answer of the tracker's address of one family; `None` if it has no such address.
async fn scrape_udp(
    addr: Option<SocketAddr>,
    url_data: &[u8],
    torrent: InfoHash,
) -> Option<Answer> {
    Some(over_udp(addr?, url_data, Scrape(torrent)).await)
}

/// Both addresses of a tracker know the same: the first answer counts, an error only if there is no
/// other.
async fn first_answer(
    v4: impl Future<Output = Option<Answer>>,
    v6: impl Future<Output = Option<Answer>>,
) -> Answer {
    tokio::pin!(v4, v6);
    let (first, other) = tokio::select! {
        first = &mut v4 => match first {
            Some(Ok(_)) => (first, None),
            _ => (first, v6.await),
        },
        first = &mut v6 => match first {
            Some(Ok(_)) => (first, None),
            _ => (first, v4.await),
        },
    };
    match (first, other) {
        (_, Some(Ok(entry))) => Ok(entry),
        (Some(answer), _) | (None, Some(answer)) => answer,
        (None, None) => Err(TrackerError::Silent),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const ENTRY: ScrapeEntry = ScrapeEntry { seeders: 1, completed: 2, leechers: 3 };

    fn dead() -> impl Future<Output = Option<Answer>> {
        ready(Some(Err(TrackerError::Silent)))
    }

    #[tokio::test]
    async fn the_answer_of_one_family_is_enough() {
        let good = || ready(Some(Ok(ENTRY)));
        assert_eq!(first_answer(good(), pending()).await, Ok(ENTRY));
        assert_eq!(first_answer(pending(), good()).await, Ok(ENTRY));
        assert_eq!(first_answer(dead(), good()).await, Ok(ENTRY));
        assert_eq!(first_answer(good(), ready(None)).await, Ok(ENTRY));
        assert_eq!(first_answer(ready(None), dead()).await, Err(TrackerError::Silent));
    }
}
