//! Faults that can be injected where `faults.enabled`: the tree must heal from each.

use std::time::Duration;

use serde::Deserialize;

use super::context::NodeContext;
use crate::engine::faulty::{self, FaultHandle, ProcessFault};

/// One fault.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "fault")]
pub enum Fault {
    /// Kill the oldest actor of this kind, or the one of this name.
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
    /// Something happens to the processes that engines have to themselves (`worker.process`).
    EngineProcess {
        /// `kill`, `stop`, `abort`, `wedge` or `forward_error`.
        by: ProcessFault,
    },
    /// What engines tell of their prefix caches is lost or garbled, until it is `told` again.
    KvEvents {
        /// `told`, `lost` or `garbled`.
        are: faulty::Events,
    },
}

/// Injects a fault and says what was hit.
///
/// # Errors
/// Words for the client: not enabled, no such actor, no engine.
pub fn inject(node: &NodeContext, fault: Fault) -> Result<String, String> {
    if !node.config.faults.enabled {
        return Err("fault injection is off; set faults.enabled: true to allow it".to_string());
    }
    match fault {
        Fault::KillActor { kind, name } => kill(node, &kind, name.as_deref()),
        Fault::EnginePanic => {
            switch(node, "the next step panics", |engine| engine.inject(faulty::Fault::Panic))
        }
        Fault::StepFails => {
            switch(node, "the next step fails", |engine| engine.inject(faulty::Fault::Fail))
        }
        Fault::StepHangs { ms } => {
            let hang = faulty::Fault::Hang(Duration::from_millis(ms));
            switch(node, "the next step hangs", |engine| engine.inject(hang))
        }
        Fault::SlowSteps { ms } => {
            let by = Duration::from_millis(ms);
            switch(node, "steps are slowed", |engine| engine.slow_each_step(by))
        }
        Fault::EngineProcess { by } => break_process(node, by),
        Fault::KvEvents { are } => {
            switch(node, "KV events have changed", |engine| engine.tell_events(are))
        }
    }
}

fn kill(node: &NodeContext, kind: &str, name: Option<&str>) -> Result<String, String> {
    let found = node.board.find(kind, name);
    let Some((name, actor)) = found.into_iter().next() else {
        let census: Vec<_> = node.board.census().into_keys().collect();
        return Err(format!(
            "no actor of kind {kind:?}{}; the tree has {}",
            name.map_or(String::new(), |name| format!(" named {name:?}")),
            census.join(", ")
        ));
    };
    actor.kill();
    Ok(format!("killed {kind} {name}"))
}

fn break_process(node: &NodeContext, by: ProcessFault) -> Result<String, String> {
    let switches = node.fault_switches();
    let hit = switches.into_iter().filter(|(_, engine)| engine.break_process(by));
    let names: Vec<_> = hit.map(|(name, _)| name).collect();
    if names.is_empty() {
        return Err("no engine of this node has a process to itself (worker.process)".to_string());
    }
    Ok(format!("the engine's process of {} suffers {by:?}", names.join(", ")))
}

fn switch(node: &NodeContext, what: &str, act: impl Fn(&FaultHandle)) -> Result<String, String> {
    let switches = node.fault_switches();
    if switches.is_empty() {
        return Err("this node has no engine".to_string());
    }
    switches.iter().for_each(|(_, engine)| act(engine));
    let names: Vec<_> = switches.into_iter().map(|(name, _)| name).collect();
    Ok(format!("{what} on {}", names.join(", ")))
}
