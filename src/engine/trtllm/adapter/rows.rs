//! Rows of TensorRT-LLM's output as tokens of legs, and where a leg ends.
//!
//! A leg's end is decided on its tokens, not by the final row, which may come later and without a token:
//! the token that reaches the limit has `Length`, an id that ends the output has `Stop`. The end id is
//! mostly no token of TensorRT-LLM's output; then the final row says so, and the id is added here. A final
//! row that explains nothing of this fails its leg. Tokens after a leg's end are dropped.

use std::sync::Arc;
use std::time::Instant;

use super::super::ffi::{Fault, Finish, Output, Row};
use super::logprobs;
use super::request::{is_stop, unsupported};
use crate::engine::{
    EngineError, FinishReason, Leg, Part, Sampling, Started, StepOutput, TokenLogprobs, TokenOut,
};
use crate::ids::LegId;

/// A request that TensorRT-LLM knows, until its final row.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    /// Whose it is.
    pub(super) leg: LegId,
    /// The name that the hook knows it by.
    pub(super) client: u64,
    /// Tokens that it was admitted with.
    pub(super) prompt: usize,
    /// Whether a row of it has come.
    pub(super) started: bool,
    /// Whether its leg is over: rows are dropped.
    pub(super) ended: bool,
    /// Output tokens so far, those delivered before included.
    output: usize,
    /// Output tokens at which it is complete.
    limit: usize,
    end_id: Option<u32>,
    sampling: Arc<Sampling>,
    /// Whether it was cancelled.
    pub(super) cancelled: bool,
    /// Whether only its prompt is computed.
    is_prefill: bool,
    /// Whether its prompt comes from another engine.
    pub(super) fetches: bool,
    /// Tokens that it may grow to.
    pub(super) total: usize,
    /// Lower goes first.
    pub(super) priority: i32,
    /// Since when the executor has room for it, if its prompt comes from another engine.
    pub(super) turn: Option<Instant>,
}

/// What a row asks of whoever holds the executor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum After {
    /// Nothing.
    GoOn,
    /// The request goes on though its leg has ended: cancel it.
    Cancel,
    /// The request is over; forget it.
    Forget,
    /// The same, and the executor keeps its prompt for the engine that decodes.
    Hand,
    /// The engine is lost.
    Lost(EngineError),
}

/// What rows are read by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Logits of a row that count.
    pub(super) vocab: usize,
    /// Tokens in one KV block.
    pub(super) block_tokens: usize,
    /// Legs that wait, and the limit, for errors.
    pub(super) waiting: (usize, usize),
}

impl Tracked {
    /// A request for `leg`, before its first row.
    pub(super) fn new(leg: &Leg, client: u64, limit: usize, end_id: Option<u32>) -> Self {
        Self {
            leg: leg.id,
            client,
            prompt: leg.tokens.len(),
            started: false,
            ended: false,
            output: leg.tokens.len() - leg.prompt_len,
            limit,
            end_id,
            sampling: leg.sampling.clone(),
            cancelled: false,
            is_prefill: leg.part == Part::Prefill,
            fetches: false,
            total: leg.prompt_len + limit,
            priority: leg.sampling.priority,
            turn: None,
        }
    }

    /// Its prompt comes from another engine, or not.
    pub(super) fn that_fetches(self, fetches: bool) -> Self {
        Self { fetches, ..self }
    }

    /// Takes one of its rows in.
    pub(super) fn take(
        &mut self,
        row: &Row,
        of: &Output,
        sizes: Sizes,
        out: &mut StepOutput,
    ) -> After {
        match row.fault {
            Fault::None => {}
            Fault::Stale => return After::GoOn,
            _ => return self.fault(row, of, sizes, out),
        }
        if !self.ended && !std::mem::replace(&mut self.started, true) {
            out.started.push(self.start(row, of, sizes));
        }
        if row.is_final && !self.ended && row.metrics >= 0 {
            let late = self.start(row, of, sizes);
            if late.cached_tokens > 0 && out.started.last() != Some(&late) {
                out.started.push(late); // what was reused is told at the end
            }
        }
        if self.is_prefill && row.is_final && (!self.ended || row.handoff >= 0) {
            return After::Hand; // the executor keeps it also if its leg has ended
        }
        if self.is_prefill && !self.ended {
            return After::GoOn;
        }
        for at in 0..row.tokens_len as usize {
            if self.ended {
                break;
            }
            let token = of.tokens.get(row.tokens_at as usize + at).copied().unwrap_or(-1);
            self.token(token, at, row, of, sizes, out);
        }
        if row.is_final {
            if !self.ended {
                self.last(row, out);
            }
            return After::Forget;
        }
        // Where the two agree on the end, its next row is the final one.
        let on = self.ended && row.tokens_len > 0 && row.finish == Finish::NotFinished;
        if on && !std::mem::replace(&mut self.cancelled, true) {
            After::Cancel
        } else {
            After::GoOn
        }
    }

