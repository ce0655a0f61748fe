//! What will be done to the cluster, and what that may cost a client: plain functions of a seed.

mod fault;
mod role;
mod schedule;

pub(super) use fault::{Action, Direction, KINDS, Kind, Tolerance, actor_choice};
pub(super) use role::{Part, Phase, Role, Work};
pub(super) use schedule::{Field, Planned, Schedule};
