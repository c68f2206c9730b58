//! What readers want.
