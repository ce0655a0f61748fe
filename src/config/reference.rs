//! The reference of all keys, as `cuelight check --reference` prints it and the docs repeat it.

use std::fmt::Write;

use super::schema::{Preset, keys};

/// Every key with its values, default, purpose and metric, as Markdown.
pub fn reference() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in keys() {
        let (of, _) = key.name.split_once('.').unwrap_or((key.name, ""));
        if of != section {
            section = of;
            let gap = if text.is_empty() { "" } else { "\n" };
            let head = "| Key | What it is for | Value | Default | Metric |";
            let _ = writeln!(text, "{gap}### `{section}`\n\n{head}\n|---|---|---|---|---|");
        }
        let default = match key.default {
            Preset::Is(value) => format!("`{value}`"),
            Preset::Words(words) => words.to_owned(),
        };
        let metric =
            if key.metric.is_empty() { String::new() } else { format!("`{}`", key.metric) };
        let rule = key.kind.rule().replace('|', "\\|");
        let cells = [&format!("`{}`", key.name), key.doc, &rule, &default, &metric];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}
