//! The subset of YAML that a configuration needs, with the line of every value: scalars, lists and
//! mappings. Tags and aliases are refused: the reader of a file should see what it says.

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// Deeper than any configuration; keeps what follows from recursing without a bound.
const DEEPEST: usize = 16;

/// One value and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Line in the text, from 1.
    pub(super) line: usize,
    /// The value.
    pub(super) body: Body,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Text as it was written; `plain` if it had no quotes, so that it may mean a number.
    Scalar { text: String, plain: bool },
    /// `[a, b]` or one `- a` a line.
    List(Vec<Node>),
    /// Keys and values in the order of the text. Repeated keys are all there.
    Map(Vec<(Node, Node)>),
    /// A tag, an alias or what cannot be read, already complained about.
    Refused,
}

/// Something that is not the YAML we read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Line in the text, from 1.
    pub(super) line: usize,
    /// What is wrong and the way out.
    pub(super) rule: String,
}

/// A list or mapping that is not complete yet.
struct Open {
    line: usize,
    is_map: bool,
    /// Items; in a mapping keys and values in turn.
    items: Vec<Node>,
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// Line where it begins, from 1.
    pub(super) line: usize,
    /// What it says; `None` if it is empty.
    pub(super) root: Option<Node>,
}

/// Reads a text of at most one document. `None`: it is empty, or the faults say why not.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Fault>) {
    let (mut documents, mut faults) = documents(text);
    if let Some(second) = documents.get(1) {
        faults.push(fault(second.line, "a second document begins; a value is one"));
        return (None, faults);
    }
    (documents.pop().and_then(|document| document.root), faults)
}

/// Reads all documents of a text. If it cannot be read, there is one, whose root is refused.
pub(super) fn documents(text: &str) -> (Vec<Document>, Vec<Fault>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut faults = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut documents: Vec<Document> = Vec::new();
    for event in Parser::<StrInput<'_>>::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let (line, why) = (error.marker().line().max(1), error.info());
                let rule = format!("is not YAML: {why}; see to its indentation, colons and quotes");
                return unreadable(faults, fault(line, &rule));
            }
        };
        let line = span.start.line().max(1);
        if let Event::DocumentStart(_) = event {
            documents.push(Document { line, root: None });
        }
        let opens = matches!(event, Event::SequenceStart(..) | Event::MappingStart(..));
        if opens && open.len() == DEEPEST {
            return unreadable(faults, fault(line, "is nested too deeply; no key needs that"));
        }
        let Some(node) = take(event, span, &mut open, &mut faults) else { continue };
        match (open.last_mut(), documents.last_mut()) {
            (Some(parent), _) => parent.items.push(node),
            (None, Some(document)) => document.root = Some(node).filter(|node| !is_empty(node)),
            (None, None) => {}
        }
    }
    (documents, faults)
}

fn unreadable(mut faults: Vec<Fault>, last: Fault) -> (Vec<Document>, Vec<Fault>) {
    let line = last.line;
    faults.push(last);
    (vec![Document { line, root: Some(Node { line, body: Body::Refused }) }], faults)
}

/// Whether it is what a document without content is: an empty plain scalar.
fn is_empty(node: &Node) -> bool {
    matches!(&node.body, Body::Scalar { text, plain: true } if is_null(text))
}

/// Whether a plain scalar says that there is no value.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Takes one event; returns the node that it completes.
fn take(
    event: Event<'_>,
    span: Span,
    open: &mut Vec<Open>,
    faults: &mut Vec<Fault>,
) -> Option<Node> {
    let line = span.start.line().max(1);
    let tag = match &event {
        Event::Scalar(_, _, _, tag)
        | Event::SequenceStart(_, tag)
        | Event::MappingStart(_, tag) => tag.is_some(),
        _ => false,
    };
    if tag {
        faults.push(fault(line, "has a tag (!…); leave it out"));
    }
    match event {
        Event::Scalar(..) if tag => Some(Node { line, body: Body::Refused }),
        Event::Scalar(text, style, ..) => {
            let plain = style == ScalarStyle::Plain;
            Some(Node { line, body: Body::Scalar { text: text.into_owned(), plain } })
        }
        Event::Alias(_) => {
            faults.push(fault(line, "has an alias (*…); write the value out"));
            Some(Node { line, body: Body::Refused })
        }
        Event::SequenceStart(..) | Event::MappingStart(..) => {
            let is_map = matches!(event, Event::MappingStart(..));
            open.push(Open { line, is_map, items: Vec::new() });
            None
        }
        Event::SequenceEnd | Event::MappingEnd => {
            let Open { line, is_map, items } = open.pop()?;
            let body = if is_map { Body::Map(pairs(items)) } else { Body::List(items) };
            Some(Node { line, body })
        }
        _ => None,
    }
}

fn pairs(items: Vec<Node>) -> Vec<(Node, Node)> {
    let mut items = items.into_iter();
    std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
}

fn fault(line: usize, rule: &str) -> Fault {
    Fault { line, rule: rule.to_owned() }
}
