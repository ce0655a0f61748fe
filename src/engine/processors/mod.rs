//! Logits processors: what may change a sequence's logits before its next token is chosen.
//!
//! A request names the ones that it wants, with arguments; a worker may have some that are always on. A
//! processor has no memory: what it does follows from the tokens so far alone, so that a request that has moved
//! to another rank goes on as it would have. Whatever goes wrong in one ends its request, and no other.

mod forced_text;
mod temperature;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bincode::{Decode, Encode};
use serde_json::{Map, Value};

use super::EngineError;

pub use forced_text::ForcedText;
pub use temperature::Temperature;

/// A processor that a request or a worker's configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

impl Wanted {
    /// From `NAME` or `NAME={…}`.
    pub fn named(text: &str) -> Self {
        let (name, arguments) = text.split_once('=').unwrap_or((text, "{}"));
        Self { name: name.to_owned(), arguments: arguments.to_owned() }
    }
}

/// A sequence up to the token that is to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct SoFar<'a> {
    /// Prompt and output of each beam; without beam search there is one.
    pub beams: &'a [&'a [u32]],
    /// How many of them are prompt.
    pub prompt_len: usize,
    /// The ids with which the model ends its output.
    pub eos_ids: &'a [u32],
}

/// Changes logits in place.
pub trait LogitsProcessor: Send + Sync {
    /// `logits`: `[beam, vocab]`, row-major. Minus infinity excludes a token; each row needs one that is
    /// finite. What it does must follow from `so_far` alone.
    ///
    /// # Errors
    /// The reason, for the client: its request ends.
    fn process(&self, so_far: SoFar<'_>, logits: &mut [f32]) -> Result<(), String>;
}

/// The ids of a text, without a beginning of sequence.
pub type Encoder = dyn Fn(&str) -> Result<Vec<u32>, String> + Send + Sync;

/// Makes a processor from its arguments.
pub type Make =
    dyn Fn(&Map<String, Value>, &Encoder) -> Result<Box<dyn LogitsProcessor>, String> + Send + Sync;

/// The processors that a rank knows, and those that are always on.
pub struct Processors {
    known: BTreeMap<&'static str, Box<Make>>,
    encoder: Box<Encoder>,
    always: Chain,
    fingerprint: u64,
}

/// Processors in the order in which they run.
#[derive(Clone, Default)]
pub struct Chain(Vec<(String, Arc<dyn LogitsProcessor>)>);

impl Default for Processors {
    /// None is always on, and there is no tokenizer.
    fn default() -> Self {
        Self::new(|_| Err("this engine has no tokenizer".to_owned()))
    }
}

impl Processors {
    /// Those that are built in; `encoder` is the model's tokenizer.
    pub fn new(encoder: impl Fn(&str) -> Result<Vec<u32>, String> + Send + Sync + 'static) -> Self {
        let none = Self {
            known: BTreeMap::new(),
            encoder: Box::new(encoder),
            always: Chain::default(),
            fingerprint: 0,
        };
        none.with("forced_text", forced_text::make).with("temperature", temperature::make)
    }

    /// One more that requests may ask for.
    pub fn with(
        mut self,
        name: &'static str,
        make: impl Fn(&Map<String, Value>, &Encoder) -> Result<Box<dyn LogitsProcessor>, String>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.known.insert(name, Box::new(make));
        self
    }

    /// With these on for every request, before its own.
    ///
    /// # Errors
    /// As [`Self::chain`].
    pub fn always(mut self, wanted: &[Wanted]) -> Result<Self, EngineError> {
        self.always = self.chain(wanted)?;
        let mut text = Vec::new();
        for Wanted { name, arguments } in wanted {
            text.extend_from_slice(format!("{name}={arguments}\n").as_bytes());
        }
        self.fingerprint = if wanted.is_empty() { 0 } else { xxhash_rust::xxh3::xxh3_64(&text) };
        Ok(self)
    }

    /// Of what is always on: 0 for nothing. Engines that differ here give different tokens.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The processors for a request.
    ///
    /// # Errors
    /// [`EngineError::Processor`]: a name that is not known, arguments that the processor does not take.
    pub fn chain(&self, wanted: &[Wanted]) -> Result<Chain, EngineError> {
        let mut chain = self.always.clone();
        for Wanted { name, arguments } in wanted {
            let wrong = |why| EngineError::Processor { name: name.clone().into(), why };
            let Some(make) = self.known.get(name.as_str()) else {
                let known: Vec<_> = self.known.keys().copied().collect();
                return Err(wrong(format!("it is not known; there are {}", known.join(", "))));
            };
            let arguments: Map<String, Value> = serde_json::from_str(arguments)
                .map_err(|error| wrong(format!("its arguments are no JSON object: {error}")))?;
            let made = catch_unwind(AssertUnwindSafe(|| make(&arguments, &*self.encoder)));
            let made = made.unwrap_or_else(|_| Err("it panicked".to_owned())).map_err(wrong)?;
            chain.0.push((name.clone(), made.into()));
        }
        Ok(chain)
    }
}

impl std::fmt::Debug for Processors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processors").field("always", &self.always).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Chain {
    /// Their names.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs them one after the other on `logits`, `[beam, vocab]`. A panic is an error as any other.
    ///
    /// # Errors
    /// [`EngineError::Processor`] of the first that fails.
    pub fn process(&self, so_far: SoFar<'_>, logits: &mut [f32]) -> Result<(), EngineError> {
        for (name, processor) in &self.0 {
            let done = catch_unwind(AssertUnwindSafe(|| processor.process(so_far, logits)));
            let why = match done {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(_) => "it panicked".to_owned(),
            };
            return Err(EngineError::Processor { name: name.clone().into(), why });
        }
        Ok(())
    }
}

/// The argument of this name, if all others are known.
fn only<'a>(arguments: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Value>, String> {
    match arguments.keys().find(|key| *key != name) {
        Some(other) => Err(format!("it has no argument `{other}`, only `{name}`")),
        None => Ok(arguments.get(name)),
    }
}
