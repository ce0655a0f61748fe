//! `temperature`: divides all logits by a number, before penalties and biases.

use serde_json::{Map, Value};

use super::{Encoder, LogitsProcessor, SoFar, only};

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct Temperature(f32);

impl Temperature {
    /// Divides by `by`; `None` unless that is a positive number.
    pub fn new(by: f64) -> Option<Self> {
        let by = by as f32;
        (by > 0.0 && by.is_finite() && by.recip().is_finite()).then_some(Self(by))
    }
}

impl LogitsProcessor for Temperature {
    fn process(&self, _: SoFar<'_>, logits: &mut [f32]) -> Result<(), String> {
        logits.iter_mut().for_each(|logit| *logit /= self.0);
        Ok(())
    }
}

pub(super) fn make(
    arguments: &Map<String, Value>,
    _: &Encoder,
) -> Result<Box<dyn LogitsProcessor>, String> {
    let value = only(arguments, "value")?.ok_or("it needs `value`, a number above 0")?;
    let made = value.as_f64().and_then(Temperature::new);
    Ok(Box::new(made.ok_or_else(|| format!("value = {value}: must be a number above 0"))?))
}
