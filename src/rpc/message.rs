//! What client and daemon say to each other.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::WirePath;
use super::cache::{CacheRequest, CachedTorrent, CheckedTorrent};
use super::dht::DhtStatus;
use super::size;
use super::view::TorrentView;
use crate::engine::{RateLimits, TorrentStatus};
use crate::proto::seeding::{SeedUntil, ShareRatio};

/// The daemon's greeting, its first message on each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::VERSION`] of the daemon.
    pub version: u32,
    /// The daemon's process id.
    pub pid: u32,
}

/// The client's one message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// [`super::VERSION`] of the client.
    pub version: u32,
    /// What it asks for.
    pub request: Request,
}

/// What a client may ask for. Folders and paths are absolute, without symbolic links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Mount a torrent. Sends [`Progress`] while the metadata is fetched.
    Mount(Box<MountRequest>),
    /// Add a torrent to a mount of folders.
    Add {
        /// The torrent.
        source: Box<SourceRequest>,
        /// Where the mount is.
        dir: WirePath,
    },
    /// Take a folder out of a mount of folders.
    Remove {
        /// Where the mount is.
        dir: WirePath,
        /// The folder's name.
        name: WirePath,
        /// Even if files of it are open.
        force: bool,
    },
    /// Check data and serve it in place. Sends [`Progress`].
    Seed(Box<SeedRequest>),
    /// List a torrent's files. Sends [`Progress`], then [`Response::Files`].
    List(Box<SourceRequest>),
    /// End a mount.
    Umount {
        /// Where it is.
        dir: WirePath,
        /// What to do when it is in use.
        how: Unmounting,
    },
    /// End all waiting reads of a mount with an I/O error.
    Abort {
        /// Where it is.
        dir: WirePath,
    },
    /// Describe one mount or seed, or all of them. Sends [`Response::Share`] for each; or
    /// [`Response::Part`] for a file or folder in a mount.
    Status {
        /// The mount's folder, the seed's data, or a path in a mount; all when absent.
        path: Option<WirePath>,
    },
    /// Describe one mount or seed in detail. Sends [`Response::View`].
    View {
        /// The mount's folder, a folder in it that has a torrent, or the seed's data.
        path: WirePath,
        /// How many cells the map of pieces is to have at most.
        cells: u32,
    },
    /// Wait until all that was selected is verified. Sends [`Progress`].
    Wait {
        /// Where the mount is.
        dir: WirePath,
    },
    /// Fetch a file or folder of a mount now.
    Prefetch {
        /// Its path, which lies in a mount.
        path: WirePath,
    },
    /// Change rate limits. Sends [`Response::Limits`] as they are then.
    Limit {
        /// The mount's folder or the seed's data; all torrents together when absent.
        path: Option<WirePath>,
        /// Most bytes to send a second, 0 for as many as can be; unchanged when absent.
        up: Option<u64>,
        /// The same to receive.
        down: Option<u64>,
    },
    /// Keep a file or folder of a mount in the cache, or no longer.
    Pin {
        /// Its path, which lies in a mount.
        path: WirePath,
        /// Whether to keep it.
        pin: bool,
    },
    /// Look after the daemon's cache.
    Cache {
        /// Which cache is meant.
        dir: WirePath,
        /// What to do.
        what: CacheRequest,
    },
    /// Stop seeding.
    Stop {
        /// The path of the data, or the info hash.
        what: WirePath,
    },
    /// Describe the daemon's node of the DHT. Sends [`Response::Dht`] if there is one.
    Dht,
    /// End all mounts and seeds, and the daemon.
    Shutdown,
}

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
    #[arg(long)]
    pub no_lsd: bool,
    /// Neither tell peers of other peers nor listen to them about that (BEP 11)
    #[arg(long)]
    pub no_pex: bool,
    /// Do not look for peers in the DHT, nor be found there (BEP 5)
    #[arg(long, conflicts_with = "dht_bootstrap")]
    pub no_dht: bool,
    /// DHT node to begin with, repeatable (default: the public ones; with nothing but loopback
    /// addresses to listen on, none)
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_node)]
    pub dht_bootstrap: Vec<String>,
    /// Address at which Prometheus may ask, such as 127.0.0.1:9469; who reaches it learns what is mounted
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
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
            no_lsd: self.no_lsd || other.no_lsd,
            no_pex: self.no_pex || other.no_pex,
            no_dht: self.no_dht || other.no_dht,
            dht_bootstrap: if dht_bootstrap.is_empty() {
                other.dht_bootstrap
            } else {
                dht_bootstrap
            },
        }
    }

    /// The same with what a file says, of which what contradicts a flag does not count.
    pub fn or_file(self, mut file: Self) -> Self {
        file.no_dht &= self.dht_bootstrap.is_empty();
        if self.no_dht {
            file.dht_bootstrap.clear();
        }
        self.or(file)
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

/// Which torrent, and how to find its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRequest {
    /// Magnet link, absolute path of a .torrent file, http(s) URL of one, or info hash.
    pub source: String,
    /// Peers to start with.
    pub peers: Vec<SocketAddr>,
    /// Trackers to ask beside the torrent's own.
    pub trackers: Vec<String>,
    /// Seconds to wait for the metadata.
    pub timeout: u64,
    /// What the daemon must have been started with.
    pub settings: Settings,
}

