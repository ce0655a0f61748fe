//! Engines in processes of their own: what ends one, an abort of MPI's or the kernel, does not end the node.
//!
//! ```text
//! Remote (Engine)     what a rank drives: sends commands, hands out what has come, waits for nothing
//! ├─ writer           a thread that sends what waits to be sent
//! ├─ hear             a thread that takes reports, and watches: the end, garbage, silence, no progress
//! └─ Process          the child: a thread that started it waits for it, so that no zombie is left
//! Meeting             where they find each other if a launcher starts it
//! host                the other side: runs an engine for whoever is at the socket; a thread of it beats
//! ```
//!
//! Both talk over a Unix socket: a length, then a message. A [`Remote`] that is lost kills its process at
//! once; one that is dropped says so, and kills it if it has not ended within [`Limits::stop`].

mod frames;
mod hear;
mod host;
mod life;
mod line;
mod meeting;
mod remote;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};

use super::faulty::ProcessFault;
use super::{Description, EngineError, Leg, Load, StepOutput};
use crate::ids::LegId;

pub use host::host;
pub use life::{Count, Process};
pub use meeting::Meeting;
pub use remote::Remote;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For nothing to be heard, not even a heartbeat.
    pub silence: Duration,
    /// For legs to see no progress.
    pub step: Duration,
    /// For the engine to be made.
    pub load: Duration,
    /// For the process to end when it is told to.
    pub stop: Duration,
}

impl Limits {
    /// How often the other side shows that it lives.
    fn beat(&self) -> Duration {
        (self.silence / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }
}

/// What an engine's process is told.
#[derive(Debug, Encode, Decode)]
enum Command {
    /// The first one, once: make the engine.
    Open {
        /// What of.
        spec: Vec<u8>,
        /// How often to show that it lives.
        beat: Duration,
    },
    Admit(Leg),
    AdmitHanded(Leg, Arc<[u8]>),
    Abort(LegId),
    NotGiven(LegId),
    Pulled {
        leg: LegId,
        have: u32,
    },
    /// Fault injection.
    Suffer(ProcessFault),
    /// The last one: end.
    Stop,
}

/// What it says.
#[derive(Debug, Encode, Decode)]
enum Report {
    /// Nothing but that it lives.
    Alive,
    Opened(Description),
    OpenFailed(EngineError),
    Step(Box<Step>),
    /// The last one.
    Lost(EngineError),
}

/// What happened since the last one.
#[derive(Debug, Encode, Decode)]
struct Step {
    output: StepOutput,
    load: Load,
    /// How many [`Command::Admit`] have been obeyed so far.
    admits: u64,
}

fn lost(during: &'static str, detail: impl ToString) -> EngineError {
    EngineError::Lost { during: during.into(), detail: detail.to_string() }
}
