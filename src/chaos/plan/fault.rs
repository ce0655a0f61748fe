//! The kinds of faults, and what each of them may cost a client.

use std::fmt;

use serde::Serialize;

use crate::engine::faulty::ProcessFault;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Kill,
    Stop,
    Drain,
    Restart,
    EnginePanic,
    EngineHang,
    StepFails,
    EngineKill,
    EngineStop,
    EngineAbort,
    EngineWedge,
    ForwardError,
    SlowSteps,
    KillActor,
    Partition,
    PartitionOneWay,
    Delay,
    Loss,
    Bandwidth,
    Etcd,
    ClockJump,
    SlowClient,
    VanishingClient,
}

/// What a kind of fault needs to be possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A client is enough.
    Nothing,
    /// A process that the harness started.
    Process,
    /// `faults.enabled` on the node.
    Injection,
    /// The same, and engines in processes of their own.
    EngineProcess,
    /// A network namespace for each node.
    Namespaces,
    /// As before, and packets can be delayed, and some be lost.
    Delays,
    /// An etcd that the harness started.
    Etcd,
    /// A process that goes by libfaketime's clock.
    Clock,
}

/// All kinds: name, what it needs, what it does.
pub(crate) const KINDS: &[(Kind, &str, Needs, &str)] = &[
    (Kind::Kill, "kill", Needs::Process, "SIGKILL, then start again"),
    (Kind::Stop, "stop", Needs::Process, "SIGSTOP for longer than failure detection, SIGCONT"),
    (Kind::Drain, "drain", Needs::Process, "SIGTERM, wait for the end, start again"),
    (Kind::Restart, "restart", Needs::Process, "SIGTERM twice (ends at once), start again"),
    (Kind::EnginePanic, "engine_panic", Needs::Injection, "the engine panics in a step"),
    (Kind::EngineHang, "engine_hang", Needs::Injection, "a step of the engine never returns"),
    (Kind::StepFails, "step_fails", Needs::Injection, "a step of the engine fails"),
    (Kind::EngineKill, "engine_kill", Needs::EngineProcess, "SIGKILL to the engine's process"),
    (Kind::EngineStop, "engine_stop", Needs::EngineProcess, "SIGSTOP to the engine's process"),
    (Kind::EngineAbort, "engine_abort", Needs::EngineProcess, "the engine's process aborts"),
    (Kind::EngineWedge, "engine_wedge", Needs::EngineProcess, "a step there never returns"),
    (
        Kind::ForwardError,
        "forward_error",
        Needs::EngineProcess,
        "a step there fails, and all in it",
    ),
    (Kind::SlowSteps, "slow_steps", Needs::Injection, "every step takes longer for a while"),
    (Kind::KillActor, "kill_actor", Needs::Injection, "kill any actor of the node's tree"),
    (Kind::Partition, "partition", Needs::Namespaces, "a node's packets are lost, both ways"),
    (Kind::PartitionOneWay, "partition_one_way", Needs::Namespaces, "… in one direction"),
    (Kind::Delay, "delay", Needs::Delays, "a node's packets are late"),
    (Kind::Loss, "loss", Needs::Delays, "some of a node's packets are lost"),
    (Kind::Bandwidth, "bandwidth", Needs::Namespaces, "a node's link is narrow"),
    (Kind::Etcd, "etcd", Needs::Etcd, "etcd is killed and started again"),
    (Kind::ClockJump, "clock_jump", Needs::Clock, "a node's wall clock jumps, and back"),
    (Kind::SlowClient, "slow_client", Needs::Nothing, "a client reads slowly"),
    (Kind::VanishingClient, "vanishing_client", Needs::Nothing, "clients leave in mid-stream"),
];

impl Kind {
    /// As it is typed and reported.
    pub(crate) fn name(self) -> &'static str {
        self.row().1
    }

    /// What it needs.
    pub(crate) fn needs(self) -> Needs {
        self.row().2
    }

    /// Whether a node may lose sight of the others for longer than failure detection takes.
    fn cuts_off(self) -> bool {
        use Kind::{Bandwidth, Loss, Partition, PartitionOneWay, Stop};
        matches!(self, Stop | Partition | PartitionOneWay | Loss | Bandwidth)
    }

    /// Whether it is a fault of the network.
    pub(crate) fn is_network(self) -> bool {
        matches!(self.needs(), Needs::Namespaces | Needs::Delays)
    }

    fn row(self) -> &'static (Kind, &'static str, Needs, &'static str) {
        let row = KINDS.iter().find(|(kind, ..)| *kind == self);
        row.expect("every kind has a row, as a test says")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which packets a partition takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// Those that the node sends.
    Out,
    /// Those that the node would receive.
    In,
    /// All.
    Both,
}

