//! The pauses of a peer that owes us something.
//!
//! Whoever limits its own uploads often lets a bucket fill for half a second, and empties it at the speed
//! of the line. What comes in such a burst says nothing of the rate; what comes from the end of one
//! pause to the end of the next does. And on a line that loses packets all waits for a round trip behind
//! each that was lost: these pauses are short, and a peer that is to go on sending meanwhile
//! must have been asked for more.

use std::time::Duration;

use crate::proto::time::Timestamp;

/// A pause of more round trips is not the line's but the peer's own: packets lost twice take less.
const LONG: u32 = 6;

/// And this much more, for scheduling hiccups on both sides.
const HICCUP: Duration = Duration::from_millis(20);

/// A loss is taken to hold everything up for so many round trips at most: what is sent again may be lost again.
const HELD_UP: f64 = 4.0;

/// The longest pause is forgotten in this time.
const FADE: Duration = Duration::from_secs(5);

/// Pauses that take this share of the time are not the sender's search for its rate but losses.
const FREQUENT: f64 = 0.25;

/// The same where others send too: if they all pause as often as not, the line stands idle as well.
const MOSTLY: f64 = 0.5;

/// Over about so long.
const LATELY: Duration = Duration::from_secs(4);

/// Without long pauses an average is over so long.
const SPAN: Duration = Duration::from_secs(2);

/// A rate may be so many times the average.
const HEADROOM: f64 = 2.0;

/// Shorter ones are none that a peer has again and again, ...
const SHORT: Duration = Duration::from_millis(300);

/// ... and so many are remembered, ...
const RECENT: usize = 8;

/// ... for so long: what happens twice a day is not usual.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Where an average begins.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at: Timestamp,
    /// Bytes that had been delivered by then.
    delivered: u64,
}

/// What is known of the pauses of one peer.
#[derive(Clone, Debug)]
pub(super) struct Pauses {
    /// The longest lately of those that are not long, less what has faded.
    longest: Duration,
    /// The share of the time that those take.
    share: f64,
    /// The last that were not short, and when they ended, in a ring.
    recent: [(Timestamp, Duration); RECENT],
    next: usize,
    /// The ends of the last two long pauses, or later moments if there was none for a while.
    marks: [Mark; 2],
    /// A long pause ended at the last mark.
    bursts: bool,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            longest: Duration::ZERO,
            share: 0.0,
            recent: [(Timestamp::ZERO, Duration::ZERO); RECENT],
            next: 0,
            marks: [Mark::default(); 2],
            bursts: false,
        }
    }
}

impl Pauses {
    /// The longest pause that is nothing unusual: the longest but one lately of those that were not short.
    pub(super) fn usual(&self, now: Timestamp) -> Duration {
        let lately = self.recent.iter().filter(|(end, _)| now.since(*end) < REMEMBERED);
        let longest_two = lately.fold([Duration::ZERO; 2], |[first, second], &(_, pause)| {
            [first.max(pause), second.max(first.min(pause))]
        });
        longest_two[1]
    }

    /// For how long more to ask for, since what is lost holds everything up again and again; the peer is `alone` or not.
    /// What is lost comes again after a round trip at the soonest. Catching up takes as long as it was held
    /// up, and meanwhile the same may happen again: where nobody else sends the line would stand idle then.
    pub(super) fn held_up(&self, alone: bool, rtt: Duration) -> Duration {
        let once = self.longest.min(rtt.mul_f64(HELD_UP));
        match alone {
            true if self.share > FREQUENT => once.max(rtt) * 2,
            false if self.share > MOSTLY => once,
            _ => Duration::ZERO,
        }
    }

    /// Nothing was outstanding for `idle`, which is no pause; an average over requests that are few and far
    /// between says nothing.
    pub(super) fn skip(&mut self, idle: Duration, delivered: u64, now: Timestamp) {
        if idle > HICCUP {
            self.marks = [Mark { at: now, delivered }; 2];
            self.bursts = false;
        }
    }

    /// Something came, for the first time in `silence`, and it might have come `pause` earlier. Before it
    /// `delivered` bytes had been.
    pub(super) fn end(
        &mut self,
        silence: Duration,
        pause: Duration,
        delivered: u64,
        rtt: Duration,
        now: Timestamp,
    ) {
        let part = |of: Duration| (silence.as_secs_f64() / of.as_secs_f64()).min(1.0);
        if pause > SHORT {
            self.recent[self.next] = (now, pause);
            self.next = (self.next + 1) % RECENT;
        }
        let long = Self::is_long(pause, rtt);
        let held_up = if long { Duration::ZERO } else { pause };
        self.longest = held_up.max(self.longest.mul_f64(1.0 - part(FADE)));
        let share = if held_up > HICCUP { part(LATELY) } else { 0.0 };
        self.share = self.share * (1.0 - part(LATELY)) + share;
        if long || now.since(self.marks[1].at) > SPAN {
            let from = if long { self.cycle_began() } else { self.marks[1] };
            self.marks = [from, Mark { at: now, delivered }];
            self.bursts = long;
        }
    }

    /// Where an average begins that ends with a pause: it must not be of that pause alone.
    fn cycle_began(&self) -> Mark {
        let [first, last] = self.marks;
        if self.bursts { last } else { first }
    }

    /// Whether nothing has come for so long that it is a long pause.
    pub(super) fn is_long(silence: Duration, rtt: Duration) -> bool {
        silence > rtt * LONG + HICCUP
    }

    /// Bytes a second that the peer can have, if it sends in bursts. `delivered` were, and nothing for `silence`.
    pub(super) fn most(
        &self,
        silence: Duration,
        delivered: u64,
        rtt: Duration,
        now: Timestamp,
    ) -> Option<f64> {
        let (from, to) = match Self::is_long(silence, rtt) {
            true => (self.cycle_began(), Mark { at: now, delivered }),
            false if self.bursts => (self.marks[0], self.marks[1]),
            false => return None,
        };
        let (bytes, time) = (to.delivered.saturating_sub(from.delivered), to.at.since(from.at));
        (bytes > 0 && !time.is_zero()).then(|| bytes as f64 / time.as_secs_f64() * HEADROOM)
    }
}
