//! `p2pfs create`

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use p2pfs::proto::metainfo::{BuildOptions, Builder, Version};
use p2pfs::rpc::size;

use super::hashing::{Digests, Job, ReadError};
use super::source;
use super::tree::{self, Exclude};

/// Make a torrent of a file or folder, and print its magnet link
///
/// The same files always make the same torrent. Links that lead out of the folder, empty folders and
/// what is neither file, folder nor link are left out; who may execute a file is kept.
#[derive(Debug, Args)]
pub struct Create {
    /// File or folder to share
    path: PathBuf,
    /// The .torrent file to write (default: NAME.torrent)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// For clients of BitTorrent v1 alone, such as Transmission 3 and aria2
    #[arg(long, group = "version")]
    v1: bool,
    /// For clients of BitTorrent v2 alone
    #[arg(long, group = "version")]
    v2: bool,
    /// For both (default); files are padded to whole pieces
    #[arg(long, group = "version")]
    hybrid: bool,
    /// Leave out what matches, by path, by name or by a folder above it, repeatable
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Tracker to announce to, repeatable
    #[arg(long = "tracker", value_name = "URL", value_parser = source::tracker)]
    trackers: Vec<String>,
    /// Web server that has the files (BEP 19), repeatable
    #[arg(long = "web-seed", value_name = "URL", value_parser = web_seed)]
    web_seeds: Vec<String>,
    /// Bytes in a piece, a power of two from 16K to 64M (default: by size)
    #[arg(long, value_name = "N", value_parser = piece_length)]
    piece_length: Option<u32>,
    /// Find peers through the trackers alone
    #[arg(long)]
    private: bool,
    /// Comment to put in
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

impl Create {
    pub fn run(self) -> Result<()> {
        let root = self.path.canonicalize().with_context(|| self.path.display().to_string())?;
        let name = root.file_name().context("the root of the system cannot be a torrent")?;
        let output = self.output.unwrap_or_else(|| {
            let mut file = name.to_owned();
            file.push(".torrent");
            file.into()
        });
        if output.symlink_metadata().is_ok() {
            bail!("{}: exists; name another file with -o, or remove it", output.display());
        }
        let options = BuildOptions {
            version: match (self.v1, self.v2) {
                (true, _) => Version::V1,
                (_, true) => Version::V2,
                _ => Version::Hybrid,
            },
            piece_length: self.piece_length,
            web_seeds: self.web_seeds,
            private: self.private,
            trackers: self.trackers.into_iter().map(|url| vec![url]).collect(),
            comment: self.comment,
            created_by: Some(concat!("p2pfs ", env!("CARGO_PKG_VERSION")).into()),
            ..BuildOptions::default()
        };
        let files = tree::walk(&root, &Exclude::new(&self.exclude)?)?;
        let shown = || root.display().to_string();
        let mut builder = Builder::new(name.as_bytes(), files, options).with_context(shown)?;
        for digests in hash_pieces(&root, &builder)? {
            builder.push_piece(digests.v1);
            builder.push_root(digests.v2);
        }
        let metainfo = builder.finish().with_context(shown)?;
        write_new(&output, &metainfo.to_bytes())
            .with_context(|| format!("{}: cannot be written", output.display()))?;
        eprintln!("p2pfs: wrote {}", output.display());
        writeln!(io::stdout(), "{}", metainfo.magnet())?;
        Ok(())
    }
}

/// Writes the file under a temporary name first, so that what is there is whole.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned().into_vec();
    part.extend(format!(".{}.part", std::process::id()).bytes());
    let part = PathBuf::from(std::ffi::OsString::from_vec(part));
    let written = File::create_new(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// The hashes of every piece.
fn hash_pieces(root: &Path, builder: &Builder) -> Result<Vec<Digests>> {
    let (files, geometry) = (builder.files(), builder.geometry());
    let path = |parts: &Vec<Vec<u8>>| tree::join(root, parts);
    let paths: Vec<_> = files.iter().map(|file| (!file.pad).then(|| path(&file.path))).collect();
    let job = Job { files, paths: &paths, geometry, v1: builder.has_v1(), v2: builder.has_v2() };
    let mut all = vec![Digests::default(); geometry.piece_count() as usize];
    job.run(|piece, digests| {
        all[piece as usize] = digests.map_err(|failed| explain(root, builder, &failed))?;
        anyhow::Ok(())
    })?;
    Ok(all)
}

fn explain(root: &Path, builder: &Builder, failed: &ReadError) -> anyhow::Error {
    let path = tree::join(root, &builder.files()[failed.file].path);
    match failed.error.kind() {
        io::ErrorKind::UnexpectedEof => {
            anyhow!("{}: became shorter while it was read; try again", path.display())
        }
        _ => anyhow!("{}: {}", path.display(), failed.error),
    }
}

fn piece_length(text: &str) -> Result<u32, String> {
    let length = size::parse(text)?;
    match u32::try_from(length) {
        Ok(length) if length.is_power_of_two() && (1 << 14..=1 << 26).contains(&length) => {
            Ok(length)
        }
        _ => Err("a power of two from 16K to 64M is needed".into()),
    }
}

fn web_seed(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "ftp") && url.has_host() => {
            Ok(text.into())
        }
        _ => Err("an http, https or ftp URL is needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use sha1::{Digest, Sha1};

    use super::*;

    #[test]
    fn pieces_that_cross_files_are_hashed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
        std::fs::write(dir.path().join("a"), &bytes[..10_001]).unwrap();
        std::fs::write(dir.path().join("b"), b"").unwrap();
        std::fs::write(dir.path().join("c"), &bytes[10_001..]).unwrap();
        let options = BuildOptions { piece_length: Some(1 << 14), ..BuildOptions::default() };
        let files = tree::walk(dir.path(), &Exclude::default()).unwrap();
        let builder = Builder::new("x", files, options).unwrap();
        let expected: Vec<[u8; 20]> =
            bytes.chunks(1 << 14).map(|piece| Sha1::digest(piece).into()).collect();
        let found = hash_pieces(dir.path(), &builder).unwrap();
        assert_eq!(found.iter().map(|digests| digests.v1).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_file_that_shrinks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, vec![1; 50_000]).unwrap();
        let files = tree::walk(&file, &Exclude::default()).unwrap();
        let builder = Builder::new("a", files, BuildOptions::default()).unwrap();
        std::fs::write(&file, b"").unwrap();
        let error = hash_pieces(&file, &builder).unwrap_err().to_string();
        assert!(error.contains("became shorter"), "{error}");
    }

    #[test]
    fn piece_lengths_are_powers_of_two() {
        assert_eq!(piece_length("256K"), Ok(1 << 18));
        for bad in ["8K", "100000", "128M", "x"] {
            assert!(piece_length(bad).is_err(), "{bad}");
        }
    }
}
