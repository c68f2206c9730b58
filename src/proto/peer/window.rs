//! The request window: how many blocks to keep asked of one peer.
//!
//! The target is the bandwidth-delay product and a little more: what the peer delivers in
//! `1.25 × round trip + 20 ms`. While the window is what limits the rate, that product exceeds the
//! window and it grows by at least a quarter each round trip; once the link is the limit, the rate
//! stands still and so does the window. What is queued at the peer stays short, so a read that
//! arrives finds a short queue.
//!
//! The rate is sampled as TCP BBR does (draft-cheng-iccrg-delivery-rate-estimation): what arrived
//! between the request for a block and its arrival, by that time or by the time in which it had been
//! asked for, whichever is longer. However blocks are bunched on the way, that is never more than
//! one window in one round trip.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::pauses::Pauses;
use crate::proto::geometry::{BLOCK_LEN, Block, PieceIndex};
use crate::proto::time::Timestamp;

/// Blocks asked for before anything is known of the peer.
const START: usize = 16;

/// A round trip's worth of blocks never falls below this.
const MIN: usize = 4;

/// Above this nothing is gained: 512 blocks are 8 MiB.
const MAX: usize = 512;

/// What a peer is taken to queue that has not said (BEP 10 `reqq`): more than that many clients drop without a word.
const UNTOLD: usize = 250;

/// What the target holds beyond the round trip, for scheduling hiccups on both sides.
const SLACK: Duration = Duration::from_millis(20);

/// What a window holds, in round trips.
const WINDOW: f64 = 1.25;

/// After this long without a shorter one, the round trip may be found to have grown.
const RTT_AGES: Duration = Duration::from_secs(10);

/// When so much more has passed without a response that it explains, the window is emptied to measure it.
const RTT_UNPROVEN: Duration = Duration::from_secs(2);

/// What arrives sooner counts as if it took this long: clocks have a resolution.
const RESOLUTION: Duration = Duration::from_micros(1);

/// A round trip that is longer by this is still the same.
const SAME_RTT: f64 = 1.1;

/// Requests are sent at so many times the rate at most, or what has come at once after a lost packet would be
/// asked for again at once, and come as a burst that a router's queue does not hold.
const PACE: f64 = 2.0;

/// What may be asked for at once, in time.
const BURST: Duration = Duration::from_millis(10);

/// How much a higher sample of the rate counts. Each is an average over a round trip already.
const RISE: f64 = 0.25;

/// How much a lower one counts, of which there is at most one in half a round trip: all that comes
/// in a burst after a pause tells of the same pause.
const FALL: f64 = 0.2;

/// The round trip assumed before one was seen.
const ASSUMED_RTT: Duration = Duration::from_millis(100);

/// The rate assumed before one was seen, in bytes a second: a newcomer is worth a try.
const ASSUMED_RATE: f64 = 512.0 * 1024.0;

/// Nobody is taken to be slower than this, in bytes a second: it would be a stall.
const SLOWEST: f64 = 2_048.0;

/// Silence with requests outstanding after which a peer counts as stalled, at least.
const MIN_STALL: Duration = Duration::from_secs(4);

/// The same, at most.
const MAX_STALL: Duration = Duration::from_secs(30);

/// Time after which a block that did not come is asked for again, at least.
const MIN_OVERDUE: Duration = Duration::from_secs(10);

/// The same, at most.
const MAX_OVERDUE: Duration = Duration::from_secs(60);

/// A peer may be silent for so long without a reason ...
const SILENT: Duration = Duration::from_millis(400);

/// ... or for so many of its usual pauses, ...
const UNUSUAL: f64 = 1.1;

/// ... of which nobody is forgiven longer ones, ...
const LONGEST_USUAL: Duration = Duration::from_secs(1);

/// ... or for the time of so many blocks at its rate, on a slow line that many share, ...
const BLOCKS: f64 = 2.0;

/// ... and for this much more: the time of other programs on both sides.
const LATE: Duration = Duration::from_millis(50);

/// Who sends nothing for so long pauses.
const PAUSE: Duration = Duration::from_millis(100);

/// What is waited for if nothing has come from the peer yet.
const FIRST_ANSWER: Duration = Duration::from_millis(700);

/// When a stalled peer that is asked for nothing counts as a newcomer again.
const FORGIVE: Duration = Duration::from_secs(60);

