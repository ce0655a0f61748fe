//! How long a simulated step takes: a polynomial in batch and context, or a table that was measured.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::engine::model::{Batch, Move};

/// No step takes longer: eleven days.
const MOST_US: f64 = 1e12;

/// The time a step takes; the default is as fast as possible.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Timing {
    /// How the time follows from the work.
    pub law: Law,
    /// Microseconds for every block that is loaded from the host tier.
    pub load_us_per_block: f64,
    /// How many times faster than that it really runs.
    pub speedup: f64,
}

/// How the time of a step follows from its work.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub enum Law {
    /// A sum of terms.
    Formula(Formula),
    /// What another engine took.
    Table(Arc<Table>),
}

/// The terms of a step's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Formula {
    /// Microseconds for every step.
    pub step_us: f64,
    /// Microseconds for every prompt token.
    pub prefill_us_per_token: f64,
    /// Nanoseconds for every pair of a prompt token and itself or one before it: attention.
    pub prefill_ns_per_pair: f64,
    /// Microseconds for every leg that decodes.
    pub decode_us_per_leg: f64,
    /// Nanoseconds for every ordered pair of legs that decode, (a, a) included.
    pub decode_ns_per_pair: f64,
    /// Nanoseconds for every token that a decoding leg looks back at.
    pub decode_ns_per_context_token: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { law: Law::Formula(Formula::default()), load_us_per_block: 0.0, speedup: 1.0 }
    }
}

/// What a step has to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Prompt tokens.
    pub prefill_tokens: f64,
    /// Pairs of a prompt token and itself or one before it.
    pub prefill_pairs: f64,
    /// Legs that decode.
    pub legs: f64,
    /// Tokens that they look back at, their own included.
    pub context_tokens: f64,
    /// Blocks that are loaded from the host tier.
    pub loaded_blocks: f64,
}

impl Work {
    /// That of a batch.
    pub fn of(batch: &Batch) -> Self {
        let loads = batch.moves.iter().filter(|one| matches!(one, Move::Load { .. }));
        let mut work = Self { loaded_blocks: loads.count() as f64, ..Self::default() };
        for span in &batch.spans {
            let (rows, before) = (span.rows as f64, span.start as f64);
            if span.rows == 1 && span.start > 0 {
                work.legs += 1.0;
                work.context_tokens += before + 1.0;
            } else {
                work.prefill_tokens += rows;
                work.prefill_pairs += rows * before + rows * (rows + 1.0) / 2.0;
            }
        }
        work
    }
}

impl Timing {
    /// The time that this work takes.
    pub fn of(&self, work: &Work) -> Duration {
        let us = match &self.law {
            Law::Formula(formula) => formula.us(work),
            Law::Table(table) => table.us(work),
        } + self.load_us_per_block * work.loaded_blocks;
        let us = (us / self.speedup).min(MOST_US);
        Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
    }

    /// Whether nothing takes any time.
    pub fn is_instant(&self) -> bool {
        self.law == Law::Formula(Formula::default()) && self.load_us_per_block == 0.0
    }
}

impl Formula {
    fn us(&self, work: &Work) -> f64 {
        self.step_us
            + self.prefill_us_per_token * work.prefill_tokens
            + self.prefill_ns_per_pair * work.prefill_pairs / 1e3
            + self.decode_us_per_leg * work.legs
            + self.decode_ns_per_pair * work.legs * work.legs / 1e3
            + self.decode_ns_per_context_token * work.context_tokens / 1e3
    }
}

/// Times of a real engine's steps. A step that does both takes the sum.
#[derive(Clone, Debug, PartialEq, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(deny_unknown_fields)]
pub struct Table {
    prefill: Prefill,
    decode: Decode,
}

/// Of steps that compute one prompt: `us[i][j]` for `tokens[i]` after `context[j]`.
#[derive(Clone, Debug, PartialEq, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(deny_unknown_fields)]
struct Prefill {
    tokens: Vec<f64>,
    context: Vec<f64>,
    us: Vec<Vec<f64>>,
}

/// Of steps that decode: `us[i][j]` for `legs[i]` of `context[j]` tokens each.
#[derive(Clone, Debug, PartialEq, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(deny_unknown_fields)]
struct Decode {
    legs: Vec<f64>,
    context: Vec<f64>,
    us: Vec<Vec<f64>>,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}; see to its path and permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a table of step times: {source}; docs/sim.md shows one")]
    NotATable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Its numbers make no sense.
    #[error("{path}: {part} {rule}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where.
        part: &'static str,
        /// What must be so.
        rule: &'static str,
    },
}

