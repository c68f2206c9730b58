//! What all mounts of a daemon share, as flags.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{WirePath, size};
use crate::engine::RateLimits;

/// What a daemon has one of, so that a second mount cannot choose it anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Settings {
    /// Port for incoming peers (default: one that is free)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Address to listen on, repeatable (default: all, IPv4 and IPv6)
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<IpAddr>,
    /// Folder of the cache (default: ~/.cache/p2pfs, /var/cache/p2pfs for root)
    #[arg(long, value_name = "DIR", alias = "cache")]
    pub data_dir: Option<WirePath>,
    /// Most bytes that the cache takes, on disk (K, M, G, T may follow), or N% of its disk: what was read
    /// least recently is let go then, and fetched again when it is read (default: no limit)
    #[arg(long, value_name = "SIZE", value_parser = size::parse_cache_size)]
    #[serde(default)]
    pub cache_size: Option<size::Amount>,
    /// Bytes that the cache leaves free on its disk (K, M, G, T may follow)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    #[serde(default)]
    pub cache_free: Option<u64>,
    /// Most bytes a second to send (K, M, G may follow)
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    pub upload_limit: Option<u64>,
    /// Most bytes a second to receive (K, M, G may follow)
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    pub download_limit: Option<u64>,
    /// Do not look for peers on the local network, nor be found there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_lsd: Option<bool>,
    /// Neither tell peers of other peers nor listen to them about that (BEP 11)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_pex: Option<bool>,
    /// Do not look for peers in the DHT, nor be found there (BEP 5)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_dht: Option<bool>,
    /// DHT node to begin with, repeatable (default: the public ones; with nothing but loopback
    /// addresses to listen on, none)
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_node)]
    pub dht_bootstrap: Vec<String>,
    /// Address at which Prometheus may ask, such as 127.0.0.1:9469; who reaches it learns what is mounted,
    /// if it asks by address or as localhost, not by another name
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// What the daemon logs: error, warn, info, debug, trace or off, or different things of its parts, such
    /// as warn,p2pfs::engine=debug (default: warn)
    #[arg(long, value_name = "LEVEL", value_parser = parse_log)]
    #[serde(default)]
    pub log: Option<String>,
}

impl Settings {
    /// What is said in either of two places; this one wins.
    pub fn or(self, other: Self) -> Self {
        let Self { listen, dht_bootstrap, .. } = self;
        Self {
            port: self.port.or(other.port),
            listen: if listen.is_empty() { other.listen } else { listen },
            data_dir: self.data_dir.or(other.data_dir),
            cache_size: self.cache_size.or(other.cache_size),
            cache_free: self.cache_free.or(other.cache_free),
            upload_limit: self.upload_limit.or(other.upload_limit),
            download_limit: self.download_limit.or(other.download_limit),
            metrics: self.metrics.or(other.metrics),
            log: self.log.or(other.log),
            no_lsd: self.no_lsd.or(other.no_lsd),
            no_pex: self.no_pex.or(other.no_pex),
            no_dht: self.no_dht.or(other.no_dht),
            dht_bootstrap: if dht_bootstrap.is_empty() {
                other.dht_bootstrap
            } else {
                dht_bootstrap
            },
        }
    }

    /// The same with what a file says, of which what contradicts a flag does not count.
    pub fn or_file(self, mut file: Self) -> Self {
        if !self.dht_bootstrap.is_empty() {
            file.no_dht = None;
        }
        if self.no_dht == Some(true) {
            file.dht_bootstrap.clear();
        }
        self.or(file)
    }

    /// What is wrong with them taken together.
    pub fn contradiction(&self) -> Option<&'static str> {
        (self.no_dht == Some(true) && !self.dht_bootstrap.is_empty()).then_some(
            "--dht-bootstrap says where the DHT begins, and --no-dht that there is none: leave one \
             away",
        )
    }

    /// The rate limits among them.
    pub fn limits(&self) -> RateLimits {
        RateLimits { up: self.upload_limit, down: self.download_limit }
    }
}

/// A host, which may be a name, and a port, as `host:port` or `[v6]:port`.
pub fn parse_node(text: &str) -> Result<String, String> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let v6 = host.starts_with('[') && host.ends_with(']');
        let named = !host.is_empty() && (v6 || !host.contains([':', '[', ']', '/']));
        named && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    match good {
        true => Ok(text.to_owned()),
        false => Err("HOST:PORT is needed, such as router.bittorrent.com:6881".into()),
    }
}

/// What is to be logged, as tracing's `EnvFilter` has it. A word alone is a level there or else the
/// name of a part, of which nothing would be seen where it is a mistake: here it is a level.
pub fn parse_log(text: &str) -> Result<String, String> {
    let level = |text: &str| {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        levels.iter().any(|level| level.eq_ignore_ascii_case(text))
    };
    let good = |part: &str| match part.rsplit_once('=') {
        Some((name, its)) => !name.is_empty() && level(its),
        None => level(part),
    };
    let known = tracing_subscriber::EnvFilter::try_new(text).is_ok();
    match known && text.split(',').all(good) {
        true => Ok(text.to_owned()),
        false => Err("off, error, warn, info, debug or trace is needed, or such a list as \
                      warn,p2pfs::engine=debug"
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_host_and_a_port() {
        for good in ["router.example:6881", "192.0.2.1:1", "[2001:db8::1]:6881"] {
            assert_eq!(parse_node(good).as_deref(), Ok(good));
        }
        for bad in ["router.example", ":6881", "a:0", "a:65536", "2001:db8::1", "http://a:1", ""] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_log_has_levels() {
        for good in ["debug", "WARN", "warn,p2pfs::engine=debug", "off,p2pfs_mountd=trace"] {
            assert!(parse_log(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "p2pfs::engine", "=debug", "warn,", "p2pfs=5x"] {
            assert!(parse_log(bad).is_err(), "{bad}");
        }
    }
}
