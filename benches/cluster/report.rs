//! Figures with their marks, as a Markdown table and as lines between processes.

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) figure: String,
    /// What came out, with its unit.
    pub(crate) value: String,
    /// What is asked for; empty for a figure that explains another one.
    pub(crate) mark: String,
    /// Whether it was reached.
    pub(crate) met: Option<bool>,
}

impl Row {
    /// A figure without a mark.
    pub(crate) fn of(figure: impl Into<String>, value: impl Into<String>) -> Self {
        Self { figure: figure.into(), value: value.into(), mark: String::new(), met: None }
    }

    /// A figure that should be at most `mark`.
    pub(crate) fn at_most(self, measured: f64, mark: f64, unit: &str) -> Self {
        Self { mark: format!("≤ {mark} {unit}"), met: Some(measured <= mark), ..self }
    }
}

/// The head of a table.
pub(crate) const HEAD: &str = "| figure | measured | mark | |\n|---|---|---|---|";

/// The row as a line of a table.
pub(crate) fn line(row: &Row) -> String {
    let verdict = match row.met {
        Some(true) => "reached",
        Some(false) => "**missed**",
        None => "",
    };
    format!("| {} | {} | {} | {verdict} |", row.figure, row.value, row.mark)
}

/// p50, p99 and the largest of some times, in milliseconds.
pub(crate) fn percentiles(times_ms: &mut [f64]) -> [f64; 3] {
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * times_ms.len() as f64).ceil() as usize;
        times_ms[rank.clamp(1, times_ms.len()) - 1]
    };
    [at(0.5), at(0.99), at(1.0)]
}

/// The middle one and the least.
pub(crate) fn median_and_least(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [values[(values.len() - 1) / 2], values[0]]
}
