//! How fast blocks are delivered, by one peer or by all together.
//!
//! The rate is sampled as TCP BBR does (draft-cheng-iccrg-delivery-rate-estimation): what arrived
//! between the request for a block and its arrival, by that time or by the time in which all that
//! was asked for, whichever is longer. So blocks that come in a bunch, since a lost packet held them
//! up, say no more than if they had come one by one.

use std::cmp::Ordering;
use std::time::Duration;

use crate::proto::time::Timestamp;

/// How much a higher sample of the rate counts. Each is an average over a round trip already.
const RISE: f64 = 0.25;

/// How much a lower one counts, of which there is at most one in half a round trip: all that comes
/// in a burst after a pause tells of the same pause.
const FALL: f64 = 0.2;

/// What arrives sooner counts as if it took this long: clocks have a resolution.
const RESOLUTION: Duration = Duration::from_micros(1);

/// Half a round trip counts as this long at least.
const MIN_STEP: Duration = Duration::from_millis(5);

/// The same, at most.
const MAX_STEP: Duration = Duration::from_millis(100);

/// What to remember of the moment when a block is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    at: Timestamp,
    /// Bytes that had been delivered by then.
    delivered: u64,
    /// When the newest of the blocks that had been delivered was asked for.
    newest: Timestamp,
}

/// A block that came.
#[derive(Clone, Copy, Debug)]
pub struct Response {
    /// Its length in bytes.
    pub bytes: u64,
    /// The round trip of its peer.
    pub rtt: Duration,
    /// So much was asked for, or it took so long, that a lower rate than before means something.
    pub telling: bool,
}

/// What was delivered, and how fast.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// Bytes of all blocks that came when they were outstanding.
    delivered: u64,
    /// When the newest of them was asked for.
    newest: Timestamp,
    /// Bytes a second while requests were outstanding.
    rate: f64,
    /// When the rate last fell.
    fell: Timestamp,
}

impl Delivery {
    /// A block is asked for. If nothing else is outstanding, what was before says nothing.
    pub fn mark(&self, alone: bool, now: Timestamp) -> Mark {
        let newest = if alone { now } else { self.newest };
        Mark { at: now, delivered: self.delivered, newest }
    }

    /// Bytes a second while requests were outstanding.
    pub const fn rate(&self) -> f64 {
        self.rate
    }

    /// A block came that was asked for at `asked`. Whether the rate rose or fell.
    pub fn came(&mut self, block: Response, asked: Mark, now: Timestamp) -> Ordering {
        self.delivered += block.bytes;
        self.newest = self.newest.max(asked.at);
        let time = now.since(asked.at).max(asked.at.since(asked.newest)).max(RESOLUTION);
        let sample = self.delivered.saturating_sub(asked.delivered) as f64 / time.as_secs_f64();
        if sample > self.rate {
            self.rate += (sample - self.rate) * RISE;
            return Ordering::Greater;
        }
        let step = block.rtt.div_f64(2.0).clamp(MIN_STEP, MAX_STEP);
        if block.telling && now.since(self.fell) >= step {
            self.fell = now;
            self.rate += (sample - self.rate) * FALL;
            return Ordering::Less;
        }
        Ordering::Equal
    }

    /// Nothing comes any more.
    pub fn halve(&mut self) {
        self.rate /= 2.0;
    }
}
