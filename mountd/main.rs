//! The mount daemon: one process that serves all of a user's mounts and seeds.

mod daemon;
mod flags;
mod folders;
mod idle;
mod keep;
mod limits;
mod metrics;
mod mounts;
mod notify;
mod room;
mod seeds;
mod server;
mod telemetry;
mod use_data;
mod users;
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use p2pfs::rpc::{Config, Listener, Outcome, Places, Request, Response, RpcError, frame, size};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use daemon::Daemon;
use flags::Flags;
use idle::Linger;

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.man {
        return print_manual();
    }
    raise_descriptor_limit();
    let ready = flags.detach.then(|| detach(&flags));
    let outcome = tokio::runtime::Runtime::new().context("cannot start").and_then(|runtime| {
        let code = runtime.block_on(run(flags, ready.is_some()))?;
        // Nothing that is still blocked may keep the process: all mounts are gone by now.
        runtime.shutdown_background();
        Ok(code)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let error = RpcError::failed(format_args!("{error:#}"));
            match ready {
                Some(()) => say_ready(&Response::Error(error)),
                None => eprintln!("p2pfs-mountd: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Allows as many descriptors as the system lets us have: every connection and cached file is one.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it there are fewer connections, and nothing worse.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Starts, serves, and ends; the exit code of the whole.
async fn run(flags: Flags, detached: bool) -> Result<ExitCode> {
    let mut stop = Stop::new()?;
    let socket = socket_path(&flags)?;
    // Held to the end, so that a new daemon finds port and cache free.
    let (listener, _lock) = Listener::bind(&socket).await?;
    let config = flags.config.as_deref();
    let file = Config::load(config)?.settings()?;
    let log = telemetry::start(detached.then_some(socket.as_path()), &flags.settings, &file)?;
    let settings = flags.settings.clone().or_file(file);
    if let Some(what) = settings.contradiction() {
        bail!(what);
    }
    let metrics = match settings.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let linger = match (detached, flags.foreground) {
        (true, _) => Linger::Minute,
        (_, true) => Linger::Not,
        _ => Linger::Forever,
    };
    let daemon = Arc::new(Daemon::start(settings, linger).await?);
    if let Some(listener) = metrics {
        tokio::spawn(metrics::serve(listener, Arc::clone(&daemon)));
    }
    tracing::info!(socket = %socket.display(), port = daemon.port(), "ready");
    notify::ready();
    if detached {
        say_ready(&Response::Done(Outcome::default()));
        leave_stdout()?;
    }

    let server = tokio::spawn(server::serve(listener, Arc::clone(&daemon)));
    let first = flags.request.as_deref().map(serde_json::from_str::<Request>).transpose()?;
    let mut code = ExitCode::SUCCESS;
    tokio::select! {
        () = stop.wait(flags.foreground, || daemon.reload(config, &flags.settings, &log)) => {}
        () = daemon.told_to_stop() => {}
        failed = carry_out(&daemon, first) => if let Some(error) = failed {
            eprintln!("p2pfs: {error}");
            code = ExitCode::from(error.exit_code());
        },
    }
    notify::stopping();
    // The socket goes first: who comes now starts a new daemon, which waits for our lock.
    server.abort();
    let _ = server.await;
    daemon.shutdown().await;
    if flags.foreground
        && let Some(problem) = daemon.problem()
    {
        eprintln!("p2pfs: {problem}");
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

/// Does what the command line asked for, then waits until nobody needs the daemon any more.
async fn carry_out(daemon: &Arc<Daemon>, first: Option<Request>) -> Option<RpcError> {
    if let Some(request) = first {
        let (events, mut told) = mpsc::channel(16);
        let printer = tokio::spawn(async move {
            let mut last = String::new();
            while let Some(event) = told.recv().await {
                if let Response::Progress(progress) = event {
                    let line = progress.to_string();
                    if line != last {
                        eprintln!("p2pfs: {line}");
                        last = line;
                    }
                }
            }
        });
        let place = match &request {
            Request::Mount(mount) => format!("mounted on {}", mount.dir.display()),
            Request::Seed(seed) => format!("seeding from {}", seed.data.display()),
            _ => String::new(),
        };
        let done = server::handle(daemon, request, events).await;
        let _ = printer.await;
        match done {
            Ok(outcome) if outcome.folders > 0 => {
                eprintln!("p2pfs: {} {place}", size::count(outcome.folders, "folder"));
            }
            Ok(outcome) => eprintln!("p2pfs: {} {place}", outcome.name),
            Err(error) => return Some(error),
        }
    }
    daemon.idle().await;
    None
}

/// The signals that end a daemon.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal of a daemon in the foreground was closed; another one is to read its settings.
    hang_up: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Completes at the end; calls `reload` whenever settings are to be read anew.
    async fn wait(&mut self, foreground: bool, reload: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => match foreground {
                    true => return,
                    false => reload(),
                },
            }
        }
    }
}

/// The socket to listen at.
fn socket_path(flags: &Flags) -> Result<PathBuf> {
    if let Some(socket) = &flags.socket {
        return Ok(std::path::absolute(socket)?);
    }
    let places = Places::of_this_user().context(p2pfs::rpc::NO_PLACES)?;
    Ok(match flags.request {
        Some(_) => places.foreground_socket(std::process::id()),
        None => places.socket(),
    })
}

/// Leaves the terminal and the folder of the client that started us.
fn detach(flags: &Flags) {
    // Fails only for the leader of a process group, which has no need of it.
    let _ = nix::unistd::setsid();
    let relative = |path: &Path| path.is_relative();
    if !flags.socket.as_deref().is_some_and(relative)
        && !flags.config.as_deref().is_some_and(relative)
        && !flags.settings.data_dir.as_deref().is_some_and(relative)
    {
        let _ = std::env::set_current_dir("/");
    }
}

/// Tells the client that started us how that went.
fn say_ready(response: &Response) {
    if let Ok(frame) = frame::encode(response) {
        let mut stdout = std::io::stdout();
        // A client that is gone does not want to know.
        let _ = stdout.write_all(&frame).and_then(|()| stdout.flush());
    }
}

/// Lets go of the client's pipe.
fn leave_stdout() -> Result<()> {
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    Ok(nix::unistd::dup2_stdout(null)?)
}

fn print_manual() -> ExitCode {
    let man = clap_mangen::Man::new(Flags::command()).section("8").date("");
    match man.render(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
