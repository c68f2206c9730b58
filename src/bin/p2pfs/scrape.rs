//! `p2pfs scrape`

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use p2pfs::engine::tracker::scrape;
use p2pfs::engine::{Source, resolve};
use p2pfs::proto::dht::{self, GetPeers, Outcome};
use p2pfs::proto::ids::InfoHash;
use p2pfs::proto::tracker::{ScrapeEntry, TrackerError};
use p2pfs::rpc::{RpcError, size, visible};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dht::Bootstrap;
use super::source;

/// Ask the trackers of a torrent and the DHT how many peers it has, without fetching anything
///
/// Prints a line for each tracker, one for the DHT, whose numbers are an estimate, and the most that
/// any of them says: they mostly know the same peers, so that a sum would count these more than
/// once. The DHT is not asked about a private torrent.
#[derive(Debug, Args)]
pub struct Scrape {
    /// Magnet link, .torrent file, URL of one (http, https, file), or info hash
    source: String,
    /// Tracker to ask beside the torrent's own, repeatable
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Seconds to wait for answers
    #[arg(long, value_name = "SECS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// As a JSON object
    #[arg(long)]
    json: bool,
    /// Do not ask the DHT
    #[arg(long, conflicts_with = "nodes")]
    no_dht: bool,
    #[command(flatten)]
    bootstrap: Bootstrap,
}

/// The DHT as a source.
const DHT: &str = "dht";

impl Scrape {
    pub async fn run(self) -> Result<()> {
        let limit = Duration::from_secs(self.timeout);
        let Ok(resolved) = timeout(limit, self.resolve()).await else {
            bail!(
                "{}: not downloaded within {} s; check the address, or give it longer with --timeout",
                self.source,
                self.timeout
            );
        };
        let (info_hash, trackers, private) = self.torrent(resolved?);
        if trackers.is_empty() && (self.no_dht || private) {
            bail!("{}: names no tracker; give one with --tracker", self.source);
        }
        let dht = async {
            let asked = !self.no_dht && !private;
            if asked { Some(self.ask_dht(info_hash, limit).await) } else { None }
        };
        let (mut rows, dht) = tokio::join!(ask(info_hash, trackers, limit), dht);
        rows.extend(dht);
        let report = Report::new(info_hash, rows);
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            report.print(&mut out)?;
        }
        match report.most {
            Some(_) => Ok(()),
            None => Err(report.failure(&self.source).into()),
        }
    }

    async fn resolve(&self) -> Result<Source> {
        match source::check(&self.source).await? {
            (_, Some(resolved)) => Ok(resolved),
            (url, None) => Ok(resolve(&url).await?),
        }
    }

    /// The torrent, its trackers in their order, each once, and whether only these may know of it.
    fn torrent(&self, source: Source) -> (InfoHash, Vec<String>, bool) {
        let (info_hash, own, private) = match source {
            Source::Magnet(magnet) => (magnet.info_hash, magnet.trackers, false),
            Source::Metainfo(metainfo) => {
                let trackers = metainfo.trackers.into_iter().flatten().collect();
                (metainfo.info.info_hash, trackers, metainfo.info.private)
            }
        };
        let mut seen = BTreeSet::new();
        let all = own.into_iter().chain(self.trackers.iter().cloned());
        (info_hash, all.filter(|url| seen.insert(url.clone())).collect(), private)
    }

    /// What the DHT says (BEP 33), within `limit`.
    async fn ask_dht(&self, info_hash: InfoHash, limit: Duration) -> Row {
        let count = async {
            let node = self.bootstrap.clone().ask_only()?;
            node.wait_for_nodes().await;
            let options = GetPeers { scrape: true, ..GetPeers::default() };
            anyhow::Ok(node.get_peers(info_hash, options).await.outcome().await)
        };
        Row::of_dht(match timeout(limit, count).await {
            Ok(Ok(Some(Outcome::Peers { scrape: Some(scrape), .. }))) => Ok(scrape),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Ok(Ok(_)) | Err(_) => Err("no answer".to_owned()),
        })
    }
}

/// Asks all trackers at once. Their answers are in their order.
async fn ask(info_hash: InfoHash, trackers: Vec<String>, limit: Duration) -> Vec<Row> {
    let mut asking = JoinSet::new();
    for (place, url) in trackers.into_iter().enumerate() {
        asking.spawn(async move {
            let answer = scrape(&url, info_hash, limit).await;
            (place, Row::of_tracker(url, answer))
        });
    }
    let mut rows = asking.join_all().await;
    rows.sort_by_key(|(place, _)| *place);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// How many peers a torrent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Numbers {
    seeders: u32,
    leechers: u32,
    /// Not everybody counts downloads.
    downloads: Option<u32>,
}

impl Numbers {
    /// The larger of each.
    fn max(self, other: Self) -> Self {
        Self {
            seeders: self.seeders.max(other.seeders),
            leechers: self.leechers.max(other.leechers),
            downloads: self.downloads.max(other.downloads),
        }
    }
}

