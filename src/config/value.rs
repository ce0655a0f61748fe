//! From what was written to a checked value of its key's kind.

use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tracing_subscriber::EnvFilter;

use super::ApiKey;
use super::schema::{Item, Key, Kind};
use super::yaml::{Body, Node};

/// Bytes of the shortest secret.
const LEAST_SECRET: usize = 8;

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Decimal(f64),
    Time(Duration),
    Switch(bool),
    Text(String),
    Address(SocketAddr),
    ApiKeys(Vec<ApiKey>),
    Secret(String),
    List(Vec<String>),
}

/// Why a value is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where, if not at the key.
    pub(super) line: Option<usize>,
    /// After the key's name: `[2]` for the third item of a list.
    pub(super) place: String,
    /// What was written, unless it may be a secret.
    pub(super) value: Option<String>,
    /// The rule and the way out.
    pub(super) rule: String,
}

/// Reads variables of the environment.
pub(super) type Env = fn(&str) -> Option<String>;

/// Checks one value.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn parse(key: &Key, node: &Node, env: Env) -> Result<Value, Vec<Fault>> {
    match key.kind {
        Kind::ApiKeys => return api_keys(key, node, env),
        Kind::List(item) => return list(key, item, node),
        Kind::Secret => return secret(key, node, env),
        _ => {}
    }
    let one = |value, rule| vec![Fault { line: None, place: String::new(), value, rule }];
    let must = |rule: &str| with_advice(format!("must be {rule}"), key);
    match &node.body {
        Body::Refused => Err(Vec::new()),
        Body::List(_) => Err(one(None, must(&format!("{}, not a list", key.kind.rule())))),
        Body::Map(_) => Err(one(None, must(&format!("{}, not a section", key.kind.rule())))),
        Body::Scalar { text, plain: true } if super::yaml::is_null(text) => Err(one(
            None,
            with_advice("has no value; give it one or leave the key out".into(), key),
        )),
        Body::Scalar { text, plain } => scalar(key.kind, text, *plain).map_err(|rule| {
            let quoted = if *plain { text.clone() } else { format!("{text:?}") };
            one(Some(quoted), with_advice(rule, key))
        }),
    }
}

fn with_advice(rule: String, key: &Key) -> String {
    if key.advice.is_empty() { rule } else { format!("{rule}; {}", key.advice) }
}

/// Reads a scalar; an error is the broken rule.
fn scalar(kind: Kind, text: &str, plain: bool) -> Result<Value, String> {
    let refused = || format!("must be {}", kind.rule());
    let number = || text.parse::<f64>().ok().filter(|value| plain && value.is_finite());
    let within = |value: &f64, min, max| (min..=max).contains(value);
    let value = match kind {
        Kind::Whole { min, max, step } => {
            let digits = plain && text.bytes().all(|byte| byte.is_ascii_digit());
            let value = text.parse().ok().filter(|value| digits && (min..=max).contains(value));
            if value.is_some_and(|value| value % step != 0) {
                return Err(format!("must be a multiple of {step}"));
            }
            value.map(Value::Whole)
        }
        Kind::Decimal { min, max } => {
            number().filter(|value| within(value, min, max)).map(Value::Decimal)
        }
        Kind::Time { unit, min, max } => number()
            .filter(|value| within(value, min, max))
            .map(|value| Value::Time(Duration::from_secs_f64(value * unit.seconds()))),
        Kind::Switch => match text {
            "true" if plain => Some(Value::Switch(true)),
            "false" if plain => Some(Value::Switch(false)),
            _ => None,
        },
        Kind::Choice(words) => words.contains(&text).then(|| Value::Text(text.into())),
        Kind::Text => {
            let fits = (1..=256).contains(&text.chars().count());
            let one_line = !text.contains(char::is_control) && text.trim() == text;
            (fits && one_line).then(|| Value::Text(text.into()))
        }
        Kind::Path => (!text.is_empty() && !text.contains('\0')).then(|| Value::Text(text.into())),
        Kind::Filter => is_filter(text).then(|| Value::Text(text.into())),
        Kind::Url => is_http(text).then(|| Value::Text(text.into())),
        Kind::Address => text.parse().ok().map(Value::Address),
        Kind::ApiKeys | Kind::Secret | Kind::List(_) => None, // read before
    };
    value.ok_or_else(refused)
}

/// Whether the filter is one, and not a misspelt level, which would be taken for a module's name
/// and silence everything.
fn is_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let bare = |part: &str| !part.contains(['=', '[', ':']);
    let level = |part: &str| LEVELS.contains(&part.to_ascii_lowercase().as_str());
    let known = text.split(',').all(|part| !bare(part) || level(part.trim()));
    known && EnvFilter::try_new(text).is_ok()
}

