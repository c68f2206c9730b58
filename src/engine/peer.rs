//! One connection: bytes to messages and back.
//!
//! The reading half puts the payload of blocks that were asked for into their piece's buffer, and
//! tells the torrent's task only their names. The writing half reads the blocks it uploads from
//! the store, so nothing unverified can be sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::blocks::{Blocks, read_blocks};
use super::rates::{Hold, Throttle, Way};
use crate::proto::geometry::Block;
use crate::proto::ids::{InfoHash, PeerId};
use crate::proto::swarm::PeerKey;
use crate::proto::wire::codec;
use crate::proto::wire::handshake::{HANDSHAKE_LEN, Handshake};
use crate::proto::wire::{Decoder, Frame, Message, RawBlock, WireError};
use crate::store::{PieceBuffer, TorrentStore};

/// How long a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the other side may take for its handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one write may take before the peer counts as dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a peer that is probed may take to acknowledge what was sent to it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer that was asked for something may say nothing before it is to prove that it is there:
/// an address that has changed, or a machine that was suspended, leaves connections that nobody closes.
const QUIET: Duration = Duration::from_secs(10);

/// How long a connection of a torrent that ends may take to deliver what it was given to send.
/// Closing at once could throw away the end of what has been counted as sent: the system answers
/// whatever the peer still says with a reset, which empties both sides' buffers.
const LINGER: Duration = Duration::from_secs(30);

/// Read from the socket at once, in bytes: sixteen blocks.
const READ_CHUNK: usize = 256 * 1024;

/// With more requests than this outstanding, data keeps coming.
const FEW_REQUESTS: usize = 3;

/// Events told to the torrent at once. What waits for it is bounded in batches, so these have to
/// be: one read from the socket can hold 50,000 messages.
const MAX_BATCH: usize = 256;

/// Commands a connection may lag behind before it is closed.
const MAX_COMMANDS: usize = 8_192;

/// The same in bytes of long messages: whoever asks for hashes or metadata without reading the answers
/// has no more of our memory than this.
const MAX_QUEUED: usize = 8 << 20;

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Timeout,
    /// Somebody is there, who closed the connection before any handshake: it has no room for us.
    #[error("turned away")]
    TurnedAway,
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("it serves another torrent")]
    WrongTorrent,
    #[error("connected to ourselves")]
    Ourselves,
}

/// What the connection is told.
pub(super) enum Command {
    Message(Message),
    Upload(RawBlock),
}

impl Command {
    /// Bytes that it holds while it is queued, if they are many.
    fn bytes(&self) -> usize {
        match self {
            Self::Message(Message::Bitfield(bytes) | Message::Extended(_, bytes)) => bytes.len(),
            Self::Message(Message::Hashes(_, hashes)) => size_of_val(hashes.as_slice()),
            _ => 0,
        }
    }
}

/// What happened on the connection.
pub(super) enum Event {
    Message(Message),
    /// A block that was asked for, and the buffer that took it; `None` when another copy was first.
    Block {
        block: Block,
        kept_in: Option<Arc<PieceBuffer>>,
    },
    Unasked(u32),
    Uploaded {
        raw: RawBlock,
        sent: bool,
    },
    Closed(String),
}

/// Events of one connection, in order.
pub(super) type Events = (PeerKey, Vec<Event>);

type Pending = Arc<Mutex<HashMap<RawBlock, (Block, Arc<PieceBuffer>)>>>;

/// The torrent task's end of a connection.
pub(super) struct PeerLink {
    pub peer_id: PeerId,
    pub addr: SocketAddr,
    commands: mpsc::Sender<Command>,
    /// [`Command::bytes`] of those that are queued.
    queued: Arc<AtomicUsize>,
    pending: Pending,
    probe: Arc<Notify>,
    cancel: CancellationToken,
}

impl PeerLink {
    /// Queues a message or upload. A connection that lags too far behind is closed.
    pub(super) fn tell(&self, command: Command) {
        let bytes = command.bytes();
        let queued = bytes + self.queued.fetch_add(bytes, Ordering::Relaxed);
        if queued > MAX_QUEUED || self.commands.try_send(command).is_err() {
            self.cancel.cancel();
        }
    }

    /// Asks for a block whose bytes belong into `buffer`.
    pub(super) fn request(&self, block: Block, buffer: Arc<PieceBuffer>) {
        lock(&self.pending).insert(block.into(), (block, buffer));
        self.tell(Command::Message(Message::Request(block.into())));
    }

    /// Withdraws a request.
    pub(super) fn cancel_request(&self, block: Block) {
        if lock(&self.pending).remove(&block.into()).is_some() {
            self.tell(Command::Message(Message::Cancel(block.into())));
        }
    }