    fn start(&self, row: &Row, of: &Output, sizes: Sizes) -> Started {
        let metrics = usize::try_from(row.metrics).ok().and_then(|at| of.metrics.get(at));
        let blocks = metrics.map_or(0, |metrics| metrics.reused_blocks.max(0) as usize);
        let cached_tokens = (blocks * sizes.block_tokens).min(self.prompt) as u32;
        Started { leg: self.leg, cached_tokens, fetches: self.fetches }
    }

    /// The token at place `at` of the row.
    fn token(
        &mut self,
        token: i32,
        at: usize,
        row: &Row,
        of: &Output,
        sizes: Sizes,
        out: &mut StepOutput,
    ) {
        let Some(token) = u32::try_from(token).ok().filter(|&id| (id as usize) < sizes.vocab)
        else {
            return self.fail(numbers("a token outside its vocabulary"), out);
        };
        let logprobs = match self.logprobs(token, at, row, of, sizes) {
            Ok(logprobs) => logprobs,
            Err(error) => return self.fail(error, out),
        };
        self.output += 1;
        let stops = is_stop(&self.sampling, token);
        let finish = match stops && self.output > self.sampling.min_tokens as usize {
            true => Some(FinishReason::Stop),
            false => (self.output >= self.limit).then_some(FinishReason::Length),
        };
        self.ended = finish.is_some();
        out.computed_tokens += 1;
        out.tokens.push(TokenOut { leg: self.leg, token, logprobs, finish });
    }

    fn logprobs(
        &self,
        token: u32,
        at: usize,
        row: &Row,
        of: &Output,
        sizes: Sizes,
    ) -> Result<Option<Box<TokenLogprobs>>, EngineError> {
        // Both are told of the last tokens of the row.
        let place = |told: u32| (at + told as usize).checked_sub(row.tokens_len as usize);
        match self.sampling.logprobs {
            None => Ok(None),
            Some(0) => {
                let place = place(row.log_probs_len).map(|place| row.log_probs_at as usize + place);
                let chosen = place.and_then(|place| of.log_probs.get(place).copied());
                let chosen = chosen.ok_or_else(|| numbers("a token without a log probability"))?;
                Ok(Some(Box::new(TokenLogprobs { chosen, top: Vec::new() })))
            }
            Some(k) => {
                let width = of.logits_width as usize;
                let from = place(row.logits_rows).map(|at| row.logits_at as usize + at * width);
                let wide = sizes.vocab.min(width);
                let logits = from.and_then(|from| of.logits.get(from..from + wide));
                let logits = logits.ok_or_else(|| numbers("a token without logits"))?;
                logprobs::of_row(logits, token, k).map(|row| Some(Box::new(row)))
            }
        }
    }

    /// The final row of a leg that has not ended with a token.
    fn last(&mut self, row: &Row, out: &mut StepOutput) {
        match (row.finish, self.end_id) {
            (Finish::EndId, Some(token)) => {
                self.ended = true;
                let finish = Some(FinishReason::Stop);
                out.computed_tokens += 1;
                out.tokens.push(TokenOut { leg: self.leg, token, logprobs: None, finish });
            }
            (finish, _) => {
                let (have, want) = (self.output, self.limit);
                let what =
                    format!("an early end ({finish:?} after {have} of {want} output tokens)");
                self.fail(EngineError::BadNumbers { what: what.into() }, out);
            }
        }
    }

    fn fault(&mut self, row: &Row, of: &Output, sizes: Sizes, out: &mut StepOutput) -> After {
        let text = error_text(row, of);
        let error = match row.fault {
            Fault::Forward => return After::Lost(forward_failed(row, of)),
            Fault::QueueFull => {
                let (waiting, limit) = sizes.waiting;
                EngineError::QueueFull { waiting, limit }
            }
            Fault::Request => unsupported("this request", text),
            Fault::LoraMissing => unsupported("a LoRA", text),
            _ => EngineError::BadNumbers { what: format!("an error ({text})").into() },
        };
        if !self.ended {
            self.fail(error, out);
        }
        After::Forget
    }

    /// Ends the leg with an error.
    pub(super) fn fail(&mut self, error: EngineError, out: &mut StepOutput) {
        self.ended = true;
        out.failed.push((self.leg, error));
    }
}

/// What TensorRT-LLM says of a row's fault.
pub(super) fn error_text<'a>(row: &Row, of: &'a Output) -> &'a str {
    let text = usize::try_from(row.error).ok().and_then(|at| of.errors.get(at));
    text.map_or("an error without a text", String::as_str)
}

/// A step has failed, and with it the engine.
pub(super) fn forward_failed(row: &Row, of: &Output) -> EngineError {
    EngineError::Lost { during: "a forward pass".into(), detail: error_text(row, of).to_owned() }
}

fn numbers(what: &'static str) -> EngineError {
    EngineError::BadNumbers { what: what.into() }
}
