//! The threads around an executor, and what they leave for the next step.
//!
//! ```text
//! keeper    opens the engine, waits, joins the others, shuts the engine down and drops it
//! ├─ poll   the only one that awaits responses
//! └─ watch  the only one that takes statistics and KV events; notices that nothing happens any more
//! ```
//!
//! An engine that is lost is not torn down: it may hold whoever tries. It is left behind with its memory,
//! and the process around it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cxx::UniquePtr;

use super::super::ffi::{self, EngineOptions, Iteration, KvEvents, Output};
use super::super::hook::LogitsHook;
use super::hook::{Hook, Works};
use crate::engine::{EngineError, Ready};

/// Longest wait for responses: how late an idle poller hears that it shall stop.
const POLL_MS: u64 = 20;
/// How often statistics and KV events are taken.
const WATCH: Duration = Duration::from_millis(20);
/// How often a step is wanted for what only time brings.
const TICK: Duration = Duration::from_millis(100);
/// Emptied buffers that are kept.
const SPARE: usize = 8;

/// An open executor.
pub(super) type Handle = Arc<UniquePtr<ffi::Engine>>;

/// What has come since the last step.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Rows, in their order.
    pub(super) outputs: Vec<Output>,
    /// KV events, in their order.
    pub(super) events: Vec<KvEvents>,
    /// The last step's statistics.
    pub(super) latest: Option<Iteration>,
    /// Prompt tokens of the steps since.
    pub(super) context_tokens: u64,
    /// Sequences put back since.
    pub(super) paused: u64,
    /// Requests, by client id, whose processors have failed.
    pub(super) failures: Vec<(u64, EngineError)>,
    /// Why nothing comes any more.
    pub(super) lost: Option<EngineError>,
}

