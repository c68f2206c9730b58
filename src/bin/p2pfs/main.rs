//! The `p2pfs` command.

mod abort;
mod args;
mod cache;
mod create;
mod daemon;
mod dht;
mod hashing;
mod ls;
mod manual;
mod mount;
mod options;
mod places;
mod prefetch;
mod progress;
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

use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use p2pfs::rpc::RpcError;

use args::{Cli, Verb};

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
            eprintln!("p2pfs: {}", without_number(&line.message));
            ExitCode::from(error.downcast_ref::<RpcError>().map_or(1, RpcError::exit_code))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start")?;
    let socket = cli.socket.as_deref();
    runtime.block_on(async {
        match cli.verb {
            Verb::Mount(verb) => verb.run(socket).await,
            Verb::Umount(verb) => verb.run(socket).await,
            Verb::Abort(verb) => verb.run(socket).await,
            Verb::Status(verb) => verb.run(socket).await,
            Verb::Wait(verb) => verb.run(socket).await,
            Verb::Ls(verb) => verb.run(socket).await,
            Verb::Prefetch(verb) => verb.run(socket).await,
            Verb::Scrape(verb) => verb.run().await,
            Verb::Show(verb) => verb.run().await,
            Verb::Create(verb) => verb.run(),
            Verb::Verify(verb) => verb.run().await,
            Verb::Seed(verb) => verb.run(socket).await,
            Verb::Stop(verb) => verb.run(socket).await,
            Verb::Cache(verb) => verb.run(socket).await,
            Verb::Dht(verb) => verb.run(socket).await,
            Verb::Sim(verb) => verb.run(),
            Verb::Man => manual::print(),
        }
    })
}

/// The message without the system's number for the error at its end, which says nothing more.
fn without_number(message: &str) -> &str {
    message.rsplit_once(" (os error ").map_or(message, |(text, number)| match number {
        number if number.ends_with(')') && number.len() < 6 => text,
        _ => message,
    })
}

/// Whether whoever read our output has had enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
