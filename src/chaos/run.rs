//! One run, from the first process to the report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::asks::{Ask, asks, longest};
use super::checks::{Slack, every_rank_serves, settle, usages};
use super::client::{Answer, Ending, Endpoint};
use super::cluster::Cluster;
use super::inject::{Injector, Outcome};
use super::ledger::Ledger;
use super::load::{Clients, Load, ask_once};
use super::plan::{Field, Planned, Schedule};
use super::report::{Findings, NodeReport, Report};
use super::site::{Net, Ranks, Usage};
use super::victims::Victims;
use super::{ChaosError, Interrupt, Options, kinds, phases, victims};

/// Load before the first fault, to warm up what is compared in the end.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long nodes may take to end when the run is over.
const END: Duration = Duration::from_secs(10);
/// Descriptors that a process may hold more than before.
const FD_SLACK: usize = 16;

/// Runs the faults and says what was found. `say` is told what happens, line by line.
///
/// # Errors
/// The command line or a configuration is wrong, or the cluster does not start.
pub async fn run(
    options: &Options,
    interrupt: Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Report, ChaosError> {
    let wanted = kinds(&options.only)?;
    let logs = logs(options)?;
    let mut cluster = if options.attach.is_empty() {
        Cluster::launch(options, &logs).await?
    } else {
        Cluster::attach(options).await?
    };
    let field = Field {
        roles: cluster.nodes.iter().map(|node| node.role).collect(),
        injectable: cluster.nodes.iter().map(|node| node.injectable).collect(),
        engine_processes: cluster.nodes.iter().map(|node| node.engine_process).collect(),
        kinds: wanted,
        victims: victims(&options.victims)?,
        phases: phases(&options.phases)?,
        allow_outage: options.allow_outage,
        processes: options.attach.is_empty(),
        namespaces: cluster.net.is_some(),
        delays: cluster.net.as_ref().is_some_and(Net::can_delay),
        spares_clients: cluster.net.as_ref().is_some_and(Net::can_spare_host),
        etcd: cluster.etcd.is_some(),
        clock: options.faketime.is_some(),
        detection_ms: cluster.detection_ms,
        pause_ms: options.pause_ms,
    };
    let schedule = Schedule::new(options.seed, &field);
    if schedule.is_empty() {
        let why = schedule.left_out.iter().map(|(kind, why)| format!("{kind} {why}"));
        return Err(ChaosError::NothingPossible(why.collect::<Vec<_>>().join("; ")));
    }
    let models = cluster.ready(options.heal).await?;
    let ranks: Vec<_> = cluster.full.iter().map(|(_, ranks)| ranks.to_string()).collect();
    say(&format!("ready: {} nodes, {}", cluster.nodes.len(), ranks.join("; ")));
    let run = Run { options, interrupt, cluster, schedule, logs };
    run.go(models, say).await
}

/// A run whose cluster is ready.
struct Run<'a> {
    options: &'a Options,
    interrupt: Interrupt,
    cluster: Cluster,
    schedule: Schedule,
    logs: PathBuf,
}

