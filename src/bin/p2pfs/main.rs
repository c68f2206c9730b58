//! The `p2pfs` command.

mod abort;
mod add;
mod args;
mod cache;
mod create;
mod daemon;
mod dht;
mod hashing;
mod limit;
mod ls;
mod manual;
mod metrics;
mod mount;
mod options;
mod places;
mod prefetch;
mod progress;
mod rm;
mod scrape;
mod seed;
mod show;
mod sim;
mod sim_dht;
mod source;
mod status;
mod stop;
mod tree;
mod umount;
mod verify;
mod wait;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use p2pfs::rpc::RpcError;

use args::{Cli, Verb};
use daemon::At;

fn main() -> ExitCode {
    let Some(line) = args::normalise(std::env::args_os().collect()) else {
        return ExitCode::SUCCESS;
    };
    let cli = match Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(error) => return args::explain(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the error is made of.
            let line = RpcError::failed(format_args!("{error:#}"));
            eprintln!("p2pfs: {line}");
            ExitCode::from(error.downcast_ref::<RpcError>().map_or(1, RpcError::exit_code))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start")?;
    let socket = cli.socket.as_deref();
    let at = At { socket, config: cli.config.as_deref() };
    runtime.block_on(async {
        match cli.verb {
            Verb::Mount(verb) => verb.run(at).await,
            Verb::Add(verb) => verb.run(socket).await,
            Verb::Rm(verb) => verb.run(socket).await,
            Verb::Umount(verb) => verb.run(socket).await,
            Verb::Abort(verb) => verb.run(socket).await,
            Verb::Status(verb) => verb.run(socket).await,
            Verb::Wait(verb) => verb.run(socket).await,
            Verb::Ls(verb) => verb.run(at).await,
            Verb::Prefetch(verb) => verb.run(socket).await,
            Verb::Scrape(verb) => verb.run().await,
            Verb::Show(verb) => verb.run().await,
            Verb::Create(verb) => verb.run(),
            Verb::Verify(verb) => verb.run().await,
            Verb::Seed(verb) => verb.run(at).await,
            Verb::Stop(verb) => verb.run(socket).await,
            Verb::Cache(verb) => verb.run(at).await,
            Verb::Dht(verb) => verb.run(socket).await,
            Verb::Sim(verb) => verb.run(),
            Verb::Limit(verb) => verb.run(socket).await,
            Verb::Metrics(verb) => verb.run(socket).await,
            Verb::Completions { shell } => completions(shell),
            Verb::Man { page } => manual::print(&page),
        }
    })
}

/// Prints the completions of one shell.
fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "p2pfs", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// Whether whoever read our output has had enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
