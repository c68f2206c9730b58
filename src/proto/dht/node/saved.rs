//! What survives a restart: our ids and the nodes of the tables.

use super::family::MAX_SAVED;
use super::{Dht, Family};
use crate::proto::bencode::{Dict, DictWriter, Limits};
use crate::proto::dht::id::NodeId;
use crate::proto::dht::krpc::{read_contacts, write_contacts};
use crate::proto::time::Timestamp;

/// What a saved table may be.
const LIMITS: Limits = Limits { depth: 2, size: 64 * 1024 };

/// The keys of id and nodes, by IPv4 and IPv6.
const KEYS: [(&[u8], &[u8]); 2] = [(b"id", b"nodes"), (b"id6", b"nodes6")];

impl Dht {
    /// The ids and tables as bytes, for [`Self::restore`].
    pub fn save(&self) -> Vec<u8> {
        let mut dict = DictWriter::new();
        for (family, (id, nodes)) in self.families.iter().zip(KEYS) {
            if let Some(family) = family {
                dict.bytes(id, family.id.as_bytes()).bytes(nodes, &contacts(family));
            }
        }
        dict.finish()
    }

    /// Takes up an earlier life: its ids, unless one is given, and its nodes, which are asked at
    /// once and are where lookups begin. Bytes that are nothing like that are ignored.
    pub fn restore(&mut self, saved: &[u8], now: Timestamp) {
        let Ok(dict) = Dict::parse(saved, LIMITS) else { return };
        for (index, (id, nodes)) in KEYS.into_iter().enumerate() {
            let fixed = self.config.id.is_some();
            let Some(family) = self.family(index) else { continue };
            let id = dict.bytes(id).and_then(|id| id.try_into().ok()).filter(|_| !fixed);
            if let Some(id) = id.map(NodeId::new) {
                family.set_id(id, now);
            }
            let contacts =
                read_contacts(dict.bytes(nodes).unwrap_or_default(), index == 1, MAX_SAVED);
            let own = family.id;
            let addresses = family.add_saved(contacts.filter(|contact| contact.id != own));
            addresses.into_iter().for_each(|addr| self.introduce(addr, now));
            self.wake(index, now);
        }
        self.keep_up(now);
    }
}

fn contacts(family: &Family) -> Vec<u8> {
    let mut out = Vec::new();
    let contacts: Vec<_> = family.table.contacts().take(MAX_SAVED).collect();
    write_contacts(&mut out, &contacts);
    out
}