impl Run<'_> {
    async fn go(
        mut self,
        models: Vec<String>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Report, ChaosError> {
        let (load, victims) = self.expect(&models).await?;
        say(&format!("{} answers without a fault are known", load.asks.len()));
        let began = Instant::now();
        let slack = Slack { rss_mib: self.options.rss_slack_mib, fds: FD_SLACK };
        let before = self.warm_up(&load).await;
        let clients = Clients::start(&load, self.options.clients, 2);
        let faults = self.break_it(&load, &victims, say).await?;
        say("all faults are done; looking whether all is as before");
        for (invariant, evidence) in every_rank_serves(&self.cluster, self.options.heal).await {
            load.ledger.violate(invariant, evidence, None);
        }
        clients.finish().await;
        let leaks = settle(&self.cluster, Some((&before, slack)), self.options.settle).await;
        for (invariant, evidence) in leaks {
            load.ledger.violate(invariant, evidence, None);
        }
        if let Err(why) = self.cluster.well().await {
            load.ledger.violate("full_capacity", why, None);
        }
        let after = usages(&self.cluster);
        let nodes = self.cluster.nodes.iter().zip(before).zip(after);
        let nodes = nodes.map(|((node, before), after)| NodeReport {
            name: node.name.clone(),
            role: node.role,
            starts: node.starts,
            before,
            after,
        });
        let full = |count: fn(&Ranks) -> u64| {
            self.cluster.full.iter().map(|(_, ranks)| count(ranks)).max().unwrap_or(0)
        };
        let findings = Findings {
            command: self.options.command.clone(),
            seed: self.options.seed,
            duration: began.elapsed(),
            interrupted: self.interrupt.is_set(),
            nodes: nodes.collect(),
            full_ranks: full(|ranks| ranks.decode),
            full_prefill_ranks: full(|ranks| ranks.prefill),
            ledger: load.ledger.read(),
            faults,
            left_out: self.schedule.left_out.clone(),
            slack,
            logs: self.logs.display().to_string(),
        };
        self.cluster.end(END).await;
        Ok(Report::new(findings))
    }

    /// Asks everything once while all is well: these are the right answers.
    async fn expect(&self, models: &[String]) -> Result<(Arc<Load>, Victims), ChaosError> {
        let none = |what: &str| ChaosError::NoAnswer(what.to_owned());
        let model = models.first().ok_or_else(|| none("no model is served"))?;
        let frontends = self.cluster.frontends(self.options.key.as_ref());
        let to = frontends.first().ok_or_else(|| none("there is no front end"))?;
        let is_split = self.cluster.full.iter().any(|(_, ranks)| ranks.prefill > 0);
        let asks = asks(model, is_split, self.options.greedy);
        let mut expected = Vec::with_capacity(asks.len());
        for ask in &asks {
            expected.push(self.right_answer(to, ask).await?);
        }
        let ask = longest(model, is_split);
        let victims = Victims { expected: self.right_answer(to, &ask).await?, ask };
        let names = asks.iter().map(|ask| (ask.name, ask.stream)).collect();
        let load = Load {
            seed: self.options.seed,
            frontends,
            ledger: Ledger::new(names, expected, self.cluster.migration_limit as usize),
            asks,
            salts: is_split.then(AtomicU64::default),
            limit: self.options.request,
        };
        Ok((Arc::new(load), victims))
    }

    async fn right_answer(&self, to: &Endpoint, ask: &Ask) -> Result<Answer, ChaosError> {
        match ask_once(to, 0, ask, None, self.options.request).await.ending {
            Ending::Complete(answer) => Ok(answer),
            other => Err(ChaosError::NoAnswer(format!("{} was answered with {other:?}", ask.name))),
        }
    }

    /// Load without faults; then what each process holds when all is quiet.
    async fn warm_up(&self, load: &Arc<Load>) -> Vec<Option<Usage>> {
        let clients = Clients::start(load, self.options.clients, 1);
        tokio::time::sleep(WARM_UP).await;
        clients.finish().await;
        for (invariant, evidence) in settle(&self.cluster, None, self.options.settle).await {
            load.ledger.violate(invariant, format!("before any fault: {evidence}"), None);
        }
        usages(&self.cluster)
    }

    async fn break_it(
        &mut self,
        load: &Arc<Load>,
        victims: &Victims,
        say: &mut dyn FnMut(&str),
    ) -> Result<Vec<(Planned, Outcome)>, ChaosError> {
        let began = Instant::now();
        let mut faults = Vec::new();
        let mut injector = Injector {
            cluster: &mut self.cluster,
            load: load.clone(),
            victims,
            allow_outage: self.options.allow_outage,
            heal_limit: self.options.heal,
            interrupt: self.interrupt.clone(),
        };
        for index in 0..self.options.faults.unwrap_or(usize::MAX) {
            let Some(planned) = self.schedule.nth(index) else { break };
            injector.pause(Duration::from_millis(planned.pause_ms)).await?;
            let time_is_up = self.options.duration.is_some_and(|limit| began.elapsed() >= limit);
            if time_is_up || self.interrupt.is_set() {
                break;
            }
            let outcome = injector.carry_out(&planned).await?;
            say(&line(&planned, &outcome, began.elapsed(), load.ledger.violations()));
            faults.push((planned, outcome));
        }
        Ok(faults)
    }
}

/// One fault, in one line.
fn line(planned: &Planned, outcome: &Outcome, at: Duration, violations: usize) -> String {
    let healed =
        outcome.heal_ms.map_or("not well again".to_owned(), |ms| format!("well {ms:.0} ms"));
    let shown = if outcome.no_effect { ", no effect" } else { "" };
    let violated = match violations {
        0 => String::new(),
        count => format!("; {count} violations so far"),
    };
    let phases = outcome.phases.iter().flatten().map(|(phase, count)| format!(", {count} {phase}"));
    let phases: String = phases.collect();
    let (index, kind, hit) = (planned.index, planned.fault.kind(), &outcome.hit);
    let at = at.as_secs_f64();
    format!("{at:7.1} s  {index:4} {kind:<18} {hit}{phases}: {healed}{shown}{violated}")
}

/// Makes the folder for logs.
fn logs(options: &Options) -> Result<PathBuf, ChaosError> {
    let default = || {
        let name = format!("cuelight-chaos-{}-{}", options.seed, std::process::id());
        std::env::temp_dir().join(name)
    };
    let dir = options.logs.clone().unwrap_or_else(default);
    create(&dir)?;
    Ok(dir)
}

fn create(dir: &Path) -> Result<(), ChaosError> {
    std::fs::create_dir_all(dir).map_err(|why| ChaosError::File { path: dir.to_owned(), why })
}
