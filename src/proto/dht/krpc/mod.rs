//! KRPC, the messages of the DHT: what they say, and how they are written and read.
//!
//! All of BEP 5, 32 (IPv6), 33 (scrape), 42 (`ip`), 43 (`ro`), 44 (items) and 51 (samples). What is
//! read is bounded by the datagram; lists within it are cut at the constants here. Addresses that
//! nobody can have (port 0, multicast …) are left out.

mod compact;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use super::id::{Contact, NodeId};
use super::peer_store::Bloom;
use crate::proto::bencode::Limits;
use crate::proto::ids::InfoHash;

pub(crate) use compact::{read_contacts, usable, write_contacts};

/// The longest datagram that is read, in bytes: what fits an Ethernet frame, roughly.
pub const MAX_DATAGRAM: usize = 1_500;

/// The longest answer that is sent, in bytes, but for values of items (BEP 32, "Maximum packet
/// size").
pub const MAX_ANSWER: usize = 1_024;

/// The longest datagram that is sent, in bytes: an item of [`MAX_VALUE`] bytes with its key,
/// signature and some nodes. It still crosses an Ethernet in one frame, over IPv6 too.
pub const MAX_ITEM_ANSWER: usize = 1_400;

/// The longest transaction id taken from others, in bytes. Known implementations use 2 to 8.
pub const MAX_TRANSACTION: usize = 32;

/// The longest token taken from others, in bytes: it is kept and sent back.
pub const MAX_TOKEN: usize = 64;

/// Nodes taken from one answer for each family. BEP 5 has 8; some send more.
pub const MAX_NODES: usize = 16;

/// Peers taken from one answer: one node does not fill the list of a torrent.
pub const MAX_VALUES: usize = 100;

/// The longest value of an item in its bencoded form, in bytes (BEP 44).
pub const MAX_VALUE: usize = 1_000;

/// The longest salt of a mutable item, in bytes (BEP 44).
pub const MAX_SALT: usize = 64;

/// Characters kept of an error's text.
const MAX_ERROR_TEXT: usize = 120;

/// What a datagram may be.
const LIMITS: Limits = Limits { depth: 16, size: MAX_DATAGRAM };

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What the asker chose, 1 to [`MAX_TRANSACTION`] bytes; the answer repeats it.
    pub transaction: Vec<u8>,
    /// The asker does not answer, and does not belong into tables (BEP 43, `ro`).
    pub read_only: bool,
    /// From where the receiver of this answer is seen (BEP 42).
    pub ip: Option<SocketAddr>,
    /// What is asked or answered.
    pub body: Body,
}

/// What is asked or answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A question.
    Query(Query),
    /// An answer. What was asked is only known to whoever has asked.
    Answer(Box<Answer>),
    /// A refusal.
    Error(KrpcError),
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Who asks.
    pub id: NodeId,
    /// What.
    pub method: Method,
}

/// Which nodes the asker wants (BEP 32, `want`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// `nodes`.
    pub v4: bool,
    /// `nodes6`.
    pub v6: bool,
}

/// The questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Are you there (BEP 5)?
    Ping,
    /// Who is close to `target` (BEP 5)?
    FindNode {
        /// Any place in the space of ids.
        target: NodeId,
        /// Which families; `None` leaves it to the datagram's own.
        want: Option<Want>,
    },
    /// Who has the torrent (BEP 5, BEP 33)?
    GetPeers {
        /// The torrent.
        info_hash: InfoHash,
        /// Which families of nodes; `None` leaves it to the datagram's own.
        want: Option<Want>,
        /// Seeds are of no use to the asker.
        no_seed: bool,
        /// The asker counts: Bloom filters are wanted.
        scrape: bool,
    },
    /// The asker has the torrent, or part of it (BEP 5, BEP 33).
    AnnouncePeer {
        /// The torrent.
        info_hash: InfoHash,
        /// Where it listens; without meaning when `implied_port`.
        port: u16,
        /// It listens where it asks from.
        implied_port: bool,
        /// It has everything.
        seed: bool,
        /// What an answer to `get_peers` gave it.
        token: Vec<u8>,
    },
    /// What item is there (BEP 44)?
    Get {
        /// The item's key.
        target: NodeId,
        /// Only worth an answer if it is newer than this.
        seq: Option<i64>,
        /// Which families of nodes; `None` leaves it to the datagram's own.
        want: Option<Want>,
    },
    /// Keep this item (BEP 44).
    Put {
        /// The item.
        item: PutItem,
        /// What an answer to `get` gave the asker.
        token: Vec<u8>,
    },
    /// Which torrents do you keep (BEP 51)?
    SampleInfohashes {
        /// Any place: nodes close to it are wanted as well.
        target: NodeId,
        /// Which families of nodes; `None` leaves it to the datagram's own.
        want: Option<Want>,
    },
}