/// A mount that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The torrents: one, or several with a folder each.
    pub sources: Vec<SourceRequest>,
    /// Make a folder even of one.
    pub folders: bool,
    /// The folder to mount it on.
    pub dir: WirePath,
    /// Fetch only what is read.
    pub on_demand: bool,
    /// Unmount when all that was selected is verified.
    pub until_done: bool,
    /// Unmount when all that was selected is verified and this rule is met.
    pub seed_until: Option<SeedUntil>,
    /// Copy the finished files here before that, as soon as they are verified.
    pub keep: Option<WirePath>,
    /// Globs of the files to fetch; empty for all.
    pub select: Vec<String>,
    /// Seconds after which a waiting read fails.
    pub read_timeout: Option<u64>,
    /// Give nothing to others.
    pub no_seed: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Owner of the files.
    pub uid: Option<u32>,
    /// Group of the files.
    pub gid: Option<u32>,
    /// Permission bits that the files shall not have.
    pub umask: Option<u32>,
    /// Options of mount(8), each of them several separated by commas.
    pub options: Vec<String>,
}

/// A seed that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedRequest {
    /// The torrent.
    pub source: SourceRequest,
    /// The file or folder it describes.
    pub data: WirePath,
    /// Stop when this rule is met.
    pub seed_until: Option<SeedUntil>,
}

/// What an unmount does when the mount is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmounting {
    /// Refuse.
    #[default]
    Clean,
    /// End waiting reads and cut off whoever uses it.
    Force,
    /// Detach it now; it ends when nobody uses it any more.
    Lazy,
}

/// What the daemon says; the last message is `Done` or `Error`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// How far it is.
    Progress(Progress),
    /// Some of the files of a torrent, in its order.
    Files(Vec<ListedFile>),
    /// One mount or seed.
    Share(Box<ShareStatus>),
    /// One mount or seed in detail.
    View(Box<TorrentView>),
    /// What of a file or folder is here.
    Part(Box<PartStatus>),
    /// Rate limits.
    Limits(RateLimits),
    /// A torrent of the cache.
    Cached(Box<CachedTorrent>),
    /// What a check of a torrent of the cache found.
    CacheChecked(Box<CheckedTorrent>),
    /// The node of the DHT.
    Dht(Box<DhtStatus>),
    /// It is done.
    Done(Outcome),
    /// It failed.
    Error(RpcError),
}

/// What was done, as far as it has numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The torrent's name.
    pub name: String,
    /// Files it has, or files that were meant.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads that were ended.
    pub reads: u64,
    /// What one torrent has given, where a mount of it has ended.
    #[serde(default)]
    pub ratio: Option<ShareRatio>,
    /// Folders, where there is one for each torrent.
    #[serde(default)]
    pub folders: u64,
    /// How many of these are empty because the metadata is not known yet.
    #[serde(default)]
    pub empty: u64,
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The metadata is being fetched.
    Metadata {
        /// Peers connected.
        peers: usize,
        /// What to say when no peer is known and there is nobody who could name one.
        nobody: Option<String>,
        /// Bytes of it that are here.
        bytes: u32,
        /// Its size; 0 while unknown.
        size: u32,
    },
    /// Data on disk is being checked.
    Checking {
        /// Pieces checked.
        done: u32,
        /// Pieces in all.
        of: u32,
    },
    /// The torrent is being fetched.
    Download {
        /// Bytes verified of what was selected.
        done: u64,
        /// Bytes selected.
        of: u64,
        /// Bytes received a second.
        rate: u64,
        /// Peers connected.
        peers: usize,
        /// Why nobody was found, if so.
        nobody: Option<String>,
    },
}

