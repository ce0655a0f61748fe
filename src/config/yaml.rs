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
    /// A tag or an alias, already complained about.
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

/// Reads one document. `None`: it is empty, or the faults say why it cannot be read.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Fault>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut faults = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    let mut documents = 0;
    for event in Parser::<StrInput<'_>>::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let why = error.info();
                let rule = format!("is not YAML: {why}; see to its indentation, colons and quotes");
                faults.push(Fault { line: error.marker().line().max(1), rule });
                return (None, faults);
            }
        };
        let line = span.start.line().max(1);
        if let Event::DocumentStart(_) = event {
            documents += 1;
            if documents > 1 {
                faults.push(fault(line, "a second document begins; a file holds one"));
                return (None, faults);
            }
        }
        let opens = matches!(event, Event::SequenceStart(..) | Event::MappingStart(..));
        if opens && open.len() == DEEPEST {
            faults.push(fault(line, "is nested too deeply; no key needs that"));
            return (None, faults);
        }
        let Some(node) = take(event, span, &mut open, &mut faults) else { continue };
        match open.last_mut() {
            Some(parent) => parent.items.push(node),
            None => root = Some(node),
        }
    }
    // A document without content is an empty plain scalar.
    let empty =
        |node: &Node| matches!(&node.body, Body::Scalar { text, plain: true } if is_null(text));
    (root.filter(|node| !empty(node)), faults)
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
