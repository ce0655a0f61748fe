//! From a file and `--set` to a checked [`Config`], or to everything that is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::build;
use super::error::{ConfigErrors, Origin, Problem};
use super::host::Host;
use super::nodes::Nodes;
use super::schema::{self, Key, Kind, keys};
use super::value::{self, Value};
use super::yaml::{self, Body, Document, Node};
use super::{Config, files};

/// What the configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `cuelight serve`: front end and worker, also where the file does not mention them.
    Serve,
    /// `cuelight node`: the sections that the file mentions; at least one of `frontend`, `worker`.
    Node,
}

/// Reads the file of one node, puts `sets` (each `key=value`) over it and checks everything, the
/// files that it names included.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(
    file: Option<&Path>,
    sets: &[String],
    profile: Profile,
) -> Result<Config, ConfigErrors> {
    load_on(&Host::this(), file, sets, profile)
}

/// The same for the node of this name in a file that may hold several.
///
/// # Errors
/// Everything that is wrong with the names in the file or with this node, at once.
pub fn load_node(file: &Path, name: &str, sets: &[String]) -> Result<Config, ConfigErrors> {
    let host = Host::this();
    of_file(Some(file), |text| check_node(&host, text, Some(name), sets, Profile::Node))
}

/// The same for all nodes of a file, in its order.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load_all(file: &Path, sets: &[String]) -> Result<Vec<Config>, ConfigErrors> {
    load_all_on(&Host::this(), file, sets)
}

pub(super) fn load_on(
    host: &Host,
    file: Option<&Path>,
    sets: &[String],
    profile: Profile,
) -> Result<Config, ConfigErrors> {
    of_file(file, |text| check(host, text, sets, profile))
}

pub(super) fn load_all_on(
    host: &Host,
    file: &Path,
    sets: &[String],
) -> Result<Vec<Config>, ConfigErrors> {
    of_file(Some(file), |text| check_all(host, text, sets))
}

/// Checks the text of a file, if there is one.
fn of_file<T>(
    file: Option<&Path>,
    check: impl FnOnce(&str) -> Result<T, Vec<Problem>>,
) -> Result<T, ConfigErrors> {
    match file.map(files::text).transpose() {
        Ok(text) => check(text.as_deref().unwrap_or_default()),
        Err(rule) => {
            let whole_file = Place { origin: Origin::File, key: String::new() };
            Err(vec![whole_file.problem(None, rule)])
        }
    }
    .map_err(|problems| ConfigErrors { file: file.map(Path::to_owned), problems })
}

/// Checks the text of a file of one node together with `sets`.
pub(super) fn check(
    host: &Host,
    text: &str,
    sets: &[String],
    profile: Profile,
) -> Result<Config, Vec<Problem>> {
    check_node(host, text, None, sets, profile)
}

/// Checks the node of this name, or the only one.
pub(super) fn check_node(
    host: &Host,
    text: &str,
    name: Option<&str>,
    sets: &[String],
    profile: Profile,
) -> Result<Config, Vec<Problem>> {
    let nodes = Nodes::of(text);
    let checked = nodes.choose(name).map_err(|problem| vec![problem]);
    match checked.and_then(|document| check_document(host, &nodes, document, sets, profile)) {
        Ok(config) if nodes.problems.is_empty() => Ok(config),
        checked => Err(in_order(nodes.problems, checked.err())),
    }
}

/// Checks all nodes of a file, each together with `sets`.
pub(super) fn check_all(
    host: &Host,
    text: &str,
    sets: &[String],
) -> Result<Vec<Config>, Vec<Problem>> {
    let nodes = Nodes::of(text);
    let (mut configs, mut wrong) = (Vec::new(), Vec::new());
    for document in &nodes.documents {
        match check_document(host, &nodes, document, sets, Profile::Node) {
            Ok(config) => configs.push(config),
            Err(problems) => wrong.push(problems),
        }
    }
    let problems = in_order(nodes.problems, wrong);
    if problems.is_empty() { Ok(configs) } else { Err(problems) }
}

