//! `Embedded`: an [`Engine`] made of a [`Model`], the scheduler, the block pool and the sampler.
//!
//! A leg ends in exactly one of: a token with `finish`, an entry in `failed`, an abort, or the loss
//! of the whole engine.

#[cfg(test)]
mod tests;

use super::blocks::HashKey;
use super::model::{Batch, Model, Produced, Shape};
use super::processors::{Chain, Processors, SoFar};
use super::sample::{History, MAX_TOP_LOGPROBS, Position, Sampler, ban};
use super::schedule::{Limits, Scheduler, Sequence};
use super::{
    Candidate, Description, Engine, EngineError, FinishReason, KvPool, Leg, Load, PrefixCache,
    Sampling, StepOutput, Tier, TokenLogprobs, TokenOut,
};
use crate::ids::{BlockHash, LegId};

/// What a row of a step comes to: a token, or the end of its leg.
type Chosen = Result<(u32, Option<Box<TokenLogprobs>>), EngineError>;

/// What only some legs have, by slot.
#[derive(Clone, Debug, Default)]
struct Extra {
    /// Where there are penalties.
    history: Option<Box<History>>,
    /// What changes its logits; mostly nothing.
    processors: Chain,
}

/// Drives one model with continuous batching.
#[derive(Debug)]
pub struct Embedded<M> {
    model: M,
    shape: Shape,
    scheduler: Scheduler,
    sampler: Sampler,
    processors: Processors,
    extras: Vec<Extra>,
    batch: Batch,
    /// Why nothing runs any more.
    lost: Option<EngineError>,
}

impl<M: Model> Embedded<M> {
    /// An engine around `model`. Limits below their minimum are raised to it; nodes that are to find
    /// each other's blocks share `key`.
    pub fn new(model: M, limits: Limits, key: &HashKey) -> Self {
        let shape = model.shape();
        Self {
            scheduler: Scheduler::new(shape, limits, key),
            model,
            shape,
            sampler: Sampler::default(),
            processors: Processors::default(),
            extras: Vec::new(),
            batch: Batch::default(),
            lost: None,
        }
    }

    /// With these logits processors.
    pub fn with_processors(mut self, processors: Processors) -> Self {
        self.processors = processors;
        self
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, to change what its pool holds.
    #[cfg(test)]
    fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Refuses what only other engines can do.
    fn refuse(&self, sampling: &Sampling) -> Result<(), EngineError> {
        let kind = self.model.kind();
        let refused =
            |what: &'static str, why| Err(EngineError::Unsupported { what: what.into(), why });
        if sampling.guide.is_some() {
            return refused(
                "response_format",
                format!(
                    "an engine of kind {kind} cannot keep to a form; leave it out or ask for \"text\", or serve the \
                     model with worker.engine trtllm and guided_decoding_backend in worker.trtllm.options"
                ),
            );
        }
        match &sampling.lora {
            Some(name) => refused(
                "lora",
                format!(
                    "an engine of kind {kind} has no adapters, so not {name:?}; leave it out, or serve the model with \
                     worker.engine trtllm and worker.trtllm.loras"
                ),
            ),
            None => Ok(()),
        }
    }

    /// Remembers that the engine is lost: its KV is undefined from here on.
    fn lose(&mut self, error: EngineError) -> EngineError {
        let error = match error {
            EngineError::Lost { .. } => error,
            other => {
                EngineError::Lost { during: "a forward pass".into(), detail: other.to_string() }
            }
        };
        self.lost = Some(error.clone());
        error
    }
}

impl<M: Model> Engine for Embedded<M> {
    fn describe(&self) -> Description {
        let limits = self.scheduler.limits();
        Description {
            kind: self.model.kind().into(),
            fingerprint: self.model.fingerprint() ^ self.processors.fingerprint(),
            context: self.shape.context,
            vocab: self.shape.vocab,
            block_tokens: self.shape.block_tokens,
            blocks: self.shape.blocks,
            block_bytes: self.shape.block_bytes,
            max_running: limits.max_running,
            max_waiting: limits.max_waiting,
            prefix_cache: match limits.prefix_cache {
                true => PrefixCache::Told,
                false => PrefixCache::None,
            },
            slowest_tier: if self.shape.host_blocks > 0 { Tier::Host } else { Tier::Device },
            hands_over: false,
        }
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let processors = self.processors.chain(&leg.sampling.processors)?;
        self.refuse(&leg.sampling)?;
        let Some(slot) = self.scheduler.admit(leg)? else { return Ok(()) };
        let leg = &self.scheduler.sequence(slot).leg;
        let history = History::is_needed(&leg.sampling).then(|| {
            let (prompt, output) = leg.tokens.split_at(leg.prompt_len);
            Box::new(History::new(&leg.sampling, prompt, output))
        });
        let slot = slot as usize;
        if self.extras.len() <= slot {
            self.extras.resize_with(slot + 1, Extra::default);
        }
        self.extras[slot] = Extra { history, processors };
        Ok(())
    }

    fn abort(&mut self, leg: LegId) {
        if let Some(slot) = self.scheduler.abort(leg) {
            self.extras[slot as usize] = Extra::default();
        }
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    fn kv_pool(&self) -> Option<KvPool> {
        self.model.kv_pool()
    }

    fn pulled(&mut self, leg: LegId, have: u32) {
        self.scheduler.pulled(leg, have);
    }

    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        out.clear();
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        self.scheduler.plan(&mut self.batch, &mut out.started);
        let does_nothing = self.batch.spans.is_empty() && self.batch.moves.is_empty();
        debug_assert!(!does_nothing || !self.has_work(), "a step makes progress");
        // A leg whose blocks come from elsewhere may have moved others out without computing anything.
        if !does_nothing {
            let done = Step {
                vocab: self.shape.vocab,
                scheduler: &mut self.scheduler,
                sampler: &mut self.sampler,
                extras: &mut self.extras,
                out,
            };
            if let Err(error) = self.model.forward(&self.batch).and_then(|rows| done.finish(rows)) {
                return Err(self.lose(error));
            }
            out.computed_tokens = self.batch.tokens.len();
        }
        self.scheduler.drain_events(&mut out.kv_events);
        self.scheduler.drain_parts(&mut out.prefilled, &mut out.pulls);
        Ok(())
    }

