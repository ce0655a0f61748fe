//! `Adapter`: an [`Engine`] whose legs are requests of TensorRT-LLM's executor.
//!
//! ```text
//! Adapter      whoever drives it: admit, abort, step
//! ├─ request   a leg as a request
//! ├─ rows      rows as tokens, and where a leg ends
//! ├─ events    KV events as ours
//! ├─ handover  prompts that another engine computes or decodes
//! ├─ hook      logits of legs with processors
//! ├─ logprobs  log probabilities from logits
//! ├─ turns     which requests the executor has room for
//! └─ threads   who waits for the executor
//! ```
//!
//! A step takes what has come and never waits. A request is known until its final row, which comes after a
//! cancel, too; its leg may be over before, or admitted again as another request. Whatever the executor
//! throws, a failed forward pass (errors of CUDA's stay) and a standstill of `step_timeout` lose the engine.
//!
//! Legs of [`Part::Prefill`](crate::engine::Part) leave their KV where it is and a state for the engine that
//! decodes, if the configuration says how (`handover`); if not, they are refused.

pub mod config;
mod events;
mod handover;
mod hook;
mod logprobs;
mod lora;
mod request;
mod rows;
#[cfg(trtllm_standin)]
#[cfg(test)]
mod tests;
mod threads;
mod turns;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use rustc_hash::FxHashMap;

pub use config::{AdapterConfig, EVENTS_KEPT};
use events::Mirror;
use handover::Handover;
pub use handover::HandoverConfig;
use hook::Work;
pub use lora::Lora;
use lora::Sent;
use request::Asked;
use rows::{After, Sizes, Tracked, forward_failed};
use threads::{Handle, Keeper, News, Shared};

use super::ffi::{self, Admission, Capabilities, Fault, Iteration, Output};
use crate::engine::faulty::ProcessFault;
use crate::engine::processors::{Chain, Processors};
use crate::engine::{
    Description, Engine, EngineError, KvPool, Leg, Load, PrefixCache, StepOutput, Tier,
};
use crate::ids::{BlockHash, LegId};

/// See the module's description.
pub struct Adapter {
    config: AdapterConfig,
    can: Capabilities,
    processors: Processors,
    fingerprint: u64,
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    engine: Option<Handle>,
    end: Option<Sender<()>>,
    gone: Receiver<()>,
    /// By TensorRT-LLM's id.
    requests: FxHashMap<u64, Tracked>,
    /// Requests of the legs that live.
    legs: FxHashMap<LegId, u64>,
    mirror: Mirror,
    latest: Iteration,
    clients: u64,
    preemptions: u64,
    /// Live legs without a row yet, and their tokens.
    unstarted: (usize, u64),
    handover: Option<Handover>,
    sent: Sent,
    lost: Option<EngineError>,
}

impl Adapter {
    /// Opens an engine; returns when it is loaded.
    ///
    /// # Errors
    /// `Lost`, with the reason in TensorRT-LLM's words.
    pub fn open(config: AdapterConfig, processors: Processors) -> Result<Self, EngineError> {
        let lost = |detail: String| EngineError::Lost { during: "loading".into(), detail };
        let (can, shared) = (ffi::capabilities(), Shared::new());
        let fingerprint = config.fingerprint(&can);
        let (opened, engine) = channel();
        let (end, ended) = channel();
        let (gone, is_gone) = channel();
        let keeper = Keeper {
            options: config.options(),
            vocab: config.vocab,
            step_timeout: config.step_timeout,
            shared: shared.clone(),
            opened,
            end: ended,
            gone,
        };
        keeper.spawn().map_err(lost)?;
        let engine = engine.recv().map_err(|_| lost("its thread has ended".to_owned()))?;
        let engine = engine.map_err(lost)?;
        Ok(Self {
            mirror: Mirror::new(&config.hash_key, config.block_tokens.max(1)),
            handover: config.handover.clone().map(Handover::new),
            config,
            can,
            fingerprint: fingerprint ^ processors.fingerprint(),
            processors,
            shared,
            engine: Some(engine),
            end: Some(end),
            gone: is_gone,
            requests: FxHashMap::default(),
            legs: FxHashMap::default(),
            latest: Iteration::default(),
            clients: 0,
            preemptions: 0,
            unstarted: (0, 0),
            sent: Sent::default(),
            lost: None,
        })
    }

