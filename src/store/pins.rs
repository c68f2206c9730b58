//! Which files of a torrent the user has pinned: `pinned` in the torrent's directory, one number a line.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::files::open_own;

/// The files that are pinned, of the torrent whose files are in `files`.
pub(super) fn read(files: &Path) -> io::Result<BTreeSet<usize>> {
    let text = match fs::read_to_string(files.with_file_name("pinned")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Replaces them.
pub(super) fn write(files: &Path, pinned: &BTreeSet<usize>) -> io::Result<()> {
    let (path, new) = (files.with_file_name("pinned"), files.with_file_name("pinned.new"));
    let mut file = open_own(&new)?;
    file.set_len(0)?;
    let lines: String = pinned.iter().map(|number| format!("{number}\n")).collect();
    file.write_all(lines.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)
}
