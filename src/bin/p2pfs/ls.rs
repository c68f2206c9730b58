//! `p2pfs ls`

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use clap::Args;
use p2pfs::engine::{Source, resolve};
use p2pfs::proto::metainfo::Info;
use p2pfs::proto::metainfo::layout::{EntryKind, Layout};
use p2pfs::rpc::{ListedFile, Request, Response, WirePath, visible};

use super::daemon::At;
use super::source::{self, Network};
use super::{daemon, mount};

/// List the files of a torrent and their sizes in bytes, without mounting it
#[derive(Debug, Args)]
pub struct Ls {
    /// Magnet link, .torrent file, URL of one (http, https, file), or info hash
    source: String,
    /// Seconds to wait for the metadata
    #[arg(long, value_name = "SECS", default_value_t = mount::TIMEOUT)]
    timeout: u64,
    #[command(flatten)]
    network: Network,
}

impl Ls {
    pub async fn run(self, at: At<'_>) -> Result<()> {
        let resolved = match source::check(&self.source).await? {
            (_, Some(resolved)) => resolved,
            (url, None) => resolve(&url).await?,
        };
        match resolved {
            Source::Metainfo(metainfo) => print(&files(&metainfo.info)),
            Source::Magnet(_) => {
                let request = self.network.request(self.source, self.timeout)?;
                let settings = request.settings.clone();
                let mut listed = Vec::new();
                let request = Request::List(Box::new(request));
                daemon::ask_started(at, &settings, request, |event| {
                    if let Response::Files(files) = event {
                        listed.extend(files);
                    }
                })
                .await?;
                print(&listed)
            }
        }
    }
}

fn files(info: &Info) -> Vec<ListedFile> {
    let layout = Layout::new(info);
    let listed = layout.entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::File(file) => Some(ListedFile {
            path: WirePath::from_parts(&entry.path),
            length: info.files.get(file)?.length,
        }),
        EntryKind::Symlink(_) => None,
    });
    listed.collect()
}

/// Prints the files; on a terminal without what would control it.
fn print(files: &[ListedFile]) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let safe = io::stdout().is_terminal();
    for file in files {
        write!(out, "{:>15}  ", file.length)?;
        if safe {
            writeln!(out, "{}", visible(&file.path.to_string_lossy()))?;
        } else {
            out.write_all(file.path.as_os_str().as_bytes())?;
            out.write_all(b"\n")?;
        }
    }
    Ok(out.flush()?)
}
