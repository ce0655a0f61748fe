//! What a run found: a table for people, JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::checks::Slack;
use super::inject::Outcome;
use super::ledger::{Contents, Totals, Violation};
use super::plan::{Kind, Part, Phase, Planned, Role, Tolerance};
use super::site::Usage;

/// All that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    /// The command line that gives the same schedule again.
    command: String,
    seed: u64,
    /// `ok`, `violated` or `interrupted`.
    verdict: &'static str,
    duration_s: f64,
    nodes: Vec<NodeReport>,
    full_ranks: u64,
    /// Of those that prefill for others.
    full_prefill_ranks: u64,
    requests: Totals,
    /// Complete answers by what was asked.
    answers: serde_json::Map<String, serde_json::Value>,
    /// The longest gap of each stream that met no fault.
    calm_gap_ms: Spread,
    /// The wait for the first part of each of them.
    calm_first_ms: Spread,
    kinds: Vec<KindReport>,
    /// In which phases requests were caught.
    caught: Vec<Caught>,
    left_out: Vec<LeftOut>,
    violations_total: usize,
    violations: Vec<Violation>,
    slack: Slack,
    faults: Vec<FaultReport>,
    #[serde(skip)]
    logs: String,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) name: String,
    pub(super) role: Role,
    /// How often its process was started.
    pub(super) starts: u32,
    pub(super) before: Option<Usage>,
    pub(super) after: Option<Usage>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    kind: Kind,
    why: &'static str,
}

/// All faults of one kind, those of nodes that are front ends apart.
#[derive(Debug, Serialize)]
struct KindReport {
    kind: Kind,
    at_frontend: bool,
    count: usize,
    no_effect: usize,
    /// Processes that ended and were started again.
    replaced: usize,
    touched: usize,
    failed: usize,
    excused: usize,
    wrong: usize,
    /// Over the faults: the longest time that any stream stood still after it had begun.
    gap_ms: Spread,
    /// Over the faults: the longest wait for the first part of any stream.
    first_ms: Spread,
    /// From the fault's end until all was well.
    heal_ms: Spread,
}

/// How many faults of one kind, on one kind of victim, caught requests in each phase. One that caught
/// some in two phases counts in both.
#[derive(Debug, Serialize)]
struct Caught {
    kind: Kind,
    victim: Part,
    count: usize,
    phases: BTreeMap<Phase, usize>,
    /// They caught none.
    idle: usize,
    /// A node did not say.
    unseen: usize,
}

/// One fault.
#[derive(Debug, Serialize)]
struct FaultReport {
    #[serde(flatten)]
    planned: Planned,
    #[serde(flatten)]
    outcome: Outcome,
    at_frontend: bool,
    victim: Option<Part>,
    tolerated: Tolerance,
    touched: usize,
    failed: usize,
    excused: usize,
    wrong: usize,
    gap_ms: f64,
    first_ms: f64,
}

