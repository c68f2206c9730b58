//! Finding the daemon, starting it, and asking it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use p2pfs::rpc::{
    Client, ConnectError, ErrorKind, NO_PLACES, Outcome, Places, Request, Response, RpcError,
    Settings, beside, frame, size, start_lock,
};
use tokio::net::unix::pipe;

use super::progress::Shown;

/// Which daemon is meant, and what it is started with.
#[derive(Clone, Copy)]
pub struct At<'a> {
    /// Its socket, if it is not that of the user.
    pub socket: Option<&'a Path>,
    /// Its file of settings, if it is not that of the user.
    pub config: Option<&'a Path>,
}

/// How often to try again when a daemon leaves just as we come.
const TRIES: usize = 5;

/// Asks whichever running daemon has what the request is about.
pub async fn ask(
    socket: Option<&Path>,
    request: Request,
    mut on_event: impl FnMut(Response),
) -> Result<Outcome> {
    let mut not_here = None;
    let about = subject(&request);
    for socket in sockets(socket)? {
        let client = match Client::connect(&socket).await {
            Ok(client) => client,
            Err(ConnectError::NotRunning) => continue,
            Err(error) => return Err(error.into()),
        };
        match client.call(request.clone(), &mut on_event).await {
            Err(error) if error.kind == ErrorKind::NotHere => not_here = Some(error),
            done => return Ok(done?),
        }
    }
    let nothing = || {
        RpcError::not_here(format_args!("{about}neither mounted nor seeded: no daemon is running"))
    };
    Err(not_here.unwrap_or_else(nothing).into())
}

/// What a request is about, to begin a line with.
fn subject(request: &Request) -> String {
    let path = match request {
        Request::Umount { dir, .. }
        | Request::Abort { dir }
        | Request::Wait { dir }
        | Request::Add { dir, .. }
        | Request::Remove { dir, .. } => Some(dir),
        Request::Status { path } => path.as_ref(),
        Request::Prefetch { path } | Request::Pin { path, .. } | Request::View { path, .. } => {
            Some(path)
        }
        Request::Cache { dir, .. } => Some(dir),
        Request::Limit { path, .. } => path.as_ref(),
        Request::Stop { what } => Some(what),
        Request::Mount(_)
        | Request::Seed(_)
        | Request::List(_)
        | Request::Dht
        | Request::Shutdown => None,
    };
    path.map(|path| format!("{}: ", path.display())).unwrap_or_default()
}

