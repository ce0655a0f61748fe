//! The schedule: which fault comes when and hits what, as a pure function of a seed.

use serde::Serialize;

use super::super::random::Draw;
use super::fault::{Action, Direction, Kind, Needs};
use super::role::{Part, Phase, Role};
use crate::engine::faulty::ProcessFault;

/// All that a schedule depends on besides the seed.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// The nodes, in the order of the command line.
    pub(crate) roles: Vec<Role>,
    /// Whether each node takes injected faults.
    pub(crate) injectable: Vec<bool>,
    /// Whether each node's engines have processes of their own.
    pub(crate) engine_processes: Vec<bool>,
    /// The kinds that are wanted.
    pub(crate) kinds: Vec<Kind>,
    /// What may be hit; all if empty.
    pub(crate) victims: Vec<Part>,
    /// The phases that faults wait for; none if empty.
    pub(crate) phases: Vec<Phase>,
    /// Also hit the last worker or front end.
    pub(crate) allow_outage: bool,
    /// The harness started the processes.
    pub(crate) processes: bool,
    /// Each node has a network namespace.
    pub(crate) namespaces: bool,
    /// Their packets can be delayed, and some be lost.
    pub(crate) delays: bool,
    /// Packets from and to clients can be spared.
    pub(crate) spares_clients: bool,
    /// The harness started an etcd.
    pub(crate) etcd: bool,
    /// The nodes go by libfaketime's clock.
    pub(crate) clock: bool,
    /// The longest `cluster.failure_detection_ms` of all nodes.
    pub(crate) detection_ms: u64,
    /// Shortest and longest time between a healed fault and the next one.
    pub(crate) pause_ms: (u64, u64),
}

/// One fault of the schedule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Planned {
    /// Which one, from 0.
    pub(crate) index: usize,
    /// Wait before it.
    pub(crate) pause_ms: u64,
    /// The node that is hit; `None` for one that hits no node.
    pub(crate) target: Option<usize>,
    /// The phase that a request of that node is to be in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) aim: Option<Phase>,
    /// What is done.
    pub(crate) fault: Action,
}

/// A hang outlives any run; it ends with its process.
const HANG_MS: u64 = 3_600_000;
/// How far a clock jumps, in seconds: one that was set, time zones mixed up, a battery gone.
const JUMPS_S: &[i64] = &[2, 3600, 365 * 86_400];
/// Streams of random numbers; the load has its own.
const ORDER: u64 = 1 << 32;
const NUMBERS: u64 = 2 << 32;

/// The schedule of one run.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    seed: u64,
    detection_ms: u64,
    pause_ms: (u64, u64),
    /// The kinds that are possible, and the nodes each may hit.
    choices: Vec<(Kind, Vec<usize>)>,
    /// For each node, the phases that faults there wait for in turn.
    aims: Vec<Vec<Phase>>,
    /// The kinds that are not, and why.
    pub(crate) left_out: Vec<(Kind, &'static str)>,
}

impl Schedule {
    /// What is possible in this field under this seed.
    pub(crate) fn new(seed: u64, field: &Field) -> Self {
        let (mut choices, mut left_out) = (Vec::new(), Vec::new());
        for &kind in &field.kinds {
            match field.targets(kind) {
                Ok(targets) => choices.push((kind, targets)),
                Err(why) => left_out.push((kind, why)),
            }
        }
        let (detection_ms, pause_ms) = (field.detection_ms, field.pause_ms);
        let aims = |role: &Role| {
            let possible = role.part().phases().iter().copied();
            possible.filter(|phase| field.phases.contains(phase)).collect()
        };
        let aims = field.roles.iter().map(aims).collect();
        Self { seed, detection_ms, pause_ms, choices, aims, left_out }
    }

    /// Whether there is nothing that could be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Fault number `index`: kinds take turns in an order that changes from round to round.
    /// `None` if nothing is possible.
    pub(crate) fn nth(&self, index: usize) -> Option<Planned> {
        let kinds = self.choices.len();
        let round = index.checked_div(kinds)?;
        let mut order: Vec<_> = (0..kinds).collect();
        Draw::new(self.seed, ORDER + round as u64).shuffle(&mut order);
        let (kind, targets) = &self.choices[order[index % kinds]];
        let mut draw = Draw::new(self.seed, NUMBERS + index as u64);
        let pause_ms = draw.between(self.pause_ms.0, self.pause_ms.1);
        let target = draw.pick(targets).copied();
        let fault = self.action(*kind, &mut draw);
        let aim = target.and_then(|node| draw.pick(&self.aims[node]).copied());
        Some(Planned { index, pause_ms, target, aim, fault })
    }