/// A block that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    block: Block,
    at: Timestamp,
    /// Bytes that had been delivered by then.
    delivered: u64,
    /// When that was asked for which came last before.
    began: Timestamp,
    /// It filled the window.
    filled: bool,
    /// It has hardly anything of ours in front of it.
    first: bool,
    /// It had been asked for before and taken back: what comes may be the answer to that.
    again: bool,
    /// Something was asked for behind it.
    pushed: bool,
}

/// How long ago the round trip was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Seen,
    /// So long that since this moment nothing more is asked for than it calls for.
    Aged(Timestamp),
    /// So long that next to nothing is.
    Unproven,
}

/// Requests outstanding at one peer and what is known of how it answers.
#[derive(Clone, Debug)]
pub struct RequestWindow {
    outstanding: VecDeque<Asked>,
    outstanding_bytes: u64,
    /// What was asked for and taken back last.
    taken_back: VecDeque<Block>,
    limit: usize,
    /// Blocks that rate and round trip call for.
    target: usize,
    /// Bytes a second while requests were outstanding.
    rate: f64,
    rtt: Option<Duration>,
    /// When the round trip was last seen to be about that short.
    rtt_seen: Timestamp,
    /// That is long ago, or longer.
    rtt_age: Age,
    /// Bytes of all blocks that came when they were outstanding.
    delivered: u64,
    /// When the last of these was asked for.
    delivered_asked: Timestamp,
    /// When the rate last fell.
    fell: Timestamp,
    last_progress: Timestamp,
    pauses: Pauses,
    /// Nobody else is asked for anything.
    alone: bool,
    /// Blocks that might be asked for at once, and when.
    credit: f64,
    credit_at: Timestamp,
    stalled: bool,
}

impl Default for RequestWindow {
    fn default() -> Self {
        Self {
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            taken_back: VecDeque::new(),
            limit: UNTOLD,
            target: START,
            rate: 0.0,
            rtt: None,
            rtt_seen: Timestamp::ZERO,
            rtt_age: Age::Seen,
            delivered: 0,
            delivered_asked: Timestamp::ZERO,
            fell: Timestamp::ZERO,
            last_progress: Timestamp::ZERO,
            pauses: Pauses::default(),
            alone: false,
            credit: START as f64,
            credit_at: Timestamp::ZERO,
            stalled: false,
        }
    }
}

impl RequestWindow {
    /// The peer's `reqq`: more requests than that it drops (BEP 10).
    pub fn set_limit(&mut self, reqq: u32) {
        self.limit = (reqq as usize).clamp(1, MAX);
    }

    /// How many blocks may be outstanding now.
    pub fn size(&self) -> usize {
        if self.stalled { 1 } else { self.target.min(self.limit) }
    }

    /// Whether nobody else is asked for anything of this torrent. Then the line stands idle while this peer waits
    /// for what was lost to be sent again, unless it was asked for more. Where there are others they
    /// go on, unless they lose as much; longer windows of all make a queue that loses packets itself.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    /// What the window holds at most, in time.
    fn span(&self) -> Duration {
        let rtt = self.rtt.unwrap_or(ASSUMED_RTT);
        let held_up = match self.rtt_age {
            Age::Seen => self.pauses.held_up(self.alone, rtt),
            Age::Aged(_) | Age::Unproven => Duration::ZERO,
        };
        rtt.mul_f64(WINDOW) + held_up.max(SLACK)
    }

    /// The window that rate and round trip call for.
    fn aim(&self) -> usize {
        if self.rtt_age == Age::Unproven {
            return MIN;
        }
        let blocks = self.rate * self.span().as_secs_f64() / f64::from(BLOCK_LEN);
        (blocks.ceil() as usize).clamp(MIN, MAX)
    }

    /// Blocks that may still be asked for now.
    pub fn room(&self, now: Timestamp) -> usize {
        self.size().saturating_sub(self.outstanding.len()).min(self.credit(now) as usize)
    }

    /// Whether one more block may be asked for that a reader waits for: the window may be exceeded
    /// by a quarter for it, but never what the peer is willing to queue.
    pub fn has_room_for_readers(&self, now: Timestamp) -> bool {
        self.is_open_to_readers() && self.credit(now) >= 1.0
    }

