//! The distributed hash table (BEP 5, 32, 33, 42, 43, 44, 51): who has a torrent, without a tracker.

mod id;
mod items;
pub mod krpc;
mod limits;
mod lookup;
mod node;
mod peer_store;
mod rtt;
mod seeker;
mod size;
mod table;
#[cfg(test)]
mod tests;
mod token;

pub use id::{Contact, Distance, K, NodeId, is_local};
pub use items::{ITEM_LIFETIME, Item, Items, MAX_ITEMS, immutable_target, mutable_target};
pub use limits::{Allowance, Limiter};
pub use lookup::{Ask, Lookup, LookupOptions};
pub use node::{
    Announce, Config, Dht, DhtStats, GetPeers, LookupId, MAX_LOOKUPS, MAX_PENDING, MAX_QUEUED,
    MAX_ROUTERS, MAX_SAVED, MAX_STORES, MAX_WAIT, Outcome, Output, Scrape, Traffic,
};
pub use peer_store::{
    Bloom, LIFETIME, MAX_ALL_PEERS, MAX_PEERS, MAX_TORRENTS, PeerStore, StoreFull,
};
pub use rtt::{Answers, RoundTrip};
pub use seeker::{ANNOUNCE_INTERVAL, Seeker};
pub use size::Size;
pub use table::{MAX_STRANGE, STRANGE_BITS, Table};
pub use token::Tokens;
