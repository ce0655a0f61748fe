//! From the text of TensorRT-LLM's YAML to options, or to everything that is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::built::Built;
use super::keys::{Set, TAKEN, Taken};
use super::refused;
use super::{TrtllmOptions, speculative};
use crate::config::error::{ConfigErrors, Origin, Problem};
use crate::config::schema::{self, Kind};
use crate::config::value::{self, Fault, Value};
use crate::config::yaml::{self, Body, Node};

/// Reads TensorRT-LLM's own keys, as `trtllm-serve --extra_llm_api_options` takes them. `built` is
/// the engine that they are for: what it has been built with must agree.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn read(text: &str, file: &Path, built: Option<&Built>) -> Result<TrtllmOptions, ConfigErrors> {
    let mut reader = Reader { built, ..Reader::default() };
    let (root, faults) = yaml::parse(text);
    for fault in faults {
        reader.complain(fault.line, "", None, &fault.rule);
    }
    match root {
        Some(Node { body: Body::Map(pairs), .. }) => reader.section("", &pairs),
        Some(Node { line, body: Body::Scalar { .. } | Body::List(_) }) => {
            reader.complain(
                line,
                "",
                None,
                "must be TensorRT-LLM's keys, such as max_batch_size: 8",
            );
        }
        Some(Node { body: Body::Refused, .. }) | None => {}
    }
    transceiver(&mut reader);
    speculative::check(&mut reader);
    let Reader { options, mut problems, .. } = reader;
    problems.sort_by_key(|problem| problem.origin);
    if problems.is_empty() {
        return Ok(options);
    }
    Err(ConfigErrors { file: Some(file.to_owned()), problems })
}

/// Without a back end there is no transceiver, whatever else is said about it.
fn transceiver(reader: &mut Reader<'_>) {
    const BACKEND: &str = "cache_transceiver_config.backend";
    let said = reader.said.contains_key(BACKEND) || reader.is_broken(BACKEND);
    if let Some(line) = reader.section_line("cache_transceiver_config")
        && !said
    {
        let rule = "is not given: without it TensorRT-LLM makes no transceiver; say UCX or NIXL";
        reader.complain(line, BACKEND, None, rule);
    }
}

