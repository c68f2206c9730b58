//! Rate limits that change while the daemon runs.

use std::path::Path;

use p2pfs::engine::{RateLimits, Torrent};
use p2pfs::rpc::{Config, Response, RpcError, Settings};

use crate::daemon::{Daemon, Events};
use crate::telemetry::Log;

/// `limits` with what is asked for, where 0 takes a limit away.
fn changed(limits: RateLimits, up: Option<u64>, down: Option<u64>) -> RateLimits {
    let new = |old, asked: Option<u64>| match asked {
        None => old,
        Some(rate) => Some(rate).filter(|rate| *rate > 0),
    };
    RateLimits { up: new(limits.up, up), down: new(limits.down, down) }
}

impl Daemon {
    /// Changes the limits of one torrent, or of all together, and tells what they are then.
    pub async fn limit(
        &self,
        path: Option<&Path>,
        (up, down): (Option<u64>, Option<u64>),
        events: &Events,
    ) -> Result<(), RpcError> {
        let torrent = path.map(|path| self.torrent_at(path)).transpose()?;
        let limits = torrent.as_ref().map_or_else(|| self.limits(), Torrent::limits);
        let limits = changed(limits, up, down);
        match &torrent {
            Some(torrent) => torrent.set_limits(limits),
            None => self.set_limits(limits),
        }
        let _ = events.send(Response::Limits(limits)).await;
        Ok(())
    }

    /// Reads the limits of the file of settings, and what is logged, anew; `flags` win over it. A file that
    /// makes no sense changes nothing.
    pub fn reload(&self, file: Option<&Path>, flags: &Settings, log: &Log) {
        match Config::load(file).and_then(|config| config.settings()) {
            Ok(settings) => {
                log.set(flags, &settings);
                let limits = flags.clone().or_file(settings).limits();
                tracing::info!(?limits, "the limits were read anew");
                self.set_limits(limits);
            }
            Err(error) => tracing::error!("nothing was read anew: {error}"),
        }
    }

    /// The torrent that is mounted or seeded at `path`.
    pub fn torrent_at(&self, path: &Path) -> Result<Torrent, RpcError> {
        match self.mounts.torrent_at(path) {
            Err(error) => self.seeds.torrent_at(path).ok_or(error),
            Ok((_, torrent)) => Ok(torrent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_stays_and_nothing_is_no_limit() {
        let limits = RateLimits { up: Some(1), down: Some(2) };
        assert_eq!(changed(limits, None, Some(5)), RateLimits { up: Some(1), down: Some(5) });
        assert_eq!(changed(limits, Some(0), None), RateLimits { up: None, down: Some(2) });
    }
}
