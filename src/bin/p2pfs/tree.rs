//! What a torrent is made of: the files below a path, in the order of their names.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use glob::Pattern;
use p2pfs::proto::metainfo::FileEntry;

/// Globs of what is to be left out, by path, by name or by a folder above it.
#[derive(Debug, Default)]
pub struct Exclude(Vec<Pattern>);

impl Exclude {
    pub fn new(globs: &[String]) -> Result<Self> {
        let pattern = |glob: &String| {
            Pattern::new(glob.trim_matches('/')).with_context(|| format!("--exclude {glob}"))
        };
        Ok(Self(globs.iter().map(pattern).collect::<Result<_>>()?))
    }

    /// Whether the file or folder at `path` is left out; whoever asks for a folder need not ask for
    /// what is in it.
    fn matches(&self, path: &[Vec<u8>]) -> bool {
        let text = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
        let name = path.last().map(|name| String::from_utf8_lossy(name)).unwrap_or_default();
        self.0.iter().any(|glob| glob.matches(&text) || glob.matches(&name))
    }
}

/// The files at or below `root` that are not excluded. What is neither file, folder nor link, and links that lead out of
/// `root`, are left out, as are empty folders, with a line for each on stderr. Times are left out too, so that the same
/// files always make the same torrent.
pub fn walk(root: &Path, exclude: &Exclude) -> Result<Vec<FileEntry>> {
    let meta = root.metadata().with_context(|| root.display().to_string())?;
    if meta.is_file() {
        return Ok(vec![entry(Vec::new(), &meta)]);
    }
    if !meta.is_dir() {
        bail!("{}: neither a file nor a folder; name what shall be shared", root.display());
    }
    let mut found = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let path = join(root, &folder);
        let shown = || path.display().to_string();
        let mut children = fs::read_dir(&path).with_context(shown)?.peekable();
        if children.peek().is_none() && !folder.is_empty() {
            eprintln!("p2pfs: {}: left out; a torrent has no empty folders", path.display());
        }
        for child in children {
            let child = child.with_context(shown)?;
            let mut parts = folder.clone();
            parts.push(child.file_name().as_bytes().to_vec());
            if exclude.matches(&parts) {
                continue;
            }
            let meta = child.path().symlink_metadata().with_context(shown)?;
            if meta.is_dir() {
                folders.push(parts);
            } else if meta.is_file() {
                found.push(entry(parts, &meta));
            } else if let Some(target) = link(root, &parts, &meta)? {
                found.push(FileEntry { symlink: Some(target), length: 0, ..entry(parts, &meta) });
            } else {
                let path = child.path();
                eprintln!("p2pfs: {}: left out; no file, or a link to elsewhere", path.display());
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The path of an entry on disk.
pub fn join(root: &Path, parts: &[Vec<u8>]) -> std::path::PathBuf {
    let mut path = root.to_owned();
    path.extend(parts.iter().map(|part| OsStr::from_bytes(part)));
    path
}

fn entry(path: Vec<Vec<u8>>, meta: &Metadata) -> FileEntry {
    FileEntry {
        path,
        offset: 0,
        length: meta.len(),
        executable: meta.is_file() && meta.permissions().mode() & 0o100 != 0,
        pad: false,
        hidden: false,
        symlink: None,
        mtime: None,
    }
}

/// The target of a link, from the root of the torrent (BEP 47); `None` if it leads out of it.
fn link(root: &Path, parts: &[Vec<u8>], meta: &Metadata) -> Result<Option<Vec<Vec<u8>>>> {
    if !meta.is_symlink() {
        return Ok(None);
    }
    let path = join(root, parts);
    let target = fs::read_link(&path).with_context(|| path.display().to_string())?;
    Ok(resolve(parts, &target))
}

fn resolve(parts: &[Vec<u8>], target: &Path) -> Option<Vec<Vec<u8>>> {
    let mut at = parts.split_last().map(|(_, folder)| folder.to_vec())?;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(at.pop()?),
            Component::Normal(part) => at.push(part.as_bytes().to_vec()),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!at.is_empty()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Vec<Vec<u8>> {
        path.split('/').map(|part| part.as_bytes().to_vec()).collect()
    }

    #[test]
    fn links_are_read_from_the_root_and_never_lead_out() {
        let resolved = |target: &str| resolve(&parts("a/b/link"), Path::new(target));
        assert_eq!(resolved("../c/./d"), Some(parts("a/c/d")));
        assert_eq!(resolved("../../x"), Some(parts("x")));
        for out in ["../../../x", "/etc/passwd", "../.."] {
            assert_eq!(resolved(out), None, "{out}");
        }
    }

    #[test]
    fn globs_leave_out_by_path_by_name_and_by_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.tmp", "keep", "cache/x", "sub/b.tmp", "sub/cache/y", "sub/z"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"1").unwrap();
        }
        let left = |globs: &[&str]| {
            let globs: Vec<_> = globs.iter().map(ToString::to_string).collect();
            let found = walk(dir.path(), &Exclude::new(&globs).unwrap()).unwrap();
            found.iter().map(|f| String::from_utf8(f.path.join(&b'/')).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(left(&["*.tmp", "cache"]), ["keep", "sub/z"]);
        assert_eq!(left(&["sub/cache/", "cache/*", "a.*"]), ["keep", "sub/b.tmp", "sub/z"]);
        assert_eq!(Exclude::new(&["[".into()]).unwrap_err().to_string(), "--exclude [");
    }

    #[test]
    fn files_come_in_the_order_of_their_names_with_exec_bits_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("b")).unwrap();
        fs::write(at("b/x"), b"12").unwrap();
        fs::write(at("a"), b"1").unwrap();
        fs::set_permissions(at("a"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("b/x", at("c")).unwrap();
        let found = walk(dir.path(), &Exclude::default()).unwrap();
        let names: Vec<_> = found.iter().map(|entry| entry.path.clone()).collect();
        assert_eq!(names, [parts("a"), parts("b/x"), parts("c")]);
        assert_eq!(
            found.iter().map(|entry| entry.executable).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert_eq!(found[2].symlink, Some(parts("b/x")));
        assert_eq!(found[2].length, 0);
    }
}