    fn load(&self) -> Load {
        self.scheduler.load()
    }

    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>) {
        self.scheduler.findable(out);
    }
}

/// One computed step on its way into a [`StepOutput`].
struct Step<'a> {
    vocab: usize,
    scheduler: &'a mut Scheduler,
    sampler: &'a mut Sampler,
    extras: &'a mut [Extra],
    out: &'a mut StepOutput,
}

impl Step<'_> {
    /// Chooses a token for every leg whose tokens are all computed.
    fn finish(mut self, mut produced: Produced<'_>) -> Result<(), EngineError> {
        let wanted = self.scheduler.planned().iter().filter(|one| one.wants_logits).count();
        let (got, per_leg) = match &produced {
            Produced::Logits(logits) => (logits.len(), self.vocab),
            Produced::Tokens(tokens) => (tokens.len(), 1),
        };
        if got != wanted * per_leg {
            let detail = format!("the model gave {got} numbers for {wanted} legs of {per_leg}");
            return Err(EngineError::Lost { during: "a forward pass".into(), detail });
        }
        self.scheduler.computed();
        let mut row = 0;
        for place in 0..self.scheduler.planned().len() {
            let planned = self.scheduler.planned()[place];
            if !planned.wants_logits {
                continue;
            }
            let seq = self.scheduler.sequence(planned.slot);
            let extra = &self.extras[planned.slot as usize];
            let chosen = match &mut produced {
                Produced::Tokens(tokens) => given(tokens[row], self.vocab, seq, extra),
                Produced::Logits(logits) => {
                    let logits = &mut logits[row * self.vocab..(row + 1) * self.vocab];
                    choose(self.sampler, logits, seq, extra)
                }
            };
            row += 1;
            self.deliver(planned.slot, chosen);
        }
        Ok(())
    }

    /// Hands a token out, or the leg's failure, and forgets the leg if that was its end.
    fn deliver(&mut self, slot: u32, chosen: Chosen) {
        let finished = match chosen {
            Ok((token, logprobs)) => {
                let seq = self.scheduler.push_token(slot, token);
                let finish = finish_reason(seq, token);
                self.out.tokens.push(TokenOut { leg: seq.leg.id, token, logprobs, finish });
                if let Some(history) = &mut self.extras[slot as usize].history {
                    history.push(token);
                }
                finish.is_some()
            }
            Err(error) => {
                self.out.failed.push((self.scheduler.sequence(slot).leg.id, error));
                true
            }
        };
        if finished {
            self.scheduler.end(slot);
            self.extras[slot as usize] = Extra::default();
        }
    }
}

/// A token from a sequence's logits.
fn choose(sampler: &mut Sampler, logits: &mut [f32], seq: &Sequence, extra: &Extra) -> Chosen {
    let sampling = &seq.leg.sampling;
    if !extra.processors.is_empty() {
        let beams = [seq.leg.tokens.as_slice()];
        let (prompt_len, eos_ids) = (seq.leg.prompt_len, sampling.eos_ids.as_slice());
        extra.processors.process(SoFar { beams: &beams, prompt_len, eos_ids }, logits)?;
    }
    ban(logits, &sampling.bad_words, &seq.leg.tokens[seq.leg.prompt_len..]);
    let position = Position { choice: seq.leg.choice, index: seq.output_len() };
    let chosen = sampler.sample(logits, sampling, extra.history.as_deref(), position);
    chosen.map_err(|error| match error {
        // What the request asked for, not what the model computed.
        EngineError::BadNumbers { what } if !extra.processors.is_empty() => {
            EngineError::Processor {
                name: extra.processors.names().into(),
                why: format!("what it left is {what}"),
            }
        }
        error => error,
    })
}

/// A token from a model that does not give logits: as if its probability were 1.
fn given(token: u32, vocab: usize, seq: &Sequence, extra: &Extra) -> Chosen {
    if !extra.processors.is_empty() {
        let why = "this engine computes no logits; ask for a model on the native one".to_owned();
        return Err(EngineError::Processor { name: "(any)".into(), why });
    }
    if token as usize >= vocab {
        return Err(EngineError::BadNumbers { what: "a token outside its vocabulary".into() });
    }
    let logprobs = seq.leg.sampling.logprobs.map(|k| {
        let top =
            vec![Candidate { token, logprob: 0.0 }; usize::from(k.min(MAX_TOP_LOGPROBS).min(1))];
        Box::new(TokenLogprobs { chosen: 0.0, top })
    });
    Ok((token, logprobs))
}

/// Whether `token`, the last of `seq`, ends it.
fn finish_reason(seq: &Sequence, token: u32) -> Option<FinishReason> {
    let sampling = &seq.leg.sampling;
    let stops = (!sampling.ignore_eos && sampling.eos_ids.contains(&token))
        || sampling.stop_token_ids.contains(&token);
    if stops && seq.output_len() > sampling.min_tokens as usize {
        return Some(FinishReason::Stop);
    }
    seq.is_full().then_some(FinishReason::Length)
}
