//! Whether others can reach us (BEP 43).
//!
//! A router that translates addresses lets in answers, and questions of those we have written to a
//! short while ago. So the proof is a question from somebody whom we have *not* written to. A node
//! that answers nothing but is in the tables of others costs each of them a timeout; but a node that
//! says it is read-only enters no table, and then nobody would ever prove that it is reachable. Hence:
//! we begin as a full node; after [`TRIAL`], if many nodes have answered us and nobody has come by
//! himself, we are read-only; after [`REST`] there is another trial; and a question that does come
//! in is proof at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::proto::time::Timestamp;

/// How long a full node waits for somebody to come. In a real network the first does within a
/// minute or two.
pub const TRIAL: Duration = Duration::from_secs(30 * 60);

/// Answers during a trial without which it says nothing: of so many that know us, some would have
/// named us to others.
pub const ENOUGH_ANSWERS: u32 = 100;

/// How long we are read-only before the next trial.
pub const REST: Duration = Duration::from_secs(2 * 3600);

/// How long a router may keep the way open for those we wrote to: after one to two of these periods
/// a question counts as somebody's own.
const OPEN: Duration = Duration::from_secs(5 * 60);

/// Addresses remembered of each period. When there were more, nothing is a proof.
const MAX_WRITTEN: usize = 4_096;

/// What speaks for our being reached.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    read_only: bool,
    since: Timestamp,
    answers: u32,
    written: BTreeSet<IpAddr>,
    written_before: BTreeSet<IpAddr>,
    period: Timestamp,
}

impl Reach {
    pub fn new(now: Timestamp) -> Self {
        Self {
            read_only: false,
            since: now,
            answers: 0,
            written: BTreeSet::new(),
            written_before: BTreeSet::new(),
            period: now,
        }
    }

    /// Whether we are read-only now.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// We write to `ip`.
    pub fn wrote_to(&mut self, ip: IpAddr, now: Timestamp) {
        self.turn(now);
        if self.written.len() < MAX_WRITTEN {
            self.written.insert(ip);
        }
    }

    /// Somebody answered.
    pub fn answered(&mut self, now: Timestamp) {
        self.answers = self.answers.saturating_add(1);
        let lasted = now.since(self.since);
        let fruitless = !self.read_only && lasted >= TRIAL && self.answers >= ENOUGH_ANSWERS;
        if fruitless || self.read_only && lasted >= REST {
            (self.read_only, self.since, self.answers) = (!self.read_only, now, 0);
        }
    }

    /// Somebody at `ip` asks us.
    pub fn asked_by(&mut self, ip: IpAddr, now: Timestamp) {
        self.turn(now);
        let known = self.knows(ip);
        let sure = self.written.len().max(self.written_before.len()) < MAX_WRITTEN;
        if ip.is_loopback() || !known && sure {
            (self.read_only, self.since, self.answers) = (false, now, 0);
        }
    }

    /// Whether we wrote to `ip` lately.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.written.contains(&ip) || self.written_before.contains(&ip)
    }

    fn turn(&mut self, now: Timestamp) {
        if now.since(self.period) >= OPEN {
            self.written_before = std::mem::take(&mut self.written);
            self.period = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(60 * minutes)
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Half an hour in which so many answered.
    fn trial(answers: u32) -> Reach {
        let mut reach = Reach::new(at(0));
        for _ in 1..answers {
            reach.answered(at(1));
        }
        reach.answered(at(30));
        reach
    }

    #[test]
    fn whom_nobody_asks_although_many_answer_is_read_only() {
        assert!(!trial(ENOUGH_ANSWERS - 1).is_read_only());
        assert!(trial(ENOUGH_ANSWERS).is_read_only());
    }

    #[test]
    fn a_question_out_of_the_blue_is_proof() {
        let mut reach = trial(ENOUGH_ANSWERS);
        reach.asked_by(ip(1), at(31));
        assert!(!reach.is_read_only());
    }

    #[test]
    fn a_question_of_somebody_we_wrote_to_is_none() {
        let mut reach = trial(ENOUGH_ANSWERS);
        reach.wrote_to(ip(1), at(31));
        reach.asked_by(ip(1), at(35));
        reach.asked_by(ip(1), at(36));
        assert!(reach.is_read_only());
        reach.wrote_to(ip(2), at(41));
        reach.asked_by(ip(1), at(41));
        assert!(!reach.is_read_only());
    }

    #[test]
    fn after_a_rest_there_is_another_trial() {
        let mut reach = trial(ENOUGH_ANSWERS);
        reach.answered(at(149));
        assert!(reach.is_read_only());
        reach.answered(at(150));
        assert!(!reach.is_read_only());
    }

    #[test]
    fn memory_is_bounded_and_a_crowd_proves_nothing() {
        let mut reach = trial(ENOUGH_ANSWERS);
        (0..10_000u32).for_each(|n| reach.wrote_to(IpAddr::V4(n.into()), at(31)));
        assert_eq!(reach.written.len(), MAX_WRITTEN);
        reach.asked_by(ip(1), at(31));
        assert!(reach.is_read_only());
    }
}
