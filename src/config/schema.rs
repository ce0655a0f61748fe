//! What a key is: its name, type, default, rule and one line of documentation.

pub(super) use super::keys::keys;
use super::{Cluster, Config, Frontend, Transfer, Worker};
use crate::router::Mode;

/// One key of the configuration.
pub(super) struct Key {
    /// With its sections: `frontend.http`.
    pub(super) name: &'static str,
    /// What its value may be.
    pub(super) kind: Kind,
    /// What holds without it.
    pub(super) default: Preset,
    /// What it is for; no final stop.
    pub(super) doc: &'static str,
    /// The way out when a value breaks the rule.
    pub(super) advice: &'static str,
    /// The metric that shows how close the limit is.
    pub(super) metric: &'static str,
    /// If it is a limit: what holds, in the key's own unit.
    pub(super) limit: Option<fn(&Config) -> Option<f64>>,
}

/// What holds without a key.
#[derive(Clone, Copy)]
pub(super) enum Preset {
    /// This value, as one would write it.
    Is(&'static str),
    /// Something computed or nothing at all, in words.
    Words(&'static str),
}

/// The type of a key's value, with its bounds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number, a multiple of `step`.
    Whole { min: u64, max: u64, step: u64 },
    /// A number.
    Decimal { min: f64, max: f64 },
    /// A time in this unit; fractions are allowed.
    Time { unit: TimeUnit, min: f64, max: f64 },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text on one line that is not empty.
    Text,
    /// A filter for log lines.
    Filter,
    /// An `http://` address.
    Url,
    /// IP address and port.
    Address,
    /// A file or directory.
    Path,
    /// A list of API keys' digests.
    ApiKeys,
    /// A secret, by where it is.
    Secret,
    /// A list of texts.
    List(Item),
}

/// What the items of a list may be.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// The rule in words, to follow "must be a list of".
    pub(super) rule: &'static str,
    /// The rule.
    pub(super) holds: fn(&str) -> bool,
}

/// The unit of a time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeUnit {
    Seconds,
    Millis,
    Micros,
}

impl TimeUnit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Millis => "milliseconds",
            Self::Micros => "microseconds",
        }
    }

    pub(super) fn seconds(self) -> f64 {
        match self {
            Self::Seconds => 1.0,
            Self::Millis => 1e-3,
            Self::Micros => 1e-6,
        }
    }
}

impl Kind {
    /// The rule in words, to follow "must be".
    pub(super) fn rule(self) -> String {
        match self {
            Self::Whole { min, max, step: 1 } => format!("a whole number from {min} to {max}"),
            Self::Whole { min, max, step } => {
                format!("a whole number from {min} to {max}, a multiple of {step}")
            }
            Self::Decimal { min, max } => format!("a number from {min} to {max}"),
            Self::Time { unit, min, max } => {
                format!("a number of {} from {min} to {max}", unit.name())
            }
            Self::Switch => "true or false".into(),
            Self::Choice(words) => words.join(" or "),
            Self::Text => "text of 1 to 256 characters on one line".into(),
            Self::Filter => "error, warn, info, debug, trace, off, or a filter such as \
                 info,cuelight::engine=debug"
                .into(),
            Self::Url => "a URL such as http://127.0.0.1:4318 (https is not supported)".into(),
            Self::Address => "an IP address and a port such as 127.0.0.1:8000 or [::1]:8000".into(),
            Self::Path => "a path".into(),
            Self::Secret => "env:NAME or file:PATH".into(),
            Self::List(item) => format!("a list of {}", item.rule),
            Self::ApiKeys => "a list of sha256:<64 hex digits> or env:NAME".into(),
        }
    }
}

impl Key {
    /// A key without advice, metric or limit.
    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        default: Preset,
        doc: &'static str,
    ) -> Self {
        Self { name, kind, default, doc, advice: "", metric: "", limit: None }
    }

    pub(super) const fn advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    pub(super) const fn metric(self, metric: &'static str) -> Self {
        Self { metric, ..self }
    }

    pub(super) const fn limit(self, limit: fn(&Config) -> Option<f64>) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// The key of this name.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    keys().find(|key| key.name == name)
}

