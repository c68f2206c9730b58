//! The HTTP tracker protocol: URLs out, bencoded answers in (BEP 3, 7, 23, 48).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use url::Url;

use super::{
    AnnounceAnswer, AnnounceRequest, Event, LEFT_UNKNOWN, MAX_ANSWER_LEN, MAX_ANSWER_PEERS,
    MAX_TRACKER_ID_LEN, ScrapeEntry, TrackerError, clean_text, compact_peers, usable_peer,
};
use crate::proto::bencode::{Dict, Limits};
use crate::proto::ids::InfoHash;

/// What an answer may look like.
const LIMITS: Limits = Limits { depth: 16, size: MAX_ANSWER_LEN };

/// What is sent as `%XX`: everything but the unreserved characters of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The URL of an announce. A query that `base` has already (often a passkey) stays in front.
pub fn announce_url(base: &Url, request: &AnnounceRequest) -> Url {
    let left = request.left.unwrap_or(LEFT_UNKNOWN);
    let mut query = format!(
        "info_hash={}&peer_id={}&port={}&uploaded={}&downloaded={}&left={left}&compact=1\
         &no_peer_id=1&numwant={}&key={:08x}",
        percent_encode(request.info_hash.as_bytes(), ESCAPED),
        percent_encode(request.peer_id.as_bytes(), ESCAPED),
        request.port,
        request.uploaded,
        request.downloaded,
        request.numwant,
        request.key,
    );
    match request.event {
        Event::Regular => {}
        Event::Started => query.push_str("&event=started"),
        Event::Completed => query.push_str("&event=completed"),
        Event::Stopped => query.push_str("&event=stopped"),
    }
    if let Some(id) = &request.tracker_id {
        query.push_str("&trackerid=");
        query.extend(percent_encode(id, ESCAPED));
    }
    with_query(base, &query)
}

/// The URL that scrapes `torrents`, if this tracker has one: the last part of its path has to begin
/// with `announce`, which becomes `scrape` (BEP 48).
pub fn scrape_url(base: &Url, torrents: &[InfoHash]) -> Option<Url> {
    let (folder, last) = base.path().rsplit_once('/')?;
    let path = format!("{folder}/scrape{}", last.strip_prefix("announce")?);
    let mut url = base.clone();
    url.set_path(&path);
    let pair = |hash: &InfoHash| format!("info_hash={}", percent_encode(hash.as_bytes(), ESCAPED));
    Some(with_query(&url, &torrents.iter().map(pair).collect::<Vec<_>>().join("&")))
}

fn with_query(base: &Url, query: &str) -> Url {
    let mut url = base.clone();
    url.set_fragment(None);
    match base.query().filter(|q| !q.is_empty()) {
        Some(old) => url.set_query(Some(&format!("{old}&{query}"))),
        None => url.set_query(Some(query)),
    }
    url
}

/// Reads the body of an answer to an announce. Bytes after the dictionary are let pass: some
/// trackers end it with a line break.
pub fn parse_announce(body: &[u8]) -> Result<AnnounceAnswer, TrackerError> {
    let dict = parse_dict(body)?;
    let seconds =
        |key: &[u8]| dict.int(key).and_then(|n| u64::try_from(n).ok()).map(Duration::from_secs);
    let id = dict.bytes(b"tracker id").filter(|id| id.len() <= MAX_TRACKER_ID_LEN);
    Ok(AnnounceAnswer {
        interval: seconds(b"interval"),
        min_interval: seconds(b"min interval"),
        seeders: count(dict, b"complete"),
        leechers: count(dict, b"incomplete"),
        tracker_id: id.map(<[u8]>::to_vec),
        warning: dict.bytes(b"warning message").map(clean_text).filter(|text| !text.is_empty()),
        peers: parse_peers(dict)?,
    })
}

/// Reads the body of an answer to a scrape that asked for `torrents`; those that the tracker does
/// not know are left out. One that is known has a number of seeders and one of leechers; not every
/// tracker counts downloads.
pub fn parse_scrape(
    body: &[u8],
    torrents: &[InfoHash],
) -> Result<Vec<(InfoHash, ScrapeEntry)>, TrackerError> {
    let dict = parse_dict(body)?;
    let files = dict.dict(b"files").ok_or(TrackerError::Malformed("no files"))?;
    let entry = |hash: &InfoHash| {
        let file = files.dict(hash.as_bytes())?;
        Some(parse_entry(file).map(|entry| (*hash, entry)))
    };
    torrents.iter().filter_map(entry).collect()
}