impl Progress {
    /// Done and to be done, when that is known.
    pub fn ratio(&self) -> Option<(u64, u64)> {
        let (done, of) = match *self {
            Self::Metadata { bytes, size, .. } => (bytes.into(), size.into()),
            Self::Checking { done, of } => (done.into(), of.into()),
            Self::Download { done, of, .. } => (done, of),
        };
        (of > 0).then_some((done, of))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let people = |peers: usize| match peers {
            0 => "no peers yet".to_string(),
            n => size::count(n as u64, "peer"),
        };
        match *self {
            Self::Metadata { peers: 0, size: 0, nobody: Some(ref why), .. } => {
                write!(f, "looking for the metadata: no peers, {why}")
            }
            Self::Metadata { peers, size: 0, .. } => {
                write!(f, "looking for the metadata: {}", people(peers))
            }
            Self::Metadata { peers, bytes, size, .. } => write!(
                f,
                "metadata: {} of {} from {}",
                size::show(bytes.into()),
                size::show(size.into()),
                people(peers)
            ),
            Self::Checking { done, of } => write!(f, "checking: {done} of {of} pieces"),
            Self::Download { done, of, rate, peers, ref nobody } => {
                let left = size::time_left(of.saturating_sub(done), rate);
                let (percent, done, of) =
                    (size::percent(done, of), size::show(done), size::show(of));
                let rate = size::show(rate);
                write!(f, "{done} of {of} ({percent} %), {rate}/s from {}", people(peers))?;
                left.map_or(Ok(()), |left| write!(f, ", {left} left"))?;
                nobody.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
            }
        }
    }
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Its path in the mount.
    pub path: WirePath,
    /// Its bytes.
    pub length: u64,
}

/// What a torrent is here for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareKind {
    /// It is mounted.
    Mount,
    /// Data in place is served.
    Seed,
}

/// Nodes of the DHT that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtNodes {
    /// By IPv4.
    pub v4: usize,
    /// By IPv6.
    pub v6: usize,
}

/// A mount or a seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShareStatus {
    /// Which of the two.
    pub kind: ShareKind,
    /// The mount's folder, or the path of the data.
    pub path: WirePath,
    /// The mount in which it is a folder, where it is one of several.
    #[serde(default)]
    pub folder_of: Option<WirePath>,
    /// Port that peers reach the daemon at.
    pub port: u16,
    /// Process id of the daemon.
    pub pid: u32,
    /// Nodes that the daemon's DHT knows; absent without it.
    pub dht_nodes: Option<DhtNodes>,
    /// Whether it was detached and only ends when nobody uses it any more.
    pub detached: bool,
    /// The rule by which it ends by itself.
    pub seed_until: Option<SeedUntil>,
    /// What went wrong here, if something did.
    pub problem: Option<String>,
    /// The torrent.
    #[serde(flatten)]
    pub torrent: TorrentStatus,
}

/// What of a file, or of all files below a folder, is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStatus {
    /// Its path.
    pub path: WirePath,
    /// The folder of the mount that it is in.
    pub mount: WirePath,
    /// Info hash of the torrent.
    pub info_hash: String,
    /// How many files: one, or those below a folder.
    pub files: u64,
    /// Their bytes.
    pub total: u64,
    /// How many of these are verified.
    pub verified: u64,
    /// Pieces that hold some of their bytes.
    pub pieces: u64,
    /// How many of these are verified.
    pub pieces_verified: u64,
}

/// What kind of failure it was, for those who react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request makes no sense.
    Usage,
    /// No such mount or seed here.
    NotHere,
    /// It is in use.
    Busy,
    /// Anything else.
    Failed,
}

/// A failure: one line that names the thing, the cause and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct RpcError {
    /// What kind it is.
    pub kind: ErrorKind,
    /// The line.
    pub message: String,
}

impl RpcError {
    /// A failure of this kind, [`visible`]; what is more than one line becomes one.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines: Vec<_> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        Self { kind, message: visible(&lines.join(" ")) }
    }

    /// A failure of no special kind.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// There is no such mount or seed.
    pub fn not_here(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotHere, message)
    }

    /// The exit code of a command that fails with it: 2 for wrong usage, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        if self.kind == ErrorKind::Usage { 2 } else { 1 }
    }
}

/// `text` with its control characters escaped: in names, and in what a tracker says, a terminal would
/// obey them, and a line would become two.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_nothing_else_is_changed() {
        assert_eq!(visible("It's \"ä\"\\\n\x1b[31m"), "It's \"ä\"\\\\n\\u{1b}[31m");
    }

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
    fn an_error_is_one_line() {
        assert_eq!(RpcError::failed("a\n  b\n\nc\n").message, "a b c");
    }

    #[test]
    fn progress_without_a_whole_has_no_ratio() {
        let nobody = |peers| (peers == 0).then(|| "nobody to ask".to_owned());
        let searching =
            |peers| Progress::Metadata { peers, nobody: nobody(peers), bytes: 0, size: 0 };
        assert_eq!(searching(1).ratio(), None);
        assert_eq!(searching(1).to_string(), "looking for the metadata: 1 peer");
        assert!(searching(0).to_string().ends_with("no peers, nobody to ask"));
        assert_eq!(Progress::Checking { done: 1, of: 4 }.ratio(), Some((1, 4)));
    }
}