/// What the threads have in common.
pub(super) struct Shared {
    news: AtomicBool,
    inbox: Mutex<News>,
    spare: Mutex<Vec<Output>>,
    ready: Mutex<Option<Ready>>,
    stopped: (Mutex<bool>, Condvar),
    live: AtomicUsize,
    /// Whether time alone may bring something to do.
    timers: AtomicBool,
    began: Instant,
    /// Milliseconds after `began`.
    progress: AtomicU64,
    pub(super) works: Works,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            news: AtomicBool::new(false),
            inbox: Mutex::default(),
            spare: Mutex::default(),
            ready: Mutex::default(),
            stopped: (Mutex::new(false), Condvar::new()),
            live: AtomicUsize::new(0),
            timers: AtomicBool::new(false),
            began: Instant::now(),
            progress: AtomicU64::new(0),
            works: Works::default(),
        })
    }

    /// Whether there is anything to take.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// Takes all that has come.
    pub(super) fn take(&self) -> News {
        let mut inbox = lock(&self.inbox);
        self.news.store(false, Ordering::Release);
        std::mem::take(&mut *inbox)
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&self, output: Output) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(output);
        }
    }

    /// Says whom to tell of news, and tells of those that there are.
    pub(super) fn on_ready(&self, ready: Ready) {
        *lock(&self.ready) = Some(ready.clone());
        if self.has_news() {
            ready();
        }
    }

    fn put(&self, add: impl FnOnce(&mut News)) {
        let told = {
            let mut inbox = lock(&self.inbox);
            add(&mut inbox);
            self.news.swap(true, Ordering::AcqRel)
        };
        let ready = lock(&self.ready).clone().filter(|_| !told);
        if let Some(ready) = ready {
            ready();
        }
    }

    /// Nothing comes any more; the first reason counts.
    pub(super) fn lose(&self, detail: String) {
        tracing::error!(detail, "the TensorRT-LLM engine is lost");
        let lost = EngineError::Lost { during: "TensorRT-LLM".into(), detail };
        self.put(|news| {
            news.lost.get_or_insert(lost);
        });
    }

    pub(super) fn processor_failed(&self, client: u64, error: EngineError) {
        self.put(|news| news.failures.push((client, error)));
    }

    /// How many legs live; an engine without any need not show progress.
    pub(super) fn set_live(&self, live: usize) {
        if self.live.swap(live, Ordering::Relaxed) == 0 {
            self.progressed();
        }
    }

    /// Whether steps are wanted though nothing comes.
    pub(super) fn set_timers(&self, wanted: bool) {
        self.timers.store(wanted, Ordering::Relaxed);
    }

    fn progressed(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        self.progress.store(now, Ordering::Relaxed);
    }

    fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }

    /// Lets the threads end.
    pub(super) fn stop(&self) {
        *lock(&self.stopped.0) = true;
        self.stopped.1.notify_all();
    }

    fn is_stopped(&self) -> bool {
        *lock(&self.stopped.0)
    }

    /// Waits; true if it is to stop.
    fn wait(&self, time: Duration) -> bool {
        let stopped = lock(&self.stopped.0);
        let waited = self.stopped.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The keeper's own part: what it is told, and what it tells.
pub(super) struct Keeper {
    pub(super) options: EngineOptions,
    pub(super) vocab: usize,
    pub(super) step_timeout: Duration,
    pub(super) shared: Arc<Shared>,
    /// The engine, or why there is none.
    pub(super) opened: Sender<Result<Handle, String>>,
    /// A word: end in order. Closed without one: leave all behind.
    pub(super) end: Receiver<()>,
    /// Closed once the engine is gone.
    pub(super) gone: Sender<()>,
}

impl Keeper {
    /// Runs it on a thread of its own.
    pub(super) fn spawn(self) -> Result<(), String> {
        spawn("trtllm-keeper", move || self.run()).map(drop)
    }

    fn run(self) {
        let handle = match self.open() {
            Ok(handle) => handle,
            // Nobody waits if the program gave up in the meantime.
            Err(why) => return drop(self.opened.send(Err(why))),
        };
        let threads = self.helpers(&handle);
        let threads = match threads {
            Ok(threads) => threads,
            Err(why) => {
                drop(self.opened.send(Err(why)));
                return leave(handle, &self.shared);
            }
        };
        if self.opened.send(Ok(handle.clone())).is_err() || self.end.recv().is_err() {
            return leave(handle, &self.shared);
        }
        self.shared.stop();
        for thread in threads {
            if thread.join().is_err() {
                return leave(handle, &self.shared);
            }
        }
        if let Err(error) = handle.shutdown() {
            tracing::warn!(%error, "the TensorRT-LLM engine did not shut down; it is left behind");
            return leave(handle, &self.shared);
        }
        drop(handle);
        drop(self.gone);
    }

    fn open(&self) -> Result<Handle, String> {
        let hook = LogitsHook(Some(Box::new(Hook::new(self.shared.clone(), self.vocab))));
        let engine =
            ffi::open(&self.options, Box::new(hook), true).map_err(|e| e.what().to_owned())?;
        match engine.can_enqueue() {
            Ok(true) => Ok(Arc::new(engine)),
            Ok(false) => Err("this process is not the leader of its ranks".to_owned()),
            Err(error) => Err(error.what().to_owned()),
        }
    }

    fn helpers(&self, handle: &Handle) -> Result<Vec<JoinHandle<()>>, String> {
        let (engine, shared) = (handle.clone(), self.shared.clone());
        let poll = spawn("trtllm-poll", move || poll(&engine, &shared))?;
        let (engine, shared, timeout) = (handle.clone(), self.shared.clone(), self.step_timeout);
        let watch = spawn("trtllm-watch", move || watch(&engine, &shared, timeout));
        match watch {
            Ok(watch) => Ok(vec![poll, watch]),
            Err(why) => Err(why),
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|error| format!("cannot start the thread {name}: {error}"))
}

/// Keeps the engine's memory, whoever may still be in it.
pub(super) fn leave(handle: Handle, shared: &Shared) {
    shared.stop();
    std::mem::forget(handle);
}

fn poll(engine: &ffi::Engine, shared: &Shared) {
    let mut output = Output::default();
    while !shared.is_stopped() {
        if let Err(error) = engine.poll(POLL_MS, &mut output) {
            return shared.lose(error.what().to_owned());
        }
        if output.rows.is_empty() {
            continue;
        }
        shared.progressed();
        let empty = lock(&shared.spare).pop().unwrap_or_default();
        let full = std::mem::replace(&mut output, empty);
        shared.put(|news| news.outputs.push(full));
    }
}

fn watch(engine: &ffi::Engine, shared: &Shared, step_timeout: Duration) {
    let (mut steps, mut events, mut paused) = (Vec::new(), KvEvents::default(), 0);
    let mut ticked = Instant::now();
    while !shared.wait(WATCH) {
        if shared.timers.load(Ordering::Relaxed) && ticked.elapsed() >= TICK {
            ticked = Instant::now();
            shared.put(|_| {});
        }
        steps.clear();
        let taken = engine.iterations(&mut steps).and_then(|()| engine.kv_events(0, &mut events));
        if let Err(error) = taken {
            return shared.lose(error.what().to_owned());
        }
        if let Some(&latest) = steps.last() {
            shared.progressed();
            let context = steps.iter().map(|step| step.context_tokens.max(0) as u64).sum::<u64>();
            let mut more = 0;
            for step in &steps {
                more += (step.paused - paused).max(0) as u64;
                paused = step.paused;
            }
            shared.put(|news| {
                news.latest = Some(latest);
                news.context_tokens += context;
                news.paused += more;
            });
        }
        if !events.rows.is_empty() {
            let events = std::mem::take(&mut events);
            shared.put(|news| news.events.push(events));
        }
        let live = shared.live.load(Ordering::Relaxed);
        if live > 0 && shared.idle_for() > step_timeout {
            let s = step_timeout.as_secs_f32();
            return shared.lose(format!(
                "no step for {s} s with {live} legs (worker.step_timeout_s); the process must end"
            ));
        }
    }
}
