//! Who suffered what from which fault: every request that ended is compared with what it should have
//! said, and put down to the faults that were active in its life.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client::{Answer, Ending, difference};
use super::plan::Tolerance;

/// Violations that are kept with their evidence; more are counted.
const KEPT: usize = 100;
/// Gaps without a fault that are kept; more are left out.
const MOST_GAPS: usize = 200_000;

/// A request that has ended.
#[derive(Debug)]
pub(super) struct Seen {
    /// Index of what was asked.
    pub(super) ask: usize,
    /// When it was sent, then each part that came, then the end.
    pub(super) moments: Vec<Instant>,
    pub(super) ending: Ending,
}

/// Something that must never happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Violation {
    /// Which promise was broken.
    pub(super) invariant: &'static str,
    /// How it shows.
    pub(super) evidence: String,
    /// The faults that were active.
    pub(super) faults: Vec<usize>,
}

/// One fault and what it did to clients.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// What it may cost in all.
    pub(super) tolerated: Tolerance,
    /// What is left of that.
    tolerance: Tolerance,
    from: Instant,
    to: Option<Instant>,
    /// Requests that lived at the time.
    pub(super) touched: usize,
    /// Of them: ended with an error, refused, or broken off, unless for another fault.
    pub(super) failed: usize,
    /// Of these: as was to be expected.
    pub(super) excused: usize,
    /// Against the rules or other than without the fault.
    pub(super) wrong: usize,
    /// The longest time that a stream stood still after it had begun.
    pub(super) gap: Duration,
    /// The longest wait for the first part of a stream.
    pub(super) first: Duration,
}

impl Window {
    fn new(tolerance: Tolerance, from: Instant) -> Self {
        Self {
            tolerated: tolerance,
            tolerance,
            from,
            to: None,
            touched: 0,
            failed: 0,
            excused: 0,
            wrong: 0,
            gap: Duration::ZERO,
            first: Duration::ZERO,
        }
    }

    /// One that made a gap in streams.
    #[cfg(test)]
    pub(super) fn with_gap(gap: Duration) -> Self {
        Self { touched: 10, gap, ..Self::new(Tolerance::NONE, Instant::now()) }
    }
}

/// All requests together.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Totals {
    pub(super) requests: usize,
    pub(super) complete: usize,
    pub(super) failed: usize,
    pub(super) excused: usize,
    pub(super) wrong: usize,
}

#[derive(Debug, Default)]
struct State {
    windows: Vec<Window>,
    totals: Totals,
    /// How often each ask was answered in full.
    by_ask: Vec<usize>,
    /// The wait for its first part and the longest gap of each stream that met no fault.
    calm: Vec<(Duration, Duration)>,
    violations: Vec<Violation>,
    violations_total: usize,
}

/// The ledger of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    names: Vec<&'static str>,
    streams: Vec<bool>,
    expected: Vec<Answer>,
    /// A request that has met more faults may fail.
    migration_limit: usize,
    state: Mutex<State>,
}

