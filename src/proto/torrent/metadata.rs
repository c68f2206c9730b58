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

#[cfg(test)]
mod tests {
    use super::super::lone::Lone;
    use super::*;
    use crate::proto::bitfield::Bitfield;

    /// How often a peer was told that we are interested, and that we are not.
    fn told(lone: &mut Lone, key: PeerKey) -> (usize, usize) {
        lone.step();
        let count =
            |wanted: Message| lone.sent.iter().filter(|(to, m)| *to == key && *m == wanted).count();
        (count(Message::Interested), count(Message::NotInterested))
    }

    #[test]
    fn whoever_has_something_hears_of_our_interest_before_we_know_in_what() {
        let mut lone = Lone::new(9, 1, |_| true);
        lone.machine = Torrent::new(lone.info.info_hash, lone.machine.options.clone(), 1);
        let first = |has: u32| move |piece| piece < has;
        let [seed, some, none] = [9, 1, 0].map(|has| lone.holder(true, first(has)));
        assert_eq!([seed, some, none].map(|key| told(&mut lone, key)), [(1, 0), (1, 0), (0, 0)]);
        lone.say(none, Message::Have(3));
        assert_eq!(told(&mut lone, none), (1, 0));
        // All but the last piece turns out to be here.
        let mut here = Bitfield::full(9);
        here.remove(lone.info.geometry.piece(8).unwrap());
        let info = lone.info.clone();
        lone.machine.activate(info, here, &Bitfield::full(9), lone.now);
        assert_eq!([seed, some].map(|key| told(&mut lone, key)), [(1, 0), (1, 1)]);
    }
}
