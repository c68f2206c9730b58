//! The info dictionary: fetched from peers, and served to them (BEP 9).

use super::{Output, Torrent};
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::wire::Message;
use crate::proto::wire::extended::{METADATA_PIECE_LEN, MetadataMessage};
use crate::proto::wire::metadata::MetadataOutput;

/// How often a peer may have the info dictionary; what it asks for beyond that is rejected (BEP 9,
/// flood protection).
const MAX_COPIES: usize = 3;

impl Torrent {
    /// A peer said how long the info dictionary is (0: it does not have it).
    pub(super) fn metadata_offered(&mut self, key: PeerKey, size: u32, now: Timestamp) {
        let speaks = self.peers.get(&key).is_some_and(|p| p.ut_metadata != 0);
        if let Some(fetch) = self.fetch.as_mut().filter(|_| speaks) {
            fetch.peer_ready(key.0, size, now);
        }
    }

    pub(super) fn metadata_message(
        &mut self,
        key: PeerKey,
        message: MetadataMessage,
        now: Timestamp,
    ) {
        if let MetadataMessage::Request { piece } = message {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            let info = self.active.as_ref().map(|a| &a.info.raw[..]);
            let pieces = info.map_or(0, |i| i.len().div_ceil(METADATA_PIECE_LEN as usize));
            let enough = peer.metadata_sent >= pieces * MAX_COPIES;
            peer.metadata_sent += 1;
            let answer = MetadataMessage::answer(info.filter(|_| !enough), piece);
            self.send_metadata(key, &answer, now);
        } else if let Some(fetch) = &mut self.fetch {
            fetch.on_message(key.0, message, now);
        }
    }

    fn send_metadata(&mut self, key: PeerKey, message: &MetadataMessage, now: Timestamp) {
        let id = self.peers.get(&key).map_or(0, |p| p.ut_metadata);
        if id != 0 {
            self.send(key, Message::Extended(id, message.encode()), now);
        }
    }

    pub(super) fn poll_metadata(&mut self, now: Timestamp) {
        if let Some(fetch) = &mut self.fetch {
            fetch.handle_timeout(now);
        }
        while let Some(output) = self.fetch.as_mut().and_then(|f| f.poll()) {
            match output {
                MetadataOutput::Request { peer, piece } => {
                    self.send_metadata(PeerKey(peer), &MetadataMessage::Request { piece }, now);
                }
                MetadataOutput::Done(info) => self.outputs.push_back(Output::Metadata(info)),
                MetadataOutput::Misbehaved { peer } => self.ban(PeerKey(peer), now),
            }
        }
    }
}