/// Whether keys begin with this section's name.
pub(super) fn is_section(name: &str) -> bool {
    keys().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key or section that was most likely meant.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    nearest_of(unknown, || keys().map(|key| key.name))
}

/// The same among other keys than those of the configuration.
pub(super) fn nearest_of<N: Iterator<Item = &'static str>>(
    unknown: &str,
    names: impl FnOnce() -> N,
) -> Option<&'static str> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let word = last(unknown);
    let score = |known: &str| {
        let whole = distance(unknown, known);
        // The right word in the wrong section is worth a hint too.
        whole.min(distance(&word, &last(known)) + 1)
    };
    let names = names().flat_map(|name| sections(name).chain([name]));
    let best = names.min_by_key(|known| score(known))?;
    (score(best) <= (word.chars().count() / 3).max(1)).then_some(best)
}

/// `a`, `a.b` of `a.b.c`.
fn sections(name: &'static str) -> impl Iterator<Item = &'static str> {
    name.match_indices('.').map(move |(at, _)| &name[..at])
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    // Keys are short; a long word is unlike all of them, and need not be compared at length.
    let letters = |text: &str| text.chars().take(80).collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

pub(super) const fn whole(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max, step: 1 }
}

pub(super) const fn seconds(min: f64, max: f64) -> Kind {
    Kind::Time { unit: TimeUnit::Seconds, min, max }
}

pub(super) const fn micros(max: f64) -> Kind {
    Kind::Time { unit: TimeUnit::Micros, min: 0.0, max }
}

pub(super) fn frontend(config: &Config, limit: fn(&Frontend) -> f64) -> Option<f64> {
    config.frontend.as_ref().map(limit)
}

pub(super) fn worker(config: &Config, limit: fn(&Worker) -> f64) -> Option<f64> {
    config.worker.as_ref().map(limit)
}

pub(super) fn transfer(config: &Config, limit: fn(&Transfer) -> f64) -> Option<f64> {
    config.worker.as_ref().map(|worker| limit(&worker.transfer))
}

pub(super) fn cluster(config: &Config, limit: fn(&Cluster) -> f64) -> Option<f64> {
    config.cluster.as_ref().map(limit)
}

pub(super) const fn millis(min: f64, max: f64) -> Kind {
    Kind::Time { unit: TimeUnit::Millis, min, max }
}

/// Whether this is a host and a port.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && !text.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
}

pub(super) const HOST_PORT: Item =
    Item { rule: "host and port such as 10.0.0.1:7000", holds: is_host_port };
pub(super) const MODEL: Item = Item {
    rule: "the directory of a Hugging Face checkpoint, or NAME=DIRECTORY",
    holds: |text| !text.is_empty() && !text.contains('\0'),
};
pub(super) const MODEL_MODE: Item = Item {
    rule: "a model's name, =, and kv, round-robin, random, power-of-two, least-loaded or direct",
    holds: |text| text.rsplit_once('=').is_some_and(|(_, mode)| Mode::named(mode).is_some()),
};
pub(super) const GPU: Item =
    Item { rule: "numbers of GPUs such as [0, 1]", holds: |text| text.parse::<u16>().is_ok() };
pub(super) const WORD: Item =
    Item { rule: "words", holds: |text| !text.is_empty() && !text.contains('\0') };
pub(super) const PROCESSOR: Item = Item {
    rule: "NAME or NAME={…}, such as temperature={\"value\":2}",
    holds: |text| text.split_once('=').is_none_or(|(_, arguments)| arguments.starts_with('{')),
};
pub(super) const ADAPTER: Item = Item {
    rule: "NAME=FOLDER",
    holds: |text| {
        text.split_once('=').is_some_and(|(name, dir)| !name.is_empty() && !dir.is_empty())
    },
};
pub(super) const ENDPOINT: Item = Item {
    rule: "http://host:port",
    holds: |text| text.strip_prefix("http://").is_some_and(is_host_port),
};
