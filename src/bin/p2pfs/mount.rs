//! `p2pfs mount`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use p2pfs::fs::MountOptions;
use p2pfs::fs::mount::{MountError, check as check_dir, hold};
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{
    Config, ErrorKind, MountRequest, Request, RpcError, SourceRequest, size, visible,
};

use super::daemon::At;
use super::source::{self, Network};
use super::{daemon, options, places};

/// Mount a torrent on an empty directory
///
/// Returns when the files are listed; a daemon fetches and serves them. Reads wait for the data they
/// need, everything else is fetched in the background, rarest first.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Mount {
    /// Magnet link, .torrent file, URL of one (http, https, file), or info hash; of several, each gets a folder
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Empty directory to mount it on
    pub dir: PathBuf,
    /// Make a folder for the torrent also if it is one; `p2pfs add` and `rm` change which there are
    #[arg(long)]
    pub folders: bool,
    /// Stay, and unmount on SIGINT and SIGTERM: a daemon of its own for this one mount
    #[arg(short, long)]
    pub foreground: bool,
    /// Options as mount(8) has them, separated by commas: those below without `--`, and noexec,
    /// noatime, fsname=NAME, nonempty
    #[arg(short, value_name = "OPTS", allow_hyphen_values = true)]
    pub options: Vec<String>,
    #[command(flatten)]
    pub network: Network,
    /// Use what is good of the download of another client, where it is, and fetch the rest: PATH is
    /// the torrent's file or folder, or the folder that has it; it is checked first and never written
    #[arg(long, value_name = "PATH")]
    pub use_data: Option<PathBuf>,
    /// Fetch only what is read
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub on_demand: Option<bool>,
    /// Unmount when everything is verified
    #[arg(long)]
    pub until_done: bool,
    /// Unmount when everything is verified and this is met: ratio=R, so many bytes sent for each that
    /// is here, or time=D, such as time=30m; see p2pfs(7). Without RULE, as the last word of the
    /// line, ratio=1.0
    #[arg(long, value_name = "RULE", num_args = 0..=1, default_missing_value = "ratio=1.0")]
    pub seed_until: Option<SeedUntil>,
    /// Leave the finished files in this directory before that, once everything is verified: they share
    /// their blocks with the cache, or are moved out of it, or copied, whichever can be done first. The
    /// directory is held until then, so what it is on cannot be unmounted
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Fetch only the files that match, repeatable; the others are fetched when they are read
    #[arg(long, value_name = "GLOB")]
    pub select: Vec<String>,
    /// Seconds to wait for the metadata [default: 120]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Seconds after which a read that waits fails (default: it waits on)
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub read_timeout: Option<u64>,
    /// Give nothing to others
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_seed: Option<bool>,
    /// Let other users in
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub allow_other: Option<bool>,
    /// Owner of the files, as a number (default: you)
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Group of the files, as a number (default: yours)
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Permission bits that the files shall not have, octal
    #[arg(long, value_name = "MASK", value_parser = parse_umask)]
    pub umask: Option<u32>,
}

/// Seconds to wait for the metadata unless told otherwise.
pub const TIMEOUT: u64 = 120;

impl Mount {
    pub async fn run(self, at: At<'_>) -> Result<()> {
        let said = options::apply(self)?;
        let socket = at.socket.or(said.socket.as_deref());
        let at = At { socket, config: at.config.or(said.config.as_deref()) };
        let mount = options::with_file(said.mount, &Config::load(at.config)?)?;
        let foreground = mount.foreground;
        let mut request = mount.request().await?;
        // Held until it is done; for whoever mounts in this process, we are the one who may.
        let automount = hold(&request.dir).map_err(RpcError::failed)?.filter(|_| !foreground);
        request.automount = automount.as_ref().map(|held| held.path().into());
        let settings = request.sources.first().map(|source| source.settings.clone());
        let (settings, dir) = (settings.unwrap_or_default(), request.dir.clone());
        let request = Request::Mount(Box::new(request));
        if foreground {
            return daemon::become_daemon(at, &settings, &request);
        }
        let mounted = daemon::ask_started(at, &settings, request, |_| {}).await?;
        if mounted.folders > 0 {
            let folders = size::count(mounted.folders, "folder");
            let empty = match mounted.empty {
                0 => String::new(),
                empty => format!("; {empty} still empty, see p2pfs status"),
            };
            eprintln!("p2pfs: {folders} on {}{empty}", visible(&dir.to_string_lossy()));
            return Ok(());
        }
        eprintln!(
            "p2pfs: {} ({} in {}) is mounted on {}",
            visible(&mounted.name),
            size::show(mounted.bytes),
            size::count(mounted.files, "file"),
            visible(&dir.to_string_lossy())
        );
        if let Some(lent) = mounted.lent {
            eprintln!("p2pfs: {} of it were good and are used where they are", size::show(lent));
        }
        Ok(())
    }