/// All problems in the order of the file.
fn in_order(
    mut problems: Vec<Problem>,
    more: impl IntoIterator<Item = Vec<Problem>>,
) -> Vec<Problem> {
    for problem in more.into_iter().flatten() {
        // What is wrong with a `--set` is said once, not for every node.
        if problem.origin != Origin::Set || !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems.sort_by_key(|problem| problem.origin);
    problems
}

/// Checks one node of a file together with `sets`.
fn check_document(
    host: &Host,
    nodes: &Nodes,
    document: &Document,
    sets: &[String],
    profile: Profile,
) -> Result<Config, Vec<Problem>> {
    let mut reader = Reader { host, values: Values::default(), seen: HashMap::new() };
    if let Some(root) = &document.root {
        reader.root(root);
    }
    sets.iter().for_each(|set| reader.set(set));
    let mut values = reader.values;
    // What a broken file says is unknown: what it does not say must not be held against it.
    let readable = !document.is_refused();
    let config = if readable { build::config(&mut values, profile, host) } else { None };
    let mut problems = values.problems;
    if nodes.documents.len() > 1 {
        // What a node does not say is said of the line where it begins, or nobody knew which it is.
        for problem in &mut problems {
            if matches!(problem.origin, Origin::File | Origin::Default) {
                problem.origin = Origin::Line(document.line);
            }
        }
    }
    config.filter(|_| problems.is_empty()).ok_or(problems)
}

/// What these `--set`s say by themselves.
#[cfg(test)]
pub(super) fn values_of(sets: &[String]) -> Values {
    let host = Host::this();
    let mut reader = Reader { host: &host, values: Values::default(), seen: HashMap::new() };
    sets.iter().for_each(|set| reader.set(set));
    reader.values
}

/// A key where it was said.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) origin: Origin,
    pub(super) key: String,
}

impl Place {
    pub(super) fn problem(self, value: Option<String>, rule: impl Into<String>) -> Problem {
        Problem { origin: self.origin, key: self.key, value, rule: rule.into() }
    }
}

/// What was said, each by itself in order, and what is wrong so far.
#[derive(Default)]
pub(super) struct Values {
    said: BTreeMap<&'static str, Said>,
    /// Keys that were said, but not in a way that can be used.
    broken: BTreeSet<&'static str>,
    /// Top-level sections that are there.
    sections: BTreeSet<String>,
    pub(super) problems: Vec<Problem>,
}

/// A key's value, and how and where it was said.
pub(super) struct Said {
    pub(super) value: Value,
    pub(super) origin: Origin,
    pub(super) text: Option<String>,
}

impl Values {
    /// What was said about this key.
    pub(super) fn said(&self, key: &str) -> Option<&Said> {
        self.said.get(key)
    }

    /// Whether the key was said in a way that cannot be used; what follows from it is unknown.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.broken.contains(key)
    }

    /// Whether there is a complaint about this key.
    pub(super) fn problems_of(&self, key: &str) -> bool {
        self.is_broken(key) || self.problems.iter().any(|problem| problem.key == key)
    }

    /// Whether the file or `--set` mentions a top-level section.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.sections.contains(name)
    }

    /// Complains about what was said about a key, or about its default.
    pub(super) fn complain(&mut self, key: &'static str, rule: impl Into<String>) {
        let said = self.said.get(key);
        let origin = said.map_or(Origin::Default, |said| said.origin);
        let text = said.and_then(|said| said.text.clone());
        let place = Place { origin, key: key.to_owned() };
        self.problems.push(place.problem(text, rule));
    }

    /// Complains about the configuration as a whole.
    pub(super) fn complain_of_all(&mut self, rule: &str) {
        let place = Place { origin: Origin::File, key: String::new() };
        self.problems.push(place.problem(None, rule));
    }
}

/// Collects what is said.
struct Reader<'a> {
    host: &'a Host,
    values: Values,
    /// Keys and sections of the file by their first line.
    seen: HashMap<String, usize>,
}

