//! The table of TensorRT-LLM's keys, as docs/tensorrt-llm.md repeats it.

use std::fmt::Write;

use super::keys::TAKEN;
use super::refused::{self, Why};

/// Every key that is read and every one that is refused, as Markdown.
pub fn reference() -> String {
    let mut text = "| Key | What it does here | Value |\n|---|---|---|\n".to_owned();
    for taken in TAKEN {
        let key = &taken.key;
        let only = taken.only.map(|only| format!(" ({only})")).unwrap_or_default();
        let rule = key.kind.rule();
        let _ = writeln!(text, "| `{}` | {}{only} | {rule} |", key.name, key.doc);
    }
    text += "\n| Refused | Why |\n|---|---|\n";
    for (why, names) in refused::KEYS {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {} | {} |", names.join(", "), shortly(*why));
    }
    for (key, why, values) in refused::VALUES {
        let _ = writeln!(text, "| `{key}`: {} | {} |", values.join(", "), shortly(*why));
    }
    text
}

fn shortly(why: Why) -> &'static str {
    match why {
        Why::PyTorch => "exists only in the PyTorch backend",
        Why::Built => "is decided by trtllm-build",
        Why::Else(rule) => rule,
    }
}
