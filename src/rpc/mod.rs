//! The control protocol.
