//! The task of a node: carries datagrams, wishes and time to the machine, and what it says back.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::OpenOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::sockets::Sockets;
use super::{Event, Wish};
use crate::engine::clock::Clock;
use crate::proto::dht::{Dht, DhtStats, LookupId, Output};
use crate::proto::time::Timestamp;

/// Datagrams that are read before anything else has its turn.
const MAX_BATCH: usize = 256;

/// The longest datagram that can come is read whole.
const BUFFER: usize = 64 << 10;

/// Commands that are taken before anything else has its turn.
const MAX_COMMANDS: usize = 64;

/// How things are is published this often at most, once somebody is known.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// How often the table is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// What is read of a saved table; the machine takes no longer one.
const MAX_SAVED_LEN: u64 = 64 << 10;

/// What a node is told.
#[derive(Debug)]
pub(super) enum Command {
    Wish(Wish, mpsc::UnboundedSender<Event>),
    AddNode(SocketAddr),
    Met(SocketAddr),
    Voted(IpAddr, IpAddr),
}

pub(super) struct Driver {
    dht: Dht,
    clock: Clock,
    sockets: Sockets,
    buffer: Vec<u8>,
    commands: mpsc::Receiver<Command>,
    /// Who waits for what.
    askers: BTreeMap<LookupId, mpsc::UnboundedSender<Event>>,
    stats: watch::Sender<DhtStats>,
    published: Timestamp,
    /// Something may have changed since.
    unpublished: bool,
    saved: Option<PathBuf>,
    next_save: Timestamp,
}

impl Driver {
    pub fn new(
        dht: Dht,
        clock: Clock,
        sockets: Sockets,
        commands: mpsc::Receiver<Command>,
        stats: watch::Sender<DhtStats>,
        saved: Option<PathBuf>,
    ) -> Self {
        let now = clock.now();
        Self {
            dht,
            clock,
            sockets,
            buffer: vec![0; BUFFER],
            commands,
            askers: BTreeMap::new(),
            stats,
            published: now,
            unpublished: true,
            saved,
            next_save: now + SAVE_INTERVAL,
        }
    }

    /// Runs until cancelled, or until nobody can tell it anything any more.
    pub async fn run(mut self, cancel: CancellationToken) {
        let _last = cancel.clone().drop_guard();
        self.sockets.writable().await;
        self.restore().await;
        cancel.run_until_cancelled(self.work()).await;
        self.save().await;
    }