/// Half of the values are at most `p50`, and so on; 0 without values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of these values, by nearest rank.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let rank = |percent: usize| {
            let rank = (count * percent).div_ceil(100).max(1);
            values.get(rank - 1).map_or(0.0, |value| (value * 10.0).round() / 10.0)
        };
        Self { count, p50: rank(50), p99: rank(99), max: rank(100) }
    }

    fn shown(self) -> String {
        format!("{:.0}/{:.0}/{:.0}", self.p50, self.p99, self.max)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a report is made of.
pub(super) struct Findings {
    pub(super) command: String,
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) interrupted: bool,
    pub(super) nodes: Vec<NodeReport>,
    pub(super) full_ranks: u64,
    pub(super) full_prefill_ranks: u64,
    pub(super) ledger: Contents,
    /// Each fault with what came of it, in order.
    pub(super) faults: Vec<(Planned, Outcome)>,
    pub(super) left_out: Vec<(Kind, &'static str)>,
    pub(super) slack: Slack,
    pub(super) logs: String,
}

impl Report {
    pub(super) fn new(findings: Findings) -> Self {
        let Findings { ledger, faults, .. } = findings;
        let rows: Vec<_> = faults
            .into_iter()
            .zip(&ledger.windows)
            .map(|((planned, outcome), window)| FaultReport {
                at_frontend: planned.target.is_some_and(|node| findings.nodes[node].role.frontend),
                victim: planned.target.map(|node| findings.nodes[node].role.part()),
                planned,
                outcome,
                tolerated: window.tolerated,
                touched: window.touched,
                failed: window.failed,
                excused: window.excused,
                wrong: window.wrong,
                gap_ms: ms(window.gap),
                first_ms: ms(window.first),
            })
            .collect();
        let kind = |row: &FaultReport| (row.planned.fault.kind(), row.at_frontend);
        let mut kinds: Vec<_> = rows.iter().map(kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let verdict = match (ledger.violations_total, findings.interrupted) {
            (0, false) => "ok",
            (0, true) => "interrupted",
            _ => "violated",
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            command: findings.command,
            seed: findings.seed,
            verdict,
            duration_s: (findings.duration.as_secs_f64() * 10.0).round() / 10.0,
            nodes: findings.nodes,
            full_ranks: findings.full_ranks,
            full_prefill_ranks: findings.full_prefill_ranks,
            requests: ledger.totals,
            answers: ledger.by_ask.iter().map(|(n, c)| ((*n).to_owned(), (*c).into())).collect(),
            calm_gap_ms: Spread::of(ledger.calm.iter().map(|(_, gap)| ms(*gap)).collect()),
            calm_first_ms: Spread::of(ledger.calm.iter().map(|(first, _)| ms(*first)).collect()),
            kinds: kinds.into_iter().map(|kind| KindReport::of(kind, &rows)).collect(),
            caught: Caught::of_all(&rows),
            left_out: findings.left_out.iter().map(|&(kind, why)| LeftOut { kind, why }).collect(),
            violations_total: ledger.violations_total,
            violations: ledger.violations,
            slack: findings.slack,
            faults: rows,
            logs: findings.logs,
        }
    }

    /// Whether every promise was kept.
    pub fn holds(&self) -> bool {
        self.violations_total == 0
    }

    /// For machines.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = self.table();
        text.push_str(&self.caught_table());
        let (gap, first) = (self.calm_gap_ms, self.calm_first_ms);
        // A `String` takes every write.
        let _ = writeln!(
            text,
            "\ncalm streams: {}, gap ms {}, first ms {}",
            gap.count,
            gap.shown(),
            first.shown()
        );
        let Totals { requests, complete, failed, excused, wrong } = &self.requests;
        let _ = writeln!(
            text,
            "requests: {requests}, complete {complete}, failed {failed} ({excused} excused by \
             their fault), wrong {wrong}"
        );
        let starts: Vec<_> =
            self.nodes.iter().map(|node| format!("{} {}", node.name, node.starts)).collect();
        let _ = writeln!(text, "starts of processes: {}", starts.join(", "));
        for left in &self.left_out {
            let _ = writeln!(text, "left out: {}, {}", left.kind, left.why);
        }
        for violation in self.violations.iter().take(20) {
            let faults: Vec<_> = violation.faults.iter().map(|f| self.name(*f)).collect();
            let met = if faults.is_empty() { "no fault".into() } else { faults.join(", ") };
            let _ =
                writeln!(text, "VIOLATED {}: {} [{met}]", violation.invariant, violation.evidence);
        }
        if self.violations_total > 20 {
            let _ = writeln!(text, "… {} violations in all", self.violations_total);
        }
        let _ = writeln!(text, "logs: {}", self.logs);
        let _ = writeln!(
            text,
            "{}: {} faults in {} s with seed {}",
            self.verdict,
            self.faults.len(),
            self.duration_s,
            self.seed
        );
        text
    }

    fn name(&self, fault: usize) -> String {
        let row = self.faults.get(fault);
        row.map_or(format!("fault {fault}"), |row| {
            format!("fault {fault}: {} of {}", row.planned.fault.kind(), row.outcome.hit)
        })
    }

    /// Faults by the phases in which they caught requests.
    fn caught_table(&self) -> String {
        if self.caught.is_empty() {
            return String::new();
        }
        let mut text = format!("\n{:<22}{:<12}{:>6}", "fault", "of", "count");
        for phase in Phase::ALL {
            let _ = write!(text, "{:>14}", phase.name());
        }
        let _ = writeln!(text, "{:>7}{:>8}", "idle", "unseen");
        for row in &self.caught {
            let _ =
                write!(text, "{:<22}{:<12}{:>6}", row.kind.name(), row.victim.name(), row.count);
            for phase in Phase::ALL {
                let _ = write!(text, "{:>14}", row.phases.get(&phase).copied().unwrap_or(0));
            }
            let _ = writeln!(text, "{:>7}{:>8}", row.idle, row.unseen);
        }
        text
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<22}{:>6}{:>9}{:>8}{:>9}{:>7}{:>22}{:>22}{:>18}\n",
            "fault",
            "count",
            "touched",
            "failed",
            "excused",
            "wrong",
            "gap ms p50/p99/max",
            "first ms p50/p99/max",
            "heal ms p50/p99"
        );
        for kind in &self.kinds {
            let (gap, first) = (kind.gap_ms.shown(), kind.first_ms.shown());
            let at = if kind.at_frontend { " (front end)" } else { "" };
            let name = format!("{}{at}", kind.kind);
            let heal = format!("{:.0}/{:.0}", kind.heal_ms.p50, kind.heal_ms.p99);
            let _ = write!(
                text,
                "{name:<22}{:>6}{:>9}{:>8}{:>9}{:>7}{gap:>22}{first:>22}{heal:>18}",
                kind.count, kind.touched, kind.failed, kind.excused, kind.wrong
            );
            if kind.no_effect > 0 {
                let _ = write!(text, "  {} without effect", kind.no_effect);
            }
            if kind.replaced > 0 {
                let _ = write!(text, "  {} processes replaced", kind.replaced);
            }
            text.push('\n');
        }
        text
    }
}

