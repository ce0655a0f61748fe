//! Carries out the schedule: one fault at a time, each followed until the cluster has healed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::client::{Ending, difference};
use super::cluster::{Cluster, Fallen, LOOK};
use super::load::Load;
use super::plan::{Action, Kind, Planned, Tolerance, actor_choice};
use super::sight::Phases;
use super::site::{Ended, Shape, Signal};
use super::victims::Victims;
use super::{ChaosError, Interrupt};
use crate::engine::faulty::ProcessFault;

/// Looks in a row that must find all well.
const LOOKS: u32 = 2;
/// How often an actor is chosen anew because the chosen one was gone.
const CHOICES: usize = 8;
/// A fault that has not shown within this time, over what its kind takes, has met no step.
const SHOWS: Duration = Duration::from_secs(5);
/// The tree gave up and the process ended for it (`EX_SOFTWARE`): to be started again.
const GAVE_UP: i32 = 70;

/// What came of one fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    /// What was hit, in words.
    pub(super) hit: String,
    /// From the fault's end until all was well; `None` if that did not come in time.
    pub(super) heal_ms: Option<f64>,
    /// It did not show: the engine made no step, or there was nothing to hit.
    pub(super) no_effect: bool,
    /// Processes that ended for it and were started again by the harness.
    pub(super) replaced: usize,
    /// The phases of the victim's requests just before; `None` if that was not seen.
    pub(super) phases: Option<Phases>,
}

/// What shows that an engine's fault has come and gone.
struct Engine {
    node: usize,
    /// Lives of the process and worker generations before.
    before: (f64, f64),
    within: Duration,
}

/// What a fault left to be waited for.
#[derive(Default)]
struct After {
    hit: String,
    engine: Option<Engine>,
    no_effect: bool,
}

/// Carries out faults.
pub(super) struct Injector<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) load: Arc<Load>,
    pub(super) victims: &'a Victims,
    pub(super) allow_outage: bool,
    pub(super) heal_limit: Duration,
    pub(super) interrupt: Interrupt,
}