    /// Closes the connection within seconds if the other end is gone: something is sent, which its
    /// system has to acknowledge. Whoever is there and silent stays.
    pub(super) fn probe(&self) {
        self.probe.notify_one();
        self.tell(Command::Message(Message::KeepAlive));
    }

    pub(super) fn close(&self) {
        self.cancel.cancel();
    }
}

impl Drop for PeerLink {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Connects and exchanges handshakes. Whoever does not know the torrent by the hash of `greeting` is
/// greeted with the other one, if it has two.
pub(super) async fn connect(
    addr: SocketAddr,
    greeting: Handshake,
    also: Option<InfoHash>,
) -> Result<(TcpStream, Handshake), ConnectError> {
    match (greet(addr, greeting, also).await, also) {
        (Err(ConnectError::TurnedAway), Some(also)) => {
            let again = Handshake { info_hash: also, ..greeting };
            greet(addr, again, Some(greeting.info_hash)).await
        }
        (done, _) => done,
    }
}

async fn greet(
    addr: SocketAddr,
    greeting: Handshake,
    also: Option<InfoHash>,
) -> Result<(TcpStream, Handshake), ConnectError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addr))
        .await
        .map_err(|_| ConnectError::Timeout)??;
    let exchange = async {
        let mut stream = stream;
        stream.write_all(&greeting.encode()).await.map_err(|_| ConnectError::TurnedAway)?;
        let theirs = read_handshake(&mut stream).await.map_err(|error| match error {
            ConnectError::Io(_) => ConnectError::TurnedAway,
            other => other,
        })?;
        if theirs.info_hash != greeting.info_hash && Some(theirs.info_hash) != also {
            return Err(ConnectError::WrongTorrent);
        }
        if theirs.peer_id == greeting.peer_id {
            return Err(ConnectError::Ourselves);
        }
        Ok((stream, theirs))
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, exchange).await.map_err(|_| ConnectError::Timeout)?
}

/// Reads the other side's handshake.
pub(super) async fn read_handshake(stream: &mut TcpStream) -> Result<Handshake, ConnectError> {
    let mut bytes = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut bytes).await?;
    Ok(Handshake::decode(&bytes)?)
}

/// A connection whose peer has said its handshake.
pub(super) struct Connection {
    pub key: PeerKey,
    pub stream: TcpStream,
    pub peer_id: PeerId,
    pub addr: SocketAddr,
    /// Our handshake, where it has not been sent: on an incoming connection.
    pub greeting: Option<Handshake>,
}

/// What a torrent's connections share with its task.
pub(super) struct Lines {
    pub events: mpsc::Sender<Events>,
    /// Gives the blocks to upload, once the torrent has a store.
    pub store: tokio::sync::watch::Receiver<Option<Arc<TorrentStore>>>,
    /// The torrent ends.
    pub ended: CancellationToken,
    /// Knows when all connections are closed.
    pub open: TaskTracker,
}

/// Runs a connection until either side closes it.
pub(super) fn spawn(connection: Connection, limits: Throttle, lines: Lines) -> PeerLink {
    let Lines { events, store, ended, open } = lines;
    let Connection { key, stream, peer_id, addr, greeting } = connection;
    let span = tracing::error_span!("peer", %addr);
    // Requests go out at once, whoever opened the connection. Only one that is closed already refuses.
    let _ = stream.set_nodelay(true);
    let (commands, commands_rx) = mpsc::channel(MAX_COMMANDS);
    let queued = Arc::new(AtomicUsize::new(0));
    let pending: Pending = Arc::default();
    let cancel = CancellationToken::new();
    let (read, write) = stream.into_split();
    let probe = Arc::new(Notify::new());
    let mut reader = Reader {
        key,
        read,
        pending: pending.clone(),
        events: events.clone(),
        probe: probe.clone(),
    };
    let writer = Writer {
        key,
        write,
        store,
        queued: queued.clone(),
        events: events.clone(),
        limits: limits.clone(),
    };
    let token = cancel.clone();
    let writing = async move {
        let why = writer.run(greeting, commands_rx, &token).await;
        tracing::trace!(why, "writing ended");
        token.cancel();
    };
    let writing = open.spawn(writing.instrument(span.clone()));
    let token = cancel.clone();
    let reading = async move {
        let why = reader.run(&limits, &token).await;
        token.cancel();
        // It is the last that is heard of a connection: what was sent has been told before.
        let _ = writing.await;
        let _ = events.send((key, vec![Event::Closed(why)])).await;
        if ended.is_cancelled() {
            let _ = tokio::time::timeout(LINGER, drain(reader.read)).await;
        }
    };
    open.spawn(reading.instrument(span));
    PeerLink { peer_id, addr, commands, queued, pending, probe, cancel }
}