impl Caught {
    fn of_all(rows: &[FaultReport]) -> Vec<Self> {
        let mut found = BTreeMap::new();
        for row in rows {
            let Some(victim) = row.victim else { continue };
            let kind = row.planned.fault.kind();
            let phases = BTreeMap::new();
            let new = || Self { kind, victim, count: 0, phases, idle: 0, unseen: 0 };
            let caught = found.entry((kind, victim)).or_insert_with(new);
            caught.count += 1;
            match &row.outcome.phases {
                None => caught.unseen += 1,
                Some(phases) if phases.is_empty() => caught.idle += 1,
                Some(phases) => {
                    for phase in phases.keys() {
                        *caught.phases.entry(*phase).or_default() += 1;
                    }
                }
            }
        }
        found.into_values().collect()
    }
}

impl KindReport {
    fn of((kind, at_frontend): (Kind, bool), rows: &[FaultReport]) -> Self {
        let is =
            |row: &&FaultReport| row.planned.fault.kind() == kind && row.at_frontend == at_frontend;
        let rows = || rows.iter().filter(is);
        let touched = || rows().filter(|row| row.touched > 0);
        let sum = |count: fn(&FaultReport) -> usize| rows().map(count).sum();
        Self {
            kind,
            at_frontend,
            count: rows().count(),
            no_effect: rows().filter(|row| row.outcome.no_effect).count(),
            replaced: sum(|row| row.outcome.replaced),
            touched: sum(|row| row.touched),
            failed: sum(|row| row.failed),
            excused: sum(|row| row.excused),
            wrong: sum(|row| row.wrong),
            gap_ms: Spread::of(touched().map(|row| row.gap_ms).collect()),
            first_ms: Spread::of(touched().map(|row| row.first_ms).collect()),
            heal_ms: Spread::of(rows().filter_map(|row| row.outcome.heal_ms).collect()),
        }
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
