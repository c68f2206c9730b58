//! `p2pfs create`

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use p2pfs::proto::metainfo::{BuildOptions, Builder, FileEntry};
use p2pfs::rpc::size;
use sha1::{Digest, Sha1};

use super::progress::Shown;
use super::tree;

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// Make a torrent of a file or folder, and print its magnet link
///
/// The same files always make the same torrent.
#[derive(Debug, Args)]
pub struct Create {
    /// File or folder to share
    path: PathBuf,
    /// The .torrent file to write (default: NAME.torrent)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tracker to announce to, repeatable
    #[arg(long = "tracker", value_name = "URL", value_parser = tracker)]
    trackers: Vec<String>,
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
            piece_length: self.piece_length,
            private: self.private,
            trackers: self.trackers.into_iter().map(|url| vec![url]).collect(),
            comment: self.comment,
            created_by: Some(concat!("p2pfs ", env!("CARGO_PKG_VERSION")).into()),
            ..BuildOptions::default()
        };
        let files = tree::walk(&root)?;
        let shown = || root.display().to_string();
        let mut builder = Builder::new(name.as_bytes(), files, options).with_context(shown)?;
        for hash in hash_pieces(&root, &builder)? {
            builder.push_piece(hash);
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

/// The SHA-1 of every piece, computed on all cores.
fn hash_pieces(root: &Path, builder: &Builder) -> Result<Vec<[u8; 20]>> {
    let geometry = builder.geometry();
    let (count, piece_length) = (geometry.piece_count(), u64::from(geometry.piece_length()));
    let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut hashes = vec![[0; 20]; count as usize];
    let mut shown = Shown::default();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::sync_channel(64);
        for _ in 0..workers {
            let (tell, next, stop) = (tell.clone(), &next, &stop);
            scope.spawn(move || {
                let mut reader = Reader { root, files: builder.files(), open: None };
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let begin = u64::from(index) * piece_length;
                    let end = geometry.total().min(begin + piece_length);
                    if tell.send((index, reader.hash(begin, end))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for (done, (index, hash)) in (1..).zip(told) {
            match hash {
                Ok(hash) => hashes[index as usize] = hash,
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            let (here, total) = ((done * piece_length).min(geometry.total()), geometry.total());
            let text = format!("hashed {} of {}", size::show(here), size::show(total));
            shown.show_text(Some((here, total)), text);
        }
        Ok(())
    })?;
    Ok(hashes)
}

/// Reads the files as if they were one; keeps the last one open.
struct Reader<'a> {
    root: &'a Path,
    files: &'a [FileEntry],
    open: Option<(usize, File)>,
}

impl Reader<'_> {
    /// The SHA-1 of the bytes from `begin` to `end`.
    fn hash(&mut self, begin: u64, end: u64) -> Result<[u8; 20]> {
        let mut digest = Sha1::new();
        let mut buffer = vec![0; CHUNK.min((end - begin) as usize)];
        let first = self.files.partition_point(|file| file.offset + file.length <= begin);
        let mut at = begin;
        for number in first..self.files.len() {
            let entry = &self.files[number];
            let file_end = end.min(entry.offset + entry.length);
            while at < file_end {
                let length = buffer.len().min((file_end - at) as usize);
                let read = self
                    .file(number)
                    .and_then(|file| file.read_exact_at(&mut buffer[..length], at - entry.offset));
                read.map_err(|error| self.failed(number, &error))?;
                digest.update(&buffer[..length]);
                at += length as u64;
            }
            if at >= end {
                break;
            }
        }
        Ok(digest.finalize().into())
    }

    fn file(&mut self, number: usize) -> io::Result<&File> {
        let open = match self.open.take() {
            Some((open, file)) if open == number => (open, file),
            _ => (number, File::open(tree::join(self.root, &self.files[number].path))?),
        };
        Ok(&self.open.insert(open).1)
    }

    fn failed(&self, number: usize, error: &io::Error) -> anyhow::Error {
        let path = tree::join(self.root, &self.files[number].path);
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                anyhow!("{}: became shorter while it was read; try again", path.display())
            }
            _ => anyhow!("{}: {error}", path.display()),
        }
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

fn tracker(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "udp") && url.has_host() => {
            Ok(text.into())
        }
        _ => Err("an http, https or udp URL is needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_cross_files_are_hashed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
        std::fs::write(dir.path().join("a"), &bytes[..10_001]).unwrap();
        std::fs::write(dir.path().join("b"), b"").unwrap();
        std::fs::write(dir.path().join("c"), &bytes[10_001..]).unwrap();
        let options = BuildOptions { piece_length: Some(1 << 14), ..BuildOptions::default() };
        let builder = Builder::new("x", tree::walk(dir.path()).unwrap(), options).unwrap();
        let expected: Vec<[u8; 20]> =
            bytes.chunks(1 << 14).map(|piece| Sha1::digest(piece).into()).collect();
        assert_eq!(hash_pieces(dir.path(), &builder).unwrap(), expected);
    }

    #[test]
    fn a_file_that_shrinks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, vec![1; 50_000]).unwrap();
        let files = tree::walk(&file).unwrap();
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