/// Asks every running daemon.
pub async fn ask_all(
    socket: Option<&Path>,
    request: &Request,
    mut on_event: impl FnMut(Response),
) -> Result<()> {
    for socket in sockets(socket)? {
        match Client::connect(&socket).await {
            Ok(client) => drop(client.call(request.clone(), &mut on_event).await?),
            Err(ConnectError::NotRunning) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Asks the user's daemon, which is started if it does not run, and shows how far it is.
pub async fn ask_started(
    at: At<'_>,
    settings: &Settings,
    request: Request,
    mut on_event: impl FnMut(Response),
) -> Result<Outcome> {
    let socket = own_socket(at.socket)?;
    let mut shown = Shown::default();
    let mut show = |event| match event {
        Response::Progress(progress) => shown.show(&progress),
        event => on_event(event),
    };
    let mut left = None;
    for _ in 0..TRIES {
        let client = connect_or_start(&socket, at.config, settings).await?;
        match client.call(request.clone(), &mut show).await {
            Err(error) if error.kind == ErrorKind::Leaving => left = Some(error),
            done => {
                shown.clear();
                return Ok(done?);
            }
        }
        // Its socket goes next.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(left.unwrap_or_else(|| RpcError::failed("the daemon leaves; try again")).into())
}

/// Becomes a daemon of its own that does `request` in the foreground. Returns only if that fails.
pub fn become_daemon(at: At<'_>, settings: &Settings, request: &Request) -> Result<()> {
    let program = program();
    let mut command = command(&program, at.config)?;
    command.arg("--foreground").args(arguments(settings));
    if let Some(socket) = at.socket {
        command.arg("--socket").arg(socket);
    }
    let error = command.arg("--request").arg(serde_json::to_string(request)?).exec();
    Err(error).with_context(|| cannot_run(&program))
}

async fn connect_or_start(
    socket: &Path,
    config: Option<&Path>,
    settings: &Settings,
) -> Result<Client> {
    for _ in 0..TRIES {
        match Client::connect(socket).await {
            Err(ConnectError::NotRunning) => {}
            connected => return Ok(connected?),
        }
        // One client starts a daemon; the others wait for it here, and then find it.
        let _lock = start_lock(socket)
            .with_context(|| format!("{}: no daemon can be started there", socket.display()))?;
        match Client::connect(socket).await {
            Err(ConnectError::NotRunning) => start(socket, config, settings).await?,
            connected => return Ok(connected?),
        }
    }
    bail!("the daemon at {} leaves as soon as it is started; see its log", socket.display())
}

/// Starts a daemon and waits until it is ready.
async fn start(socket: &Path, config: Option<&Path>, settings: &Settings) -> Result<()> {
    let program = program();
    let (told, tell) = std::io::pipe().context("cannot make a pipe")?;
    let child = command(&program, config)?
        .arg("--detach")
        .arg("--socket")
        .arg(socket)
        .args(arguments(settings))
        .stdin(Stdio::null())
        .stdout(tell)
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.with_context(|| cannot_run(&program))?;
    let mut told = pipe::Receiver::from_owned_fd(told.into())?;
    match frame::read(&mut told).await {
        Ok(Some(Response::Done(_))) => Ok(()),
        Ok(Some(Response::Error(error))) => {
            let _ = child.wait();
            Err(error.into())
        }
        _ => {
            bail!("p2pfs-mountd ended before it was ready; see {}", beside(socket, "log").display())
        }
    }
}

fn cannot_run(program: &Path) -> String {
    format!("cannot run {}: install it beside p2pfs or in the PATH", program.display())
}

/// From this size on, in bytes, glibc gives memory back to the system when it is freed. By itself it
/// would raise the limit to the largest buffer it saw, and keep hundreds of megabytes of piece,
/// reply and FUSE buffers after mounts have come and gone.
const GIVEN_BACK_FROM: u32 = 512 << 10;

/// The daemon's command line begins like this.
fn command(program: &Path, config: Option<&Path>) -> Result<Command> {
    let mut command = Command::new(program);
    command.env("MALLOC_MMAP_THRESHOLD_", GIVEN_BACK_FROM.to_string());
    if let Some(config) = config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    Ok(command)
}

/// `p2pfs-mountd` from beside this executable, otherwise from the PATH.
fn program() -> PathBuf {
    let name = "p2pfs-mountd";
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(name));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| name.into())
}

/// The settings as flags.
fn arguments(settings: &Settings) -> Vec<OsString> {
    let mut flags: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| flags.extend([OsString::from(name), value]);
    if let Some(port) = settings.port {
        flag("--port", port.to_string().into());
    }
    if let Some(metrics) = settings.metrics {
        flag("--metrics", metrics.to_string().into());
    }
    if let Some(log) = &settings.log {
        flag("--log", log.into());
    }
    for address in &settings.listen {
        flag("--listen", address.to_string().into());
    }
    if let Some(dir) = &settings.data_dir {
        flag("--data-dir", dir.0.clone().into());
    }
    match settings.cache_size {
        Some(size::Amount::Bytes(bytes)) => flag("--cache-size", bytes.to_string().into()),
        Some(size::Amount::Share(share)) => flag("--cache-size", format!("{share}%").into()),
        None => {}
    }
    if let Some(free) = settings.cache_free {
        flag("--cache-free", free.to_string().into());
    }
    for (name, limit) in
        [("--upload-limit", settings.upload_limit), ("--download-limit", settings.download_limit)]
    {
        if let Some(limit) = limit {
            flag(name, limit.to_string().into());
        }
    }
    for node in &settings.dht_bootstrap {
        flag("--dht-bootstrap", node.into());
    }
    for (name, value) in
        [("no-lsd", settings.no_lsd), ("no-pex", settings.no_pex), ("no-dht", settings.no_dht)]
    {
        flags.extend(value.map(|value| OsString::from(format!("--{name}={value}"))));
    }
    flags
}

/// The sockets to ask: the one that was named, or all of this user.
fn sockets(named: Option<&Path>) -> Result<Vec<PathBuf>> {
    match named {
        Some(named) => Ok(vec![std::path::absolute(named)?]),
        None => Ok(Places::of_this_user().context(NO_PLACES)?.all_sockets()),
    }
}

/// The socket of the daemon to start.
fn own_socket(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(named) => Ok(std::path::absolute(named)?),
        None => Ok(Places::of_this_user().context(NO_PLACES)?.socket()),
    }
}
