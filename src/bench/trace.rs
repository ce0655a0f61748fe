//! Traces in Mooncake's format: a JSON object a line, for a request each.
//!
//! `timestamp` is in milliseconds, `input_length` and `output_length` count tokens, `hash_ids` name the
//! blocks of the prompt: the same id stands for the same tokens, and for the same ones before it.

use std::io::BufRead;
use std::time::Duration;

use serde::Deserialize;

use super::lengths::LARGEST;

/// Most lines that are read.
const MOST_LINES: usize = 5_000_000;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// After the first request of the trace.
    pub at: Duration,
    /// Prompt tokens.
    pub input: u32,
    /// Output tokens.
    pub output: u32,
    /// The prompt's blocks; the last one may be cut, and tokens beyond the blocks are the request's own.
    pub blocks: Vec<u64>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// It has no lines.
    #[error("has no requests; expected a JSON object a line, in Mooncake's format")]
    Empty,
    /// It has too many.
    #[error("has more than {MOST_LINES} lines; cut it into parts")]
    TooLong,
    /// A line is wrong.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong, and the rule.
        why: String,
    },
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Reads a trace; `block` is the number of tokens of a block. Requests are put in order of time.
///
/// # Errors
/// [`TraceError`]
pub fn read(from: impl BufRead, block: u32) -> Result<Vec<Entry>, TraceError> {
    let mut entries: Vec<(f64, Entry)> = Vec::new();
    for (index, line) in from.lines().enumerate() {
        let line = line?;
        if index >= MOST_LINES {
            return Err(TraceError::TooLong);
        }
        if !line.trim().is_empty() {
            let entry =
                entry(&line, block).map_err(|why| TraceError::Line { line: index + 1, why })?;
            entries.push(entry);
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let first = entries.first().ok_or(TraceError::Empty)?.0;
    let shifted = entries.into_iter().map(|(ms, entry)| {
        let at = Duration::from_secs_f64((ms - first) / 1e3);
        Entry { at, ..entry }
    });
    Ok(shifted.collect())
}

fn entry(line: &str, block: u32) -> Result<(f64, Entry), String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let range = 0.0..=1e12;
    if !range.contains(&line.timestamp) {
        return Err(format!("timestamp {}: must be from 0 to 10^12 ms", line.timestamp));
    }
    for (name, length) in
        [("input_length", line.input_length), ("output_length", line.output_length)]
    {
        if !(1..=LARGEST).contains(&length) {
            return Err(format!("{name} {length}: must be from 1 to {LARGEST}"));
        }
    }
    let most = line.input_length.div_ceil(block) as usize;
    if line.hash_ids.len() > most {
        return Err(format!(
            "{} hash_ids: input_length {} has only {most} blocks of {block} tokens; see --block-tokens",
            line.hash_ids.len(),
            line.input_length,
        ));
    }
    let Line { timestamp, input_length: input, output_length: output, hash_ids: blocks } = line;
    Ok((timestamp, Entry { at: Duration::ZERO, input, output, blocks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_requests_in_order_of_time() {
        let text = "{\"timestamp\": 1500, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [1, 2]}\n\n\
                    {\"timestamp\": 1000.5, \"input_length\": 9, \"output_length\": 1, \"extra\": true}\n";
        let entries = read(text.as_bytes(), 512).unwrap();
        assert_eq!(
            entries,
            [
                Entry { at: Duration::ZERO, input: 9, output: 1, blocks: vec![] },
                Entry {
                    at: Duration::from_micros(499_500),
                    input: 600,
                    output: 5,
                    blocks: vec![1, 2]
                },
            ]
        );
    }

    #[test]
    fn a_wrong_line_is_named_with_its_value_and_the_rule() {
        let good = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}\n";
        for (line, words) in [
            ("{\"timestamp\":0,\"input_length\":1}", "line 2: missing field `output_length`"),
            ("[]", "line 2: invalid length 0"),
            ("x", "line 2: expected value"),
            (
                "{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}",
                "line 2: timestamp -1: must be from 0",
            ),
            (
                "{\"timestamp\":0,\"input_length\":0,\"output_length\":1}",
                "line 2: input_length 0: must be from 1",
            ),
            (
                "{\"timestamp\":0,\"input_length\":512,\"output_length\":1,\"hash_ids\":[1,2]}",
                "line 2: 2 hash_ids: input_length 512 has only 1 blocks of 512 tokens",
            ),
        ] {
            let error = read(format!("{good}{line}\n").as_bytes(), 512).unwrap_err().to_string();
            assert!(error.starts_with(words), "{line}: {error}");
        }
        assert!(read("\n".as_bytes(), 512).unwrap_err().to_string().starts_with("has no requests"));
    }
}
