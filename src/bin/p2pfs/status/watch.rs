//! `p2pfs status --watch`: what goes on, anew each second.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use p2pfs::rpc::{
    Cell, PeerStatus, Request, Response, ShareStatus, TorrentView, WaitStatus, size, visible,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use super::{describe, table};
use crate::daemon;

/// How often it is shown anew.
const EVERY: Duration = Duration::from_secs(1);
/// Columns and lines where the terminal does not say.
const USUAL: (usize, usize) = (80, 24);
/// Lines of the map of pieces at most.
const MAP_LINES: usize = 8;

/// Shows one mount or seed, or all, until a signal ends it, or what is shown has ended.
pub async fn run(socket: Option<&Path>, path: Option<PathBuf>) -> Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let screen = Screen::new()?;
    let mut tick = interval(EVERY);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = tick.tick() => screen.show(&frame(socket, path.as_deref()).await?)?,
        }
    }
}

/// What is shown at the moment.
async fn frame(socket: Option<&Path>, path: Option<&Path>) -> Result<String> {
    let mut text = Vec::new();
    let Some(path) = path else {
        let mut shares = Vec::new();
        let take = |event| {
            if let Response::Share(share) = event {
                shares.push(*share);
            }
        };
        daemon::ask_all(socket, &Request::Status { path: None }, take).await?;
        all(&mut text, &shares)?;
        return Ok(String::from_utf8(text)?);
    };
    let (columns, lines) = terminal();
    let cells = (columns * MAP_LINES) as u32;
    let mut view = None;
    let take = |event| {
        if let Response::View(told) = event {
            view = Some(*told);
        }
    };
    daemon::ask(socket, Request::View { path: path.to_owned().into(), cells }, take).await?;
    if let Some(view) = view {
        one(&mut text, &view, columns, lines)?;
    }
    Ok(String::from_utf8(text)?)
}

fn all(out: &mut Vec<u8>, shares: &[ShareStatus]) -> io::Result<()> {
    match shares {
        [] => writeln!(out, "nothing is mounted or seeded"),
        shares => table::print(out, shares),
    }
}

/// One torrent: what the status says, its pieces, who waits, its peers.
fn one(out: &mut Vec<u8>, view: &TorrentView, columns: usize, lines: usize) -> io::Result<()> {
    describe(out, &view.share)?;
    writeln!(out, "\n{}", map(&view.map, columns))?;
    writeln!(out, "█ here  ▄ partly  ↓ coming  ! wanted now  · not here")?;
    if !view.reads.is_empty() {
        writeln!(out, "\nWAITS FOR")?;
        view.reads.iter().try_for_each(|read| writeln!(out, "{}", wait(read)))?;
    }
    let used = out.iter().filter(|byte| **byte == b'\n').count() + 3;
    let mut peers: Vec<_> = view.peers.iter().collect();
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.down + peer.up));
    if !peers.is_empty() {
        writeln!(out, "\n{:<40} {:>4} {:>13} {:>13}  CLIENT", "PEER", "HAS", "DOWN", "UP")?;
        let shown = peers.iter().take(lines.saturating_sub(used).max(1));
        shown.map(|peer| line(peer)).try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}

fn map(cells: &[Cell], columns: usize) -> String {
    let sign = |cell: &Cell| match cell {
        Cell::Wanted => '!',
        Cell::Coming => '↓',
        Cell::Here => '█',
        Cell::Partly => '▄',
        Cell::Missing => '·',
    };
    let lines = cells.chunks(columns.max(1)).map(|line| line.iter().map(sign).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

fn wait(read: &WaitStatus) -> String {
    format!(
        "{:>9}  {} at {} of {}",
        size::duration(read.seconds),
        size::show(read.length),
        read.offset,
        visible(&read.file.to_string_lossy())
    )
}

fn line(peer: &PeerStatus) -> String {
    let rate = |rate| format!("{}/s", size::show(rate));
    format!(
        "{:<40} {:>3}% {:>13} {:>13}  {}",
        peer.addr.to_string(),
        peer.percent,
        rate(peer.down),
        rate(peer.up),
        visible(peer.client.as_deref().unwrap_or_default())
    )
}

/// Columns and lines of the terminal.
fn terminal() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => USUAL,
    }
}

/// The terminal, of which the rest is hidden while this lives. What is no terminal gets one text after
/// the other.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn new() -> io::Result<Self> {
        let terminal = io::stdout().is_terminal();
        if terminal {
            // Another screen, without a cursor.
            write!(io::stdout(), "\x1b[?1049h\x1b[?25l")?;
        }
        Ok(Self { terminal })
    }

    fn show(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.terminal {
            writeln!(out, "{text}")?;
            return out.flush();
        }
        let (columns, lines) = terminal();
        let mut shown = String::from("\x1b[H");
        for line in text.lines().take(lines.saturating_sub(1)) {
            let cut: String = line.chars().take(columns).collect();
            // To the end of the line there is nothing.
            let _ = write!(shown, "{cut}\x1b[K\r\n");
        }
        write!(out, "{shown}\x1b[J")?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(io::stdout(), "\x1b[?25h\x1b[?1049l");
            let _ = io::stdout().flush();
        }
    }
}
