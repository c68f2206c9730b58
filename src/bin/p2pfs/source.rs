//! SOURCE: which torrent is meant, checked as far as that needs no network.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use anyhow::{Context, Result};
use clap::Args;
use p2pfs::engine::{Source, local, resolve};
use p2pfs::rpc::{ErrorKind, RpcError, Settings, SourceRequest};

use super::places;

/// What mount, seed and ls have in common.
#[derive(Debug, Args)]
pub struct Network {
    /// Peer to connect to, as HOST:PORT, repeatable
    #[arg(long = "peer", value_name = "ADDR")]
    pub peers: Vec<String>,
    /// Tracker to announce to, beside the torrent's own, repeatable; a torrent that is mounted or
    /// seeded already keeps those it has
    #[arg(long = "tracker", value_name = "URL", value_parser = tracker)]
    pub trackers: Vec<String>,
    #[command(flatten)]
    pub settings: Settings,
}

impl Network {
    /// Whether web servers are named to fetch it from, but nobody who has or knows peers.
    pub fn has_web_seeds_only(&self, source: &Source) -> bool {
        let (others, web_seeds) = match source {
            Source::Metainfo(torrent) => (!torrent.trackers.is_empty(), &torrent.web_seeds),
            Source::Magnet(magnet) => {
                (!magnet.trackers.is_empty() || !magnet.peers.is_empty(), &magnet.web_seeds)
            }
        };
        !others && self.peers.is_empty() && self.trackers.is_empty() && !web_seeds.is_empty()
    }

    /// The request for `source`, for the daemon, which has another folder than we have.
    pub fn request(&self, source: String, timeout: u64) -> Result<SourceRequest> {
        if let Some(message) = self.settings.contradiction() {
            return Err(RpcError::new(ErrorKind::Usage, message).into());
        }
        let mut peers = Vec::new();
        for peer in &self.peers {
            peers.extend(addresses(peer)?);
        }
        let mut settings = self.settings.clone();
        if let Some(dir) = &mut settings.data_dir {
            dir.0 = places::absolute(dir)?;
        }
        let use_data = None;
        let trackers = self.trackers.clone();
        Ok(SourceRequest { source, peers, trackers, timeout, settings, use_data })
    }
}

/// The URL of a tracker, as it is.
pub fn tracker(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "udp") && url.has_host() => {
            Ok(text.into())
        }
        _ => Err("an http, https or udp URL is needed".into()),
    }
}

/// The addresses of a peer.
fn addresses(peer: &str) -> Result<Vec<SocketAddr>> {
    let usage = |what: &str| RpcError::new(ErrorKind::Usage, format_args!("--peer {peer}: {what}"));
    let named = peer
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<NonZeroU16>().is_ok());
    if !named {
        return Err(usage("not HOST:PORT; an IPv6 address is written [ADDRESS]:PORT").into());
    }
    let found = peer.to_socket_addrs();
    Ok(found.map_err(|error| usage(&format!("cannot be found: {error}")))?.collect())
}

/// The source as the daemon understands it, refused now if it makes no sense, and what it is if
/// that is known without asking the network.
pub async fn check(source: &str) -> Result<(String, Option<Source>)> {
    let source = &*local(source)?;
    let begins = |scheme: &str| {
        source.trim_start().get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme))
    };
    if begins("http://") || begins("https://") {
        return Ok((source.to_owned(), None));
    }
    let resolved = resolve(source).await?;
    let text = match resolved {
        Source::Magnet(_) => source.to_owned(),
        Source::Metainfo(_) => {
            let path = places::absolute(source.as_ref())?.into_os_string().into_string();
            path.ok().with_context(|| format!("{source}: its folder's name is not UTF-8"))?
        }
    };
    Ok((text, Some(resolved)))
}
