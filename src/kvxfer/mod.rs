//! Moves KV blocks between the pools of ranks: the synchronous layer under the Transfer actors.
//!
//! ```text
//! layout, plan   which byte ranges of which pool go where (pure)
//! ledger         which blocks a transfer may still read or write (pure)
//! region         a pool as memory that transports may touch
//! grants, words  what peers may read of our pools, and until when
//! offer          what travels from the rank that has blocks to the one that wants them
//! process        whether a process of this host is dead: one way to prove quiet
//! transport      the trait: register, publish, connect, grant, pull, abort, events
//! front          its side that callers see, for all of these:
//! ├─ local       ranks of one process: a thread that copies
//! ├─ tcp         any two hosts: sockets read and written straight from and to the pools
//! ├─ ucx         shared memory, RDMA, NVLink: one-sided gets through libucp, loaded at run time
//! └─ nixl        host memory, by one-sided reads through NIXL, loaded at run time
//! ```
//!
//! The side that needs blocks *pulls* them: it owns what is written and knows when its own requests
//! have ended, and a stale read cannot corrupt memory. No library can take back a request that was
//! posted, so safety is ours:
//! - A pull ends in [`Event::Done`], or in [`Event::Failed`] and then [`Event::Quiesced`]. Only
//!   `Done` and `Quiesced` say that nothing writes to its local ranges any more. Without them the
//!   blocks stay in quarantine ([`ledger`]).
//! - The side that is read grants ranges ([`Transport::grant`]) and takes them back
//!   ([`Transport::withdraw`]). What a pull reads after that never ends in `Done`: where the source
//!   does not serve each read itself, the puller looks at the grant's word after its last read.
//! - Offsets travel, not addresses, and all that arrives is checked before it is used.

mod commands;
mod descriptor;
mod error;
mod front;
mod grants;
pub mod layout;
pub mod ledger;
pub mod local;
pub mod nixl;
mod offer;
pub mod plan;
pub mod process;
pub mod region;
mod shared;
pub mod tcp;
mod transport;
pub mod ucx;
mod words;

pub use error::{Reach, XferError};
pub use layout::{Layout, Sizes, Strides};
pub use offer::{KvBlocks, KvOffer, KvOrigin, KvSource};
pub use plan::{PlanError, Run, Side, plan};
pub use region::{Memory, MemoryKind, block_checksum};
pub use transport::{
    Counters, Event, GrantId, Limits, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId,
    Transport,
};
