//! What the daemon says about itself: warnings by default, more as `--log` or `P2PFS_LOG` asks. Each
//! line says which torrent, peer or read it is about, where it is about one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use p2pfs::rpc::{Settings, beside, parse_log, visible};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// What is logged unless something else is asked for.
const DEFAULT: &str = "warn";

/// Where it is said what is logged.
pub struct Log(reload::Handle<EnvFilter, Registry>);

/// Logs to stderr, or to `SOCKET.log` when a socket is given. The file begins anew each time.
pub fn start(socket: Option<&Path>, flags: &Settings, file: &Settings) -> Result<Log> {
    let (filter, handle) = reload::Layer::new(filter(flags, file)?);
    let writer: Box<dyn Write + Send> = match socket {
        None => Box::new(io::stderr()),
        Some(socket) => {
            let path = beside(socket, "log");
            let opened = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&path);
            Box::new(opened.with_context(|| format!("cannot write the log {}", path.display()))?)
        }
    };
    let lines = fmt::layer().with_ansi(false).with_writer(Mutex::new(Lines(writer)));
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(Log(handle))
}

impl Log {
    /// Has what these settings say logged from now on.
    pub fn set(&self, flags: &Settings, file: &Settings) {
        let set = filter(flags, file).and_then(|filter| Ok(self.0.reload(filter)?));
        if let Err(error) = set {
            tracing::error!("the log goes on as before: {error:#}");
        }
    }
}

/// A flag wins over the environment, and that over the file of settings.
fn filter(flags: &Settings, file: &Settings) -> Result<EnvFilter> {
    let said = match (&flags.log, std::env::var("P2PFS_LOG")) {
        (None, Ok(said)) => {
            Some(parse_log(&said).map_err(|wants| anyhow::anyhow!("P2PFS_LOG: {wants}"))?)
        }
        (flag, _) => flag.clone().or_else(|| file.log.clone()),
    };
    Ok(EnvFilter::try_new(said.as_deref().unwrap_or(DEFAULT))?)
}

/// Writes each event as one line, whatever the names in it are made of: peers and torrents choose them.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = visible(text.strip_suffix('\n').unwrap_or(&text)) + "\n";
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_stays_in_its_line() {
        let mut log = Lines(Vec::new());
        log.write_all(b"peer: a\n\x1b[2J\xff b\n").unwrap();
        assert_eq!(String::from_utf8(log.0).unwrap(), "peer: a\\n\\u{1b}[2J\u{fffd} b\n");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let settings = |log: &str| Settings { log: Some(log.into()), ..Settings::default() };
        let shown = |filter: Result<EnvFilter>| filter.unwrap().to_string();
        assert_eq!(shown(filter(&settings("debug"), &settings("info"))), "debug");
        assert_eq!(shown(filter(&Settings::default(), &settings("info"))), "info");
    }
}
