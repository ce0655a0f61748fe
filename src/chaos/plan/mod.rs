//! What will be done to the cluster, and what that may cost a client: plain functions of a seed.

mod fault;
mod schedule;

pub(super) use fault::{Action, Direction, KINDS, Kind, Tolerance, actor_choice};
pub(super) use schedule::{Field, Planned, Role, Schedule};
