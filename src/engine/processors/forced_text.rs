//! `forced_text`: the answer is this text, whatever the model says. A test that processors work from end to
//! end, with any model.

use serde_json::{Map, Value};

use super::{Encoder, LogitsProcessor, SoFar, only};

/// What it says if nothing else is asked for.
const TEXT: &str = "Hello world!";

/// See the module's description.
#[derive(Clone, Debug)]
pub struct ForcedText(Vec<u32>);

impl ForcedText {
    /// The tokens of the text.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self(tokens)
    }
}

impl LogitsProcessor for ForcedText {
    fn process(&self, so_far: SoFar<'_>, logits: &mut [f32]) -> Result<(), String> {
        let vocab = logits.len() / so_far.beams.len().max(1);
        for (beam, row) in so_far.beams.iter().zip(logits.chunks_exact_mut(vocab.max(1))) {
            let at = beam.len().saturating_sub(so_far.prompt_len);
            let next = self.0.get(at).or(so_far.eos_ids.first());
            let next = *next.ok_or("its text is over, and the model has no end of sequence")?;
            let kept = *row.get(next as usize).ok_or_else(|| {
                format!("token {next} of its text is outside the model's vocabulary of {vocab}")
            })?;
            row.fill(f32::NEG_INFINITY);
            row[next as usize] = if kept.is_finite() { kept } else { 0.0 };
        }
        Ok(())
    }
}

pub(super) fn make(
    arguments: &Map<String, Value>,
    encoder: &Encoder,
) -> Result<Box<dyn LogitsProcessor>, String> {
    let text = match only(arguments, "text")? {
        None => TEXT,
        Some(Value::String(text)) => text,
        Some(other) => return Err(format!("text = {other}: must be a string")),
    };
    Ok(Box::new(ForcedText::new(encoder(text)?)))
}
