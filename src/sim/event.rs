//! What happens, and when: events in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::datagram::Datagram;
use crate::proto::geometry::PieceIndex;
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawBlock};

/// Names a node.
pub(super) type NodeId = u32;

/// One end of a connection: which connection, and which of its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub conn: u32,
    pub side: u8,
}

impl End {
    /// The other end.
    pub fn far(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// What travels on a connection.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    Message(Message),
    /// A block; its bytes are only ever good or bad.
    Block {
        raw: RawBlock,
        good: bool,
    },
    /// The sender has closed the connection.
    Close,
}

/// An event.
#[derive(Clone, Debug)]
pub(super) enum What {
    Join(NodeId),
    Leave(NodeId),
    /// The node vanishes and tells nobody.
    Crash(NodeId),
    /// The machine's time to look around.
    Wake(NodeId),
    /// A round of the choker.
    Choke(NodeId),
    /// The announcer's time to look around.
    Tracker(NodeId),
    /// A datagram has come to where it was sent.
    Datagram(Box<Datagram>),
    /// An attempt to connect has come to its end.
    Connected {
        from: NodeId,
        to: NodeId,
    },
    /// An attempt to connect to who does not answer is given up.
    Unanswered {
        from: NodeId,
        to: NodeId,
    },
    /// The uplink has sent the block it was sending.
    Sent(NodeId),
    /// Something has come to the downlink of this end.
    Arrive(End, Wire),
    /// Something has come through to this end after a wait.
    Deliver(End, Wire),
    /// The gate has hashed a piece.
    Judged(NodeId, PieceIndex),
    /// The disk has answered.
    Written(NodeId, PieceIndex),
    /// The store has forgotten a piece that it could not write.
    Lost(NodeId, PieceIndex),
    /// Some connection breaks.
    Reset,
    /// Progress is noted for the plot.
    Sample,
    /// Nodes are looked at.
    Check,
}

impl What {
    /// Two numbers that tell events of the same time apart in the trace.
    fn fingerprint(&self) -> (u64, u64) {
        let end = |e: &End| u64::from(e.conn) << 1 | u64::from(e.side);
        let block = |raw: &RawBlock| u64::from(raw.piece) << 32 | u64::from(raw.begin);
        match self {
            Self::Join(n) => (1, u64::from(*n)),
            Self::Leave(n) => (2, u64::from(*n)),
            Self::Wake(n) => (3, u64::from(*n)),
            Self::Choke(n) => (4, u64::from(*n)),
            Self::Tracker(n) => (5, u64::from(*n)),
            Self::Datagram(datagram) => (15, digest(&datagram.payload)),
            Self::Connected { from, to } => (6, u64::from(*from) << 32 | u64::from(*to)),
            Self::Unanswered { from, to } => (16, u64::from(*from) << 32 | u64::from(*to)),
            Self::Crash(n) => (17, u64::from(*n)),
            Self::Sent(n) => (7, u64::from(*n)),
            Self::Arrive(to, wire) => {
                let (kind, value) = fingerprint(wire, block);
                (8 | end(to) << 16 | kind << 8, value)
            }
            Self::Deliver(to, wire) => {
                let (kind, value) = fingerprint(wire, block);
                (9 | end(to) << 16 | kind << 8, value)
            }
            Self::Judged(n, piece) => (10 | u64::from(*n) << 8, piece.get().into()),
            Self::Written(n, piece) => (11 | u64::from(*n) << 8, piece.get().into()),
            Self::Lost(n, piece) => (12 | u64::from(*n) << 8, piece.get().into()),
            Self::Reset => (13, 0),
            Self::Sample => (14, 0),
            Self::Check => (18, 0),
        }
    }
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn fingerprint(wire: &Wire, block: impl Fn(&RawBlock) -> u64) -> (u64, u64) {
    match wire {
        Wire::Block { raw, good } => (u64::from(*good), block(raw)),
        Wire::Close => (2, 0),
        Wire::Message(message) => match message {
            Message::KeepAlive => (3, 0),
            Message::Choke => (4, 0),
            Message::Unchoke => (5, 0),
            Message::Interested => (6, 0),
            Message::NotInterested => (7, 0),
            Message::Have(piece) => (8, u64::from(*piece)),
            Message::Bitfield(bytes) => (9, bytes.len() as u64),
            Message::Request(raw) => (10, block(raw)),
            Message::Cancel(raw) => (11, block(raw)),
            Message::Port(port) => (12, u64::from(*port)),
            Message::Suggest(piece) => (13, u64::from(*piece)),
            Message::HaveAll => (14, 0),
            Message::HaveNone => (15, 0),
            Message::Reject(raw) => (16, block(raw)),
            Message::AllowedFast(piece) => (17, u64::from(*piece)),
            Message::Extended(id, bytes) => (18, u64::from(*id) << 32 | bytes.len() as u64),
            Message::HashRequest(raw) => (20, raw.index.into()),
            Message::Hashes(raw, _) => (21, raw.index.into()),
            Message::HashReject(raw) => (22, raw.index.into()),
            Message::Unknown(kind) => (19, u64::from(*kind)),
        },
    }
}

/// The event queue, and the clock that it drives.
#[derive(Default)]
pub(super) struct Agenda {
    /// When, in which order of those at the same time, and where it lies: events themselves are
    /// many times larger, and would be moved about with each that comes or goes.
    heap: BinaryHeap<Reverse<(Timestamp, u64, u32)>>,
    events: Vec<Option<What>>,
    free: Vec<u32>,
    sequence: u64,
    now: Timestamp,
    /// FNV-1a over all that has happened.
    trace: u64,
}

impl Agenda {
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// A digest of all that has happened.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    pub fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    /// Plans an event; what lies in the past happens now.
    pub fn at(&mut self, at: Timestamp, what: What) {
        self.sequence += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[place as usize] = Some(what);
        self.heap.push(Reverse((at.max(self.now), self.sequence, place)));
    }

    /// The next event; time moves on to it.
    pub fn next(&mut self) -> Option<What> {
        let Reverse((at, _, place)) = self.heap.pop()?;
        let what = self.events[place as usize].take()?;
        self.free.push(place);
        self.now = at;
        let (a, b) = what.fingerprint();
        for word in [at.as_nanos(), a, b] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        Some(what)
    }
}
