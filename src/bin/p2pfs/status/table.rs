//! Mounts and seeds as a table for people.

use std::io::{self, Write};

use p2pfs::rpc::{ShareStatus, size, visible};

use super::{kind, problems};

/// The columns' names, and whether numbers stand in them, which are set to the right.
const COLUMNS: [(&str, bool); 10] = [
    ("PATH", false),
    ("KIND", false),
    ("STATE", false),
    ("HERE", true),
    ("OF", true),
    ("%", true),
    ("DOWN", true),
    ("UP", true),
    ("PEERS", true),
    ("RATIO", true),
];

/// Prints a line for each share, and below the table what is wrong with them.
pub fn print(out: &mut impl Write, shares: &[ShareStatus]) -> io::Result<()> {
    let rows: Vec<_> = shares.iter().map(row).collect();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|column| width(&rows, column)).collect();
    let names = COLUMNS.map(|(name, _)| name.to_owned());
    for row in std::iter::once(&names).chain(&rows) {
        let cells = row.iter().zip(&widths).zip(COLUMNS);
        let cells = cells.map(|((cell, &width), (_, number))| match number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    for share in shares {
        for problem in problems(share) {
            writeln!(out, "{}: {problem}", visible(&share.path.to_string_lossy()))?;
        }
    }
    Ok(())
}

fn row(share: &ShareStatus) -> [String; COLUMNS.len()] {
    let torrent = &share.torrent;
    let (path, kind) = (visible(&share.path.to_string_lossy()), kind(share).to_owned());
    if torrent.info_hash.is_empty() {
        let mut row = std::array::from_fn(|_| "-".to_owned());
        [row[0], row[1], row[2]] = [path, kind, torrent.state.clone()];
        return row;
    }
    let (here, of) = torrent.here_of();
    [
        path,
        kind,
        torrent.state.clone(),
        size::show(here),
        size::show(of),
        size::percent(here, of).to_string(),
        format!("{}/s", size::show(torrent.download_rate)),
        format!("{}/s", size::show(torrent.upload_rate)),
        torrent.peers.to_string(),
        torrent.share_ratio.to_string(),
    ]
}

fn width(rows: &[[String; COLUMNS.len()]], column: usize) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
    cells.chain(COLUMNS.get(column).map(|(name, _)| name.len())).max().unwrap_or(0)
}
