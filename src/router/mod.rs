//! Where legs go: what is decided about it, in plain functions and records.
//!
//! ```text
//! index   which ranks hold which leading blocks of a prompt, by their word or by our guess
//! follow  whether a rank's word is complete
//! tiers   the same for blocks on the device, in the host's memory and on disk
//! cost    what a leg costs on a rank, in KV blocks
//! pick    the rank that gets it, by the router's mode
//! queue   whose turn it is when all ranks are full
//! affinity  which rank a session went to last
//! disagg  whether a prompt is prefilled on another rank than it is decoded on
//! ```
//! Nothing here knows actors, links or clocks; `actors::router` feeds it and asks it.

mod affinity;
mod cost;
mod disagg;
mod follow;
pub mod index;
mod pick;
mod queue;
mod tiers;

pub use affinity::{Affinity, Sessions};
pub use cost::{Cached, RankLoad, Score, Weights};
pub use disagg::{Place, PrefillRank, Role, Thresholds};
pub use follow::{Follower, KvNews, Verdict};
pub use pick::{Candidate, Mode, Picker};
pub use queue::{Claim, Full, Policy, Queue, Ticket};
pub use tiers::{Depths, Slots, TieredIndex};