fn is_http(text: &str) -> bool {
    let Ok(url) = text.parse::<hyper::Uri>() else { return false };
    url.scheme_str() == Some("http") && url.host().is_some_and(|host| !host.is_empty())
}

/// Reads the list of API keys. What is refused is not shown: it may be a key in plain text.
fn api_keys(key: &Key, node: &Node, env: Env) -> Result<Value, Vec<Fault>> {
    let items = match &node.body {
        Body::List(items) => items.iter().enumerate().collect::<Vec<_>>(),
        Body::Scalar { text, plain } if !(*plain && super::yaml::is_null(text)) => vec![(0, node)],
        Body::Refused => return Err(Vec::new()),
        Body::Scalar { .. } | Body::Map(_) => {
            let rule = with_advice(format!("must be {}", key.kind.rule()), key);
            return Err(vec![Fault { line: None, place: String::new(), value: None, rule }]);
        }
    };
    let mut keys = Vec::new();
    let mut faults = Vec::new();
    for (index, item) in items {
        match api_key(key, item, env) {
            Ok(digest) => keys.extend(digest),
            Err(rule) => faults.push(Fault {
                line: Some(item.line),
                place: format!("[{index}]"),
                value: None,
                rule,
            }),
        }
    }
    if faults.is_empty() { Ok(Value::ApiKeys(keys)) } else { Err(faults) }
}

fn api_key(key: &Key, item: &Node, env: Env) -> Result<Option<ApiKey>, String> {
    let refused = || with_advice("must be sha256:<64 hex digits> or env:NAME".into(), key);
    let text = match &item.body {
        Body::Scalar { text, .. } => text,
        Body::Refused => return Ok(None),
        _ => return Err(refused()),
    };
    if let Some(name) = text.strip_prefix("env:") {
        return match env(name).as_deref().map(str::trim) {
            Some("") => Err(format!("the environment variable {name} is empty; put a key there")),
            Some(secret) => Ok(Some(hash(secret))),
            None => Err(format!("the environment variable {name} is not set; put a key there")),
        };
    }
    let digits = text.strip_prefix("sha256:").ok_or_else(refused)?;
    digest(digits).map(|digest| Some(ApiKey(digest))).ok_or_else(refused)
}

/// Reads a list of texts; one text stands for a list of one.
fn list(key: &Key, item: Item, node: &Node) -> Result<Value, Vec<Fault>> {
    let must = || with_advice(format!("must be {}", item.rule), key);
    let items = match &node.body {
        Body::List(items) => items.iter().collect::<Vec<_>>(),
        Body::Scalar { text, plain } if !(*plain && super::yaml::is_null(text)) => vec![node],
        Body::Refused => return Err(Vec::new()),
        Body::Scalar { .. } | Body::Map(_) => {
            let rule = with_advice(format!("must be {}", key.kind.rule()), key);
            return Err(vec![Fault { line: None, place: String::new(), value: None, rule }]);
        }
    };
    let mut texts = Vec::new();
    let mut faults = Vec::new();
    for (index, node) in items.into_iter().enumerate() {
        match &node.body {
            Body::Scalar { text, .. } if (item.holds)(text) => texts.push(text.clone()),
            Body::Refused => {}
            body => {
                let value = match body {
                    Body::Scalar { text, .. } => Some(text.clone()),
                    _ => None,
                };
                let (line, place) = (Some(node.line), format!("[{index}]"));
                faults.push(Fault { line, place, value, rule: must() });
            }
        }
    }
    if faults.is_empty() { Ok(Value::List(texts)) } else { Err(faults) }
}

/// Reads a secret from where the value says. The value itself may be the secret by mistake: it is
/// not shown.
fn secret(key: &Key, node: &Node, env: Env) -> Result<Value, Vec<Fault>> {
    let fault = |rule: String| vec![Fault { line: None, place: String::new(), value: None, rule }];
    let refused = || fault(with_advice(format!("must be {}", key.kind.rule()), key));
    let text = match &node.body {
        Body::Scalar { text, .. } => text,
        Body::Refused => return Err(Vec::new()),
        _ => return Err(refused()),
    };
    let found = if let Some(name) = text.strip_prefix("env:") {
        env(name).ok_or(format!("the environment variable {name} is not set; put a secret there"))
    } else if let Some(path) = text.strip_prefix("file:") {
        std::fs::read_to_string(path)
            .map_err(|error| format!("the file {path} cannot be read: {error}; put a secret there"))
    } else {
        return Err(refused());
    };
    let secret = found.map_err(fault)?.trim().to_owned();
    if secret.len() < LEAST_SECRET {
        let rule = format!("the secret has {} bytes; give it {LEAST_SECRET} or more", secret.len());
        return Err(fault(rule));
    }
    Ok(Value::Secret(secret))
}

/// The digest by which a key is known.
pub(crate) fn hash(key: &str) -> ApiKey {
    ApiKey(Sha256::digest(key.as_bytes()).into())
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}