impl Reader<'_> {
    fn complain(&mut self, problem: Problem) {
        self.values.problems.push(problem);
    }

    fn root(&mut self, root: &Node) {
        match &root.body {
            Body::Map(pairs) => self.section("", pairs),
            Body::Refused => {}
            Body::Scalar { .. } | Body::List(_) => {
                let place = Place { origin: Origin::Line(root.line), key: String::new() };
                let rule = "must be sections with keys, such as `frontend:` over `  http: …`";
                self.complain(place.problem(None, rule));
            }
        }
    }

    fn section(&mut self, prefix: &str, pairs: &[(Node, Node)]) {
        for (name, node) in pairs {
            let origin = Origin::Line(name.line);
            let Body::Scalar { text: name, .. } = &name.body else {
                if name.body != Body::Refused {
                    let place = Place { origin, key: prefix.to_owned() };
                    self.complain(place.problem(None, "has a key that is no word"));
                }
                continue;
            };
            let dot = if prefix.is_empty() { "" } else { "." };
            let place = Place { origin, key: format!("{prefix}{dot}{name}") };
            if let Origin::Line(line) = origin
                && let Some(first) = self.seen.insert(place.key.clone(), line)
            {
                let rule = format!("is there twice, first in line {first}; keep one");
                self.complain(place.problem(None, rule));
                continue;
            }
            self.entry(place, node);
        }
    }

    /// Takes one key or section with its value.
    fn entry(&mut self, place: Place, node: &Node) {
        if let Some(key) = schema::key(&place.key) {
            return self.value(key, place.origin, node);
        }
        if !schema::is_section(&place.key) {
            let hint = match schema::nearest(&place.key) {
                Some(near) => format!("did you mean {near}?"),
                None => "`cuelight check --reference` lists all keys".into(),
            };
            return self.complain(place.problem(None, format!("unknown key; {hint}")));
        }
        self.mention(&place.key);
        match &node.body {
            Body::Map(pairs) if place.origin != Origin::Set => self.section(&place.key, pairs),
            Body::Scalar { text, plain: true } if yaml::is_null(text) => {}
            Body::Refused => {}
            body => {
                let of_it = |key: &&Key| key.name.starts_with(&format!("{}.", place.key));
                let example = keys().find(of_it).map_or("", |key| key.name);
                let rule = format!("is a section of keys such as {example}; give it keys");
                let value = match body {
                    Body::Scalar { text, .. } => Some(text.clone()),
                    _ => None,
                };
                self.complain(place.problem(value, rule));
            }
        }
    }

    fn mention(&mut self, key: &str) {
        let section = key.split('.').next().unwrap_or_default();
        self.values.sections.insert(section.to_owned());
    }

    fn value(&mut self, key: &'static Key, origin: Origin, node: &Node) {
        self.mention(key.name);
        match value::parse(key, node, self.host.env) {
            Ok(value) => {
                let text = match &node.body {
                    Body::Scalar { text, .. } => Some(text.clone()),
                    _ => None,
                };
                let text = text.filter(|_| !matches!(value, Value::ApiKeys(_) | Value::Secret(_)));
                self.values.said.insert(key.name, Said { value, origin, text });
            }
            Err(faults) => {
                self.values.broken.insert(key.name);
                for fault in faults {
                    let line = fault.line.map(Origin::Line).filter(|_| origin != Origin::Set);
                    let origin = line.unwrap_or(origin);
                    let place = Place { origin, key: format!("{}{}", key.name, fault.place) };
                    self.complain(place.problem(fault.value, fault.rule));
                }
            }
        }
    }

    /// Takes one `--set`.
    fn set(&mut self, set: &str) {
        let (key, text) = set.split_once('=').unwrap_or((set, ""));
        let place = Place { origin: Origin::Set, key: key.trim().to_owned() };
        if !set.contains('=') {
            let rule = "must be KEY=VALUE, such as --set frontend.http=127.0.0.1:8000";
            return self.complain(place.problem(None, rule));
        }
        let (node, faults) = yaml::parse(text);
        if !faults.is_empty() {
            let key = schema::key(&place.key);
            self.values.broken.extend(key.map(|key| key.name));
            let secret = key.is_none_or(|key| matches!(key.kind, Kind::ApiKeys | Kind::Secret));
            let shown = (!secret).then(|| text.to_owned());
            for fault in faults {
                self.complain(place.clone().problem(shown.clone(), fault.rule));
            }
            return;
        }
        let nothing = Node { line: 1, body: Body::Scalar { text: String::new(), plain: true } };
        self.entry(place, &node.unwrap_or(nothing));
    }
}
