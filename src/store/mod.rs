//! Bytes at rest and the gate.