/// Collects what is said.
#[derive(Default)]
pub(super) struct Reader<'a> {
    built: Option<&'a Built>,
    pub(super) options: TrtllmOptions,
    /// Keys with a good value: their line and text.
    said: BTreeMap<&'static str, (usize, Option<String>)>,
    /// Keys whose value cannot be used.
    broken: BTreeSet<&'static str>,
    /// First lines of all names.
    seen: HashMap<String, usize>,
    /// Lines of sections that have keys.
    sections: HashMap<String, usize>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn complain(&mut self, line: usize, key: &str, value: Option<String>, rule: &str) {
        let origin = Origin::Line(line);
        self.problems.push(Problem { origin, key: key.into(), value, rule: rule.into() });
    }

    /// Complains about a key if it was said.
    pub(super) fn complain_of(&mut self, key: &str, rule: &str) {
        if let Some((line, text)) = self.said.get(key).cloned() {
            self.complain(line, key, text, rule);
        }
    }

    /// Where a section begins, if it has keys.
    pub(super) fn section_line(&self, name: &str) -> Option<usize> {
        self.sections.get(name).copied()
    }

    /// Whether a key was said in a way that cannot be used.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.broken.contains(key)
    }

    /// What was said about a key, as it was written.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.said.get(key)?.1.clone()
    }

    fn section(&mut self, prefix: &str, pairs: &[(Node, Node)]) {
        for (name, node) in pairs {
            let Body::Scalar { text, .. } = &name.body else {
                if name.body != Body::Refused {
                    self.complain(name.line, prefix, None, "has a key that is no word");
                }
                continue;
            };
            let dot = if prefix.is_empty() { "" } else { "." };
            let full = format!("{prefix}{dot}{text}");
            if let Some(first) = self.seen.insert(full.clone(), name.line) {
                let rule = format!("is there twice, first in line {first}; keep one");
                self.complain(name.line, &full, None, &rule);
                continue;
            }
            self.entry(&full, name.line, node);
        }
    }

    fn entry(&mut self, name: &str, line: usize, node: &Node) {
        let text = match &node.body {
            Body::Scalar { text, .. } => Some(text.clone()),
            _ => None,
        };
        let is_null =
            matches!(&node.body, Body::Scalar { text, plain: true } if yaml::is_null(text));
        if let Some(why) = refused::key(name) {
            return self.complain(line, name, text, &why.of_key());
        }
        if let Some(taken) = TAKEN.iter().find(|taken| taken.key.name == name) {
            // TensorRT-LLM takes null for what is not said.
            if !is_null {
                self.value(taken, line, node, text);
            }
            return;
        }
        let begins = |taken: &&Taken| {
            taken.key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        };
        let Some(example) = TAKEN.iter().find(begins) else {
            let rule = match nearest(name) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => "unknown key; docs/tensorrt-llm.md lists all that are known".into(),
            };
            return self.complain(line, name, None, &rule);
        };
        match &node.body {
            Body::Map(pairs) => {
                self.sections.insert(name.to_owned(), line);
                self.section(name, pairs);
            }
            Body::Refused => {}
            Body::Scalar { .. } if is_null => {}
            Body::Scalar { .. } | Body::List(_) => {
                let rule =
                    format!("is a section of keys such as {}; give it keys", example.key.name);
                self.complain(line, name, text, &rule);
            }
        }
    }

    /// Takes one value.
    fn value(&mut self, taken: &Taken, line: usize, node: &Node, text: Option<String>) {
        let name = taken.key.name;
        let known = text.as_deref().and_then(|text| refused::value(name, text));
        let result = match (known, text.as_deref()) {
            (Some(why), Some(text)) => {
                let others = match taken.key.kind {
                    Kind::Choice(words) => words.join(" or "),
                    kind => kind.rule(),
                };
                Err(vec![fault(line, why.of_value(text, &others))])
            }
            _ => self.apply(taken, node),
        };
        match result {
            Ok(()) => {
                self.said.insert(name, (line, text));
            }
            Err(faults) => {
                self.broken.insert(name);
                for Fault { line, place, value, rule } in faults {
                    let line = line.unwrap_or(node.line);
                    self.complain(line, &format!("{name}{place}"), value.or(text.clone()), &rule);
                }
            }
        }
    }

    /// Checks a value and sets what it is for. An error is what is wrong.
    fn apply(&mut self, taken: &Taken, node: &Node) -> Result<(), Vec<Fault>> {
        if let Set::Tree(set) = taken.set {
            let tree = speculative::tree(node).map_err(|(line, rule)| vec![fault(line, rule)])?;
            set(&mut self.options, tree);
            return Ok(());
        }
        let value = value::parse(&taken.key, &as_yaml_1_1(taken.key.kind, node), |_| None)?;
        self.agrees(taken, &value).map_err(|rule| vec![fault(node.line, rule)])?;
        let options = &mut self.options;
        match (taken.set, value) {
            (Set::Int(set), Value::Whole(number)) => set(options, small(number)),
            (Set::Big(set), Value::Whole(number)) => set(options, number),
            (Set::Switch(set), Value::Switch(on)) => set(options, on),
            (Set::Real(set), Value::Decimal(number)) => set(options, number as f32),
            (Set::Word(set), Value::Text(word)) => set(options, word),
            (Set::Ints(set), Value::List(texts)) => {
                set(options, texts.iter().filter_map(|text| text.parse().ok()).collect());
            }
            (Set::Same(_) | Set::Nothing, _) => {}
            (_, other) => unreachable!("{} is read as {other:?}", taken.key.name),
        }
        Ok(())
    }

    /// Whether a value agrees with the built engine; an error is the rule that is broken.
    fn agrees(&self, taken: &Taken, value: &Value) -> Result<(), String> {
        let said = match value {
            Value::Whole(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            _ => return Ok(()),
        };
        if let Set::Same(of) = taken.set {
            if taken.key.name == "dtype" && said == "auto" {
                return Ok(());
            }
            let Some(built) = self.built else {
                return Err(
                    "is decided by trtllm-build, and there is no engine to compare it with; name \
                            one with worker.trtllm.engine_dir, or remove it here"
                        .into(),
                );
            };
            return match of(built) {
                Some(has) if has == said => Ok(()),
                Some(has) => Err(format!(
                    "is decided by trtllm-build, and the engine was built with {has}; say that, remove \
                     it, or build another engine"
                )),
                None => Err(
                    "is decided by trtllm-build, and the engine's config.json does not tell it; \
                             remove it here"
                        .into(),
                ),
            };
        }
        let most = self.built.and_then(|built| match taken.key.name {
            "max_batch_size" => Some(built.max_batch_size as u64),
            "max_num_tokens" => Some(built.max_num_tokens as u64),
            _ => None,
        });
        match (most, value) {
            (Some(most), Value::Whole(number)) if *number > most => Err(format!(
                "must be at most {most}, which the engine was built for; lower it, or build another engine"
            )),
            _ => Ok(()),
        }
    }
}

fn fault(line: usize, rule: String) -> Fault {
    Fault { line: Some(line), place: String::new(), value: None, rule }
}

/// The known key or section that was most likely meant.
fn nearest(unknown: &str) -> Option<&'static str> {
    schema::nearest_of(unknown, || TAKEN.iter().map(|taken| taken.key.name))
}

/// TensorRT-LLM's files are read by Python, where `True` is as good as `true`.
fn as_yaml_1_1(kind: Kind, node: &Node) -> Node {
    let text = match (&node.body, kind) {
        (Body::Scalar { text, plain: true }, Kind::Switch) => text,
        _ => return node.clone(),
    };
    let text = match text.as_str() {
        "True" | "TRUE" => "true",
        "False" | "FALSE" => "false",
        other => other,
    };
    Node { line: node.line, body: Body::Scalar { text: text.into(), plain: true } }
}

fn small(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
