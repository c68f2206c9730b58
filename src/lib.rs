#![doc = include_str!("ARCHITECTURE.md")]

#[cfg(feature = "full")]
pub mod engine;
#[cfg(feature = "full")]
pub mod fs;
pub mod proto;
#[cfg(feature = "full")]
pub mod rpc;
pub mod sim;
#[cfg(feature = "full")]
pub mod store;
