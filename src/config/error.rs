//! What is wrong with a configuration: everything at once, each with its place and a way out.

use std::fmt;
use std::path::PathBuf;

/// Why there is no [`super::Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Everything that is wrong, in the order of the file; never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said.
    pub origin: Origin,
    /// The key with its sections, such as `frontend.http`; empty if it is about the whole file.
    pub key: String,
    /// What was said, unless it may be a secret.
    pub value: Option<String>,
    /// The rule that is broken and the way out.
    pub rule: String,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The file as a whole.
    File,
    /// A line of the file, from 1.
    Line(usize),
    /// `--set` on the command line.
    Set,
    /// Nobody said it: the default.
    Default,
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("configuration")?,
        }
        let count = self.problems.len();
        write!(f, ": {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::File => {}
            Origin::Line(line) => write!(f, "line {line}: ")?,
            Origin::Set => f.write_str("--set: ")?,
            Origin::Default => f.write_str("default: ")?,
        }
        f.write_str(&shown(&self.key))?;
        if let Some(value) = &self.value {
            write!(f, " = {}", shown(value))?;
        }
        let colon = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{colon}{}", one_line(&self.rule))
    }
}

/// A key or value short enough for one line of a terminal.
fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => one_line(&text[..end]) + "…",
        None => one_line(text),
    }
}

fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_debug().collect() } else { vec![c] };
    text.chars().flat_map(escaped).collect()
}