    /// The request, with all that can be checked without the daemon checked.
    async fn request(self) -> Result<MountRequest> {
        if let Some(message) = self.contradiction() {
            return Err(RpcError::new(ErrorKind::Usage, message).into());
        }
        let mut sources = Vec::new();
        for source in &self.sources {
            let (text, known) = source::check(source).await?;
            if known.is_some_and(|known| self.network.has_web_seeds_only(&known)) {
                eprintln!(
                    "p2pfs: the source names web seeds, which are not used, and no tracker: peers have \
                     to come from the DHT, --tracker or --peer"
                );
            }
            sources.push(text);
        }
        let dir = check_dir(&self.mount_options()).map_err(|error| match error {
            MountError::Option(error) => RpcError::new(ErrorKind::Usage, error),
            error => RpcError::failed(error),
        })?;
        let keep = self.keep.as_deref().map(places::absolute).transpose()?;
        let use_data = self.use_data.as_deref().map(places::existing).transpose()?;
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        let request = |source| {
            let request = self.network.request(source, timeout)?;
            Ok(SourceRequest { use_data: use_data.clone().map(Into::into), ..request })
        };
        let sources: Result<_> = sources.into_iter().map(request).collect();
        Ok(MountRequest {
            sources: sources?,
            folders: self.folders,
            dir: dir.into(),
            automount: None,
            on_demand: self.on_demand == Some(true),
            until_done: self.until_done,
            seed_until: self.seed_until,
            keep: keep.map(Into::into),
            select: self.select,
            read_timeout: self.read_timeout,
            no_seed: self.no_seed == Some(true),
            allow_other: self.allow_other == Some(true),
            uid: self.uid,
            gid: self.gid,
            umask: self.umask,
            options: self.options,
        })
    }

    /// What is wrong with the options taken together.
    fn contradiction(&self) -> Option<&'static str> {
        let one = self.sources.len() == 1 && !self.folders;
        let of_one = self.until_done || self.seed_until.is_some() || !self.select.is_empty();
        match () {
            () if !one && (of_one || self.keep.is_some()) => Some(
                "--until-done, --seed-until, --keep and --select are about one torrent, and this is a \
                 mount of folders: mount it alone",
            ),
            () if self.keep.is_some() && !self.until_done && self.seed_until.is_none() => {
                Some("--keep says where finished files go: it needs --until-done or --seed-until")
            }
            () if self.seed_until.is_some() && self.no_seed == Some(true) => {
                Some("--no-seed gives nothing, so --seed-until would wait in vain: leave one away")
            }
            () if self.seed_until.is_some() && self.on_demand == Some(true) => Some(
                "--on-demand fetches only what is read, and --seed-until waits for everything: \
                 leave one away",
            ),
            () => None,
        }
    }

    fn mount_options(&self) -> MountOptions {
        MountOptions {
            dir: self.dir.clone(),
            extra: self.options.clone(),
            ..MountOptions::default()
        }
    }

    /// What is said in either of two places; this one wins.
    pub fn or(mut self, other: Self) -> Self {
        self.network.settings = self.network.settings.or(other.network.settings);
        self.network.peers.extend(other.network.peers);
        self.network.trackers.extend(other.network.trackers);
        self.select.extend(other.select);
        self.foreground |= other.foreground;
        self.folders |= other.folders;
        self.on_demand = self.on_demand.or(other.on_demand);
        self.until_done |= other.until_done;
        self.no_seed = self.no_seed.or(other.no_seed);
        self.seed_until = self.seed_until.or(other.seed_until);
        self.keep = self.keep.or(other.keep);
        self.use_data = self.use_data.or(other.use_data);
        self.timeout = self.timeout.or(other.timeout);
        self.read_timeout = self.read_timeout.or(other.read_timeout);
        self.allow_other = self.allow_other.or(other.allow_other);
        self.uid = self.uid.or(other.uid);
        self.gid = self.gid.or(other.gid);
        self.umask = self.umask.or(other.umask);
        self
    }
}

fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err("an octal number from 0 to 777 is needed".into()),
    }
}