impl Ledger {
    /// For asks with these names, whether they are streams, and their right answers.
    pub(super) fn new(
        asks: Vec<(&'static str, bool)>,
        expected: Vec<Answer>,
        migration_limit: usize,
    ) -> Self {
        let (names, streams): (Vec<_>, Vec<_>) = asks.into_iter().unzip();
        let state = State { by_ask: vec![0; names.len()], ..State::default() };
        Self { names, streams, expected, migration_limit, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault begins now; what it may cost is tolerated until it has healed.
    pub(super) fn open(&self, tolerance: Tolerance) {
        self.open_at(tolerance, Instant::now());
    }

    fn open_at(&self, tolerance: Tolerance, from: Instant) {
        self.lock().windows.push(Window::new(tolerance, from));
    }

    /// The last fault has healed.
    pub(super) fn close(&self) {
        self.close_at(Instant::now());
    }

    fn close_at(&self, at: Instant) {
        if let Some(window) = self.lock().windows.last_mut() {
            window.to = Some(at);
        }
    }

    /// Takes a request that has ended.
    pub(super) fn record(&self, seen: &Seen) {
        let mut state = self.lock();
        let (Some(&from), Some(&to)) = (seen.moments.first(), seen.moments.last()) else { return };
        // Faults come one after the other, so those that are over by then are all in front.
        let overlaps =
            |window: &Window| window.from <= to && window.to.is_none_or(|end| end >= from);
        let windows = state.windows.iter().enumerate().rev();
        let met = windows.take_while(|(_, window)| window.to.is_none_or(|end| end >= from));
        let met: Vec<_> = met.filter(|(_, w)| overlaps(w)).map(|(index, _)| index).collect();
        let verdict = self.judge(&mut state, &met, seen);
        state.totals.requests += 1;
        match &verdict {
            Verdict::Good => {
                state.totals.complete += 1;
                state.by_ask[seen.ask] += 1;
            }
            Verdict::Excused { by } => {
                state.totals.failed += 1;
                state.totals.excused += 1;
                state.windows[*by].failed += 1;
                state.windows[*by].excused += 1;
            }
            Verdict::Failed => state.totals.failed += 1,
            Verdict::Wrong => state.totals.wrong += 1,
        }
        let stream = self.streams[seen.ask];
        for &index in &met {
            let window = &mut state.windows[index];
            window.touched += 1;
            window.failed += usize::from(matches!(verdict, Verdict::Failed));
            window.wrong += usize::from(matches!(verdict, Verdict::Wrong));
            if stream {
                let (first, gap) = gaps(&seen.moments, window.from, window.to);
                window.first = window.first.max(first);
                window.gap = window.gap.max(gap);
            }
        }
        if met.is_empty() && stream && state.calm.len() < MOST_GAPS {
            state.calm.push(gaps(&seen.moments, from, Some(to)));
        }
    }

    fn judge(&self, state: &mut State, met: &[usize], seen: &Seen) -> Verdict {
        let name = self.names[seen.ask];
        // By the latest fault that can have done it.
        let mut excused = |excuse: fn(&mut Tolerance) -> bool| {
            let by = met.iter().find(|&&index| excuse(&mut state.windows[index].tolerance));
            by.map(|&by| Verdict::Excused { by })
        };
        let (invariant, evidence) = match &seen.ending {
            Ending::Complete(answer) => match difference(&self.expected[seen.ask], answer) {
                None => return Verdict::Good,
                Some(what) => ("output_equals_fault_free", what),
            },
            Ending::Wrong(what) if what.starts_with("truncated") => {
                ("no_truncated_success", what.clone())
            }
            Ending::Wrong(what) => ("ends_exactly_once", what.clone()),
            Ending::Error(what) => {
                if let Some(excused) = excused(Tolerance::take_error) {
                    return excused;
                }
                if let (true, Some(&by)) = (met.len() > self.migration_limit, met.first()) {
                    return Verdict::Excused { by };
                }
                ("no_failed_request", format!("error: {what}"))
            }
            Ending::Refused(what) => {
                if let Some(excused) = excused(|tolerance| tolerance.refused) {
                    return excused;
                }
                ("no_failed_request", format!("refused: {what}"))
            }
            Ending::Broken(what) => {
                if let Some(excused) = excused(|tolerance| tolerance.broken) {
                    return excused;
                }
                ("no_failed_request", format!("broken off: {what}"))
            }
        };
        let evidence = format!("{name}: {evidence}");
        state.violate(Violation { invariant, evidence, faults: met.to_vec() });
        let failed = invariant == "no_failed_request";
        if failed { Verdict::Failed } else { Verdict::Wrong }
    }

    /// Notes that a promise was broken.
    pub(super) fn violate(&self, invariant: &'static str, evidence: String, fault: Option<usize>) {
        let faults = fault.into_iter().collect();
        self.lock().violate(Violation { invariant, evidence, faults });
    }

    /// How many promises were broken so far.
    pub(super) fn violations(&self) -> usize {
        self.lock().violations_total
    }

    /// All that is in it: the faults, the answers by ask, calm gaps, violations and their number.
    pub(super) fn read(&self) -> Contents {
        let state = self.lock();
        Contents {
            windows: state.windows.clone(),
            totals: state.totals.clone(),
            by_ask: self.names.iter().copied().zip(state.by_ask.iter().copied()).collect(),
            calm: state.calm.clone(),
            violations: state.violations.clone(),
            violations_total: state.violations_total,
        }
    }
}

impl State {
    fn violate(&mut self, violation: Violation) {
        self.violations_total += 1;
        if self.violations.len() < KEPT {
            self.violations.push(violation);
        }
    }
}

/// What a ledger holds at the end.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) windows: Vec<Window>,
    pub(super) totals: Totals,
    pub(super) by_ask: Vec<(&'static str, usize)>,
    pub(super) calm: Vec<(Duration, Duration)>,
    pub(super) violations: Vec<Violation>,
    pub(super) violations_total: usize,
}

enum Verdict {
    Good,
    /// A failure that this fault may cost.
    Excused {
        by: usize,
    },
    Failed,
    Wrong,
}

/// The wait for the first part and the longest gap after it, as far as they touch `from..to`.
fn gaps(moments: &[Instant], from: Instant, to: Option<Instant>) -> (Duration, Duration) {
    let touching = |pair: &&[Instant]| pair[1] >= from && to.is_none_or(|to| pair[0] <= to);
    let longest = |moments: &[Instant]| {
        moments.windows(2).filter(touching).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    };
    (longest(&moments[..moments.len().min(2)]), longest(&moments[moments.len().min(1)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(usage: u64) -> Answer {
        Answer { choices: Vec::new(), usage: Some([usage, 0, usage]) }
    }

    /// A ledger and its time zero.
    fn ledger() -> (Ledger, Instant) {
        (
            Ledger::new(vec![("a", true), ("b", false)], vec![answer(1), answer(2)], 2),
            Instant::now(),
        )
    }

    fn at(zero: Instant, ms: u64) -> Instant {
        zero + Duration::from_millis(ms)
    }

    fn seen(zero: Instant, ms: &[u64], ending: Ending) -> Seen {
        Seen { ask: 0, moments: ms.iter().map(|&ms| at(zero, ms)).collect(), ending }
    }

    #[test]
    fn a_gap_belongs_to_the_faults_that_it_touches() {
        let (ledger, zero) = ledger();
        ledger.open_at(Tolerance::NONE, at(zero, 100));
        ledger.close_at(at(zero, 200));
        ledger.open_at(Tolerance::NONE, at(zero, 500));
        let good = || Ending::Complete(answer(1));
        ledger.record(&seen(zero, &[0, 80, 90, 150, 160, 400], good()));
        ledger.record(&seen(zero, &[450, 540, 960], good()));
        ledger.record(&seen(zero, &[210, 217, 220], good()));
        let found = ledger.read();
        let gaps =
            found.windows.iter().map(|w| (w.touched, w.first.as_millis(), w.gap.as_millis()));
        assert_eq!(gaps.collect::<Vec<_>>(), [(1, 0, 240), (1, 90, 420)]);
        assert_eq!(found.calm, [(Duration::from_millis(7), Duration::from_millis(3))]);
        assert_eq!((found.totals.requests, found.totals.complete), (3, 3));
        assert_eq!(found.by_ask, [("a", 3), ("b", 0)]);
        assert!(found.violations.is_empty());
    }

    #[test]
    fn what_a_fault_may_cost_is_excused_as_often_as_it_may_and_no_more() {
        let (ledger, zero) = ledger();
        let one = Tolerance { errors: 1, refused: true, broken: false };
        ledger.open_at(one, at(zero, 100));
        ledger.close_at(at(zero, 200));
        let error = || Ending::Error("gone".into());
        ledger.record(&seen(zero, &[0, 150], error()));
        ledger.record(&seen(zero, &[0, 150], error()));
        ledger.record(&seen(zero, &[0, 150], Ending::Refused("503".into())));
        ledger.record(&seen(zero, &[0, 150], Ending::Broken("reset".into())));
        ledger.record(&seen(zero, &[0, 99], Ending::Refused("503".into())));
        let found = ledger.read();
        let window = &found.windows[0];
        assert_eq!((window.touched, window.failed, window.excused), (4, 4, 2));
        let evidence: Vec<_> = found.violations.iter().map(|v| v.evidence.as_str()).collect();
        assert_eq!(evidence, ["a: error: gone", "a: broken off: reset", "a: refused: 503"]);
        assert_eq!(found.violations[0].faults, [0]);
        assert!(found.violations[2].faults.is_empty());
        assert_eq!((found.totals.failed, found.totals.excused), (5, 2));
    }

    #[test]
    fn a_request_that_met_more_faults_than_it_may_be_migrated_may_fail() {
        let (ledger, zero) = ledger();
        for fault in 0..3 {
            ledger.open_at(Tolerance::NONE, at(zero, fault * 10));
            ledger.close_at(at(zero, fault * 10 + 5));
        }
        ledger.record(&seen(zero, &[12, 40], Ending::Error("lost".into())));
        ledger.record(&seen(zero, &[0, 40], Ending::Error("lost".into())));
        ledger.record(&seen(zero, &[0, 40], Ending::Broken("reset".into())));
        let found = ledger.read();
        assert_eq!((found.totals.failed, found.totals.excused), (3, 1));
        assert_eq!(found.violations_total, 2);
    }

    #[test]
    fn a_wrong_answer_is_never_excused() {
        let (ledger, zero) = ledger();
        let all = Tolerance { errors: usize::MAX, refused: true, broken: true };
        ledger.open_at(all, zero);
        ledger.record(&seen(zero, &[0, 1], Ending::Complete(answer(7))));
        ledger.record(&seen(zero, &[0, 1], Ending::Wrong("truncated: x".into())));
        ledger.record(&seen(zero, &[0, 1], Ending::Wrong("an event after [DONE]".into())));
        let found = ledger.read();
        let invariants: Vec<_> = found.violations.iter().map(|v| v.invariant).collect();
        assert_eq!(
            invariants,
            ["output_equals_fault_free", "no_truncated_success", "ends_exactly_once"]
        );
        assert_eq!((found.windows[0].wrong, found.totals.wrong), (3, 3));
    }

    #[test]
    fn violations_are_all_counted_and_the_first_ones_kept() {
        let (ledger, _) = ledger();
        for n in 0..KEPT + 5 {
            ledger.violate("healed", n.to_string(), Some(n));
        }
        let found = ledger.read();
        assert_eq!((found.violations.len(), found.violations_total), (KEPT, KEPT + 5));
    }
}
