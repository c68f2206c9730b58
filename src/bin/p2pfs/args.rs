//! The command line: its definition, what mount(8) makes of it, and what to say when it is wrong.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use p2pfs::proto::ids::{InfoHash, InfoHashV2};
use p2pfs::proto::metainfo::Magnet;

/// Mount a torrent: its files appear as a directory and are read while they download
#[derive(Debug, Parser)]
#[command(
    name = "p2pfs",
    version,
    about,
    after_help = "SOURCE is a magnet link, a .torrent file, a URL of one (http, https, file), or an info hash.\n\
                  `p2pfs SOURCE DIR -o OPTS`, as mount(8) has it, mounts too. See also p2pfs(7)."
)]
pub struct Cli {
    /// Socket of the daemon to use (default: $XDG_RUNTIME_DIR/p2pfs/socket, /run/p2pfs/socket for
    /// root)
    #[arg(long, global = true, value_name = "PATH", env = "P2PFS_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// File of settings, see p2pfs.toml(5) (default: ~/.config/p2pfs/p2pfs.toml, /etc/p2pfs.toml for
    /// root)
    #[arg(long, global = true, value_name = "FILE", env = "P2PFS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Mount(Box<super::mount::Mount>),
    Add(super::add::Add),
    Rm(super::rm::Rm),
    Umount(super::umount::Umount),
    Abort(super::abort::Abort),
    Status(super::status::Status),
    Wait(super::wait::Wait),
    Ls(super::ls::Ls),
    Prefetch(super::prefetch::Prefetch),
    Scrape(super::scrape::Scrape),
    Show(super::show::Show),
    Create(super::create::Create),
    Verify(super::verify::Verify),
    Seed(Box<super::seed::Seed>),
    Stop(super::stop::Stop),
    Limit(super::limit::Limit),
    Metrics(super::metrics::Metrics),
    Cache(super::cache::Cache),
    Dht(super::dht::Dht),
    Sim(super::sim::Sim),
    /// Print what makes a shell complete commands and options: see p2pfs(1)
    Completions {
        /// bash, zsh or fish
        shell: Shell,
    },
    /// Print a manual page
    #[command(hide = true)]
    Man {
        /// p2pfs.toml, or p2pfs
        #[arg(default_value = "p2pfs")]
        page: String,
    },
}

/// The command line with `mount` put in where mount(8) leaves it out; `None` when there is nothing
/// to do.
pub fn normalise(mut line: Vec<OsString>) -> Option<Vec<OsString>> {
    let program = line.first().map(Path::new).and_then(Path::file_name);
    if program.is_some_and(|name| name.as_encoded_bytes().starts_with(b"mount.")) {
        return helper(&line[1..]);
    }
    if let Some(first) = line.get(1).and_then(|first| first.to_str())
        && looks_like_a_source(first)
    {
        line.insert(1, "mount".into());
    }
    Some(line)
}

/// What mount(8) says to a helper, `mount.p2pfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTS]`.
fn helper(said: &[OsString]) -> Option<Vec<OsString>> {
    let mut line: Vec<OsString> = vec!["p2pfs".into(), "mount".into()];
    let mut said = said.iter();
    while let Some(argument) = said.next() {
        match argument.to_str() {
            // Only pretend.
            Some("-f") => return None,
            Some("-s" | "-n" | "-v") => {}
            Some("-t" | "-N") => drop(said.next()),
            _ => line.push(argument.clone()),
        }
    }
    Some(line)
}

/// Whether the first argument is a source rather than a verb.
fn looks_like_a_source(first: &str) -> bool {
    !first.starts_with('-')
        && (Magnet::link_in(first).is_some()
            || first.contains('/')
            || Path::new(first).extension() == Some(OsStr::new("torrent"))
            || first.parse::<InfoHash>().is_ok()
            || first.parse::<InfoHashV2>().is_ok())
}

/// Prints help that was asked for; says in one line what is wrong otherwise.
pub fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        _ => {}
    }
    // clap's message goes on with usage and tips after the first empty line.
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let line = line.replace("invalid digit found in string", "a number is needed");
    let meant = meant(error).map(|meant| format!("; did you mean `{meant}`?"));
    let verb =
        std::env::args().nth(1).filter(|first| Cli::command().find_subcommand(first).is_some());
    let help = verb.map_or("p2pfs --help".into(), |verb| format!("p2pfs {verb} --help"));
    eprintln!("p2pfs: {line}{}; see {help}", meant.unwrap_or_default());
    ExitCode::from(2)
}

/// What a mistyped verb or option is most like.
fn meant(error: &clap::Error) -> Option<String> {
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand];
    let hidden = |verb: &str| Cli::command().find_subcommand(verb).is_some_and(|v| v.is_hide_set());
    match kinds.into_iter().find_map(|kind| error.get(kind))? {
        ContextValue::String(meant) => Some(meant.clone()),
        // The best is the last.
        ContextValue::Strings(meant) => meant.iter().rev().find(|verb| !hidden(verb)).cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Option<Vec<OsString>> {
        normalise(words.iter().map(OsString::from).collect())
    }

    fn words(words: &[&str]) -> Option<Vec<OsString>> {
        Some(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_source_in_place_of_a_verb_is_mounted() {
        for source in ["magnet:?xt=urn:btih:0", "a.torrent", "http://h/x", "./x"] {
            let expected = words(&["p2pfs", "mount", source, "/mnt", "-o", "ro"]);
            assert_eq!(line(&["p2pfs", source, "/mnt", "-o", "ro"]), expected);
        }
        assert_eq!(line(&["p2pfs", "status"]), words(&["p2pfs", "status"]));
        assert_eq!(line(&["p2pfs", "--help"]), words(&["p2pfs", "--help"]));
    }

    #[test]
    fn as_a_helper_of_mount_8_its_own_flags_are_left_out() {
        let said = ["/sbin/mount.p2pfs", "a", "/mnt", "-s", "-n", "-t", "p2pfs", "-o", "rw,uid=1"];
        assert_eq!(line(&said), words(&["p2pfs", "mount", "a", "/mnt", "-o", "rw,uid=1"]));
        assert_eq!(line(&["mount.p2pfs", "a", "/mnt", "-f"]), None);
    }
}