/// One fault with its numbers. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Action {
    /// SIGKILL; started again after `down_ms`.
    Kill { down_ms: u64 },
    /// SIGSTOP, and SIGCONT after `for_ms`.
    Stop { for_ms: u64 },
    /// SIGTERM; started again `down_ms` after its end.
    Drain { down_ms: u64 },
    /// SIGTERM twice; started again `down_ms` after its end.
    Restart { down_ms: u64 },
    /// The next step panics.
    EnginePanic,
    /// The next step does not return within `ms`.
    EngineHang { ms: u64 },
    /// The next step fails.
    StepFails,
    /// The engine's process suffers this.
    EngineProcess { by: ProcessFault },
    /// Every step takes `by_ms` longer for `for_ms`.
    SlowSteps { by_ms: u64, for_ms: u64 },
    /// Kills an actor: `pick` chooses among the kinds that the tree then has, `which` among the
    /// actors of that kind; both are per mille of the way through the sorted list.
    KillActor { pick: u64, which: u64 },
    /// Packets are dropped without a word for `for_ms`.
    Partition { direction: Direction, for_ms: u64 },
    /// Packets are `by_ms` late, more or less by `jitter_ms`, for `for_ms`.
    Delay { by_ms: u64, jitter_ms: u64, for_ms: u64 },
    /// `percent` of the packets are lost for `for_ms`.
    Loss { percent: u64, for_ms: u64 },
    /// The link carries `kbit` per second for `for_ms`.
    Bandwidth { kbit: u64, for_ms: u64 },
    /// etcd gets SIGKILL and is started again after `down_ms`.
    Etcd { down_ms: u64 },
    /// The wall clock is `by_s` seconds off for `for_ms`.
    ClockJump { by_s: i64, for_ms: u64 },
    /// A client reads an event every `each_ms`, for `for_ms`; then all that is left.
    SlowClient { each_ms: u64, for_ms: u64 },
    /// So many clients leave, each after so many events.
    VanishingClient { clients: u64, after_events: u64 },
}

impl Action {
    /// Its kind.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Kill { .. } => Kind::Kill,
            Self::Stop { .. } => Kind::Stop,
            Self::Drain { .. } => Kind::Drain,
            Self::Restart { .. } => Kind::Restart,
            Self::EnginePanic => Kind::EnginePanic,
            Self::EngineHang { .. } => Kind::EngineHang,
            Self::StepFails => Kind::StepFails,
            Self::EngineProcess { by } => match by {
                ProcessFault::Kill => Kind::EngineKill,
                ProcessFault::Stop => Kind::EngineStop,
                ProcessFault::Abort => Kind::EngineAbort,
                ProcessFault::Wedge => Kind::EngineWedge,
                ProcessFault::ForwardError => Kind::ForwardError,
                ProcessFault::SlowSteps { .. } => Kind::SlowSteps,
            },
            Self::SlowSteps { .. } => Kind::SlowSteps,
            Self::KillActor { .. } => Kind::KillActor,
            Self::Partition { direction: Direction::Both, .. } => Kind::Partition,
            Self::Partition { .. } => Kind::PartitionOneWay,
            Self::Delay { .. } => Kind::Delay,
            Self::Loss { .. } => Kind::Loss,
            Self::Bandwidth { .. } => Kind::Bandwidth,
            Self::Etcd { .. } => Kind::Etcd,
            Self::ClockJump { .. } => Kind::ClockJump,
            Self::SlowClient { .. } => Kind::SlowClient,
            Self::VanishingClient { .. } => Kind::VanishingClient,
        }
    }
}

/// What requests that overlap with a fault may suffer without anything being wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tolerance {
    /// So many may end with an error that says so.
    pub(crate) errors: usize,
    /// New requests may be refused (429, 503, no connection).
    pub(crate) refused: bool,
    /// Connections may break in mid-answer.
    pub(crate) broken: bool,
}

impl Tolerance {
    /// Nothing: the fault must not be noticed.
    pub(crate) const NONE: Self = Self { errors: 0, refused: false, broken: false };
    /// There is nothing left that could serve.
    const OUTAGE: Self = Self { errors: usize::MAX, refused: true, broken: false };
    /// The front end itself is lost.
    const LOST_FRONTEND: Self = Self { errors: usize::MAX, refused: true, broken: true };

    /// Takes one of the errors, if one is left.
    pub(crate) fn take_error(&mut self) -> bool {
        let left = self.errors > 0;
        self.errors = self.errors.saturating_sub(1);
        left
    }

