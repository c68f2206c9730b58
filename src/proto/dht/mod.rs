//! The distributed hash table (BEP 5, 32, 33, 42, 43, 44, 51): who has a torrent, without a tracker.

mod id;
mod lookup;
mod rtt;
mod size;
mod table;

pub use id::{Contact, Distance, K, NodeId};
pub use lookup::{Ask, Lookup, LookupOptions};
pub use rtt::{Answers, RoundTrip};
pub use size::Size;
pub use table::Table;
