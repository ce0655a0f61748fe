//! Faults that can be injected where `faults.enabled`.

use serde::Deserialize;

/// One fault.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "fault")]
pub enum Fault {
    /// Kill the actor of this kind (and name, if given; else a random one).
    KillActor {
        /// `Request`, `Rank`, …
        kind: String,
        /// As the tree shows it.
        name: Option<String>,
    },
    /// The engine panics in its next step.
    EnginePanic,
    /// The engine's next step fails.
    StepFails,
    /// The engine's next step takes this long.
    StepHangs {
        /// Milliseconds.
        ms: u64,
    },
    /// Every step takes this much longer, until set to 0.
    SlowSteps {
        /// Milliseconds.
        ms: u64,
    },
}
