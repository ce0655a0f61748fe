//! `Faulty`: an engine around an engine that fails on demand, for fault injection and tests.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::sample::random_bits;
use super::{
    Description, Engine, EngineError, KvEvent, KvPool, Leg, Load, Ready, StepOutput, Tier,
};
use crate::ids::{BlockHash, LegId};

/// What happens instead of, or before, the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step panics.
    Panic,
    /// The step returns [`EngineError::Lost`].
    Fail,
    /// The step starts only after [`FaultHandle::release`], or after this time at the latest.
    Hang(Duration),
}

/// What becomes of the events that tell what is in the engine's prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Events {
    /// They are told as they are.
    #[default]
    Told,
    /// None is told.
    Lost,
    /// Of each step they come in the wrong order, and three in four are lost, told twice or turned
    /// into their contrary.
    Garbled,
}

/// What happens to the process that an engine has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum ProcessFault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, for good.
    Stop,
    /// It ends by SIGABRT, as MPI ends processes.
    Abort,
    /// Its next step does not return; all else goes on.
    Wedge,
    /// Its next step fails, and everything in it.
    ForwardError,
    /// Every step takes this much longer, until set to 0.
    SlowSteps {
        /// Milliseconds.
        ms: u64,
    },
}

/// Breaks an engine's process.
pub type BreakProcess = Arc<dyn Fn(ProcessFault) -> bool + Send + Sync>;

#[derive(Default)]
struct Faults {
    next: Option<Fault>,
    slow: Duration,
    events: Events,
    released: bool,
    process: Option<BreakProcess>,
    slow_process: Duration,
}

#[derive(Default)]
struct Shared {
    /// Whether `faults` asks for anything: all that a healthy step looks at.
    armed: AtomicBool,
    faults: Mutex<Faults>,
    release: Condvar,
}

/// Causes faults in one engine, from any thread; clones act on the same engine.
#[derive(Clone, Default)]
pub struct FaultHandle(Arc<Shared>);

impl fmt::Debug for FaultHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultHandle")
    }
}

impl FaultHandle {
    /// Arms a fault for the next step, in place of one that is armed already.
    pub fn inject(&self, fault: Fault) {
        self.change(|faults| (faults.next, faults.released) = (Some(fault), false));
    }

    /// Makes every step from now on wait this long first; zero ends it.
    pub fn slow_each_step(&self, by: Duration) {
        let process = self.lock().process.clone();
        self.change(|faults| {
            (faults.slow, faults.slow_process) = match process {
                Some(_) => (Duration::ZERO, by),
                None => (by, Duration::ZERO),
            }
        });
        if let Some(breaks) = process {
            breaks(slow(by));
        }
    }

    /// Decides what becomes of KV events from now on.
    pub fn tell_events(&self, events: Events) {
        self.change(|faults| faults.events = events);
    }

    /// The engine has a process to itself, which is broken like this.
    pub fn has_process(&self, breaks: BreakProcess) {
        let by = {
            let mut faults = self.lock();
            faults.process = Some(breaks.clone());
            faults.slow_process
        };
        if !by.is_zero() {
            breaks(slow(by)); // as the one before it was
        }
    }

    /// Breaks the engine's process; `false` if it has none, or none that lives.
    pub fn break_process(&self, fault: ProcessFault) -> bool {
        let breaks = self.lock().process.clone();
        breaks.is_some_and(|breaks| breaks(fault))
    }

    /// Ends a hang, or disarms one that has not begun.
    pub fn release(&self) {
        self.change(|faults| {
            faults.released = true;
            faults.next = faults.next.filter(|fault| !matches!(fault, Fault::Hang(_)));
        });
        self.0.release.notify_all();
    }

