//! The `cuelight` command.
fn main() {}
