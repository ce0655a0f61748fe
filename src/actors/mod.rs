//! The supervision tree. Who owns whom, and how far a failure reaches:
//!
//! ```text
//! NodeRoot                    the process; gives up with exit code 70          [root]
//! ├─ Cluster                  the other nodes; restarted alone                 [cluster]
//! ├─ Frontend                 restarted alone; its requests fail               [frontend]
//! │  ├─ Models                which model is served by which ranks             [models]
//! │  ├─ Router × model        prefix index and load; what it knows outlives it  [router]
//! │  ├─ WorkerLink × worker   the token stream of a worker; legs placed again  [link]
//! │  └─ Requests              admission; its requests fail with it             [requests]
//! │     └─ Request × client   owns the answer; only this one fails             [request]
//! └─ Worker                   next generation; legs placed again               [worker]
//!    └─ Rank × DP rank        owns an engine on its own thread; fails Worker   [rank]
//!       └─ Sequence × leg     one leg; placed again                            [rank::sequence]
//! ```
//!
//! Rules of this folder:
//! - Only an actor changes its own state; everyone else sends a message. The one exception is a token
//!   on its way to its request ([`inbox`]).
//! - A failed actor's state is dropped: what it holds is freed in `Drop`, never in `post_stop`.
//! - What must survive a failure lives in the supervisor (which workers are up) or in the `Request`
//!   (what was delivered).
//! - Handlers do not wait: engines run on threads, and their outcome comes back as a message.

pub mod cluster;
pub mod context;
pub mod failure;
pub mod faults;
pub mod frontend;
pub mod handle;
pub mod inbox;
pub mod link;
pub mod models;
pub mod rank;
pub mod reply;
pub mod request;
pub mod requests;
pub mod restart;
pub mod root;
pub mod router;
pub mod terms;
pub mod transfer;
pub mod tree;
pub mod worker;