fn parse_entry(file: Dict<'_>) -> Result<ScrapeEntry, TrackerError> {
    let number = |key| count(file, key).ok_or(TrackerError::Malformed("no numbers of peers"));
    let completed = if file.get(b"downloaded").is_some() { number(b"downloaded")? } else { 0 };
    let entry =
        ScrapeEntry { seeders: number(b"complete")?, completed, leechers: number(b"incomplete")? };
    match entry.is_plausible() {
        true => Ok(entry),
        false => Err(TrackerError::Malformed("numbers beyond all measure")),
    }
}

/// The dictionary of an answer that is not a refusal.
fn parse_dict(body: &[u8]) -> Result<Dict<'_>, TrackerError> {
    let malformed = |_| TrackerError::Malformed("not a bencoded dictionary");
    let (dict, _) = Dict::parse_prefix(body, LIMITS).map_err(malformed)?;
    match dict.bytes(b"failure reason") {
        Some(reason) => Err(TrackerError::Refused(clean_text(reason))),
        None => Ok(dict),
    }
}

fn count(dict: Dict<'_>, key: &[u8]) -> Option<u32> {
    dict.int(key).and_then(|n| u32::try_from(n).ok())
}

/// Peers of all forms: compact v4, list of dictionaries, compact v6.
fn parse_peers(dict: Dict<'_>) -> Result<Vec<SocketAddr>, TrackerError> {
    let mut peers = Vec::new();
    if let Some(value) = dict.get(b"peers") {
        if let Some(bytes) = value.as_bytes() {
            peers.extend(compact_peers(bytes, false, MAX_ANSWER_PEERS));
        } else if let Some(list) = value.as_list() {
            let listed = list.filter_map(|peer| parse_peer(peer.as_dict()?)).filter(usable_peer);
            peers.extend(listed.take(MAX_ANSWER_PEERS));
        } else {
            return Err(TrackerError::Malformed("peers are neither a string nor a list"));
        }
    }
    if let Some(bytes) = dict.bytes(b"peers6") {
        peers.extend(compact_peers(bytes, true, MAX_ANSWER_PEERS.saturating_sub(peers.len())));
    }
    Ok(peers)
}

