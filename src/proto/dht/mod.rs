//! The distributed hash table (BEP 5, 32, 33, 42, 43, 44, 51): who has a torrent, without a tracker.

mod id;

pub use id::{Contact, Distance, K, NodeId};
