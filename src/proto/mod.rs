//! The pure protocol core: machines and codecs with no clock, socket, file, thread or runtime.
//!
//! Time comes in as a [`time::Timestamp`], randomness from a generator seeded by the caller, and
//! payload bytes stay outside: a machine sees `(peer, block)` only. This is what lets the same
//! decisions run a real mount and a simulated swarm.

pub mod bencode;
pub mod bitfield;
pub mod cache;
pub mod choker;
pub mod crc32c;
pub mod demand;
pub mod dht;
pub mod geometry;
pub mod ids;
pub mod lsd;
pub mod merkle;
pub mod metainfo;
pub mod peer;
pub mod rate;
pub mod seeding;
pub mod shares;
pub mod swarm;
pub mod time;
pub mod torrent;
pub mod tracker;
pub mod wire;
