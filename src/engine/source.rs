//! Stub of the source, until the engine replaces it.

/// Where a torrent comes from.
#[derive(Clone, Debug)]
pub struct Source;

/// Why a text is no source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(String);

/// Understands a SOURCE, reading the file or URL if it is one.
pub async fn resolve(source: &str) -> Result<Source, SourceError> {
    Err(SourceError(format!("`{source}` cannot be resolved yet")))
}