struct Reader {
    key: PeerKey,
    read: OwnedReadHalf,
    pending: Pending,
    events: mpsc::Sender<Events>,
    probe: Arc<Notify>,
}

impl Reader {
    /// Reads until the end. A block that was put into its buffer is always told of: cancelling
    /// takes effect only while nothing is in hand.
    async fn run(&mut self, limits: &Throttle, cancel: &CancellationToken) -> String {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::new();
        let mut probed_until: Option<Instant> = None;
        let (mut last, mut quiet, mut expected) = (Instant::now(), false, false);
        let look = sleep_until(last + QUIET);
        tokio::pin!(look);
        loop {
            buffer.reserve(READ_CHUNK);
            let receive = async {
                let most = limits.at_once(Way::Down);
                let read = self.read.read_buf(&mut (&mut buffer).limit(most)).await?;
                hurry(&self.read, &self.pending);
                limits.take(Way::Down, read).over().await;
                io::Result::Ok(read)
            };
            let received = tokio::select! {
                () = cancel.cancelled() => return "closed".to_owned(),
                received = receive => Some(received),
                () = self.probe.notified() => {
                    probed_until = Some(Instant::now() + 2 * PROBE_TIMEOUT);
                    None
                }
                () = sleep_until(probed_until.unwrap_or_else(Instant::now)),
                    if probed_until.is_some() =>
                {
                    probed_until = None;
                    None
                }
                () = &mut look => {
                    let silent = last.elapsed() >= QUIET;
                    quiet |= silent && !lock(&self.pending).is_empty();
                    look.as_mut().reset(if silent { Instant::now() } else { last } + QUIET);
                    None
                }
            };
            // What was received before it was interrupted is in the buffer.
            let mut received = received.map_or(Ok(true), |received| {
                (last, quiet) = (Instant::now(), false);
                received.map(|bytes| bytes > 0)
            });
            let expect = quiet || probed_until.is_some();
            if std::mem::replace(&mut expected, expect) != expect {
                received = self.expect_signs_of_life(expect).and(received);
            }
            match received {
                Ok(false) => return "closed by the peer".to_owned(),
                Ok(true) => {}
                Err(e) => return e.to_string(),
            }
            loop {
                let mut batch = Vec::new();
                let end = self.decode(&mut decoder, &mut buffer, &mut batch);
                if !batch.is_empty() && self.events.send((self.key, batch)).await.is_err() {
                    return "the torrent is gone".to_owned();
                }
                match end {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(e) => return e.to_string(),
                }
            }
            // It may have been all but the end of the last block.
            hurry(&self.read, &self.pending);
        }
    }

    /// Has the system close the connection when what was sent is not acknowledged in time, or no
    /// longer do so.
    fn expect_signs_of_life(&self, expect: bool) -> io::Result<()> {
        let timeout = expect.then_some(PROBE_TIMEOUT);
        SockRef::from(self.read.as_ref()).set_tcp_user_timeout(timeout)
    }

