//! The one clock of a session, from which the machines get their time.

use std::time::Instant;

use crate::proto::time::Timestamp;

/// Turns the monotonic clock into [`Timestamp`]s since the session began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }

    pub(super) fn instant(self, at: Timestamp) -> tokio::time::Instant {
        (self.0 + at.since(Timestamp::ZERO).min(std::time::Duration::from_secs(86_400 * 365)))
            .into()
    }
}
