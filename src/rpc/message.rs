//! What client and daemon say to each other.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::WirePath;
use super::cache::{CacheRequest, CachedTorrent, CheckedTorrent};
use super::dht::DhtStatus;
use super::settings::Settings;
use super::size;
use super::view::TorrentView;
use crate::engine::{RateLimits, TorrentStatus};
use crate::proto::seeding::{SeedUntil, ShareRatio};
use crate::proto::tracker::is_direction_mark;

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

/// Which torrent, and how to find its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRequest {
    /// Magnet link, absolute path of a .torrent file, URL of one (http, https, file), or info hash.
    pub source: String,
    /// Peers to start with.
    pub peers: Vec<SocketAddr>,
    /// Trackers to ask beside the torrent's own.
    pub trackers: Vec<String>,
    /// Seconds to wait for the metadata.
    pub timeout: u64,
    /// What the daemon must have been started with.
    pub settings: Settings,
    /// Data of another client to use where it is, beside the cache.
    #[serde(default)]
    pub use_data: Option<WirePath>,
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
    /// A path that leads there too, if it is an automount, and waits for nobody.
    #[serde(default)]
    pub automount: Option<WirePath>,
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
    /// Bytes that are used where they are, if data of another client was to be used.
    #[serde(default)]
    pub lent: Option<u64>,
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
    /// Finished files are being left where the user wants them.
    Keeping {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        of: u64,
    },
}

impl Progress {
    /// Done and to be done, when that is known.
    pub fn ratio(&self) -> Option<(u64, u64)> {
        let (done, of) = match *self {
            Self::Metadata { bytes, size, .. } => (bytes.into(), size.into()),
            Self::Checking { done, of } => (done.into(), of.into()),
            Self::Download { done, of, .. } | Self::Keeping { done, of } => (done, of),
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
            Self::Keeping { done, of } => {
                write!(f, "keeping files: {} of {} are there", size::show(done), size::show(of))
            }
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
    /// Bytes of the finished files that are where they are to be kept, and of how many, while that goes on.
    #[serde(default)]
    pub keeping: Option<(u64, u64)>,
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
    /// The daemon has other settings than are asked for.
    Settings,
    /// The daemon leaves: the next one can do it.
    Leaving,
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
        let message = without_numbers(&message.to_string());
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

/// A message without the system's numbers for the errors in it, which say nothing more.
fn without_numbers(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<u32>().is_ok() => text.push_str(rest),
            _ => text.extend([" (os error ", part]),
        }
    }
    text
}

/// `text` with its control characters escaped: in names, and in what a tracker says, a terminal would
/// obey them, and a line would become two. So are marks of direction, which would have a name read as
/// another.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_direction_mark(c) {
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
        assert_eq!(visible("a\u{202e}4pm.exe עב"), "a\\u{202e}4pm.exe עב");
        assert_eq!(visible("\u{61c}\u{2066}\u{200f}"), "\\u{61c}\\u{2066}\\u{200f}");
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(RpcError::failed("a\n  b\n\nc\n").message, "a b c");
    }

    #[test]
    fn an_error_has_no_numbers_of_the_system() {
        let denied = std::io::Error::from_raw_os_error(13);
        let message = RpcError::failed(format_args!("x: {denied}; try {denied}")).message;
        assert_eq!(message, "x: Permission denied; try Permission denied");
        assert_eq!(
            RpcError::failed("a (os error x) b (os error").message,
            "a (os error x) b (os error"
        );
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
