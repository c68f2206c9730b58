//! The user's paths as the daemon needs them: absolute, without links.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A path from the root; nothing needs to be there.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: no path", path.display()))
}

/// A path in a mount, without links. The mount may be dead, so its root is not looked at if that
/// fails.
pub fn in_mount(path: &Path) -> Result<PathBuf> {
    let error = match path.canonicalize() {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    let whole = absolute(path)?;
    match (whole.parent().and_then(|parent| parent.canonicalize().ok()), whole.file_name()) {
        (Some(parent), Some(name)) if error.kind() != std::io::ErrorKind::NotFound => {
            Ok(parent.join(name))
        }
        _ => Err(error).with_context(|| path.display().to_string()),
    }
}

/// A path that must exist, without links.
pub fn existing(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}
