//! Rule 4: where symbolic links lead.

use super::Tree;
use super::names::{bounded, safe_name};

/// The longest target that Linux has, in bytes (`PATH_MAX` less the NUL).
const MAX_TARGET: usize = 4095;

/// What the link at `link` shows as its target; `None` when it has to be left out.
pub(super) fn target(tree: &Tree, link: &[Vec<u8>], target: &[Vec<u8>]) -> Option<Vec<u8>> {
    let (_, folder) = link.split_last()?;
    if target.is_empty() {
        return None;
    }
    let from_root = resolve(&[], target);
    let from_folder = resolve(folder, target);
    let there = |path: &Option<Vec<Vec<u8>>>| path.as_ref().is_some_and(|p| tree.has(p));
    let path = match there(&from_folder) && !there(&from_root) {
        true => from_folder?,
        false => from_root.or(from_folder)?,
    };
    let text = relative(folder, &path);
    (text.len() <= MAX_TARGET).then_some(text)
}

/// The path that `target` names from the folder `from`; `None` for the root and what is above it.
fn resolve(from: &[Vec<u8>], target: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let mut path = from.to_vec();
    for part in target {
        match &part[..] {
            b"" | b"." => {}
            b".." => drop(path.pop()?),
            name => path.push(safe_name(name)),
        }
    }
    if path.is_empty() { None } else { Some(bounded(path)) }
}

/// The text of a link in `folder` to `path`. Both are real paths from the root, so the `..` that are
/// needed lead through real folders.
fn relative(folder: &[Vec<u8>], path: &[Vec<u8>]) -> Vec<u8> {
    let shared = folder.iter().zip(path).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(&b".."[..], folder.len() - shared);
    let down = path.iter().skip(shared).map(Vec::as_slice);
    let parts: Vec<&[u8]> = up.chain(down).collect();
    if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') }
}