    /// Remembers that the engine is lost, from here on or since before.
    fn lose(&mut self, error: EngineError) -> EngineError {
        tracing::error!(%error, "the TensorRT-LLM engine is lost");
        self.lost.get_or_insert(error).clone()
    }

    fn thrown(&mut self, error: &cxx::Exception) -> EngineError {
        let detail = error.what().to_owned();
        self.lose(EngineError::Lost { during: "TensorRT-LLM".into(), detail })
    }

    /// Hands a request over.
    fn enqueue(&mut self, leg: &Leg, chain: Chain, asked: Asked) -> Result<u64, EngineError> {
        let Asked { mut options, limit, banned } = asked;
        let Some(engine) = self.engine.clone() else { return Err(ended()) };
        self.clients += 1;
        let client = self.clients;
        options.client_id = client.into();
        if options.own_processor {
            self.shared.works.add(client, Work::new(leg, chain, banned));
        }
        let end_id = options.end_id.some.then_some(options.end_id.value as u32);
        let refused = match engine.enqueue(&options) {
            Ok(admitted) if admitted.status == Admission::Accepted => {
                let fetches = matches!(options.phase, ffi::Phase::GenerationOnly);
                let tracked = Tracked::new(leg, client, limit, end_id).that_fetches(fetches);
                self.requests.insert(admitted.request, tracked);
                return Ok(admitted.request);
            }
            Ok(admitted) => self.refusal(admitted),
            Err(error) => self.thrown(&error),
        };
        self.shared.works.remove(client);
        Err(refused)
    }

    fn refusal(&mut self, admitted: ffi::Admitted) -> EngineError {
        match admitted.status {
            Admission::QueueFull => self.queue_full(),
            Admission::Invalid => request::unsupported("this request", &admitted.text),
            _ => {
                let during = "admission".into();
                self.lose(EngineError::Lost { during, detail: admitted.text })
            }
        }
    }

    fn queue_full(&self) -> EngineError {
        let waiting = self.legs.len().saturating_sub(self.config.max_running);
        EngineError::QueueFull { waiting, limit: self.config.max_waiting }
    }

