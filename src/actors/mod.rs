//! The supervision tree.

pub mod failure;
pub mod faults;
pub mod handle;
pub mod models;
pub mod reply;
pub mod tree;