/// A peer of the list form. Host names are left out: to look up what a tracker names would let it
/// send our queries anywhere.
fn parse_peer(peer: Dict<'_>) -> Option<SocketAddr> {
    let ip: IpAddr = peer.str(b"ip")?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(peer.int(b"port")?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::bencode::{DictWriter, Limits};
    use crate::proto::ids::PeerId;
    use proptest::prelude::*;

    fn request() -> AnnounceRequest {
        let mut hash = [b'a'; 20];
        hash[..5].copy_from_slice(b"\0~&%\xff");
        AnnounceRequest {
            info_hash: InfoHash::new(hash),
            peer_id: PeerId::new(*b"-PF0100-abcdefghijkl"),
            port: 6881,
            uploaded: 1,
            downloaded: 2,
            left: Some(3),
            event: Event::Started,
            numwant: 50,
            key: 0xab,
            tracker_id: Some(b"x y".to_vec()),
        }
    }

    #[test]
    fn an_announce_url_says_everything() {
        let base = Url::parse("http://t.example/announce").unwrap();
        assert_eq!(
            announce_url(&base, &request()).as_str(),
            "http://t.example/announce?info_hash=%00~%26%25%FFaaaaaaaaaaaaaaa\
             &peer_id=-PF0100-abcdefghijkl&port=6881&uploaded=1&downloaded=2&left=3&compact=1\
             &no_peer_id=1&numwant=50&key=000000ab&event=started&trackerid=x%20y"
        );
    }

    #[test]
    fn a_query_that_is_there_stays() {
        let base = Url::parse("https://t.example/a.php?passkey=1%2F2#top").unwrap();
        let url = announce_url(&base, &request());
        assert!(url.as_str().starts_with("https://t.example/a.php?passkey=1%2F2&info_hash=%00~"));
        assert_eq!(url.fragment(), None);
    }

    #[test]
    fn an_unknown_size_does_not_look_like_a_seeder() {
        let base = Url::parse("http://t.example/announce").unwrap();
        let url = announce_url(&base, &AnnounceRequest { left: None, ..request() });
        assert!(url.as_str().contains("&left=16384&"));
    }

    #[test]
    fn scrape_urls_follow_the_convention() {
        let url = |text: &str| {
            let url = scrape_url(&Url::parse(text).unwrap(), &[InfoHash::new([b'a'; 20])]);
            url.map(|u| u.to_string())
        };
        let query = format!("info_hash={}", "a".repeat(20));
        assert_eq!(url("http://t/x/announce"), Some(format!("http://t/x/scrape?{query}")));
        assert_eq!(
            url("http://t/announce.php?k=1"),
            Some(format!("http://t/scrape.php?k=1&{query}"))
        );
        assert_eq!(url("http://t/a"), None);
        assert_eq!(url("http://t/announce/x"), None);
    }

    #[test]
    fn a_compact_answer_gives_peers_of_both_families() {
        let mut six = [0u8; 18];
        six[..2].copy_from_slice(&[0x20, 0x01]);
        six[16..].copy_from_slice(&[0x1a, 0xe1]);
        let body = DictWriter::new()
            .int(b"complete", 5)
            .int(b"incomplete", 6)
            .int(b"interval", 900)
            .int(b"min interval", 300)
            .bytes(b"peers", &[192, 0, 2, 1, 0x1a, 0xe1, 192, 0, 2, 2, 0, 0])
            .bytes(b"peers6", &six)
            .bytes(b"tracker id", b"T")
            .bytes(b"warning message", b"slow\ndown")
            .finish();
        let answer = parse_announce(&body).unwrap();
        let expected: [SocketAddr; 2] =
            ["192.0.2.1:6881".parse().unwrap(), "[2001::]:6881".parse().unwrap()];
        assert_eq!(answer.peers, expected);
        assert_eq!(answer.interval, Some(Duration::from_secs(900)));
        assert_eq!(answer.min_interval, Some(Duration::from_secs(300)));
        assert_eq!((answer.seeders, answer.leechers), (Some(5), Some(6)));
        assert_eq!(answer.tracker_id.as_deref(), Some(&b"T"[..]));
        assert_eq!(answer.warning.as_deref(), Some("slowdown"));
    }

    #[test]
    fn a_list_answer_gives_addresses_and_skips_names() {
        let body = b"d5:peersld2:ip9:192.0.2.14:porti6881eed2:ip9:localhost4:porti1eed2:ip11:\
                     2001:db8::14:porti1eed2:ip9:192.0.2.24:porti65536eei7eee\r\n";
        let answer = parse_announce(body).unwrap();
        let expected: [SocketAddr; 2] =
            ["192.0.2.1:6881".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()];
        assert_eq!(answer.peers, expected);
        assert_eq!(answer.interval, None);
    }

    #[test]
    fn a_failure_reason_is_a_refusal() {
        let body = b"d14:failure reason8:go\x1b away8:intervali60ee";
        assert_eq!(parse_announce(body), Err(TrackerError::Refused("go away".into())));
        assert_eq!(parse_scrape(body, &[]), Err(TrackerError::Refused("go away".into())));
    }

    #[test]
    fn a_web_page_is_no_answer() {
        assert!(matches!(parse_announce(b"<html>"), Err(TrackerError::Malformed(_))));
    }

    #[test]
    fn the_number_of_peers_is_bounded() {
        let body = DictWriter::new()
            .bytes(b"peers", &[7; 6 * 3_000])
            .bytes(b"peers6", &[0x20; 18 * 10])
            .finish();
        assert_eq!(parse_announce(&body).unwrap().peers.len(), MAX_ANSWER_PEERS);
    }

    #[test]
    fn a_scrape_gives_what_is_known() {
        let known = InfoHash::new([b'k'; 20]);
        let mut body = b"d5:filesd20:".to_vec();
        body.extend_from_slice(known.as_bytes());
        body.extend_from_slice(b"d8:completei1e10:downloadedi2e10:incompletei3eeee");
        let entry = ScrapeEntry { seeders: 1, completed: 2, leechers: 3 };
        let parsed = parse_scrape(&body, &[InfoHash::new([0; 20]), known]);
        assert_eq!(parsed, Ok(vec![(known, entry)]));
    }

    /// The answer to a scrape of one torrent.
    fn scraped(hash: &InfoHash, numbers: &[u8]) -> Vec<u8> {
        [&b"d5:filesd20:"[..], hash.as_bytes(), b"d", numbers, b"eee"].concat()
    }

    #[test]
    fn a_tracker_need_not_count_downloads() {
        let hash = InfoHash::new([b'k'; 20]);
        let body = scraped(&hash, b"8:completei1e10:incompletei3e");
        let entry = ScrapeEntry { seeders: 1, completed: 0, leechers: 3 };
        assert_eq!(parse_scrape(&body, &[hash]), Ok(vec![(hash, entry)]));
    }

    #[test]
    fn numbers_that_cannot_be_are_no_answer() {
        let hash = InfoHash::new([b'k'; 20]);
        for numbers in [
            &b""[..],
            b"8:completei1e",
            b"8:completei-1e10:incompletei3e",
            b"8:completei1e10:incomplete1:3",
            b"8:completei1e10:downloadedi-1e10:incompletei3e",
            b"8:completei2147483648e10:incompletei3e",
            b"8:completei4294967296e10:incompletei3e",
        ] {
            let parsed = parse_scrape(&scraped(&hash, numbers), &[hash]);
            assert!(matches!(parsed, Err(TrackerError::Malformed(_))), "{numbers:?}: {parsed:?}");
        }
    }

    /// Numbers on both sides of what is plausible.
    fn any_number() -> impl Strategy<Value = i64> {
        let most = i64::from(i32::MAX);
        prop_oneof![-5i64..5, most - 3..most + 3, any::<i64>()]
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(body in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = parse_announce(&body);
            let _ = parse_scrape(&body, &[InfoHash::new([0; 20])]);
        }

        #[test]
        fn any_values_are_read_within_bounds(
            interval: i64,
            complete: i64,
            peers in proptest::collection::vec(any::<u8>(), 0..300),
            peers6 in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let body = DictWriter::new()
                .int(b"complete", complete)
                .int(b"interval", interval)
                .bytes(b"peers", &peers)
                .bytes(b"peers6", &peers6)
                .finish();
            prop_assert!(Dict::parse(&body, Limits::MESSAGE).is_ok());
            let answer = parse_announce(&body).unwrap();
            prop_assert_eq!(answer.interval.map(|d| d.as_secs()), u64::try_from(interval).ok());
            prop_assert_eq!(answer.seeders, u32::try_from(complete).ok());
            prop_assert!(answer.peers.iter().all(usable_peer));
            prop_assert!(answer.peers.len() <= peers.len() / 6 + peers6.len() / 18);
        }

        #[test]
        fn a_scrape_gives_the_numbers_that_were_put_in(
            seeders in any_number(), completed in any_number(), leechers in 0i64..4, more: [u8; 20],
        ) {
            let (hash, more) = (InfoHash::new([b'k'; 20]), InfoHash::new(more));
            let numbers =
                format!("8:completei{seeders}e10:downloadedi{completed}e10:incompletei{leechers}e");
            let parsed = parse_scrape(&scraped(&hash, numbers.as_bytes()), &[hash, more]);
            let plausible = |n: i64| (0..=i64::from(i32::MAX)).contains(&n);
            prop_assert_eq!(parsed.is_ok(), plausible(seeders) && plausible(completed));
            if let Ok(found) = parsed {
                let entry = ScrapeEntry {
                    seeders: seeders as u32,
                    completed: completed as u32,
                    leechers: leechers as u32,
                };
                prop_assert_eq!(found, vec![(hash, entry)]);
            }
        }

        #[test]
        fn the_hash_survives_the_url(hash: [u8; 20], event in 0usize..4) {
            let event = [Event::Regular, Event::Started, Event::Completed, Event::Stopped][event];
            let base = Url::parse("http://t.example/announce?x=y").unwrap();
            let info_hash = InfoHash::new(hash);
            let url = announce_url(&base, &AnnounceRequest { info_hash, event, ..request() });
            let sent = url.query().unwrap().split('&').find_map(|p| p.strip_prefix("info_hash="));
            let decoded: Vec<u8> = percent_encoding::percent_decode_str(sent.unwrap()).collect();
            prop_assert_eq!(decoded, hash);
        }
    }
}