    /// Queues a leg; with `handoff`, whose prompt another engine has computed.
    fn begin(&mut self, leg: Leg, handoff: Option<ffi::Handoff>) -> Result<(), EngineError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        if self.legs.contains_key(&leg.id) {
            return Ok(());
        }
        let leg = Leg { prompt_len: leg.prompt_len.min(leg.tokens.len()), ..leg };
        let chain = self.processors.chain(&leg.sampling.processors)?;
        let mut asked = request::ask(&leg, &self.config, &self.can, !chain.is_empty())?;
        if self.legs.len() >= self.config.max_running + self.config.max_waiting {
            return Err(self.queue_full());
        }
        if leg.salt != 0 {
            self.mirror.salted(&leg.tokens);
        }
        handover::set_part(&mut asked.options, &leg, handoff);
        let weights = self.sent.attach(&leg, &self.config.loras, &mut asked.options);
        let request = match self.enqueue(&leg, chain, asked) {
            Ok(request) => request,
            Err(refused) => {
                self.sent.take_back(leg.id, weights);
                return Err(refused);
            }
        };
        self.legs.insert(leg.id, request);
        self.unstarted = (self.unstarted.0 + 1, self.unstarted.1 + leg.tokens.len() as u64);
        self.shared.set_live(self.legs.len());
        self.take_turns(Instant::now());
        self.set_timers();
        Ok(())
    }

    /// Takes in all that has come.
    fn take(&mut self, news: News, out: &mut StepOutput) -> Result<(), EngineError> {
        if let Some(lost) = news.lost {
            return Err(self.lost.get_or_insert(lost).clone());
        }
        for (client, error) in news.failures {
            self.processor_failed(client, error, out)?;
        }
        for rows in news.outputs {
            self.take_rows(&rows, out)?;
            self.shared.recycle(rows);
        }
        for events in &news.events {
            self.mirror.take(events, &mut out.kv_events);
        }
        if let Some(latest) = news.latest {
            self.latest = latest;
        }
        self.preemptions += news.paused;
        out.computed_tokens += news.context_tokens as usize;
        self.tend(out)
    }

    fn take_rows(&mut self, rows: &Output, out: &mut StepOutput) -> Result<(), EngineError> {
        let sizes = Sizes {
            vocab: self.config.vocab,
            block_tokens: self.config.block_tokens,
            waiting: (
                self.legs.len().saturating_sub(self.config.max_running),
                self.config.max_waiting,
            ),
        };
        for row in &rows.rows {
            if self.asks_again(row, out) || self.came_to_nothing(row, rows, out) {
                continue;
            }
            let Some(tracked) = self.requests.get_mut(&row.request) else {
                // Of nobody, or after the end: it must not go on; but a failed step concerns all.
                if row.fault == Fault::Forward {
                    return Err(self.lose(forward_failed(row, rows)));
                }
                if !row.is_final {
                    self.cancel(row.request)?;
                }
                continue;
            };
            let (waited, lived) = (!tracked.started, !tracked.ended);
            let after = tracked.take(row, rows, sizes, out);
            let (leg, client, prompt) = (tracked.leg, tracked.client, tracked.prompt as u64);
            if lived && waited && (tracked.started || tracked.ended) {
                self.unstarted = (self.unstarted.0 - 1, self.unstarted.1 - prompt);
                self.sent.forget(leg);
            }
            let has_come = !waited || tracked.started;
            if lived && (tracked.ended || after == After::Hand) {
                self.legs.remove(&leg);
                self.shared.set_live(self.legs.len());
                self.shared.works.remove(client);
            }
            if let Some(handover) = self.handover.as_mut().filter(|_| lived && has_come) {
                handover.has_come(leg, out);
            }
            if row.is_final
                && let Some(handover) = &mut self.handover
            {
                handover.forget(row.request);
            }
            match after {
                After::GoOn => {}
                After::Cancel => self.cancel(row.request)?,
                After::Forget => drop(self.requests.remove(&row.request)),
                After::Hand => {
                    self.requests.remove(&row.request);
                    match lived {
                        true => self.hand(leg, prompt as usize, row, rows, out),
                        false => self.unwanted(leg, prompt as usize),
                    }
                }
                After::Lost(error) => return Err(self.lose(error)),
            }
        }
        Ok(())
    }

    /// The leg is over, its request not yet; that is returned.
    fn leave(&mut self, leg: LegId) -> Option<u64> {
        let request = self.legs.remove(&leg)?;
        self.sent.forget(leg);
        self.shared.set_live(self.legs.len());
        if let Some(tracked) = self.requests.get_mut(&request) {
            (tracked.ended, tracked.cancelled) = (true, true);
            if !tracked.started {
                let tokens = tracked.prompt as u64;
                self.unstarted = (self.unstarted.0 - 1, self.unstarted.1 - tokens);
            }
            self.shared.works.remove(tracked.client);
        }
        Some(request)
    }

    fn cancel(&mut self, request: u64) -> Result<(), EngineError> {
        match self.engine.as_ref().map(|engine| engine.cancel(request)) {
            Some(Err(error)) => Err(self.thrown(&error)),
            _ => Ok(()),
        }
    }
}

impl Engine for Adapter {
    fn describe(&self) -> Description {
        let reuse = self.config.engine.kv.enable_block_reuse;
        let host = self.config.engine.kv.host_cache_size.value > 0;
        Description {
            kind: "trtllm".into(),
            fingerprint: self.fingerprint,
            context: self.config.context,
            vocab: self.config.vocab,
            block_tokens: self.config.block_tokens,
            blocks: self.config.blocks,
            block_bytes: self.config.block_bytes,
            max_running: self.config.max_running,
            max_waiting: self.config.max_waiting,
            prefix_cache: match (reuse.some && !reuse.value, self.config.events) {
                (true, _) => PrefixCache::None,
                (false, true) => PrefixCache::Told,
                (false, false) => PrefixCache::Silent,
            },
            slowest_tier: if host { Tier::Host } else { Tier::Device },
            hands_over: self.handover.is_some(),
        }
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        self.begin(leg, None)
    }

