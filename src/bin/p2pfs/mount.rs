//! `p2pfs mount`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use p2pfs::fs::MountOptions;
use p2pfs::fs::mount::{MountError, check as check_dir};
use p2pfs::proto::seeding::SeedUntil;
use p2pfs::rpc::{ErrorKind, MountRequest, Request, RpcError, size, visible};

use super::source::{self, Network};
use super::{daemon, options, places};

/// Mount a torrent on an empty directory
///
/// Returns when the files are listed; a daemon fetches and serves them. Reads wait for the data they
/// need, everything else is fetched in the background, rarest first.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Mount {
    /// Magnet link, .torrent file, http(s) URL of one, or info hash
    pub source: String,
    /// Empty directory to mount it on
    pub dir: PathBuf,
    /// Stay, and unmount on SIGINT and SIGTERM: a daemon of its own for this one mount
    #[arg(short, long)]
    pub foreground: bool,
    /// Options as mount(8) has them, separated by commas: those below without `--`, and noexec,
    /// noatime, fsname=NAME, nonempty
    #[arg(short, value_name = "OPTS", allow_hyphen_values = true)]
    pub options: Vec<String>,
    #[command(flatten)]
    pub network: Network,
    /// Fetch only what is read
    #[arg(long)]
    pub on_demand: bool,
    /// Unmount when everything is verified
    #[arg(long)]
    pub until_done: bool,
    /// Unmount when everything is verified and this is met: ratio=R, so many bytes sent for each that
    /// is here, or time=D, such as time=30m; see p2pfs(7). Without RULE, as the last word of the
    /// line, ratio=1.0
    #[arg(long, value_name = "RULE", num_args = 0..=1, default_missing_value = "ratio=1.0")]
    pub seed_until: Option<SeedUntil>,
    /// Copy the finished files to this directory before that, once everything is verified
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
    #[arg(long)]
    pub no_seed: bool,
    /// Let other users in
    #[arg(long)]
    pub allow_other: bool,
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
    pub async fn run(self, socket: Option<&Path>) -> Result<()> {
        let (mount, other_socket) = options::apply(self)?;
        let socket = socket.or(other_socket.as_deref());
        let foreground = mount.foreground;
        let request = mount.request().await?;
        let (settings, dir) = (request.source.settings.clone(), request.dir.clone());
        let request = Request::Mount(Box::new(request));
        if foreground {
            return daemon::become_daemon(socket, &settings, &request);
        }
        let mounted = daemon::ask_started(socket, &settings, request, |_| {}).await?;
        eprintln!(
            "p2pfs: {} ({} in {}) is mounted on {}",
            visible(&mounted.name),
            size::show(mounted.bytes),
            size::count(mounted.files, "file"),
            visible(&dir.to_string_lossy())
        );
        Ok(())
    }

    /// The request, with all that can be checked without the daemon checked.
    async fn request(self) -> Result<MountRequest> {
        if let Some(message) = self.contradiction() {
            return Err(RpcError::new(ErrorKind::Usage, message).into());
        }
        let (source, _) = source::check(&self.source).await?;
        let dir = check_dir(&self.mount_options()).map_err(|error| match error {
            MountError::Option(error) => RpcError::new(ErrorKind::Usage, error),
            error => RpcError::failed(error),
        })?;
        let keep = self.keep.as_deref().map(places::absolute).transpose()?;
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        Ok(MountRequest {
            source: self.network.request(source, Vec::new(), timeout)?,
            dir: dir.into(),
            on_demand: self.on_demand,
            until_done: self.until_done,
            seed_until: self.seed_until,
            keep: keep.map(Into::into),
            select: self.select,
            read_timeout: self.read_timeout,
            no_seed: self.no_seed,
            allow_other: self.allow_other,
            uid: self.uid,
            gid: self.gid,
            umask: self.umask,
            options: self.options,
        })
    }

    /// What is wrong with the options taken together.
    fn contradiction(&self) -> Option<&'static str> {
        let settings = &self.network.settings;
        match () {
            () if self.keep.is_some() && !self.until_done && self.seed_until.is_none() => {
                Some("--keep says where finished files go: it needs --until-done or --seed-until")
            }
            () if self.seed_until.is_some() && self.no_seed => {
                Some("--no-seed gives nothing, so --seed-until would wait in vain: leave one away")
            }
            () if self.seed_until.is_some() && self.on_demand => Some(
                "--on-demand fetches only what is read, and --seed-until waits for everything: \
                 leave one away",
            ),
            () if settings.no_dht && !settings.dht_bootstrap.is_empty() => Some(
                "--dht-bootstrap says where the DHT begins, and --no-dht that there is none: \
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
        let (settings, others) = (&mut self.network.settings, other.network.settings);
        settings.port = settings.port.or(others.port);
        settings.data_dir = settings.data_dir.take().or(others.data_dir);
        settings.cache_size = settings.cache_size.or(others.cache_size);
        settings.cache_free = settings.cache_free.or(others.cache_free);
        settings.upload_limit = settings.upload_limit.or(others.upload_limit);
        settings.download_limit = settings.download_limit.or(others.download_limit);
        settings.listen.extend(others.listen);
        settings.no_lsd |= others.no_lsd;
        settings.no_pex |= others.no_pex;
        settings.no_dht |= others.no_dht;
        settings.dht_bootstrap.extend(others.dht_bootstrap);
        self.network.peers.extend(other.network.peers);
        self.select.extend(other.select);
        self.foreground |= other.foreground;
        self.on_demand |= other.on_demand;
        self.until_done |= other.until_done;
        self.no_seed |= other.no_seed;
        self.seed_until = self.seed_until.or(other.seed_until);
        self.keep = self.keep.or(other.keep);
        self.timeout = self.timeout.or(other.timeout);
        self.read_timeout = self.read_timeout.or(other.read_timeout);
        self
    }
}

fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err("an octal number from 0 to 777 is needed".into()),
    }
}