    fn is_open_to_readers(&self) -> bool {
        self.outstanding.len() < (self.size() * 5 / 4 + 1).min(self.limit)
    }

    /// Blocks that may be asked for at once.
    fn credit(&self, now: Timestamp) -> f64 {
        let most = (self.rate * BURST.as_secs_f64() / f64::from(BLOCK_LEN)).max(MIN as f64);
        match self.outstanding.is_empty() || self.rate == 0.0 {
            true => most.max(START as f64),
            false => {
                (self.credit + self.pace() * now.since(self.credit_at).as_secs_f64()).min(most)
            }
        }
    }

    /// Blocks a second that may be asked for.
    fn pace(&self) -> f64 {
        self.rate * PACE / f64::from(BLOCK_LEN)
    }

    /// When a block may be asked for again, if none may now although the window is not full.
    pub fn paced_until(&self, now: Timestamp) -> Option<Timestamp> {
        let lacking = 1.0 - self.credit(now);
        let paced = lacking > 0.0 && self.is_open_to_readers();
        let wait = || Duration::try_from_secs_f64((1.0 + lacking) / self.pace()).ok();
        paced.then(wait).flatten().map(|wait| now + wait)
    }

    /// Blocks asked for and not answered, oldest first.
    pub fn outstanding(&self) -> impl Iterator<Item = Block> + '_ {
        self.outstanding.iter().map(|a| a.block)
    }

    /// Of the blocks asked for and not answered the last, and when it was asked for; nothing once it was `pushed`.
    pub fn unpushed(&self) -> Option<(Block, Timestamp)> {
        self.outstanding.back().filter(|last| !last.pushed).map(|last| (last.block, last.at))
    }

    /// The peer was asked for something behind all of them.
    pub fn pushed(&mut self) {
        self.outstanding.iter_mut().for_each(|asked| asked.pushed = true);
    }

    /// The shortest round trip seen.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// How many blocks are asked for and not answered.
    pub fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// How long `block` has been outstanding here.
    pub fn age_of(&self, block: Block, now: Timestamp) -> Option<Duration> {
        self.outstanding.iter().find(|a| a.block == block).map(|a| now.since(a.at))
    }

    /// When a block asked for now would probably be here.
    pub fn expected_delay(&self) -> Duration {
        let queued = (self.outstanding_bytes + u64::from(BLOCK_LEN)) as f64;
        let rate = match self.rate {
            _ if self.stalled => 1.0,
            0.0 => ASSUMED_RATE,
            rate => rate.max(SLOWEST),
        };
        self.rtt.unwrap_or(ASSUMED_RTT) + Duration::from_secs_f64((queued / rate).min(3_600.0))
    }

    /// Bytes a second that the peer delivers while asked.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether nothing has come for longer than this peer pauses otherwise, although something was asked for.
    pub fn is_silent(&self, now: Timestamp) -> bool {
        let silence = self.silence(now);
        if silence <= SILENT {
            return false;
        }
        let blocks = BLOCKS * f64::from(BLOCK_LEN) / self.rate.max(1.0);
        let blocks = Duration::from_secs_f64(blocks).min(MAX_STALL);
        let usual = self.usual_pause(now).max(SILENT).max(blocks);
        let wait = self.rtt.map_or(FIRST_ANSWER, |rtt| usual + rtt.mul_f64(WINDOW));
        silence > wait + LATE
    }

    /// How long the peer pauses again and again, and a little more; nothing if it does not.
    pub fn usual_pause(&self, now: Timestamp) -> Duration {
        self.pauses.usual(now).mul_f64(UNUSUAL).min(LONGEST_USUAL)
    }

    /// Whether nothing has come for a moment although something was asked for.
    pub fn is_pausing(&self, now: Timestamp) -> bool {
        self.silence(now) > PAUSE
    }

    /// How long nothing has come although something was asked for.
    fn silence(&self, now: Timestamp) -> Duration {
        if self.outstanding.is_empty() { Duration::ZERO } else { now.since(self.last_progress) }
    }

    /// `block` was asked for.
    pub fn sent(&mut self, block: Block, now: Timestamp) {
        if self.outstanding.is_empty() {
            self.pauses.skip(now.since(self.last_progress), self.delivered, now);
            self.last_progress = now;
            self.delivered_asked = now;
        }
        self.credit = self.credit(now) - 1.0;
        self.credit_at = now;
        let before = self.outstanding.len();
        self.outstanding.push_back(Asked {
            block,
            at: now,
            delivered: self.delivered,
            began: self.delivered_asked,
            filled: before + 1 >= self.size(),
            first: before <= MIN,
            again: self.taken_back.contains(&block),
            pushed: false,
        });
        self.outstanding_bytes += u64::from(block.length);
    }

    /// `block` arrived; false when it was not outstanding.
    pub fn arrived(&mut self, block: Block, now: Timestamp) -> bool {
        let Some(asked) = self.remove(block) else { return false };
        self.note_pause(asked.at, now);
        self.heard(now);
        self.delivered += u64::from(block.length);
        self.delivered_asked = self.delivered_asked.max(asked.at);
        if asked.again {
            return true;
        }
        let response = now.since(asked.at).max(RESOLUTION);
        self.note_round_trip(response, asked.first, now);
        let came = (self.delivered - asked.delivered) as f64;
        let sample = came / response.as_secs_f64();
        // What came at once after a lost packet had been asked for in a longer time.
        let asked_in = asked.at.since(asked.began);
        let lasting = came / response.max(asked_in).as_secs_f64();
        if lasting > self.rate {
            self.rate += (lasting - self.rate) * RISE;
            self.target = self.target.max(self.aim());
        } else if sample < self.rate && (asked.filled || response > self.span()) {
            // A window that was made small to see the round trip says nothing of the rate.
            let full = match self.rtt_age {
                Age::Seen => true,
                Age::Aged(_) => !self.alone,
                Age::Unproven => false,
            };
            if full {
                self.fall(sample, now);
            }
        }
        self.keep_to_average(now);
        true
    }

    /// A block that was asked for at `asked` might have come a round trip later.
    fn note_pause(&mut self, asked: Timestamp, now: Timestamp) {
        let Some(rtt) = self.rtt else { return };
        let pause = now.since(self.last_progress.max(asked + rtt));
        self.pauses.end(now.since(self.last_progress), pause, self.delivered, rtt, now);
    }

    /// What comes in bursts has no higher rate than it has on average.
    fn keep_to_average(&mut self, now: Timestamp) {
        let Some(rtt) = self.rtt else { return };
        let most = self.pauses.most(self.silence(now), self.delivered, rtt, now);
        if let Some(most) = most.filter(|most| *most < self.rate) {
            self.rate = most;
            self.target = self.aim();
        }
    }

    /// A longer round trip than before may be our own queue, unless there was none. When it was not seen for long,
    /// perhaps nothing is held up, and the way is longer: then there has to be none. The queue of others
    /// would not go away, and is not taken for a longer way.
    fn note_round_trip(&mut self, response: Duration, first: bool, now: Timestamp) {
        let aged = self.rtt.is_some() && now.since(self.rtt_seen) > RTT_AGES;
        if self.rtt.is_none_or(|rtt| response <= rtt || (first && aged)) {
            self.rtt = Some(response);
        }
        let rtt = self.rtt.unwrap_or_default();
        // What the window holds meanwhile, in time, before it is rounded up to whole blocks.
        let window = || rtt.mul_f64(WINDOW) + SLACK;
        if response <= if aged { window() } else { rtt }.mul_f64(SAME_RTT) {
            self.rtt_seen = now;
        }
        let aged = self.rtt.is_some() && now.since(self.rtt_seen) > RTT_AGES;
        let age = match (aged, self.rtt_age) {
            (false, _) => Age::Seen,
            (true, Age::Seen) => Age::Aged(now),
            (true, Age::Aged(since)) if self.alone && now.since(since) > RTT_UNPROVEN => {
                Age::Unproven
            }
            (true, age) => age,
        };
        if std::mem::replace(&mut self.rtt_age, age) != age {
            self.target = self.aim();
        }
    }

    /// Less came than the rate says, though enough had been asked for, or late.
    fn fall(&mut self, sample: f64, now: Timestamp) {
        let step = self.rtt.unwrap_or(ASSUMED_RTT).div_f64(2.0);
        let step = step.clamp(Duration::from_millis(5), Duration::from_millis(100));
        if now.since(self.fell) >= step {
            self.fell = now;
            self.rate += (sample - self.rate) * FALL;
            self.target = self.aim();
        }
    }

    /// Payload came, perhaps too late to be of use.
    pub fn heard(&mut self, now: Timestamp) {
        self.last_progress = now;
        self.stalled = false;
    }

    /// Another peer sent `block` first; false when it was not outstanding here. Who is silent when that happens
    /// counts as stalled: it would never come to a long silence, since what it owes is taken from it.
    pub fn beaten(&mut self, block: Block, now: Timestamp) -> bool {
        let silent = self.is_silent(now);
        let beaten = self.take_back(block).is_some();
        self.stalled |= beaten && silent;
        beaten
    }

    /// `block` will not come; false when it was not outstanding.
    pub fn withdrawn(&mut self, block: Block) -> bool {
        self.take_back(block).is_some()
    }

    /// Nothing outstanding will come.
    pub fn clear(&mut self) -> Vec<Block> {
        self.clear_if(|_| true)
    }

    /// Nothing of what is outstanding and satisfies `gone` will come.
    pub fn clear_if(&mut self, gone: impl Fn(Block) -> bool) -> Vec<Block> {
        let blocks: Vec<_> = self.outstanding().filter(|block| gone(*block)).collect();
        for block in &blocks {
            self.take_back(*block);
        }
        blocks
    }

    fn take_back(&mut self, block: Block) -> Option<Asked> {
        let asked = self.remove(block)?;
        self.taken_back.truncate(MAX - 1);
        self.taken_back.push_front(block);
        Some(asked)
    }

    fn remove(&mut self, block: Block) -> Option<Asked> {
        let at = self.outstanding.iter().position(|a| a.block == block)?;
        let asked = self.outstanding.remove(at)?;
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(u64::from(block.length));
        Some(asked)
    }

    /// Whether the peer has been silent for too long with requests outstanding, or again for as long. From then on
    /// it is asked for one block at a time, until one arrives; one that is asked for nothing is given another
    /// chance after a minute.
    pub fn check_stall(&mut self, now: Timestamp) -> bool {
        if self.outstanding.is_empty() && now.since(self.last_progress) > FORGIVE {
            self.stalled = false;
        }
        let patience = match self.stalled {
            true => MIN_STALL,
            false => (self.expected_delay() * 4).clamp(MIN_STALL, MAX_STALL),
        };
        let over = !self.outstanding.is_empty() && now.since(self.last_progress) > patience;
        if over {
            self.last_progress = now;
        }
        if over && !self.stalled {
            self.stalled = true;
            self.rate /= 2.0;
            if self.rate > 0.0 {
                self.target = self.aim();
            }
        }
        over
    }

    /// Takes back what has been outstanding for so long that the peer must have forgotten it, or
    /// keeps us waiting, though it may send other blocks all the while. And in a long pause what was asked
    /// for last, if that is far more than the peer's average calls for, unless a piece is `waited` for; not of who
    /// is stalled: what others would send was taken from it, and nobody would send the rest.
    pub fn take_overdue(&mut self, waited: &BTreeSet<PieceIndex>, now: Timestamp) -> Vec<Block> {
        let patience = match self.stalled {
            true => MAX_STALL,
            false => (self.expected_delay() * 4).clamp(MIN_OVERDUE, MAX_OVERDUE),
        };
        if !self.stalled {
            self.keep_to_average(now);
        }
        let overdue = |asked: &&Asked| now.since(asked.at) > patience;
        let late = self.outstanding.iter().take_while(overdue);
        let paused =
            !self.stalled && self.rtt.is_some_and(|rtt| Pauses::is_long(self.silence(now), rtt));
        let kept = if paused { 2 * self.size() } else { usize::MAX };
        let excess = self.outstanding.iter().skip(kept.max(late.clone().count()));
        let excess = excess.filter(|asked| !waited.contains(&asked.block.piece));
        let blocks: Vec<_> = late.chain(excess).map(|asked| asked.block).collect();
        for block in &blocks {
            self.take_back(*block);
        }
        blocks
    }

    /// The peer counts as stalled until something comes from it.
    pub fn stall(&mut self) {
        self.stalled = true;
    }

    /// Whether the peer counts as stalled.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }
}

#[cfg(test)]
mod tests;