    fn change(&self, edit: impl FnOnce(&mut Faults)) {
        let mut faults = self.lock();
        edit(&mut faults);
        let armed =
            faults.next.is_some() || !faults.slow.is_zero() || faults.events != Events::default();
        self.0.armed.store(armed, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lives through what is armed, before a step; returns what becomes of its events.
    fn suffer(&self) -> Result<Events, EngineError> {
        if !self.0.armed.load(Ordering::Acquire) {
            return Ok(Events::Told);
        }
        let (mut fault, mut slow, mut events) = Default::default();
        self.change(|faults| {
            (fault, slow, events) = (faults.next.take(), faults.slow, faults.events);
        });
        if !slow.is_zero() {
            thread::sleep(slow);
        }
        match fault {
            None => Ok(events),
            Some(Fault::Panic) => panic!("injected fault: a panic in the engine's step"),
            Some(Fault::Fail) => Err(EngineError::Lost {
                during: "a step".into(),
                detail: "injected fault".to_owned(),
            }),
            Some(Fault::Hang(limit)) => {
                let hung = |faults: &mut Faults| !faults.released;
                drop(self.0.release.wait_timeout_while(self.lock(), limit, hung));
                Ok(events)
            }
        }
    }
}

fn slow(by: Duration) -> ProcessFault {
    ProcessFault::SlowSteps { ms: u64::try_from(by.as_millis()).unwrap_or(u64::MAX) }
}

/// See [`Events::Garbled`]; a function of the step's number.
fn garble(events: &mut Vec<KvEvent>, step: u64) {
    let contrary = |event: &KvEvent| match *event {
        KvEvent::Stored { hash, .. } => KvEvent::Removed { hash },
        KvEvent::Removed { hash } => KvEvent::Stored { hash, parent: None, tier: Tier::Device },
    };
    for (nth, event) in std::mem::take(events).into_iter().enumerate().rev() {
        match random_bits(step, 0, nth as u64) % 4 {
            0 => {}
            1 => events.extend([event.clone(), event]),
            2 => events.push(contrary(&event)),
            _ => events.push(event),
        }
    }
}

/// An engine with faults to order; without any, a step costs one atomic load more.
#[derive(Debug)]
pub struct Faulty<E> {
    engine: E,
    handle: FaultHandle,
    /// A failed step is a lost engine, and stays one.
    lost: Option<EngineError>,
    /// Steps so far.
    steps: u64,
}

impl<E: Engine> Faulty<E> {
    /// Puts `engine` under the power of `handle`.
    pub fn new(engine: E, handle: FaultHandle) -> Self {
        Self { engine, handle, lost: None, steps: 0 }
    }
}

impl<E: Engine> Engine for Faulty<E> {
    fn describe(&self) -> Description {
        self.engine.describe()
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        match &self.lost {
            Some(lost) => Err(lost.clone()),
            None => self.engine.admit(leg),
        }
    }

    fn admit_handed(&mut self, leg: Leg, state: Arc<[u8]>) -> Result<(), EngineError> {
        match &self.lost {
            Some(lost) => Err(lost.clone()),
            None => self.engine.admit_handed(leg, state),
        }
    }

    fn abort(&mut self, leg: LegId) {
        self.engine.abort(leg);
    }

    fn not_given(&mut self, leg: LegId) {
        self.engine.not_given(leg);
    }

    fn accepts_later(&self) -> bool {
        self.engine.accepts_later()
    }

    fn has_work(&self) -> bool {
        self.engine.has_work()
    }

    fn on_ready(&mut self, ready: Ready) {
        self.engine.on_ready(ready);
    }

    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let events = self.handle.suffer().inspect_err(|lost| self.lost = Some(lost.clone()))?;
        self.steps += 1;
        self.engine.step(out)?;
        match events {
            Events::Told => {}
            Events::Lost => out.kv_events.clear(),
            Events::Garbled => garble(&mut out.kv_events, self.steps),
        }
        Ok(())
    }

    fn kv_pool(&self) -> Option<KvPool> {
        self.engine.kv_pool()
    }

    fn pulled(&mut self, leg: LegId, have: u32) {
        self.engine.pulled(leg, have);
    }

    fn load(&self) -> Load {
        self.engine.load()
    }

    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>) {
        self.engine.cached_blocks(out);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Instant;

    use super::*;
    use crate::engine::blocks::HashKey;
    use crate::engine::embedded::Embedded;
    use crate::engine::schedule::Limits;
    use crate::engine::sim::{SimConfig, SimModel};

    fn engine() -> (Faulty<Embedded<SimModel>>, FaultHandle) {
        let handle = FaultHandle::default();
        let model = SimModel::new(SimConfig::default());
        let engine = Embedded::new(model, Limits::default(), &HashKey::default());
        (Faulty::new(engine, handle.clone()), handle)
    }

    #[test]
    fn a_failed_step_loses_the_engine_for_good() {
        let (mut engine, handle) = engine();
        let mut out = StepOutput::default();
        engine.step(&mut out).unwrap();
        handle.inject(Fault::Fail);
        let first = engine.step(&mut out).unwrap_err();
        assert_eq!(engine.step(&mut out), Err(first));
    }

    #[test]
    fn a_panic_happens_once() {
        let (mut engine, handle) = engine();
        handle.inject(Fault::Panic);
        let mut out = StepOutput::default();
        assert!(catch_unwind(AssertUnwindSafe(|| engine.step(&mut out))).is_err());
        assert_eq!(engine.step(&mut out), Ok(()));
    }

    #[test]
    fn a_hang_ends_when_released_and_at_its_limit() {
        let (mut engine, handle) = engine();
        let mut out = StepOutput::default();
        let hour = Duration::from_secs(3600);
        handle.inject(Fault::Hang(hour));
        let start = Instant::now();
        thread::scope(|scope| {
            let hung = scope.spawn(|| engine.step(&mut StepOutput::default()));
            while handle.lock().next.is_some() {
                thread::yield_now(); // until the step has taken the fault
            }
            handle.release();
            assert_eq!(hung.join().unwrap(), Ok(()));
        });
        assert!(start.elapsed() < hour);

        let short = Duration::from_millis(5);
        handle.inject(Fault::Hang(short));
        let start = Instant::now();
        engine.step(&mut out).unwrap();
        assert!(start.elapsed() >= short);
    }

    #[test]
    fn garbled_events_are_lost_repeated_turned_round_and_told() {
        let hash = |hash| crate::ids::BlockHash(hash);
        let stored = |nth| KvEvent::Stored { hash: hash(nth), parent: None, tier: Tier::Device };
        let mut events: Vec<_> = (0..400).map(stored).collect();
        garble(&mut events, 1);
        let (mut lost, mut twice, mut turned) = (0, 0, 0);
        for nth in 0..400 {
            let of_it = |event: &&KvEvent| event.change().0 == hash(nth);
            match *events.iter().filter(of_it).collect::<Vec<_>>() {
                [] => lost += 1,
                [KvEvent::Removed { .. }] => turned += 1,
                [_, _] => twice += 1,
                _ => {}
            }
        }
        assert!(
            [lost, twice, turned].iter().all(|n| (60..140).contains(n)),
            "{lost} {twice} {turned}"
        );
        let mut again: Vec<_> = (0..400).map(stored).collect();
        garble(&mut again, 1);
        assert_eq!(events, again);
    }

    #[test]
    fn slowness_lasts_until_it_is_taken_back() {
        let (mut engine, handle) = engine();
        let mut out = StepOutput::default();
        let slow = Duration::from_millis(3);
        handle.slow_each_step(slow);
        for _ in 0..2 {
            let start = Instant::now();
            engine.step(&mut out).unwrap();
            assert!(start.elapsed() >= slow);
        }
        handle.slow_each_step(Duration::ZERO);
        assert!(!handle.0.armed.load(Ordering::Acquire));
    }
}
