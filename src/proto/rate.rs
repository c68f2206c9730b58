//! Rates: a measured one and an allowed one.

use std::time::Duration;

use super::time::Timestamp;

/// What may be spent and is earned again with time.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    left: f64,
    earned: Timestamp,
}

impl Tokens {
    /// So much may be spent at once.
    pub const fn new(left: f64, now: Timestamp) -> Self {
        Self { left, earned: now }
    }

    /// What may be spent now, when `per_second` was earned since the last call, up to `most`;
    /// negative in debt.
    pub fn earn(&mut self, per_second: f64, most: f64, now: Timestamp) -> f64 {
        let earned = now.since(self.earned).as_secs_f64() * per_second;
        self.earned = self.earned.max(now);
        self.left = (self.left + earned).min(most);
        self.left
    }

    /// Spends, on credit if need be.
    pub fn spend(&mut self, tokens: f64) {
        self.left -= tokens;
    }
}

/// A token bucket with explicit time: allows `rate` bytes a second with bursts of a quarter second
/// (at least 64 KiB, so that a block always fits).
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: f64,
    tokens: Tokens,
}

impl TokenBucket {
    /// A full bucket that allows `rate` bytes a second; 0 is taken as 1.
    pub fn new(rate: u64, now: Timestamp) -> Self {
        let rate = rate.max(1) as f64;
        Self { rate, tokens: Tokens::new(Self::burst(rate), now) }
    }

    fn burst(rate: f64) -> f64 {
        (rate / 4.0).max(65_536.0)
    }

    /// Takes `bytes` and returns how long the caller must wait before it uses them: the bucket may
    /// go into debt, so large requests are delayed and never starved.
    pub fn take(&mut self, bytes: u64, now: Timestamp) -> Duration {
        let left = self.tokens.earn(self.rate, Self::burst(self.rate), now) - bytes as f64;
        self.tokens.spend(bytes as f64);
        Duration::from_secs_f64((-left / self.rate).max(0.0))
    }
}

/// A rate measured as an exponentially weighted average.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    per_second: f64,
    pending: u64,
    since: Timestamp,
    /// When something was last counted.
    last: Timestamp,
    total: u64,
}

/// The time constant of [`Rate`]: old enough to be steady, young enough to follow a change within
/// a choke round (10 s).
const RATE_TAU: f64 = 4.0;

/// How often [`Rate`] folds what it counted into the average.
const RATE_STEP: Duration = Duration::from_millis(250);

/// When nothing was counted for so long, there is no rate any more: less than a hundredth is left, and whoever
/// watches it until it is nothing would do so for a minute.
const RATE_OVER: Duration = Duration::from_secs(20);

/// Less than this, in bytes a second, is nothing.
const NOTHING: f64 = 1.0;

impl Rate {
    /// Counts `bytes` at `now`.
    pub fn add(&mut self, bytes: u64, now: Timestamp) {
        self.total += bytes;
        self.fold(now);
        self.pending += bytes;
        if bytes > 0 {
            self.last = now;
        }
    }

    /// Bytes a second at `now`.
    pub fn per_second(&mut self, now: Timestamp) -> f64 {
        self.fold(now);
        self.per_second
    }

    /// All bytes ever counted.
    pub const fn total(&self) -> u64 {
        self.total
    }

    fn fold(&mut self, now: Timestamp) {
        let elapsed = now.since(self.since);
        if elapsed < RATE_STEP {
            return;
        }
        self.since = now;
        let is_over = self.per_second < NOTHING || now.since(self.last) >= RATE_OVER;
        if self.pending == 0 && is_over {
            self.per_second = 0.0;
            return;
        }
        let secs = elapsed.as_secs_f64();
        let keep = (-secs / RATE_TAU).exp();
        self.per_second = self.per_second * keep + (self.pending as f64 / secs) * (1.0 - keep);
        self.pending = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let mut bucket = TokenBucket::new(1_000_000, at(0));
        let (mut now, mut sent) = (at(0), 0u64);
        while now < at(10_000) {
            let wait = bucket.take(16_384, now);
            now = now + wait;
            sent += 16_384;
        }
        assert!((10_000_000..10_400_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_steady_stream_is_measured_as_its_rate() {
        let mut rate = Rate::default();
        for ms in (0..30_000).step_by(10) {
            rate.add(1_000, at(ms));
        }
        let measured = rate.per_second(at(30_000));
        assert!((95_000.0..105_000.0).contains(&measured), "{measured}");
        assert!(rate.per_second(at(45_000)) > 0.0);
        assert_eq!(rate.per_second(at(50_250)), 0.0);
    }
}