    /// The numbers of one fault.
    fn action(&self, kind: Kind, draw: &mut Draw) -> Action {
        let noticed = self.detection_ms;
        let outage = |draw: &mut Draw| draw.between(noticed + noticed / 4, noticed * 3);
        let down = |draw: &mut Draw| draw.between(0, 500);
        match kind {
            Kind::Kill => Action::Kill { down_ms: down(draw) },
            Kind::Stop => Action::Stop { for_ms: outage(draw) },
            Kind::Drain => Action::Drain { down_ms: down(draw) },
            Kind::Restart => Action::Restart { down_ms: down(draw) },
            Kind::EnginePanic => Action::EnginePanic,
            Kind::EngineHang => Action::EngineHang { ms: HANG_MS },
            Kind::StepFails => Action::StepFails,
            Kind::EngineKill => Action::EngineProcess { by: ProcessFault::Kill },
            Kind::EngineStop => Action::EngineProcess { by: ProcessFault::Stop },
            Kind::EngineAbort => Action::EngineProcess { by: ProcessFault::Abort },
            Kind::EngineWedge => Action::EngineProcess { by: ProcessFault::Wedge },
            Kind::ForwardError => Action::EngineProcess { by: ProcessFault::ForwardError },
            Kind::SlowSteps => {
                Action::SlowSteps { by_ms: draw.between(5, 50), for_ms: draw.between(500, 2000) }
            }
            Kind::KillActor => {
                Action::KillActor { pick: draw.between(0, 999), which: draw.between(0, 999) }
            }
            Kind::Partition => {
                Action::Partition { direction: Direction::Both, for_ms: outage(draw) }
            }
            Kind::PartitionOneWay => {
                let direction = [Direction::Out, Direction::In][draw.below(2)];
                Action::Partition { direction, for_ms: outage(draw) }
            }
            Kind::Delay => Action::Delay {
                by_ms: draw.between(10, 200),
                jitter_ms: draw.between(0, 50),
                for_ms: draw.between(1000, 3000),
            },
            Kind::Loss => {
                Action::Loss { percent: draw.between(1, 20), for_ms: draw.between(1000, 3000) }
            }
            Kind::Bandwidth => {
                Action::Bandwidth { kbit: draw.between(64, 1024), for_ms: draw.between(1000, 3000) }
            }
            Kind::Etcd => Action::Etcd { down_ms: draw.between(500, 4000) },
            Kind::ClockJump => {
                let (by, back) = (draw.pick(JUMPS_S).copied(), draw.below(2) == 0);
                let by_s = by.map_or(0, |by| if back { -by } else { by });
                Action::ClockJump { by_s, for_ms: draw.between(500, 3000) }
            }
            Kind::SlowClient => {
                Action::SlowClient { each_ms: draw.between(5, 50), for_ms: draw.between(500, 2000) }
            }
            Kind::VanishingClient => Action::VanishingClient {
                clients: draw.between(1, 8),
                after_events: draw.between(0, 40),
            },
        }
    }
}

