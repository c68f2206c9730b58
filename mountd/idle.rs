//! When a daemon that was started for others may leave.

use std::time::Duration;

use tokio::sync::watch;

/// How long a daemon that clients started stays after its last mount or seed.
const AFTER_USE: Duration = Duration::from_secs(60);
/// How long it waits for its first request.
const BEFORE_USE: Duration = Duration::from_secs(10);

/// How long a daemon stays without anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linger {
    /// Not at all once it had something: it runs in the foreground for that.
    Not,
    /// A minute: a client started it, and another may need it soon.
    Minute,
    /// Until it is told to stop.
    Forever,
}

/// What keeps the daemon here.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Mounts, seeds and connections that live now, and torrents that are ending.
    now: usize,
    /// Whether a request has ended.
    asked: bool,
    /// Whether a mount or seed came to be.
    used: bool,
}

/// Counts what keeps the daemon here; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Activity(watch::Sender<Count>);

/// Something that keeps the daemon here until it is dropped.
pub struct Busy {
    counter: watch::Sender<Count>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.counter.send_modify(|count| {
            count.now -= 1;
            count.asked = true;
        });
    }
}

impl Activity {
    /// A connection that is being served, or a torrent that is ending.
    pub fn request(&self) -> Busy {
        self.0.send_modify(|count| count.now += 1);
        Busy { counter: self.0.clone() }
    }

    /// A mount or seed.
    pub fn share(&self) -> Busy {
        self.0.send_modify(|count| count.used = true);
        self.request()
    }

    /// Whether one request is all there is.
    pub fn is_alone(&self) -> bool {
        self.0.borrow().now == 1
    }

    /// Completes when there is nothing to do and has not been for as long as `linger` says. A daemon
    /// whose requests have all failed leaves at once.
    pub async fn idle(&self, linger: Linger) {
        let mut counts = self.0.subscribe();
        loop {
            let Ok(count) = counts.wait_for(|count| count.now == 0).await.map(|count| *count)
            else {
                return;
            };
            let stay = stay(linger, count);
            tokio::select! {
                () = tokio::time::sleep(stay) => return,
                _ = counts.wait_for(|count| count.now > 0) => {}
            }
        }
    }
}

/// How long to stay when there is nothing to do.
fn stay(linger: Linger, count: Count) -> Duration {
    match (linger, count) {
        (Linger::Forever, _) | (Linger::Not, Count { used: false, .. }) => Duration::MAX,
        (Linger::Not, _) => Duration::ZERO,
        (Linger::Minute, Count { used: true, .. }) => AFTER_USE,
        (Linger::Minute, Count { asked: false, .. }) => BEFORE_USE,
        (Linger::Minute, _) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the daemon stays after `before`.
    fn stays(linger: Linger, before: impl FnOnce(&Activity)) -> Duration {
        let activity = Activity::default();
        before(&activity);
        stay(linger, *activity.0.borrow())
    }

    #[test]
    fn after_a_mount_it_stays_a_minute() {
        assert_eq!(stays(Linger::Minute, |activity| drop(activity.share())), AFTER_USE);
    }

    #[test]
    fn after_requests_that_failed_it_leaves_at_once() {
        assert_eq!(stays(Linger::Minute, |activity| drop(activity.request())), Duration::ZERO);
    }

    #[test]
    fn in_the_foreground_it_leaves_with_its_mount() {
        assert_eq!(stays(Linger::Not, |activity| drop(activity.share())), Duration::ZERO);
    }

    #[test]
    fn it_waits_for_the_client_that_started_it() {
        assert_eq!(stays(Linger::Minute, |_| ()), BEFORE_USE);
    }

    #[test]
    fn started_by_hand_it_stays() {
        assert_eq!(stays(Linger::Forever, |activity| drop(activity.share())), Duration::MAX);
    }
}
