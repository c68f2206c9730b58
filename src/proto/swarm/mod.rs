//! The swarm of one torrent: which pieces peers have, which blocks are asked of whom, who is known
//! and who lies.

mod blame;
mod external;
mod hand_out;
mod informants;
mod peer_list;
mod picker;
mod priority;

pub use blame::{Blame, Digest};
pub use external::{ExternalAddress, site};
pub use hand_out::{HandOut, MAX_SUGGESTED, Sent};
pub use peer_list::{PeerList, PeerSource, Search, can_be_meant_for};
pub use picker::{Holds, Picker, Priority};
pub use priority::Ourselves;

/// Names one connection of a torrent; never reused while the torrent lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u64);
