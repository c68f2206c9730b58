//! The `p2pfs` command.
fn main() {}
