//! One announce or scrape over UDP: ask for a connection id, ask with it, ask again when nothing
//! comes.
//!
//! BEP 15 waits 15·2ⁿ seconds before it asks again, up to an hour. Somebody is waiting for peers
//! here, so the first repeat comes after two seconds and the exchange gives up after
//! [`GIVE_UP`]; the back-off between announces ([`super::client`]) is what spares the tracker.
//! A connection id may be used for a minute; an exchange is over before, and announces lie further
//! apart than that, so every exchange asks for its own.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::udp::{self, Response};
use super::{AnnounceAnswer, AnnounceRequest, ScrapeEntry, TrackerError};
use crate::proto::ids::InfoHash;
use crate::proto::time::Timestamp;

/// How long an exchange takes at most.
pub const GIVE_UP: Duration = Duration::from_secs(15);

/// How long the first answer to a datagram is waited for; doubled with each repeat.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// What a tracker can be asked.
pub trait Question {
    /// What it answers.
    type Answer;

    /// The request, for a connection and with the path and query of the tracker's URL.
    fn datagram(&self, connection: u64, transaction: u32, url_data: &[u8]) -> Vec<u8>;

    /// What a response to it says; `None` if it answers something else.
    fn answer(&self, response: Response) -> Option<Result<Self::Answer, TrackerError>>;
}

impl Question for AnnounceRequest {
    type Answer = AnnounceAnswer;

    fn datagram(&self, connection: u64, transaction: u32, url_data: &[u8]) -> Vec<u8> {
        udp::announce_request(connection, transaction, self, url_data)
    }

    fn answer(&self, response: Response) -> Option<Result<AnnounceAnswer, TrackerError>> {
        match response {
            Response::Announced(answer) => Some(Ok(answer)),
            _ => None,
        }
    }
}

/// How many peers has this torrent?
pub struct Scrape(pub InfoHash);

impl Question for Scrape {
    type Answer = ScrapeEntry;

    fn datagram(&self, connection: u64, transaction: u32, _: &[u8]) -> Vec<u8> {
        udp::scrape_request(connection, transaction, &[self.0])
    }

    fn answer(&self, response: Response) -> Option<Result<ScrapeEntry, TrackerError>> {
        match response {
            Response::Scraped(entries) => Some(match entries.first() {
                Some(entry) if entry.is_plausible() => Ok(*entry),
                Some(_) => Err(TrackerError::Malformed("negative numbers")),
                None => Err(TrackerError::Malformed("too short")),
            }),
            _ => None,
        }
    }
}

/// Where the exchange is.
enum Step {
    Connecting,
    Asking(u64),
}

/// The machine. Feed it datagrams and time; send what [`Self::poll_transmit`] gives; it is over
/// when [`Self::poll_result`] gives something.
pub struct UdpExchange<Q: Question = AnnounceRequest> {
    question: Q,
    url_data: Vec<u8>,
    v6: bool,
    rng: ChaCha8Rng,
    transaction: u32,
    step: Step,
    /// When the current step's datagram is to be sent (again).
    send_at: Timestamp,
    retry_after: Duration,
    give_up_at: Timestamp,
    result: Option<Result<Q::Answer, TrackerError>>,
}

