//! The nodes that a file holds, each a document of its own, and which of them is meant.

use std::collections::HashMap;

use super::error::{Origin, Problem};
use super::yaml::{self, Body, Document, Node};

const NAME: &str = "node.name";

/// What a file holds, not yet looked into except for names.
pub(super) struct Nodes {
    /// Never empty: an empty file is one node of which nothing is said.
    pub(super) documents: Vec<Document>,
    /// What is wrong with the file's YAML and with the names of its nodes.
    pub(super) problems: Vec<Problem>,
}

impl Nodes {
    /// Reads a file.
    pub(super) fn of(text: &str) -> Self {
        let (mut documents, faults) = yaml::documents(text);
        if documents.is_empty() {
            documents.push(Document { line: 1, root: None });
        }
        let said = |fault: yaml::Fault| problem(Origin::Line(fault.line), "", None, fault.rule);
        let mut nodes = Self { documents, problems: faults.into_iter().map(said).collect() };
        if nodes.documents.len() > 1 {
            nodes.check_names();
        }
        nodes
    }

    /// Complains about names that are missing or there twice; others are checked with their keys.
    fn check_names(&mut self) {
        let mut firsts = HashMap::new();
        for document in &self.documents {
            let (line, name, rule) = match (document.name(), document.name_text()) {
                (None, _) => {
                    (document.line, None, "must be given: the file holds several nodes".into())
                }
                (Some((line, _)), Some(name)) => match *firsts.entry(name).or_insert(line) {
                    first if first == line => continue,
                    first => {
                        let rule = format!("is there twice, first in line {first}");
                        (line, Some(name.to_owned()), rule)
                    }
                },
                (Some(_), None) => continue,
            };
            let rule = format!("{rule}; give each node a name of its own");
            self.problems.push(problem(Origin::Line(line), NAME, name, rule));
        }
    }

    /// The document of the node of this name, or the only one; else what to say.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<&Document, Problem> {
        let wrong = |rule: String| Err(problem(Origin::File, "", None, rule));
        let names: Vec<&str> = self.documents.iter().filter_map(Document::name_text).collect();
        let list = names.join(", ");
        match (name, &self.documents[..]) {
            // What cannot be read has no names to choose from; the problems say why.
            (_, [only]) if only.is_refused() => Ok(only),
            (None, [only]) => Ok(only),
            (None, _) => wrong(format!(
                "holds several nodes ({list}); choose one: cuelight node --config FILE --node NAME"
            )),
            (Some(_), _) if names.is_empty() => {
                wrong("names no node; leave out --node, or give it a node.name".to_owned())
            }
            (Some(name), documents) => {
                let named = documents.iter().find(|document| document.name_text() == Some(name));
                named.map_or_else(|| wrong(format!("holds no node {name}, but {list}")), Ok)
            }
        }
    }
}

impl Document {
    /// Whether nothing is known of what it says.
    pub(super) fn is_refused(&self) -> bool {
        self.root.as_ref().is_some_and(|root| root.body == Body::Refused)
    }

    /// What stands at `node.name`, and where.
    fn name(&self) -> Option<(usize, &Body)> {
        let root = self.root.as_ref()?;
        if root.body == Body::Refused {
            return Some((root.line, &root.body));
        }
        let dotted = value(root, NAME);
        let node = dotted.or_else(|| value(value(root, "node")?, "name"))?;
        Some((node.line, &node.body))
    }

    fn name_text(&self) -> Option<&str> {
        match self.name()?.1 {
            Body::Scalar { plain: true, text } if yaml::is_null(text) => None,
            Body::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// The value of a key in a mapping.
fn value<'a>(map: &'a Node, key: &str) -> Option<&'a Node> {
    let Body::Map(pairs) = &map.body else { return None };
    let is = |node: &Node| matches!(&node.body, Body::Scalar { text, .. } if text == key);
    pairs.iter().find(|(name, _)| is(name)).map(|(_, value)| value)
}

fn problem(origin: Origin, key: &str, value: Option<String>, rule: String) -> Problem {
    Problem { origin, key: key.to_owned(), value, rule }
}