impl Table {
    /// Reads one from a JSON file.
    ///
    /// # Errors
    /// The file cannot be read, or is no such table.
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let named = || path.to_path_buf();
        let text = fs::read(path);
        let text = text.map_err(|source| TableError::Unreadable { path: named(), source })?;
        let table: Self = serde_json::from_slice(&text)
            .map_err(|source| TableError::NotATable { path: named(), source })?;
        let Self { prefill, decode } = &table;
        let grids = [
            ("prefill", &prefill.tokens, &prefill.context, &prefill.us),
            ("decode", &decode.legs, &decode.context, &decode.us),
        ];
        for (part, rows, columns, us) in grids {
            rule_of(rows, columns, us).map_err(|rule| TableError::Wrong {
                path: named(),
                part,
                rule,
            })?;
        }
        Ok(table)
    }

    fn us(&self, work: &Work) -> f64 {
        let (Prefill { tokens, context, us }, mut sum) = (&self.prefill, 0.0);
        if work.prefill_tokens > 0.0 {
            let count = work.prefill_tokens;
            // Tokens before the prompt's part, if all of it were one.
            let before = (work.prefill_pairs / count - (count + 1.0) / 2.0).max(0.0);
            sum += at(tokens, context, us, count, before);
        }
        let Decode { legs, context, us } = &self.decode;
        if work.legs > 0.0 {
            sum += at(legs, context, us, work.legs, work.context_tokens / work.legs);
        }
        sum
    }
}

/// What is wrong with a grid, if anything.
fn rule_of(rows: &[f64], columns: &[f64], us: &[Vec<f64>]) -> Result<(), &'static str> {
    let ascends = |axis: &[f64]| axis.windows(2).all(|pair| pair[0] < pair[1]);
    let is_axis = |axis: &[f64]| axis.first().is_some_and(|first| *first >= 0.0) && ascends(axis);
    if !is_axis(rows) || !is_axis(columns) {
        return Err("needs both axes, each with numbers that ascend from 0 or more");
    }
    if us.len() != rows.len() || us.iter().any(|row| row.len() != columns.len()) {
        return Err("needs one list in us for each number of the first axis, as long as context");
    }
    if !us.iter().flatten().all(|us| (0.0..=MOST_US).contains(us)) {
        return Err("has a time in us that is no number from 0 to 1e12");
    }
    Ok(())
}

/// Between the points linearly; before the first as there, after the last on as before it.
fn at(rows: &[f64], columns: &[f64], us: &[Vec<f64>], row: f64, column: f64) -> f64 {
    let ((top, down), (left, right)) = (place(rows, row), place(columns, column));
    let along = |row: &[f64]| {
        let next = row.get(left + 1).unwrap_or(&row[left]);
        row[left] + (next - row[left]) * right
    };
    let (this, next) = (along(&us[top]), along(us.get(top + 1).unwrap_or(&us[top])));
    (this + (next - this) * down).max(0.0)
}

/// The point of an axis before `value`, and how far it is to the next: more than 1 after the last.
fn place(axis: &[f64], value: f64) -> (usize, f64) {
    let last = axis.len().saturating_sub(2);
    let before = axis.partition_point(|point| *point <= value).saturating_sub(1).min(last);
    let Some(next) = axis.get(before + 1) else { return (before, 0.0) };
    (before, ((value - axis[before]) / (next - axis[before])).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"{
        "prefill": { "tokens": [100, 200], "context": [0, 1000], "us": [[10, 30], [20, 60]] },
        "decode": { "legs": [1, 2, 4], "context": [100], "us": [[5], [6], [8]] }
    }"#;

    fn read(text: &str) -> Result<Table, String> {
        let name =
            format!("cuelight-table-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        let table = Table::read(&path).map_err(|error| error.to_string());
        fs::remove_file(&path).unwrap();
        table
    }

    fn prefill(tokens: f64, before: f64) -> Work {
        let prefill_pairs = tokens * before + tokens * (tokens + 1.0) / 2.0;
        Work { prefill_tokens: tokens, prefill_pairs, ..Work::default() }
    }

    fn decode(legs: f64, context: f64) -> Work {
        Work { legs, context_tokens: legs * context, ..Work::default() }
    }

    #[test]
    fn a_table_gives_its_points_what_lies_between_them_and_goes_on_after_the_last() {
        let table = read(TABLE).unwrap();
        let times = [
            (prefill(100.0, 0.0), 10.0),
            (prefill(200.0, 1000.0), 60.0),
            (prefill(150.0, 500.0), 30.0),
            (prefill(300.0, 0.0), 30.0),
            (prefill(10.0, 0.0), 10.0),
            (decode(1.0, 7.0), 5.0),
            (decode(3.0, 100.0), 7.0),
            (decode(6.0, 9000.0), 10.0),
            (Work::default(), 0.0),
        ];
        for (work, us) in times {
            assert!((table.us(&work) - us).abs() < 1e-9, "{work:?}: {} not {us}", table.us(&work));
        }
        let both = Work { legs: 1.0, context_tokens: 100.0, ..prefill(100.0, 0.0) };
        let timing = Timing { law: Law::Table(table.into()), load_us_per_block: 0.0, speedup: 5.0 };
        assert_eq!(timing.of(&both), Duration::from_micros(3));
    }

    #[test]
    fn what_is_no_table_is_refused_with_what_is_wrong() {
        let wrong = [
            ("{", "not a table of step times: EOF"),
            (r#"{"prefill": {}}"#, "missing field `tokens`"),
            (&TABLE.replace("[100, 200]", "[200, 100]"), "prefill needs both axes"),
            (&TABLE.replace("[100]", "[]"), "decode needs both axes"),
            (&TABLE.replace("[20, 60]", "[20]"), "prefill needs one list in us"),
            (&TABLE.replace("[6]", "[-6]"), "decode has a time in us"),
        ];
        for (text, why) in wrong {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(Table::read(Path::new("/no/table")).unwrap_err().to_string().contains("/no/table"));
    }
}