    /// Both at once.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            errors: self.errors.saturating_add(other.errors),
            refused: self.refused || other.refused,
            broken: self.broken || other.broken,
        }
    }

    /// What `kind` may cost on a node that is a front end, or the only worker there is.
    pub(crate) fn of(kind: Kind, frontend: bool, only_worker: bool) -> Self {
        let at_frontend = match kind {
            Kind::Kill | Kind::Restart if frontend => Self::LOST_FRONTEND,
            // Running streams finish; new requests find the node draining, then gone.
            Kind::Drain if frontend => Self { refused: true, ..Self::NONE },
            // It wakes up, or is reached again, without ranks: they have given it up, and it must find
            // them again. Packets that are only late must cost nothing.
            _ if frontend && kind.cuts_off() => Self { refused: true, ..Self::NONE },
            _ => Self::NONE,
        };
        let at_worker = match kind {
            Kind::SlowSteps
            | Kind::Etcd
            | Kind::ClockJump
            | Kind::SlowClient
            | Kind::VanishingClient => Self::NONE,
            _ if only_worker => Self::OUTAGE,
            _ => Self::NONE,
        };
        at_frontend.and(at_worker)
    }
}

/// What the loss of an actor of this kind may cost, as ARCHITECTURE.md promises it.
fn actor_tolerance(kind: &str, frontend: bool) -> Tolerance {
    match kind {
        "Request" => Tolerance { errors: 1, ..Tolerance::NONE },
        "Requests" | "Frontend" | "NodeRoot" if frontend => Tolerance::LOST_FRONTEND,
        _ => Tolerance::NONE,
    }
}

/// The actor of a node's sorted tree to kill: what its loss may cost, its kind and its name. First a
/// kind is chosen, then one of that kind, since there are many requests and one root. Without a
/// `spare` front end, those whose loss ends all answers are left alone.
pub(crate) fn actor_choice(
    actors: &[(String, String, u64)],
    frontend: bool,
    spare: bool,
    pick: u64,
    which: u64,
) -> Option<(Tolerance, String, String)> {
    let allowed = |kind: &str| spare || !actor_tolerance(kind, frontend).broken;
    let mut kinds: Vec<&str> = actors.iter().map(|(kind, ..)| kind.as_str()).collect();
    kinds.retain(|kind| allowed(kind));
    kinds.sort_unstable();
    kinds.dedup();
    let at = |count: usize, per_mille: u64| count * per_mille.min(999) as usize / 1000;
    let kind = *kinds.get(at(kinds.len(), pick))?;
    let named: Vec<_> = actors.iter().filter(|(other, ..)| other == kind).collect();
    let (_, name, _) = named.get(at(named.len(), which))?;
    Some((actor_tolerance(kind, frontend), kind.to_owned(), name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_row_and_the_name_of_the_report() {
        for (kind, name, ..) in KINDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), *name, "JSON says the same");
            assert_eq!(KINDS.iter().filter(|(other, ..)| other == kind).count(), 1, "{name}");
        }
    }

    #[test]
    fn only_what_cannot_be_hidden_is_tolerated() {
        let none = Tolerance::NONE;
        let cases = [
            (Kind::Kill, false, false, none),
            (Kind::EngineHang, false, false, none),
            (Kind::Kill, false, true, Tolerance::OUTAGE),
            (Kind::SlowSteps, false, true, none),
            (Kind::SlowSteps, true, false, none),
            (Kind::Stop, true, false, Tolerance { refused: true, ..none }),
            (Kind::Drain, true, false, Tolerance { refused: true, ..none }),
            (Kind::Partition, true, false, Tolerance { refused: true, ..none }),
            (Kind::Partition, false, false, none),
            (Kind::Delay, true, false, none),
            (Kind::Kill, true, false, Tolerance::LOST_FRONTEND),
        ];
        for (kind, frontend, only, expected) in cases {
            assert_eq!(Tolerance::of(kind, frontend, only), expected, "{kind} {frontend} {only}");
        }
        assert_eq!(actor_tolerance("Request", true).errors, 1);
        assert_eq!(actor_tolerance("Rank", false), none);
    }

    #[test]
    fn an_actor_is_chosen_by_kind_then_by_name() {
        let row = |kind: &str, name: &str| (kind.to_owned(), name.to_owned(), 1);
        let actors = [row("Frontend", "f"), row("Models", "m"), row("Request", "1")];
        let actors: Vec<_> = actors.into_iter().chain([row("Request", "2")]).collect();
        let choose = |spare, pick, which| {
            let (_, kind, name) = actor_choice(&actors, true, spare, pick, which).unwrap();
            format!("{kind} {name}")
        };
        assert_eq!(choose(true, 0, 0), "Frontend f");
        assert_eq!(choose(false, 0, 999), "Models m");
        assert_eq!(
            (choose(false, 999, 0), choose(false, 500, 999)),
            ("Request 1".into(), "Request 2".into())
        );
        assert_eq!(actor_choice(&actors[..1], true, false, 0, 0), None);
    }
}
