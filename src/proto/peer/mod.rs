//! One peer as the torrent sees it.

mod session;
mod window;

pub use session::{Disconnect, Early, MAX_SERVED_BLOCK, PeerSession, UPLOAD_QUEUE};
pub use window::RequestWindow;