impl Field {
    /// The nodes that `kind` may hit, or why there are none. Empty: it hits no node.
    fn targets(&self, kind: Kind) -> Result<Vec<usize>, &'static str> {
        match kind.needs() {
            Needs::Nothing => return Ok(Vec::new()),
            Needs::Etcd if self.etcd => return Ok(Vec::new()),
            Needs::Etcd => return Err("needs --etcd"),
            Needs::Clock if !self.clock => return Err("needs --faketime"),
            Needs::Process if !self.processes => return Err("needs --node, not --attach"),
            _ if kind.is_network() && !self.namespaces => return Err("needs --netns"),
            Needs::Delays if !self.delays => {
                return Err("this kernel has no netem: use --netns-wires switch");
            }
            Needs::EngineProcess if !self.engine_processes.contains(&true) => {
                return Err("needs a node with worker.process: true");
            }
            _ => {}
        }
        let count = |is: fn(Role) -> bool| self.roles.iter().filter(|role| is(**role)).count();
        let (decoders, frontends) = (count(Role::decodes), count(|role| role.frontend));
        // What prefills for others can be done without.
        let spare_worker = |role: &Role| self.allow_outage || !role.decodes() || decoders > 1;
        let spare = |role: &Role| {
            spare_worker(role) && (self.allow_outage || !role.frontend || frontends > 1)
        };
        let fits = |(index, role): &(usize, &Role)| match kind {
            _ if !self.victims.is_empty() && !self.victims.contains(&role.part()) => false,
            Kind::EnginePanic | Kind::EngineHang | Kind::StepFails => {
                self.injectable[*index] && role.worker.is_some() && spare_worker(role)
            }
            _ if kind.needs() == Needs::EngineProcess => {
                self.injectable[*index]
                    && self.engine_processes[*index]
                    && role.worker.is_some()
                    && spare_worker(role)
            }
            Kind::SlowSteps => self.injectable[*index] && role.worker.is_some(),
            Kind::ClockJump => true,
            // The actors whose loss is an outage are left alone when the actor is chosen.
            Kind::KillActor => self.injectable[*index] && spare_worker(role),
            // The clients are on the other side of the wire.
            _ if kind.is_network() && role.frontend && !self.spares_clients => false,
            _ => spare(role),
        };
        let targets = self.roles.iter().enumerate().filter(fits).map(|(index, _)| index);
        match targets.collect::<Vec<_>>() {
            none if none.is_empty()
                && kind.is_network()
                && self.victims == [Part::FrontEnd]
                && !self.spares_clients =>
            {
                Err("of front ends needs --netns-wires switch")
            }
            none if none.is_empty() && self.injectable.iter().all(|allowed| !allowed) => {
                Err("no node may be hit: add nodes, or faults.enabled: true, or --allow-outage")
            }
            none if none.is_empty() => {
                Err("no node may be hit while another one serves: add nodes or --allow-outage, or \
                     allow more with --victims")
            }
            targets => Ok(targets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::KINDS;
    use super::super::role::Work;
    use super::*;

    const FRONT: Role = Role { frontend: true, worker: None };
    const WORKER: Role = worker(Work::Aggregated);
    const BOTH: Role = Role { frontend: true, worker: Some(Work::Aggregated) };

    const fn worker(work: Work) -> Role {
        Role { frontend: false, worker: Some(work) }
    }

    fn field(roles: &[Role]) -> Field {
        Field {
            roles: roles.to_vec(),
            injectable: vec![true; roles.len()],
            engine_processes: vec![true; roles.len()],
            kinds: KINDS.iter().map(|(kind, ..)| *kind).collect(),
            victims: Vec::new(),
            phases: Vec::new(),
            allow_outage: false,
            processes: true,
            namespaces: true,
            delays: true,
            spares_clients: false,
            etcd: true,
            clock: true,
            detection_ms: 1000,
            pause_ms: (100, 400),
        }
    }

    fn faults(seed: u64, field: &Field, count: usize) -> Vec<Planned> {
        let schedule = Schedule::new(seed, field);
        (0..count).map_while(|index| schedule.nth(index)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_one_another() {
        let field = field(&[FRONT, WORKER, WORKER, WORKER]);
        let first = faults(7, &field, 200);
        assert_eq!(first, faults(7, &field, 200));
        assert_ne!(first, faults(8, &field, 200));
        assert_eq!(first[..50], faults(7, &field, 50)[..], "a shorter run is a prefix");
    }

    #[test]
    fn every_kind_comes_once_in_each_round() {
        let found = faults(3, &field(&[FRONT, WORKER, WORKER]), KINDS.len() * 4);
        for round in found.chunks(KINDS.len()) {
            let mut kinds: Vec<_> = round.iter().map(|planned| planned.fault.kind()).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, field(&[]).kinds);
        }
    }

    #[test]
    fn the_last_worker_and_the_last_front_end_are_left_alone() {
        for planned in faults(1, &field(&[FRONT, WORKER, WORKER]), 400) {
            let harmless = matches!(planned.fault.kind(), Kind::KillActor | Kind::ClockJump);
            assert!(harmless || planned.target != Some(0), "{planned:?}");
        }
        for planned in faults(1, &field(&[FRONT, FRONT, WORKER]), 400) {
            let harmless = matches!(planned.fault.kind(), Kind::SlowSteps | Kind::ClockJump);
            assert!(harmless || planned.target != Some(2), "{planned:?}");
        }
        let alone = Schedule::new(1, &field(&[BOTH]));
        let kinds: Vec<_> = alone.choices.iter().map(|(kind, _)| *kind).collect();
        let of_clients = [Kind::SlowClient, Kind::VanishingClient];
        let harmless = [&[Kind::SlowSteps, Kind::Etcd, Kind::ClockJump][..], &of_clients].concat();
        assert_eq!(kinds, harmless);
        let brave = Field { allow_outage: true, ..field(&[BOTH]) };
        assert_eq!(Schedule::new(1, &brave).choices.len(), KINDS.len() - 5, "no network faults");
    }

    #[test]
    fn faults_hit_what_they_may_in_the_phases_that_are_wanted() {
        let (prefill, decode) = (worker(Work::Prefill), worker(Work::Decode));
        let all = field(&[FRONT, prefill, decode, decode]);
        let hit = |field: &Field| {
            let found = faults(4, field, 300);
            let mut hit: Vec<_> = found.iter().map(|p| (p.fault.kind(), p.target, p.aim)).collect();
            hit.retain(|(kind, ..)| matches!(kind, Kind::Kill | Kind::EnginePanic));
            hit
        };
        let targets: Vec<_> = hit(&all).iter().filter_map(|(_, target, _)| *target).collect();
        assert!([1, 2, 3].iter().all(|node| targets.contains(node)) && !targets.contains(&0));
        let one = Field { victims: vec![Part::Prefill], ..all.clone() };
        assert!(hit(&one).iter().all(|(_, target, aim)| (*target, *aim) == (Some(1), None)));
        let phases = vec![Phase::Decoding, Phase::Lent];
        let aimed = hit(&Field { phases, ..all.clone() });
        for (_, target, aim) in &aimed {
            let possible = *target != Some(1) || *aim == Some(Phase::Lent);
            assert!(aim.is_some() && possible, "{target:?} {aim:?}");
        }
        assert!(aimed.iter().any(|(.., aim)| *aim == Some(Phase::Decoding)));
        // The last one that decodes is left alone, the last one that prefills is not.
        let few = hit(&field(&[FRONT, prefill, decode]));
        assert!(!few.is_empty() && few.iter().all(|(_, target, _)| *target == Some(1)));
    }

    #[test]
    fn the_network_of_a_front_end_is_hit_where_its_clients_can_be_spared() {
        let two = field(&[FRONT, FRONT, WORKER, WORKER]);
        let hit = |field: &Field| {
            let of_network = faults(2, field, 400).into_iter();
            let of_network = of_network.filter(|planned| planned.fault.kind().is_network());
            let mut nodes: Vec<_> = of_network.filter_map(|planned| planned.target).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        };
        assert_eq!(hit(&two), [2, 3]);
        let spares = Field { spares_clients: true, ..two.clone() };
        assert_eq!(hit(&spares), [0, 1, 2, 3]);
        assert_eq!(hit(&Field { roles: vec![FRONT, WORKER, WORKER], ..spares }), [1, 2]);
        let fronts = Schedule::new(1, &Field { victims: vec![Part::FrontEnd], ..two });
        let why = fronts.left_out.iter().find(|(kind, _)| *kind == Kind::Loss).unwrap().1;
        assert_eq!(why, "of front ends needs --netns-wires switch");
    }

    #[test]
    fn what_is_not_possible_is_left_out_with_its_reason() {
        let poor = Field {
            processes: false,
            namespaces: false,
            delays: false,
            etcd: false,
            clock: false,
            injectable: vec![false; 3],
            ..field(&[FRONT, WORKER, WORKER])
        };
        let schedule = Schedule::new(1, &poor);
        let kinds: Vec<_> = schedule.choices.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::SlowClient, Kind::VanishingClient]);
        let why = |kind| schedule.left_out.iter().find(|(out, _)| *out == kind).unwrap().1;
        assert_eq!(why(Kind::Kill), "needs --node, not --attach");
        assert_eq!(why(Kind::Etcd), "needs --etcd");
        assert_eq!(why(Kind::ClockJump), "needs --faketime");
        assert_eq!(why(Kind::Loss), "needs --netns");
        assert!(why(Kind::EnginePanic).contains("faults.enabled"));
        let none = Field { kinds: vec![Kind::Etcd], ..poor };
        let schedule = Schedule::new(1, &none);
        assert!(schedule.is_empty() && schedule.nth(0).is_none());
    }

    #[test]
    fn a_stopped_or_unreachable_node_is_so_for_longer_than_detection_takes() {
        for planned in faults(5, &field(&[FRONT, WORKER, WORKER]), 400) {
            if let Action::Stop { for_ms } | Action::Partition { for_ms, .. } = planned.fault {
                assert!((1250..=3000).contains(&for_ms), "{planned:?}");
            }
            assert!((100..=400).contains(&planned.pause_ms), "{planned:?}");
        }
    }
}
