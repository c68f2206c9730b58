//! One peer as the torrent sees it.

mod session;
mod window;

pub use session::{Disconnect, Early, FirstCopies, MAX_SERVED_BLOCK, PeerSession, UPLOAD_QUEUE};
pub use window::RequestWindow;
