//! Which files are wanted: globs of `--select`, and `so=` of a magnet (BEP 53).

use std::ops::RangeInclusive;

use glob::Pattern;

use crate::proto::bitfield::Bitfield;
use crate::proto::metainfo::Info;
use crate::proto::metainfo::layout::{EntryKind, Layout};

/// The files that one of the `globs` names, by path, by file name or by a folder above it; all
/// when there are none. A glob that is malformed is given back as the error.
pub(super) fn files_matching(
    layout: &Layout,
    globs: &[String],
) -> Result<Option<Vec<usize>>, String> {
    if globs.is_empty() {
        return Ok(None);
    }
    let patterns = globs
        .iter()
        .map(|g| Pattern::new(g.trim_matches('/')).map_err(|e| format!("{g}: {e}")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::new();
    for entry in &layout.entries {
        let EntryKind::File(index) = entry.kind else { continue };
        let parts: Vec<_> = entry.path.iter().map(|p| String::from_utf8_lossy(p)).collect();
        let above = (1..=parts.len()).map(|n| parts[..n].join("/"));
        let names: Vec<String> = above.chain(parts.last().map(|l| l.to_string())).collect();
        if names.iter().any(|name| patterns.iter().any(|p| p.matches(name))) {
            files.push(index);
        }
    }
    Ok(Some(files))
}

/// The files that `so=` of a magnet names; all when it names none.
pub(super) fn files_in(info: &Info, ranges: &[RangeInclusive<u32>]) -> Option<Vec<usize>> {
    let wanted = |i: &usize| ranges.iter().any(|r| r.contains(&(*i as u32)));
    (!ranges.is_empty()).then(|| (0..info.files.len()).filter(wanted).collect())
}

/// The pieces of these files.
pub(super) fn pieces_of(info: &Info, files: &[usize]) -> Bitfield {
    let mut pieces = Bitfield::empty(info.geometry.piece_count());
    for file in files.iter().filter_map(|f| info.files.get(*f)) {
        for piece in info.geometry.pieces_of(file.offset..file.offset + file.length) {
            pieces.insert(piece);
        }
    }
    pieces
}
