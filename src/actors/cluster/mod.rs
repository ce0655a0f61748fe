//! The cluster: nodes that know each other, and the only folder that sees what is not in this
//! process.
//!
//! ```text
//! Cluster                        membership; restarted alone                     [actor]
//! ├─ NodeControl                 the one actor other nodes reach                [control]
//! ├─ PeerLink × address          dials, and dials again                         [peer]
//! └─ FrontendLink × front end    the worker's end of a token stream             [frontend_link]
//!
//! wire        frames, heartbeats, silence      hello      who is there, and the cookie
//! transport   TCP or TLS, greeted in time      pipe       a ractor session in our frames
//! stream      legs out, a frame a step back    members    which connection counts (pure)
//! card        what a node serves (pure)        door       who may come in
//! discovery   where to dial                    standstill this process was frozen
//! ```
//!
//! Rules of this folder:
//! - A remote actor is told and asked, never stopped, killed or linked.
//! - Every connection has heartbeats of its own; silence ends it, and what hangs on it ends with it.
//! - Nothing of a connection outlives it: a leg's way is its stream, and a stream is never resumed.

mod actor;
pub mod card;
pub mod control;
pub mod discovery;
mod door;
pub mod frontend_link;
pub mod hello;
pub mod members;
pub mod peer;
mod pipe;
pub mod redial;
mod sessions;
mod standstill;
pub mod stream;
pub mod transport;
pub mod wire;

pub use actor::{Args, Cluster, ClusterError, Msg, State};
pub use door::Door;
