//! The choker.