    async fn work(&mut self) {
        loop {
            self.carry_out();
            self.publish();
            if self.clock.now() >= self.next_save {
                self.next_save = self.clock.now() + SAVE_INTERVAL;
                self.save().await;
            }
            let wake = self.clock.instant(self.wake());
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                family = self.sockets.readable() => self.receive(family),
                () = sleep_until(wake) => {}
            }
            self.handle_timeout();
            self.unpublished = true;
        }
    }

    /// Nobody is late whose answer is here: after a pause of this thread it is read first.
    fn handle_timeout(&mut self) {
        let due = |dht: &Dht, now| dht.poll_timeout().is_some_and(|at| at <= now);
        if due(&self.dht, self.clock.now()) {
            (0..2).for_each(|family| self.receive(family));
        }
        let now = self.clock.now();
        if due(&self.dht, now) {
            self.dht.handle_timeout(now);
        }
    }

    /// When something has to be done although nothing happens.
    fn wake(&self) -> Timestamp {
        let publish = self.unpublished.then(|| self.published + PUBLISH_INTERVAL);
        let wakes = [self.dht.poll_timeout(), publish, Some(self.next_save)];
        wakes.into_iter().flatten().min().unwrap_or(Timestamp::FAR_FUTURE)
    }

    fn take(&mut self, command: Command) {
        self.command(command);
        for _ in 1..MAX_COMMANDS {
            let Ok(command) = self.commands.try_recv() else { return };
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::AddNode(addr) => self.dht.add_node(addr, now),
            // The table learns of its answer by itself.
            Command::Met(addr) => drop(self.dht.ping(addr, now)),
            Command::Voted(voter, ours) => self.dht.voted(voter, ours, now),
            Command::Wish(wish, events) => {
                let lookup = self.wish(wish, now);
                self.askers.insert(lookup, events);
            }
        }
    }

    fn wish(&mut self, wish: Wish, now: Timestamp) -> LookupId {
        match wish {
            Wish::GetPeers(info_hash, options) => self.dht.get_peers(info_hash, options, now),
            Wish::FindNode(target) => self.dht.find_node(target, now),
            Wish::GetItem { target, salt, newer_than } => {
                self.dht.get_item(target, &salt, newer_than, now)
            }
            Wish::PutItem { item, cas } => self.dht.put_item(item, cas, now),
            Wish::Ping(addr) => self.dht.ping(addr, now),
            Wish::Sample(addr, target) => self.dht.sample(addr, target, now),
        }
    }

    fn receive(&mut self, family: usize) {
        for _ in 0..MAX_BATCH {
            let Some((length, from)) = self.sockets.receive(family, &mut self.buffer) else {
                return;
            };
            let datagram = self.buffer.get(..length).unwrap_or_default();
            self.dht.handle_datagram(from, datagram, self.clock.now());
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.dht.poll_output() {
            match output {
                Output::Transmit { to, datagram } => self.sockets.send(to, &datagram),
                Output::Peers { lookup, from, peers, .. } => {
                    let event = Event::Peers { from, peers };
                    if self.askers.get(&lookup).is_some_and(|asker| asker.send(event).is_err()) {
                        self.askers.remove(&lookup);
                        self.dht.cancel(lookup, self.clock.now());
                    }
                }
                Output::Finished { lookup, outcome } => {
                    if let Some(asker) = self.askers.remove(&lookup) {
                        let _ = asker.send(Event::Finished(outcome));
                    }
                }
            }
        }
    }

    fn publish(&mut self) {
        let now = self.clock.now();
        // Searches begin when the first node is known: that is told at once.
        let alone = self.stats.borrow().nodes == [0, 0];
        if !self.unpublished || !alone && now.since(self.published) < PUBLISH_INTERVAL {
            return;
        }
        (self.published, self.unpublished) = (now, false);
        let stats = self.dht.stats();
        self.stats.send_if_modified(|old| {
            let changed = *old != stats;
            *old = stats;
            changed
        });
    }

    /// Takes up the table of an earlier life.
    async fn restore(&mut self) {
        let Some(path) = &self.saved else { return };
        match read(path).await {
            Ok(saved) => self.dht.restore(&saved, self.clock.now()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(path = %path.display(), %error, "no DHT table"),
        }
    }

    /// Saves the table; an empty one is worth less than whatever is there.
    async fn save(&self) {
        let known: usize = self.dht.stats().nodes.iter().sum();
        if let Some(path) = self.saved.as_deref().filter(|_| known > 0)
            && let Err(error) = write(path, &self.dht.save()).await
        {
            tracing::warn!(path = %path.display(), %error, "the DHT table cannot be saved");
        }
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut saved = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_SAVED_LEN).read_to_end(&mut saved).await?;
    Ok(saved)
}

/// Whoever reads the file finds all of it, or what was there before. The new one is really new: it is
/// not written through a link that somebody put in its place.
async fn write(path: &Path, table: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = tokio::fs::remove_file(&new).await;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new).await?;
    file.write_all(table).await?;
    file.flush().await?;
    tokio::fs::rename(&new, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_table_is_not_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("dht"), folder.path().join("other"));
        std::fs::write(&other, "theirs").unwrap();
        std::os::unix::fs::symlink(&other, path.with_extension("new")).unwrap();
        write(&path, b"ours").await.unwrap();
        assert_eq!(read(&path).await.unwrap(), b"ours");
        assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
        assert!(!std::fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}