    fn admit_handed(&mut self, leg: Leg, state: Arc<[u8]>) -> Result<(), EngineError> {
        self.take_over(leg, &state)
    }

    fn abort(&mut self, leg: LegId) {
        let request = self.leave(leg);
        self.release(leg, request);
        if let Some(request) = request {
            // What is thrown is remembered: the next step tells it.
            let _ = self.cancel(request);
        }
    }

    fn has_work(&self) -> bool {
        let has_news = |handover: &Handover| handover.has_news();
        self.lost.is_some()
            || self.shared.has_news()
            || self.handover.as_ref().is_some_and(has_news)
    }

    fn on_ready(&mut self, ready: crate::engine::Ready) {
        self.shared.on_ready(ready);
    }

    fn pulled(&mut self, _: LegId, _: u32) {}

    fn not_given(&mut self, leg: LegId) {
        self.is_gone(leg);
    }

    fn misbehave(&mut self, fault: ProcessFault) -> bool {
        misbehave(fault)
    }

    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        out.clear();
        let news = self.shared.take();
        let done = match &self.lost {
            Some(lost) => Err(lost.clone()),
            None => self.take(news, out),
        };
        if done.is_err() {
            out.clear();
        }
        done
    }

    fn kv_pool(&self) -> Option<KvPool> {
        None
    }

    fn load(&self) -> Load {
        let latest = &self.latest;
        let count = |number: i32| u32::try_from(number).unwrap_or(0);
        let (live, unstarted) = (self.legs.len(), self.unstarted.0);
        // Statistics are older than the legs are.
        let active = count(latest.active) as usize;
        let running = active.min(live).max(live - unstarted);
        let begun = running - (live - unstarted);
        let prefill = match unstarted {
            0 => 0,
            _ => (u128::from(self.unstarted.1) * begun as u128 / unstarted as u128) as u64,
        };
        let total = if latest.has_kv { count(latest.kv_blocks) } else { self.config.blocks };
        let pins = self.handover.as_ref().is_some_and(Handover::pins);
        let used = if live == 0 && !pins { 0 } else { count(latest.kv_used).min(total) };
        let (on_device, in_host) = self.mirror.counted();
        Load {
            running: running as u32,
            waiting: (live - running) as u32,
            blocks_used: used,
            blocks_cached: on_device.min(total - used),
            blocks_total: total,
            blocks_in_host: in_host,
            prefill_tokens: prefill,
            waiting_tokens: self.unstarted.1 - prefill,
            preemptions: self.preemptions,
        }
    }

    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>) {
        self.mirror.findable(out);
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else { return };
        let lost = self.lost.is_some() || self.shared.take().lost.is_some();
        let live = self.requests.iter().filter(|(_, tracked)| !tracked.cancelled);
        // Shutting down waits for all that runs.
        if lost || live.map(|(&id, _)| engine.cancel(id)).any(|done| done.is_err()) {
            return threads::leave(engine, &self.shared);
        }
        drop(engine);
        if self.end.take().is_some_and(|end| end.send(()).is_ok()) {
            // Nothing is ever sent: it is closed when all is over.
            let waited = self.gone.recv_timeout(self.config.shutdown_timeout);
            if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!("the TensorRT-LLM engine does not end; it is left behind");
            }
        }
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("legs", &self.legs.len()).finish_non_exhaustive()
    }
}

fn ended() -> EngineError {
    EngineError::Lost { during: "admission".into(), detail: "the engine was closed".to_owned() }
}

/// Has the stand-in do it; the original does none of this on demand.
#[cfg(trtllm_standin)]
fn misbehave(fault: ProcessFault) -> bool {
    let (option, value) = match fault {
        ProcessFault::Abort => ("abort_at", 1),
        ProcessFault::Wedge => ("wedge_at", 1),
        ProcessFault::ForwardError => ("forward_error_at", 1),
        ProcessFault::SlowSteps { ms } => ("step_us", ms.saturating_mul(1000)),
        ProcessFault::Kill | ProcessFault::Stop => return false,
    };
    super::standin::set(option, &value.to_string()).is_ok()
}

#[cfg(not(trtllm_standin))]
fn misbehave(_: ProcessFault) -> bool {
    false
}
