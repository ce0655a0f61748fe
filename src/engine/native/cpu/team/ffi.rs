//! The team itself: a job is a borrowed closure that helper threads call while its owner waits.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a helper looks for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Waking a helper costs a few microseconds; less work than this is done before one comes.
const WORTH_SHARING: usize = 4096;
/// Spins of the owner before it gives its core to a helper that still works.
const SPINS_BEFORE_YIELD: u32 = 4096;

/// Set in [`Shared::gate`] while a job may be entered.
const OPEN: u64 = 1 << 31;
/// Bits of [`Shared::gate`] that count the helpers inside.
const INSIDE: u64 = OPEN - 1;

type Task = dyn Fn(usize) + Sync;

/// A closure that its owner keeps alive until the gate is closed and nobody is inside.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task,
    tasks: usize,
}

/// A counter with a cache line to itself.
#[derive(Default)]
#[repr(align(64))]
struct Claimed(AtomicUsize);

struct Shared {
    /// Upper half: number of the job; then [`OPEN`]; then the helpers inside.
    gate: AtomicU64,
    /// For each thread, how many tasks of its share are claimed.
    claimed: Box<[Claimed]>,
    job: UnsafeCell<Option<Job>>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: All fields but `job` are `Sync`. `job` is written by the owner only while the gate is
// closed and nobody is inside, and read only by helpers inside (see `Shared::enter`); the gate's
// acquire and release order these accesses. The closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: The pointer in `job` is only used as described for `Sync`.
unsafe impl Send for Shared {}

struct Helper {
    thread: Option<JoinHandle<()>>,
    asleep: Arc<AtomicBool>,
}

/// Threads that work together on one job at a time; the caller of [`Team::run`] is one of them.
pub(in crate::engine::native::cpu) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<Helper>,
    jobs: u64,
}

impl Team {
    /// A team of `threads`, the caller included.
    pub(in crate::engine::native::cpu) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            claimed: (0..threads.max(1)).map(|_| Claimed::default()).collect(),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Self { shared, helpers: Vec::new(), jobs: 0 };
        for index in 1..threads {
            let (shared, asleep) = (Arc::clone(&team.shared), Arc::new(AtomicBool::new(false)));
            let flag = Arc::clone(&asleep);
            let thread = thread::Builder::new()
                .name(format!("native-{index}"))
                .spawn(move || shared.help(index, &flag))?;
            team.helpers.push(Helper { thread: Some(thread), asleep });
        }
        Ok(team)
    }

    /// Calls `task` once with each number below `tasks` and returns when all calls have.
    ///
    /// Each thread takes numbers that follow one another, as long as others do not fall behind.
    ///
    /// `work` is roughly how many vector-sized operations that takes in all; the caller does a
    /// little work alone.
    ///
    /// # Panics
    /// Goes on with the panic of a task, after all threads have left the job.
    pub(in crate::engine::native::cpu) fn run(
        &mut self,
        work: usize,
        tasks: usize,
        task: impl Fn(usize) + Sync,
    ) {
        if tasks <= 1 || work < WORTH_SHARING || self.helpers.is_empty() {
            return (0..tasks).for_each(task);
        }
        let borrowed: *const (dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: Only the lifetime changes. The pointer is used by helpers inside the gate only,
        // and `Closing` below, also when this thread unwinds, waits until nobody is inside before
        // `task` is dropped.
        let task_pointer: *const Task = unsafe { std::mem::transmute(borrowed) };
        // SAFETY: The gate is closed and nobody is inside since the last run ended, and
        // `&mut self` keeps others from running.
        unsafe { *self.shared.job.get() = Some(Job { task: task_pointer, tasks }) };
        for claimed in &self.shared.claimed {
            claimed.0.store(0, Ordering::Relaxed);
        }
        self.jobs = (self.jobs + 1) & u64::from(u32::MAX);
        self.shared.gate.store(self.jobs << 32 | OPEN, Ordering::SeqCst);
        let closing = Closing(&self.shared);
        for helper in self.helpers.iter().take(tasks - 1) {
            if helper.asleep.load(Ordering::SeqCst)
                && let Some(thread) = &helper.thread
            {
                thread.thread().unpark();
            }
        }
        self.shared.claim(0, tasks, &task);
        drop(closing);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in &mut self.helpers {
            if let Some(thread) = helper.thread.take() {
                thread.thread().unpark();
                // A helper catches the panics of its tasks; it has none of its own.
                let _ = thread.join();
            }
        }
    }
}

