//! One torrent.