impl<Q: Question> UdpExchange<Q> {
    /// An exchange that begins at `now`. `url_data` is the path and query of the tracker's URL,
    /// `v6` the family of the socket. `seed` must be unpredictable: transaction ids are what keeps
    /// others from answering in the tracker's place.
    pub fn new(question: Q, url_data: &[u8], v6: bool, seed: u64, now: Timestamp) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            question,
            url_data: url_data.to_vec(),
            v6,
            transaction: rng.next_u32(),
            rng,
            step: Step::Connecting,
            send_at: now,
            retry_after: FIRST_RETRY,
            give_up_at: now + GIVE_UP,
            result: None,
        }
    }

    /// The datagram to send now, if one is due.
    pub fn poll_transmit(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        if self.result.is_some() || now < self.send_at || now >= self.give_up_at {
            return None;
        }
        self.send_at = now + self.retry_after;
        self.retry_after *= 2;
        Some(match self.step {
            Step::Connecting => udp::connect_request(self.transaction),
            Step::Asking(connection) => {
                self.question.datagram(connection, self.transaction, &self.url_data)
            }
        })
    }

    /// Takes a datagram from the tracker's address. What is not the answer to our last question is
    /// ignored: anybody can send it.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Timestamp) {
        let Some((transaction, response)) = udp::parse_response(datagram, self.v6) else { return };
        if transaction != self.transaction || self.result.is_some() {
            return;
        }
        match (response, &self.step) {
            (Response::Connected(connection), Step::Connecting) => {
                self.step = Step::Asking(connection);
                self.transaction = self.rng.next_u32();
                self.send_at = now;
                self.retry_after = FIRST_RETRY;
            }
            (Response::Refused(reason), _) => {
                self.result = Some(Err(TrackerError::Refused(reason)));
            }
            (response, Step::Asking(_)) => self.result = self.question.answer(response),
            _ => {}
        }
    }

    /// How it ended, once it has.
    pub fn poll_result(&mut self, now: Timestamp) -> Option<Result<Q::Answer, TrackerError>> {
        if now >= self.give_up_at && self.result.is_none() {
            self.result = Some(Err(TrackerError::Silent));
        }
        self.result.take()
    }

    /// When to poll again if nothing arrives before.
    pub fn poll_timeout(&self) -> Timestamp {
        self.send_at.min(self.give_up_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ids::{InfoHash, PeerId};
    use crate::proto::tracker::Event;

    fn exchange() -> UdpExchange {
        let request = AnnounceRequest {
            info_hash: InfoHash::new([1; 20]),
            peer_id: PeerId::new([2; 20]),
            port: 6881,
            uploaded: 0,
            downloaded: 0,
            left: None,
            event: Event::Started,
            numwant: 50,
            key: 0,
            tracker_id: None,
        };
        UdpExchange::new(request, b"/announce", false, 7, Timestamp::ZERO)
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    /// A response with the transaction id of `question` changed by `off`.
    fn answer(action: u8, question: &[u8], off: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 0, action];
        out.extend_from_slice(&question[12..16]);
        out[7] ^= off;
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn two_round_trips_bring_the_answer() {
        let mut it = exchange();
        let connect = it.poll_transmit(at(0)).unwrap();
        assert_eq!(it.poll_transmit(at(1)), None);
        it.handle_datagram(&answer(0, &connect, 0, &[9; 8]), at(1));
        let announce = it.poll_transmit(at(1)).unwrap();
        assert_eq!(announce[..8], [9; 8]);
        assert_ne!(announce[12..16], connect[12..16]);
        it.handle_datagram(&answer(1, &announce, 0, &[0; 12]), at(1));
        assert_eq!(it.poll_result(at(1)).unwrap().unwrap().peers, []);
    }

    #[test]
    fn a_scrape_takes_the_same_two_round_trips() {
        let scrape = Scrape(InfoHash::new([1; 20]));
        let mut it = UdpExchange::new(scrape, b"/announce", false, 7, Timestamp::ZERO);
        let connect = it.poll_transmit(at(0)).unwrap();
        it.handle_datagram(&answer(0, &connect, 0, &[9; 8]), at(0));
        let asked = it.poll_transmit(at(0)).unwrap();
        assert_eq!((asked.len(), &asked[..8], &asked[16..]), (36, &[9; 8][..], &[1; 20][..]));
        it.handle_datagram(&answer(1, &asked, 0, &[0; 12]), at(0));
        assert_eq!(it.poll_result(at(0)), None, "the answer to an announce");
        it.handle_datagram(&answer(2, &asked, 0, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]), at(0));
        let entry = ScrapeEntry { seeders: 1, completed: 2, leechers: 3 };
        assert_eq!(it.poll_result(at(0)), Some(Ok(entry)));
    }

    #[test]
    fn a_scrape_that_gives_no_numbers_makes_no_sense() {
        for numbers in [&[][..], &[0; 11], &[0xff; 12], &[0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0, 0, 0]] {
            let response =
                udp::parse_response(&[&[0, 0, 0, 2, 0, 0, 0, 0][..], numbers].concat(), true);
            let answered = Scrape(InfoHash::new([1; 20])).answer(response.unwrap().1);
            assert!(matches!(answered, Some(Err(TrackerError::Malformed(_)))), "{numbers:?}");
        }
    }

    #[test]
    fn foreign_transactions_are_ignored() {
        let mut it = exchange();
        let connect = it.poll_transmit(at(0)).unwrap();
        it.handle_datagram(&answer(0, &connect, 1, &[9; 8]), at(0));
        it.handle_datagram(&answer(3, &connect, 1, b"go away"), at(0));
        it.handle_datagram(&answer(1, &connect, 0, &[0; 12]), at(0));
        it.handle_datagram(b"", at(0));
        assert_eq!(it.poll_transmit(at(0)), None);
        assert_eq!(it.poll_result(at(0)), None);
    }

    #[test]
    fn an_error_ends_it() {
        let mut it = exchange();
        let connect = it.poll_transmit(at(0)).unwrap();
        it.handle_datagram(&answer(3, &connect, 0, b"full"), at(0));
        assert_eq!(it.poll_result(at(0)), Some(Err(TrackerError::Refused("full".into()))));
    }

    #[test]
    fn silence_is_asked_again_after_2_and_6_seconds_and_ends_after_15() {
        let mut it = exchange();
        let mut sent = Vec::new();
        let mut now = at(0);
        let result = loop {
            if it.poll_transmit(now).is_some() {
                sent.push(now);
            }
            if let Some(result) = it.poll_result(now) {
                break result;
            }
            assert!(it.poll_timeout() > now);
            now = it.poll_timeout();
        };
        assert_eq!(sent, [at(0), at(2), at(6), at(14)]);
        assert_eq!(result, Err(TrackerError::Silent));
        assert_eq!(now, at(15));
    }

    #[test]
    fn a_lost_announce_is_repeated_with_the_same_connection() {
        let mut it = exchange();
        let connect = it.poll_transmit(at(0)).unwrap();
        it.handle_datagram(&answer(0, &connect, 0, &[9; 8]), at(0));
        let first = it.poll_transmit(at(0)).unwrap();
        let second = it.poll_transmit(it.poll_timeout()).unwrap();
        assert_eq!(first, second);
    }
}