/// Closes the gate when dropped and waits for those inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while gate & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
            gate = self.0.gate.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    /// Claims and runs tasks until none is left: first those of this thread's share, which follow
    /// one another, then what is left of the others'.
    fn claim(&self, thread: usize, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.claimed.len();
        for share in (thread..threads).chain(0..thread) {
            let end = (share + 1) * tasks / threads;
            loop {
                let claimed = self.claimed[share].0.fetch_add(1, Ordering::Relaxed);
                let index = share * tasks / threads + claimed;
                if index >= end {
                    break;
                }
                task(index);
            }
        }
    }

    /// A helper's life.
    fn help(&self, index: usize, asleep: &AtomicBool) {
        let mut seen = 0;
        while self.wait(&mut seen, asleep) {
            // SAFETY: This thread is inside the gate, so the owner does not write `job`.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                // SAFETY: The owner keeps the closure alive until nobody is inside.
                let task = unsafe { &*job.task };
                let run = AssertUnwindSafe(|| self.claim(index, job.tasks, task));
                if let Err(panic) = catch_unwind(run) {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job newer than `seen` and enters it; `false` when the team ends.
    fn wait(&self, seen: &mut u64, asleep: &AtomicBool) -> bool {
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                for _ in 0..64 {
                    if self.enter(seen) {
                        return true;
                    }
                    std::hint::spin_loop();
                }
            }
            asleep.store(true, Ordering::SeqCst);
            let entered = self.enter(seen);
            let stop = self.stop.load(Ordering::SeqCst);
            if !entered && !stop {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            if entered || stop {
                return entered;
            }
        }
    }

    /// Enters the job behind the gate if it is open and not `seen` yet.
    fn enter(&self, seen: &mut u64) -> bool {
        let gate = self.gate.load(Ordering::SeqCst);
        let job = gate >> 32;
        if gate & OPEN == 0 || job == *seen {
            return false;
        }
        let entered =
            self.gate.compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed);
        if entered.is_ok() {
            *seen = job;
        }
        entered.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in 1..5 {
            let mut team = Team::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 100] {
                for _ in 0..50 {
                    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    team.run(usize::MAX, tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    let once = counts.iter().all(|c| c.load(Ordering::Relaxed) == 1);
                    assert!(once, "{threads} threads, {tasks} tasks");
                }
            }
        }
    }

    #[test]
    fn a_sleeping_team_wakes_up() {
        let mut team = Team::new(3).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !team.helpers.iter().all(|h| h.asleep.load(Ordering::SeqCst)) {
            assert!(Instant::now() < deadline, "helpers never sleep");
            thread::yield_now();
        }
        let ran = AtomicUsize::new(0);
        let helped = AtomicBool::new(false);
        let owner = thread::current().id();
        team.run(usize::MAX, 3, |_| {
            helped.fetch_or(thread::current().id() != owner, Ordering::SeqCst);
            ran.fetch_add(1, Ordering::SeqCst);
            // The owner's first task waits for a helper: it must come.
            while !helped.load(Ordering::SeqCst) {
                assert!(Instant::now() < deadline, "no helper came");
                thread::yield_now();
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_team_survives() {
        let mut team = Team::new(2).unwrap();
        for _ in 0..20 {
            let run = AssertUnwindSafe(|| team.run(usize::MAX, 8, |i| assert!(i != 5, "task 5")));
            assert!(catch_unwind(run).is_err());
            let ran = AtomicUsize::new(0);
            team.run(usize::MAX, 8, |_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 8);
        }
    }
}
