//! The trace of a run: a line for each event, the same for the same plan.
//!
//! `SECONDS EVENT NODE …`; what travels on connection `c` to its end `0` (who opened it) or `1` is
//! shown as `c/0` or `c/1`.

use std::fmt;
use std::io::{self, BufWriter, Write};

use super::event::{End, What, Wire};
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawBlock, RawHashes};

/// Where the lines go.
pub(super) struct Trace {
    out: BufWriter<Box<dyn Write>>,
    /// The first failure; nothing is written after it.
    failed: Option<io::Error>,
}

impl Trace {
    pub fn new(out: Box<dyn Write>) -> Self {
        Self { out: BufWriter::new(out), failed: None }
    }

    pub fn note(&mut self, at: Timestamp, what: &What) {
        if self.failed.is_none() {
            let (secs, nanos) = (at.as_nanos() / 1_000_000_000, at.as_nanos() % 1_000_000_000);
            self.failed = writeln!(self.out, "{secs}.{nanos:09} {what}").err();
        }
    }

    /// Writes what is left.
    pub fn finish(mut self) -> io::Result<()> {
        self.failed.map_or_else(|| self.out.flush(), Err)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(n) => write!(f, "join {n}"),
            Self::Leave(n) => write!(f, "leave {n}"),
            Self::Crash(n) => write!(f, "crash {n}"),
            Self::Wake(n) => write!(f, "wake {n}"),
            Self::Choke(n) => write!(f, "choke {n}"),
            Self::Tracker(n) => write!(f, "tracker {n}"),
            Self::Datagram(d) => {
                write!(f, "datagram {} to {} ", d.from, d.to)?;
                d.payload.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Connected { from, to } => write!(f, "connected {from} to {to}"),
            Self::Unanswered { from, to } => write!(f, "unanswered {from} to {to}"),
            Self::Sent(n) => write!(f, "sent {n}"),
            Self::Arrive(to, wire) => write!(f, "arrive {to} {wire}"),
            Self::Deliver(to, wire) => write!(f, "deliver {to} {wire}"),
            Self::Judged(n, piece) => write!(f, "judged {n} {}", piece.get()),
            Self::Written(n, piece) => write!(f, "written {n} {}", piece.get()),
            Self::Lost(n, piece) => write!(f, "lost {n} {}", piece.get()),
            Self::Reset => f.write_str("reset"),
            Self::Sample => f.write_str("sample"),
            Self::Check => f.write_str("check"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.conn, self.side)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { raw, good } => {
                write!(f, "block {}{}", Named(raw), if *good { "" } else { " bad" })
            }
            Self::Close => f.write_str("close"),
            Self::Message(message) => write!(f, "{}", Said(message)),
        }
    }
}

/// A run of hashes as layer, index, length and layers of proof.
struct NamedHashes<'a>(&'a RawHashes);

impl fmt::Display for NamedHashes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RawHashes { layer, index, length, proof_layers, .. } = self.0;
        write!(f, "{layer}/{index}+{length}^{proof_layers}")
    }
}

/// A block as piece, offset and length.
struct Named<'a>(&'a RawBlock);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}+{}", self.0.piece, self.0.begin, self.0.length)
    }
}

/// A message; of long ones their length.
struct Said<'a>(&'a Message);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Message::KeepAlive => f.write_str("keep-alive"),
            Message::Choke => f.write_str("choke"),
            Message::Unchoke => f.write_str("unchoke"),
            Message::Interested => f.write_str("interested"),
            Message::NotInterested => f.write_str("not-interested"),
            Message::Have(piece) => write!(f, "have {piece}"),
            Message::Bitfield(bytes) => write!(f, "bitfield {} bytes", bytes.len()),
            Message::Request(raw) => write!(f, "request {}", Named(raw)),
            Message::Cancel(raw) => write!(f, "cancel {}", Named(raw)),
            Message::Port(port) => write!(f, "port {port}"),
            Message::Suggest(piece) => write!(f, "suggest {piece}"),
            Message::HaveAll => f.write_str("have-all"),
            Message::HaveNone => f.write_str("have-none"),
            Message::Reject(raw) => write!(f, "reject {}", Named(raw)),
            Message::AllowedFast(piece) => write!(f, "allowed-fast {piece}"),
            Message::Extended(id, bytes) => write!(f, "extended {id} {} bytes", bytes.len()),
            Message::HashRequest(raw) => write!(f, "hash-request {}", NamedHashes(raw)),
            Message::Hashes(raw, hashes) => {
                write!(f, "{} hashes {}", hashes.len(), NamedHashes(raw))
            }
            Message::HashReject(raw) => write!(f, "hash-reject {}", NamedHashes(raw)),
            Message::Unknown(kind) => write!(f, "unknown {kind}"),
        }
    }
}
