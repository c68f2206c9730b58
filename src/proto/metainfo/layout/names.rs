//! Rules 1 to 3: parts of paths.

use sha1::{Digest, Sha1};

/// The longest name that Linux has, in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// The longest path below the mount, in bytes with separators: `PATH_MAX` (4096) less room for
/// where the mount itself is.
const MAX_PATH: usize = 3840;

/// The most parts of a path.
const MAX_PARTS: usize = 128;

/// The longest ending that is kept as an extension, in bytes with its dot.
const MAX_EXTENSION: usize = 16;

/// Room for a dot and any number of 64 bits.
const MAX_NUMBER: usize = 21;

/// The safe path of a file; `unnamed` when nothing of it remains.
pub(super) fn file_path(raw: &[Vec<u8>], unnamed: &[u8]) -> Vec<Vec<u8>> {
    let parts: Vec<_> = raw.iter().filter(|p| !is_relative(p)).map(|p| safe_name(p)).collect();
    if parts.is_empty() { vec![unnamed.to_vec()] } else { bounded(parts) }
}

/// Whether a part names no file: empty, `.` or `..`.
pub(super) fn is_relative(part: &[u8]) -> bool {
    matches!(part, b"" | b"." | b"..")
}

/// A name without separators or NUL, and not too long.
pub(super) fn safe_name(part: &[u8]) -> Vec<u8> {
    let mut name: Vec<u8> =
        part.iter().map(|b| if matches!(b, b'/' | 0) { b'_' } else { *b }).collect();
    if name.len() > MAX_NAME {
        let (stem, extension) = split_extension(&name);
        let digest = digest([part]);
        let stem = start_of(stem, MAX_NAME - extension.len() - digest.len());
        name = [stem, &digest, extension].concat();
    }
    name
}

/// A path whose folders are replaced, from the first that does not fit, by one.
pub(super) fn bounded(mut path: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let length: usize = path.iter().map(|part| part.len() + 1).sum();
    if length <= MAX_PATH && path.len() <= MAX_PARTS {
        return path;
    }
    let Some(name) = path.pop() else { return path };
    let mut room = MAX_PATH - 2 * (MAX_NAME + 1);
    let fits = |part: &&Vec<u8>| {
        let left = room.checked_sub(part.len() + 1);
        room = left.unwrap_or(0);
        left.is_some()
    };
    let kept = path.iter().take(MAX_PARTS - 2).take_while(fits).count();
    let rest = path.split_off(kept);
    path.push(digest(rest.iter().map(Vec::as_slice)));
    path.push(name);
    path
}

/// A short name for what had to be left out: `~` and 16 hexadecimal digits.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sha1 = Sha1::new();
    for part in parts {
        sha1.update(part);
        sha1.update(b"/");
    }
    let start = sha1.finalize().into_iter().take(8);
    std::iter::once(b'~').chain(start.flat_map(|b| format!("{b:02x}").into_bytes())).collect()
}

/// The first `length` bytes of a name, less what would be half a character of UTF-8.
fn start_of(name: &[u8], length: usize) -> &[u8] {
    let Some(cut) = name.get(..length) else { return name };
    match std::str::from_utf8(cut) {
        Err(e) if e.error_len().is_none() => cut.get(..e.valid_up_to()).unwrap_or(cut),
        _ => cut,
    }
}

/// A name as what is before its extension and the extension with its dot, which may be empty.
fn split_extension(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|b| *b == b'.') {
        Some(dot) if dot > 0 && name.len() - dot <= MAX_EXTENSION => name.split_at(dot),
        _ => (name, &[]),
    }
}

/// A name that is taken, with room for a number.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Numbered {
    stem: Vec<u8>,
    extension: Vec<u8>,
}

impl Numbered {
    pub(super) fn new(name: &[u8]) -> Self {
        let (stem, extension) = split_extension(name);
        let stem = start_of(stem, MAX_NAME - extension.len() - MAX_NUMBER).to_vec();
        Self { stem, extension: extension.to_vec() }
    }

    pub(super) fn name(&self, number: u64) -> Vec<u8> {
        let number = format!(".{number}");
        [&self.stem, number.as_bytes(), &self.extension].concat()
    }
}