/// An item to keep (BEP 44).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutItem {
    /// The value, bencoded.
    pub value: Vec<u8>,
    /// What makes it mutable.
    pub mutable: Option<Signed>,
    /// The number the item has to have before; otherwise nothing is changed.
    pub cas: Option<i64>,
}

/// What makes an item mutable (BEP 44).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The public key.
    pub key: [u8; 32],
    /// The signature of salt, number and value.
    pub signature: [u8; 64],
    /// The number, greater with each change.
    pub seq: i64,
    /// Tells items of one key from each other; in answers it is missing.
    pub salt: Vec<u8>,
}

/// What an answer says; each question has its own part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answers.
    pub id: NodeId,
    /// Allows to announce or put.
    pub token: Option<Vec<u8>>,
    /// Nodes close to what was asked for, reached by IPv4; `None` when that was not answered.
    pub nodes: Option<Vec<Contact>>,
    /// Nodes close to what was asked for, reached by IPv6.
    pub nodes6: Option<Vec<Contact>>,
    /// Peers.
    pub values: Vec<SocketAddr>,
    /// Seeds and other peers, counted (BEP 33, `BFsd` and `BFpe`).
    pub scrape: Option<Box<(Bloom, Bloom)>>,
    /// An item's value (BEP 44), bencoded.
    pub value: Option<Vec<u8>>,
    /// What makes it mutable. The salt is empty.
    pub signed: Option<Signed>,
    /// An item's number, which comes alone when the value is no news to the asker.
    pub seq: Option<i64>,
    /// Which torrents it keeps (BEP 51).
    pub samples: Option<Samples>,
}

/// Torrents that a node keeps (BEP 51).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// Some of them.
    pub hashes: Vec<InfoHash>,
    /// How many it keeps.
    pub count: u64,
    /// Seconds until there are others to be had, at most six hours.
    pub interval: u32,
}

impl Answer {
    /// An answer that only says who answers.
    pub const fn new(id: NodeId) -> Self {
        Self {
            id,
            token: None,
            nodes: None,
            nodes6: None,
            values: Vec::new(),
            scrape: None,
            value: None,
            signed: None,
            seq: None,
            samples: None,
        }
    }

    /// All nodes, those reached by IPv4 first.
    pub fn contacts(&self) -> impl Iterator<Item = &Contact> {
        self.nodes.iter().chain(&self.nodes6).flatten()
    }
}

/// A refusal (BEP 5, "Errors"; BEP 44, "Errors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KrpcError {
    /// One of the codes below, or any other.
    pub code: i64,
    /// For people.
    pub text: String,
}

impl KrpcError {
    /// Anything else.
    pub const GENERIC: i64 = 201;
    /// The node cannot, for now.
    pub const SERVER: i64 = 202;
    /// A malformed packet, bad arguments or a bad token.
    pub const PROTOCOL: i64 = 203;
    /// Nobody knows this question.
    pub const UNKNOWN_METHOD: i64 = 204;
    /// The value is too long.
    pub const TOO_BIG: i64 = 205;
    /// The signature is none.
    pub const BAD_SIGNATURE: i64 = 206;
    /// The salt is too long.
    pub const SALT_TOO_BIG: i64 = 207;
    /// The item's number is not what the asker expected.
    pub const CAS_MISMATCH: i64 = 301;
    /// The item is newer than that.
    pub const SEQ_TOO_LOW: i64 = 302;

    /// The refusal with this code and text.
    pub fn new(code: i64, text: &str) -> Self {
        Self { code, text: text.to_owned() }
    }
}

/// Why a datagram is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// Nothing that could be answered.
    #[error("not a message")]
    Garbage,
    /// A question that makes no sense, and can be told so.
    #[error("a question that makes no sense: {}", .error.text)]
    Refused {
        /// What the asker chose.
        transaction: Vec<u8>,
        /// What to answer.
        error: KrpcError,
    },
}

impl Message {
    /// A question.
    pub const fn query(transaction: Vec<u8>, id: NodeId, method: Method) -> Self {
        let body = Body::Query(Query { id, method });
        Self { transaction, read_only: false, ip: None, body }
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`NoMessage`]; its cost is at most one walk over the bytes.
    pub fn parse(datagram: &[u8]) -> Result<Self, NoMessage> {
        decode::message(datagram)
    }

    /// The datagram, its keys in order.
    pub fn encode(&self) -> Vec<u8> {
        encode::message(self)
    }
}
