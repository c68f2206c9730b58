//! What readers want.

pub mod window;
