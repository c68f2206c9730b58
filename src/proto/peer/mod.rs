//! One peer as the torrent sees it.

mod allowance;
mod exchange;
mod pauses;
mod session;
mod window;

pub use allowance::HashAllowance;
pub use exchange::{Exchange, PEX_INTERVAL};
pub use session::{Disconnect, Early, FirstCopies, MAX_SERVED_BLOCK, PeerSession, UPLOAD_QUEUE};
pub use window::RequestWindow;
