//! Logits of legs that have processors, in the executor's thread.
//!
//! Whatever goes wrong in a processor ends its own request: the logits are given back as they came, so that
//! the step goes on for all, and the failure is kept until the next [`Engine::step`] hands it out.
//!
//! [`Engine::step`]: crate::engine::Engine::step

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use super::super::ffi::LogitsOf;
use super::super::hook::OnLogits;
use super::Adapter;
use super::logprobs::usable;
use super::threads::Shared;
use crate::engine::processors::{Chain, SoFar};
use crate::engine::{EngineError, Leg, Sampling, StepOutput};

/// What is done to the logits of one request.
#[derive(Debug)]
pub(super) struct Work {
    /// What changes them.
    pub(super) chain: Chain,
    /// Ids that are kept out before `min_tokens`.
    pub(super) banned: Vec<u32>,
    prompt_len: usize,
    sampling: Arc<Sampling>,
}

impl Work {
    /// For the requests of a leg.
    pub(super) fn new(leg: &Leg, chain: Chain, banned: Vec<u32>) -> Self {
        Self { chain, banned, prompt_len: leg.prompt_len, sampling: leg.sampling.clone() }
    }

    /// Changes the logits for the token after `tokens`.
    fn run(&self, tokens: &[u32], logits: &mut [f32]) -> Result<(), EngineError> {
        if !self.chain.is_empty() {
            let (prompt_len, eos_ids) = (self.prompt_len, self.sampling.eos_ids.as_slice());
            self.chain.process(SoFar { beams: &[tokens], prompt_len, eos_ids }, logits)?;
        }
        if tokens.len() < self.prompt_len + self.sampling.min_tokens as usize {
            for &id in &self.banned {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        usable(logits).map_err(|what| match self.chain.is_empty() {
            true => EngineError::BadNumbers { what: what.into() },
            false => EngineError::Processor {
                name: self.chain.names().into(),
                why: format!("what it left is {what}"),
            },
        })
    }
}

/// All requests with work on their logits, by their client id.
#[derive(Debug, Default)]
pub(super) struct Works(Mutex<FxHashMap<u64, Arc<Work>>>);

impl Works {
    /// Before the request is handed over, whose logits may come at once.
    pub(super) fn add(&self, client: u64, work: Work) {
        self.lock().insert(client, Arc::new(work));
    }

    /// Its request is over.
    pub(super) fn remove(&self, client: u64) {
        self.lock().remove(&client);
    }

    fn get(&self, client: u64) -> Option<Arc<Work>> {
        self.lock().get(&client).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<u64, Arc<Work>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Adapter {
    /// A leg ends whose logits were not to be changed.
    pub(super) fn processor_failed(
        &mut self,
        client: u64,
        error: EngineError,
        out: &mut StepOutput,
    ) -> Result<(), EngineError> {
        let found = self.requests.iter_mut().find(|(_, tracked)| tracked.client == client);
        let Some((&request, tracked)) = found.filter(|(_, tracked)| !tracked.ended) else {
            return Ok(());
        };
        let leg = tracked.leg;
        tracked.fail(error, out);
        self.leave(leg);
        self.release(leg, None); // its prompt has come: there were logits
        self.cancel(request)
    }
}

/// The bridge's end of it.
pub(super) struct Hook {
    shared: Arc<Shared>,
    vocab: usize,
    /// The tokens as the processors want them, and the logits as they came.
    scratch: Mutex<(Vec<u32>, Vec<f32>)>,
}

impl Hook {
    pub(super) fn new(shared: Arc<Shared>, vocab: usize) -> Self {
        Self { shared, vocab, scratch: Mutex::default() }
    }
}

impl OnLogits for Hook {
    fn on_logits(&self, _: &str, of: LogitsOf, tokens: &[i32], logits: &mut [f32]) {
        let work = of.has_client.then(|| self.shared.works.get(of.client)).flatten();
        let Some(work) = work else { return };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (so_far, before) = &mut *scratch;
        so_far.clear();
        so_far.extend(tokens.iter().map(|&token| token as u32));
        // What lies behind the vocabulary is padding.
        let vocab = self.vocab.min(logits.len());
        let logits = &mut logits[..vocab];
        before.clear();
        before.extend_from_slice(logits);
        if let Err(error) = work.run(so_far, logits) {
            logits.copy_from_slice(before);
            drop(scratch);
            self.shared.works.remove(of.client);
            self.shared.processor_failed(of.client, error);
        }
    }

    fn on_panic(&self, of: LogitsOf, text: String) {
        self.shared.works.remove(of.client);
        let error =
            EngineError::Processor { name: "(any)".into(), why: format!("it panicked: {text}") };
        self.shared.processor_failed(of.client, error);
    }
}