/// What one source says.
#[derive(Debug, Serialize)]
struct Row {
    /// The URL of a tracker, or the name of another source.
    source: String,
    #[serde(flatten)]
    numbers: Option<Numbers>,
    /// Why there are no numbers.
    error: Option<String>,
}

impl Row {
    fn of_tracker(url: String, answer: Result<ScrapeEntry, TrackerError>) -> Self {
        let numbers = |entry: ScrapeEntry| Numbers {
            seeders: entry.seeders,
            leechers: entry.leechers,
            downloads: Some(entry.completed),
        };
        match answer {
            Ok(entry) => Self { source: url, numbers: Some(numbers(entry)), error: None },
            Err(error) => Self { source: url, numbers: None, error: Some(error.to_string()) },
        }
    }
}

impl Row {
    /// An estimate; downloads are counted by nobody there.
    fn of_dht(answer: Result<dht::Scrape, String>) -> Self {
        let numbers = |scrape: dht::Scrape| Numbers {
            seeders: scrape.seeds,
            leechers: scrape.peers,
            downloads: None,
        };
        let (numbers, error) = match answer {
            Ok(scrape) => (Some(numbers(scrape)), None),
            Err(error) => (None, Some(error)),
        };
        Self { source: DHT.to_owned(), numbers, error }
    }
}

/// What all say.
#[derive(Debug, Serialize)]
struct Report {
    info_hash: String,
    /// The most that anybody says of each; absent if nobody gave numbers.
    most: Option<Numbers>,
    sources: Vec<Row>,
}

impl Report {
    fn new(info_hash: InfoHash, sources: Vec<Row>) -> Self {
        let most = sources.iter().filter_map(|row| row.numbers).reduce(Numbers::max);
        Self { info_hash: info_hash.to_string(), most, sources }
    }

    /// One line for when nobody gave numbers.
    fn failure(&self, source: &str) -> RpcError {
        let first = self.sources.iter().find_map(|row| Some((&row.source, row.error.as_ref()?)));
        let (url, error) = first.map_or(("", ""), |(url, error)| (url.as_str(), error.as_str()));
        let trackers = self.sources.iter().filter(|row| row.source != DHT).count();
        let mut asked = Vec::new();
        if trackers > 0 {
            asked.push(size::count(trackers as u64, "tracker"));
        }
        if trackers < self.sources.len() {
            asked.push("the DHT".to_owned());
        }
        RpcError::failed(format_args!(
            "{source}: {} asked, none gave numbers; {url} says: {error}",
            asked.join(" and ")
        ))
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:>10} {:>10} {:>10}  source", "seeders", "leechers", "downloads")?;
        for row in &self.sources {
            let source = visible(&row.source);
            match (row.numbers, &row.error) {
                (Some(numbers), _) => line(out, numbers, &source)?,
                (None, error) => {
                    let error = visible(error.as_deref().unwrap_or_default());
                    writeln!(out, "{:>10} {:>10} {:>10}  {source}: {error}", "-", "-", "-")?;
                }
            }
        }
        match self.most {
            Some(most) => line(out, most, "the most of each"),
            None => Ok(()),
        }
    }
}

fn line(out: &mut impl Write, numbers: Numbers, source: &str) -> io::Result<()> {
    let downloads = numbers.downloads.map_or("-".to_owned(), |n| n.to_string());
    writeln!(out, "{:>10} {:>10} {downloads:>10}  {source}", numbers.seeders, numbers.leechers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &str, numbers: Option<(u32, u32, Option<u32>)>) -> Row {
        let numbers =
            numbers.map(|(seeders, leechers, downloads)| Numbers { seeders, leechers, downloads });
        let error = numbers.is_none().then(|| "no\nanswer".to_owned());
        Row { source: source.into(), numbers, error }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report::new(InfoHash::new([0; 20]), rows)
    }

    #[test]
    fn the_most_of_each_number_is_shown_and_what_failed() {
        let rows = vec![
            row("udp://a", Some((5, 1, Some(9)))),
            row("udp://b", None),
            row("dht", Some((7, 0, None))),
        ];
        let mut out = Vec::new();
        report(rows).print(&mut out).unwrap();
        let lines = [
            "   seeders   leechers  downloads  source",
            "         5          1          9  udp://a",
            "         -          -          -  udp://b: no\\nanswer",
            "         7          0          -  dht",
            "         7          1          9  the most of each",
        ];
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), lines, "{text}");
    }

    #[test]
    fn without_numbers_there_is_no_most() {
        let report = report(vec![row("udp://b", None)]);
        assert_eq!(report.most, None);
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["most"].is_null() && json["sources"][0]["error"].is_string(), "{json}");
        assert!(json["sources"][0].get("seeders").is_none(), "{json}");
    }
}
