//! What was exchanged with one peer about others (BEP 11).

use std::time::Duration;

use super::Disconnect;
use crate::proto::time::Timestamp;

/// The time between two messages (BEP 11: not more than one a minute).
pub const PEX_INTERVAL: Duration = Duration::from_secs(60);

/// Messages that may come at once and are read.
const AHEAD: u32 = 3;

/// A message that is left aside counts as one that came this much early: thirty at once, or one every
/// second for long, are a flood.
const ASIDE: Duration = Duration::from_secs(2);

/// How far an exchange with a peer has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exchange {
    /// The peer's number for `ut_pex` (BEP 11), 0 if it does not speak it.
    pub ut_pex: u8,
    told: Option<u64>,
    next: Timestamp,
    /// When what came would have come at the pace that is allowed.
    heard: Timestamp,
}

impl Exchange {
    /// How many of our changes the peer knows; `None` until it was told for the first time.
    pub fn told(&self) -> Option<u64> {
        self.told
    }

    /// Whether the peer is to be told, after `changes` changes, what is new.
    pub fn is_due(&self, changes: u64, now: Timestamp) -> bool {
        self.ut_pex != 0 && self.next <= now && self.told != Some(changes)
    }

    /// The peer knows of `changes` changes; a message was `sent` for it unless there was nothing in
    /// them for this peer.
    pub fn note_told(&mut self, changes: u64, sent: bool, now: Timestamp) {
        self.told = Some(changes);
        if sent {
            self.next = now + PEX_INTERVAL;
        }
    }

    /// A message came; whether to read it. One that comes too early is left aside, and an error is
    /// returned when that is no accident.
    pub fn note_heard(&mut self, now: Timestamp) -> Result<bool, Disconnect> {
        let heard = self.heard.max(now);
        let read = heard.since(now) + PEX_INTERVAL <= PEX_INTERVAL * AHEAD;
        self.heard = heard + if read { PEX_INTERVAL } else { ASIDE };
        if self.heard.since(now) > PEX_INTERVAL * (AHEAD + 1) {
            return Err(Disconnect::Protocol("a flood of peers"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_message_a_minute_is_read_for_ever() {
        let mut exchange = Exchange::default();
        assert!((0..1_000).all(|n| exchange.note_heard(at(60 * n)) == Ok(true)));
    }

    #[test]
    fn of_too_many_messages_a_few_are_read_and_the_rest_left_aside() {
        let mut exchange = Exchange::default();
        let heard: Vec<_> = (0..600).map(|n| exchange.note_heard(at(30 * n))).collect();
        assert!(heard.iter().all(Result::is_ok));
        let read = heard.iter().filter(|heard| **heard == Ok(true)).count();
        assert!((280..320).contains(&read), "{read} in 300 minutes");
    }

    #[test]
    fn a_flood_ends_the_connection() {
        let mut exchange = Exchange::default();
        let heard: Vec<_> = (0..34).map(|_| exchange.note_heard(at(1))).collect();
        assert_eq!(heard[..3], [Ok(true); 3]);
        assert!(heard[3..33].iter().all(|heard| *heard == Ok(false)));
        assert!(heard[33].is_err());
    }

    #[test]
    fn who_was_told_is_told_again_a_minute_later_if_something_changed() {
        let mut exchange = Exchange { ut_pex: 1, ..Exchange::default() };
        assert!(exchange.is_due(0, at(1)));
        exchange.note_told(0, false, at(1));
        assert!(!exchange.is_due(0, at(1)) && exchange.is_due(1, at(1)), "it was sent nothing");
        exchange.note_told(1, true, at(1));
        assert!(!exchange.is_due(2, at(60)) && exchange.is_due(2, at(61)));
        assert!(!exchange.is_due(1, at(61)));
    }
}
