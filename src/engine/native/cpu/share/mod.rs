//! Handing parts of one slice to the threads of a team.

mod ffi;

pub(super) use ffi::{Block, each_block, each_part};