impl Injector<'_> {
    /// Waits, looking after the processes meanwhile.
    pub(super) async fn pause(&mut self, pause: Duration) -> Result<(), ChaosError> {
        let began = Instant::now();
        while began.elapsed() < pause && !self.interrupt.is_set() {
            let fallen = self.cluster.reap()?;
            self.complain(None, &fallen, &[]);
            tokio::time::sleep(LOOK.min(pause.saturating_sub(began.elapsed()))).await;
        }
        Ok(())
    }

    /// One fault, from its beginning until all is well again or the time is up.
    pub(super) async fn carry_out(&mut self, planned: &Planned) -> Result<Outcome, ChaosError> {
        let phases = self.aim(planned).await;
        let kind = planned.fault.kind();
        let mut tolerance = self.tolerance(kind, planned.target);
        let mut actor = None;
        if let (Action::KillActor { pick, which }, Some(node)) = (&planned.fault, planned.target) {
            let chosen = self.choose(node, *pick, *which).await;
            tolerance = tolerance.and(chosen.as_ref().map_or(Tolerance::NONE, |(t, ..)| *t));
            actor = chosen.map(|(_, kind, name)| (kind, name));
        }
        self.load.ledger.open(tolerance);
        let after = self.act(planned, actor).await?;
        let ended = Instant::now();
        let outcome = self.heal(planned, after, ended).await;
        self.load.ledger.close();
        Ok(Outcome { phases, ..outcome? })
    }

    fn tolerance(&self, kind: Kind, target: Option<usize>) -> Tolerance {
        let Some(role) = target.map(|node| self.cluster.nodes[node].role) else {
            return Tolerance::NONE;
        };
        let decoders = self.cluster.nodes.iter().filter(|node| node.role.decodes()).count();
        Tolerance::of(kind, role.frontend, role.decodes() && decoders < 2)
    }

    /// An actor to kill: what its loss may cost, its kind and its name.
    async fn choose(
        &self,
        node: usize,
        pick: u64,
        which: u64,
    ) -> Option<(Tolerance, String, String)> {
        let actors = self.cluster.nodes[node].probe.actors().await.ok()?;
        let frontends = self.cluster.nodes.iter().filter(|node| node.role.frontend).count();
        let spare = self.allow_outage || frontends > 1;
        let frontend = self.cluster.nodes[node].role.frontend;
        actor_choice(&actors, frontend, spare, pick, which)
    }

    async fn act(
        &mut self,
        planned: &Planned,
        actor: Option<(String, String)>,
    ) -> Result<After, ChaosError> {
        let ms = Duration::from_millis;
        let Some(node) = planned.target else { return self.act_on_no_node(planned).await };
        let hit = self.cluster.nodes[node].name.clone();
        let mut after = After { hit, ..After::default() };
        match &planned.fault {
            Action::Kill { down_ms } => {
                self.signal(node, Signal::Kill);
                self.come_back(planned, node, ms(*down_ms), Duration::from_secs(5)).await?;
            }
            Action::Stop { for_ms } => {
                self.signal(node, Signal::Stop);
                tokio::time::sleep(ms(*for_ms)).await;
                self.signal(node, Signal::Continue);
            }
            Action::Drain { down_ms } => {
                self.signal(node, Signal::Terminate);
                let limit = self.cluster.nodes[node].drain_timeout + Duration::from_secs(10);
                self.come_back(planned, node, ms(*down_ms), limit).await?;
            }
            Action::Restart { down_ms } => {
                self.signal(node, Signal::Terminate);
                // Two signals at once are one; the second must find the first one taken.
                tokio::time::sleep(ms(50)).await;
                self.signal(node, Signal::Terminate);
                self.come_back(planned, node, ms(*down_ms), Duration::from_secs(15)).await?;
            }
            Action::SlowSteps { by_ms, for_ms } => {
                let slow = |ms: u64| json!({ "fault": "slow_steps", "ms": ms });
                after.no_effect = !self.inject(planned, node, &slow(*by_ms)).await;
                tokio::time::sleep(ms(*for_ms)).await;
                self.inject(planned, node, &slow(0)).await;
            }
            Action::ClockJump { by_s, for_ms } => {
                after.no_effect = !self.set_clock(node, *by_s);
                tokio::time::sleep(ms(*for_ms)).await;
                self.set_clock(node, 0);
            }
            Action::EnginePanic => after = self.engine(planned, "engine_panic", None).await,
            Action::StepFails => after = self.engine(planned, "step_fails", None).await,
            Action::EngineHang { ms } => {
                after = self.engine(planned, "step_hangs", Some(*ms)).await;
            }
            Action::EngineProcess { by } => after = self.engine_process(planned, *by).await,
            Action::KillActor { pick, which } => {
                after = self.kill_actor(node, (*pick, *which), actor).await;
            }
            Action::Partition { .. }
            | Action::Delay { .. }
            | Action::Loss { .. }
            | Action::Bandwidth { .. } => self.shape(planned, node).await?,
            Action::Etcd { .. } | Action::SlowClient { .. } | Action::VanishingClient { .. } => {}
        }
        Ok(after)
    }

    /// Puts a node's clock ahead or behind; `false` if that cannot be done.
    fn set_clock(&self, node: usize, seconds: i64) -> bool {
        self.cluster.nodes[node].clock.as_ref().is_some_and(|clock| clock.set(seconds).is_ok())
    }

    async fn act_on_no_node(&mut self, planned: &Planned) -> Result<After, ChaosError> {
        let mut after = After::default();
        match planned.fault {
            Action::Etcd { down_ms } => {
                after.hit = "etcd".to_owned();
                if let Some(etcd) = &mut self.cluster.etcd {
                    etcd.kill().await;
                    tokio::time::sleep(Duration::from_millis(down_ms)).await;
                    etcd.again().await?;
                }
            }
            Action::SlowClient { each_ms, for_ms } => {
                let (each, time) = (Duration::from_millis(each_ms), Duration::from_millis(for_ms));
                let ended = self.victims.read_slowly(&self.load, each, time).await;
                after.hit = format!("1 client, {}", self.judge_slow(planned, ended));
            }
            Action::VanishingClient { clients, after_events } => {
                let most = after_events as usize;
                let left = self.victims.vanish(&self.load, clients as usize, most).await;
                after.hit = format!("{left} of {clients} clients left in mid-stream");
                after.no_effect = left == 0;
            }
            _ => after.no_effect = true,
        }
        Ok(after)
    }

    /// A client that reads slowly gets all of its answer, or is cut off in a way that it can see.
    fn judge_slow(&self, planned: &Planned, ended: Ending) -> String {
        let ledger = &self.load.ledger;
        let complain = |invariant, what: String| {
            let what = format!("slow client: {what}");
            ledger.violate(invariant, what.clone(), Some(planned.index));
            what
        };
        match ended {
            Ending::Complete(answer) => match difference(&self.victims.expected, &answer) {
                None => "whole answer".to_owned(),
                Some(what) => complain("output_equals_fault_free", what),
            },
            Ending::Wrong(what) if what.starts_with("truncated") => {
                complain("no_truncated_success", what)
            }
            Ending::Wrong(what) => complain("ends_exactly_once", what),
            Ending::Error(what) | Ending::Broken(what) => format!("cut off: {what}"),
            Ending::Refused(what) => complain("no_failed_request", what),
        }
    }

    fn signal(&mut self, node: usize, signal: Signal) {
        let node = &mut self.cluster.nodes[node];
        // What ends by these is meant to; a continued process is on its own again.
        node.held_down = matches!(signal, Signal::Kill | Signal::Terminate);
        if let Some(process) = &node.process {
            process.signal(signal);
        }
    }

    /// Waits for the end of a process that was told to end, then starts it again.
    async fn come_back(
        &mut self,
        planned: &Planned,
        node: usize,
        down: Duration,
        limit: Duration,
    ) -> Result<(), ChaosError> {
        let victim = &mut self.cluster.nodes[node];
        let Some(process) = &mut victim.process else { return Ok(()) };
        let ended = process.end_within(limit).await;
        let name = &victim.name;
        let complaint = match (planned.fault.kind(), ended) {
            (_, None) => Some(format!("{name} has not ended within {} s", limit.as_secs())),
            (Kind::Kill, _) | (_, Some(Ended::Code(0))) => None,
            (kind, Some(ended)) => Some(format!("{name} ended with {ended} on {kind}")),
        };
        if ended.is_none() {
            process.signal(Signal::Kill);
            process.end_within(Duration::from_secs(5)).await;
        }
        if let Some(evidence) = complaint {
            self.load.ledger.violate("ends_when_told", evidence, Some(planned.index));
        }
        tokio::time::sleep(down).await;
        self.cluster.start(node)
    }

    /// Injects a fault into a node; whether it was taken.
    async fn inject(&self, planned: &Planned, node: usize, fault: &Value) -> bool {
        let node = &self.cluster.nodes[node];
        match node.probe.inject(fault).await {
            Ok(_) => true,
            Err(error) => {
                let evidence = format!("{}: {error}", node.name);
                self.load.ledger.violate("takes_faults", evidence, Some(planned.index));
                false
            }
        }
    }

    async fn engine(&mut self, planned: &Planned, fault: &str, hang: Option<u64>) -> After {
        let Some(node) = planned.target else { return After::default() };
        let before = self.age(node).await.unwrap_or_default();
        let mut body = json!({ "fault": fault });
        if let Some(ms) = hang {
            body["ms"] = json!(ms);
        }
        let taken = self.inject(planned, node, &body).await;
        let victim = &self.cluster.nodes[node];
        let within = if hang.is_some() { victim.step_timeout + SHOWS } else { SHOWS };
        let engine = taken.then_some(Engine { node, before, within });
        After { hit: victim.name.clone(), engine, no_effect: !taken }
    }

    /// Breaks an engine's process: seen when its node has another one. What stands still is noticed by its
    /// silence or for want of progress, so that there must be some.
    async fn engine_process(&mut self, planned: &Planned, by: ProcessFault) -> After {
        let Some(node) = planned.target else { return After::default() };
        let before = self.age(node).await.unwrap_or_default();
        let body = json!({ "fault": "engine_process", "by": by });
        let taken = self.inject(planned, node, &body).await;
        let victim = &self.cluster.nodes[node];
        let slow = matches!(by, ProcessFault::Stop | ProcessFault::Wedge);
        let within = if slow { victim.step_timeout.max(victim.silence) + SHOWS } else { SHOWS };
        let engine = taken.then_some(Engine { node, before, within });
        After { hit: victim.name.clone(), engine, no_effect: !taken }
    }

    /// Which life of the node this is, and how often its workers were started in it.
    async fn age(&self, node: usize) -> Option<(f64, f64)> {
        let samples = self.cluster.nodes[node].probe.metrics().await.ok()?;
        Some((samples.sum("cuelight_incarnation"), samples.sum("cuelight_generation")))
    }

    /// Kills the chosen actor; another one if it has ended in the meantime.
    async fn kill_actor(
        &mut self,
        node: usize,
        (pick, which): (u64, u64),
        mut actor: Option<(String, String)>,
    ) -> After {
        for _ in 0..CHOICES {
            let Some((kind, name)) = actor.take() else { break };
            let body = json!({ "fault": "kill_actor", "kind": kind, "name": name });
            let victim = &self.cluster.nodes[node];
            if victim.probe.inject(&body).await.is_ok() || kind == "NodeRoot" {
                let hit = format!("{} on {}", kind, victim.name);
                return After { hit, ..After::default() };
            }
            // Of the same kind: the tolerance was set for it.
            let again = self.choose(node, pick, which).await;
            actor =
                again.filter(|(_, other, _)| *other == kind).map(|(_, kind, name)| (kind, name));
        }
        After { hit: "no actor".to_owned(), no_effect: true, ..After::default() }
    }

    async fn shape(&mut self, planned: &Planned, node: usize) -> Result<(), ChaosError> {
        let (shape, for_ms) = match planned.fault {
            Action::Partition { direction, for_ms } => (Shape::Drop(direction), for_ms),
            Action::Delay { by_ms, jitter_ms, for_ms } => {
                (Shape::Delay { by_ms, jitter_ms }, for_ms)
            }
            Action::Loss { percent, for_ms } => (Shape::Loss { percent }, for_ms),
            Action::Bandwidth { kbit, for_ms } => (Shape::Rate { kbit }, for_ms),
            _ => return Ok(()),
        };
        // What a front end and its clients say to each other is not broken, only what they do not see.
        let spares_clients = self.cluster.nodes[node].role.frontend;
        if let Some(net) = &self.cluster.net {
            net.shape(node, shape, spares_clients).map_err(ChaosError::Net)?;
            tokio::time::sleep(Duration::from_millis(for_ms)).await;
            net.clear(node);
        }
        Ok(())
    }

    /// Waits until the fault has shown and all is well.
    async fn heal(
        &mut self,
        planned: &Planned,
        after: After,
        ended: Instant,
    ) -> Result<Outcome, ChaosError> {
        let After { hit, mut engine, mut no_effect } = after;
        let limit = self.heal_limit + engine.as_ref().map_or(Duration::ZERO, |e| e.within);
        let mut fallen = Vec::new();
        let (mut well, mut why) = (0, String::new());
        while ended.elapsed() < limit {
            fallen.extend(self.cluster.reap()?);
            if let Some(waiting) = &engine {
                let now = self.age(waiting.node).await;
                // A later life has a larger incarnation, whatever its workers' generations.
                let shown = now.is_some_and(|now| now > waiting.before);
                let late = ended.elapsed() > waiting.within;
                no_effect |= late && !shown;
                if shown || late {
                    engine = None;
                }
                "its fault has not shown".clone_into(&mut why);
            } else {
                match self.cluster.well().await {
                    Ok(()) => well += 1,
                    Err(reason) => (well, why) = (0, reason),
                }
            }
            if well >= LOOKS {
                self.complain(Some(planned), &fallen, &hit_by(planned));
                let heal_ms = Some(ended.elapsed().as_secs_f64() * 1e3);
                let (replaced, phases) = (fallen.len(), None);
                return Ok(Outcome { hit, heal_ms, no_effect, replaced, phases });
            }
            tokio::time::sleep(LOOK).await;
        }
        self.complain(Some(planned), &fallen, &hit_by(planned));
        let evidence = format!("{hit}: not well {} s later: {why}", limit.as_secs());
        self.load.ledger.violate("heals", evidence, Some(planned.index));
        Ok(Outcome { hit, heal_ms: None, no_effect, replaced: fallen.len(), phases: None })
    }

    /// A process may end by itself only to be replaced, and only for a fault that calls for it.
    fn complain(&self, planned: Option<&Planned>, fallen: &[Fallen], allowed: &[Ended]) {
        for fallen in fallen.iter().filter(|fallen| !allowed.contains(&fallen.ended)) {
            let node = &self.cluster.nodes[fallen.node];
            let evidence = format!("{} ended with {}; see {}", node.name, fallen.ended, node.log());
            self.load.ledger.violate("stays_up", evidence, planned.map(|planned| planned.index));
        }
    }
}

/// The ways in which a process may end for this fault.
fn hit_by(planned: &Planned) -> Vec<Ended> {
    match planned.fault.kind() {
        Kind::EngineHang
        | Kind::EnginePanic
        | Kind::StepFails
        | Kind::KillActor
        | Kind::EngineKill
        | Kind::EngineStop
        | Kind::EngineAbort
        | Kind::EngineWedge
        | Kind::ForwardError => {
            vec![Ended::Code(GAVE_UP)]
        }
        _ => Vec::new(),
    }
}