    /// Takes frames off `buffer`, as many as a batch may have; whether that was all of them.
    fn decode(
        &self,
        decoder: &mut Decoder,
        buffer: &mut BytesMut,
        batch: &mut Vec<Event>,
    ) -> Result<bool, WireError> {
        while batch.len() < MAX_BATCH {
            match decoder.decode(buffer)? {
                Some(frame) => batch.push(self.event(frame)),
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    fn event(&self, frame: Frame) -> Event {
        let (piece, begin, data) = match frame {
            Frame::Message(message) => {
                if let Message::Reject(raw) = &message {
                    lock(&self.pending).remove(raw);
                }
                return Event::Message(message);
            }
            Frame::Piece { piece, begin, data } => (piece, begin, data),
        };
        let length = data.len() as u32;
        let asked = lock(&self.pending).remove(&RawBlock { piece, begin, length });
        match asked {
            Some((block, buffer)) => {
                let kept = buffer.put(block, &data);
                Event::Block { block, kept_in: kept.then_some(buffer) }
            }
            None => Event::Unasked(length),
        }
    }
}

/// Has what was received acknowledged at once, if little is missing. Many send the header of a block apart from
/// its bytes, and the end of these only when all before is acknowledged (Nagle): what is acknowledged late
/// comes late, unless more is on its way; then each acknowledgement costs more than it brings.
fn hurry(read: &OwnedReadHalf, pending: &Pending) {
    if lock(pending).len() <= FEW_REQUESTS {
        let _ = SockRef::from(read.as_ref()).set_tcp_quickack(true);
    }
}

/// Reads and forgets until the peer has closed its side, which it does when it has got all.
async fn drain(mut read: OwnedReadHalf) {
    let mut nobody = [0; 16 << 10];
    while read.read(&mut nobody).await.is_ok_and(|read| read > 0) {}
}

struct Writer {
    key: PeerKey,
    write: OwnedWriteHalf,
    store: tokio::sync::watch::Receiver<Option<Arc<TorrentStore>>>,
    queued: Arc<AtomicUsize>,
    events: mpsc::Sender<Events>,
    limits: Throttle,
}

impl Writer {
    /// Writes until the end. Blocks that were sent are always told of: cancelling takes effect only
    /// while nothing is in hand.
    async fn run(
        mut self,
        greeting: Option<Handshake>,
        mut commands: mpsc::Receiver<Command>,
        cancel: &CancellationToken,
    ) -> String {
        let mut batch = Vec::new();
        let mut uploads = VecDeque::new();
        // When the first upload may go, once it has been counted.
        let mut held: Option<Hold> = None;
        let mut reading: Option<Reading> = None;
        let mut out = BytesMut::new();
        if let Some(greeting) = greeting {
            out.extend_from_slice(&greeting.encode());
        }
        let mut open = true;
        while open || reading.is_some() {
            let mut uploaded = Vec::new();
            // Messages do not wait for uploads that the limit holds back, or that have to be read.
            tokio::select! {
                () = cancel.cancelled() => return String::new(),
                received = commands.recv_many(&mut batch, 256), if open => open = received > 0,
                () = over(&mut held), if held.is_some() && reading.is_none() => {}
                blocks = read(&mut reading), if reading.is_some() => {
                    reading = None;
                    uploaded = append_uploads(blocks, &mut out);
                }
            }
            for command in batch.drain(..) {
                self.queued.fetch_sub(command.bytes(), Ordering::Relaxed);
                match command {
                    Command::Message(message) => codec::encode(&message, &mut out),
                    Command::Upload(raw) => uploads.push_back(raw),
                }
            }
            if reading.is_none() {
                reading = self.read(self.due(&mut uploads, &mut held));
            }
            let write = tokio::time::timeout(WRITE_TIMEOUT, self.write.write_all_buf(&mut out));
            let written = tokio::select! {
                biased;
                written = write => written,
                () = cancel.cancelled() => return String::new(),
            };
            match written {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return e.to_string(),
                Err(_) => return "it takes nothing any more".to_owned(),
            }
            if !uploaded.is_empty() && self.events.send((self.key, uploaded)).await.is_err() {
                return "the torrent is gone".to_owned();
            }
        }
        "closed".to_owned()
    }

    /// The uploads that the limit lets through now.
    fn due(&self, uploads: &mut VecDeque<RawBlock>, held: &mut Option<Hold>) -> Vec<RawBlock> {
        let mut due = Vec::new();
        while let Some(raw) = uploads.front() {
            let count = || self.limits.take(Way::Up, raw.length as usize);
            let hold = held.take().unwrap_or_else(count);
            if !hold.is_over() {
                *held = Some(hold);
                break;
            }
            due.extend(uploads.pop_front());
        }
        due
    }

    /// Begins to read the blocks to upload, off the runtime.
    fn read(&self, uploads: Vec<RawBlock>) -> Option<Reading> {
        let store = self.store.borrow().clone().filter(|_| !uploads.is_empty())?;
        Some(Box::pin(read_blocks(store, uploads)))
    }
}

/// Blocks that are being read, each `None` if it is not here.
type Reading = Pin<Box<dyn Future<Output = Blocks> + Send>>;

async fn read(reading: &mut Option<Reading>) -> Blocks {
    match reading {
        Some(reading) => reading.await,
        None => Vec::new(),
    }
}

/// Appends to `out` what was read, and tells what was.
fn append_uploads(blocks: Blocks, out: &mut BytesMut) -> Vec<Event> {
    let mut events = Vec::new();
    for (raw, data) in blocks {
        if let Some(data) = &data {
            codec::encode_piece_header(raw.piece, raw.begin, raw.length, out);
            out.extend_from_slice(data);
        }
        events.push(Event::Uploaded { raw, sent: data.is_some() });
    }
    events
}

/// Waits until what holds uploads back is over.
async fn over(held: &mut Option<Hold>) {
    if let Some(held) = held {
        held.over().await;
    }
}

/// Locks a mutex; what it guards is valid after every step, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
