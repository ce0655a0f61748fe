//! `speculative_config`: which keys belong together, and trees of drafts.

use super::keys::{PATHS, TAKEN};
use super::read::Reader;
use crate::config::yaml::{Body, Node};

pub(super) const LOOKAHEAD: &str = "Lookahead";
pub(super) const MEDUSA: &str = "Medusa";
pub(super) const EAGLE: &str = "Eagle";
pub(super) const EXTERNAL: &str = "draft_tokens_external";

const SECTION: &str = "speculative_config";
const TYPE: &str = "speculative_config.decoding_type";
const CHOICES: &str = "speculative_config.eagle_choices";
const DYNAMIC: &str = "speculative_config.use_dynamic_tree";
const TOP_K: &str = "speculative_config.dynamic_tree_max_topK";
const THRESHOLD: &str = "speculative_config.posterior_threshold";

/// The executor's mode for a `decoding_type`.
pub(super) fn mode(decoding: &str) -> Option<String> {
    let mode = match decoding {
        LOOKAHEAD => "lookahead",
        MEDUSA => "medusa",
        EAGLE => "eagle",
        EXTERNAL => "external_draft",
        _ => "explicit_draft",
    };
    Some(mode.into())
}

/// Reads paths, each a list of numbers.
///
/// # Errors
/// The line and the rule that is broken.
pub(super) fn tree(node: &Node) -> Result<Vec<Vec<i32>>, (usize, String)> {
    let wrong = |line| (line, format!("must be a list of {}", PATHS.rule));
    let Body::List(paths) = &node.body else { return Err(wrong(node.line)) };
    let mut tree = Vec::new();
    for path in paths {
        let Body::List(steps) = &path.body else { return Err(wrong(path.line)) };
        let step = |step: &Node| match &step.body {
            Body::Scalar { text, plain: true } => text.parse().ok().filter(|at: &i32| *at >= 0),
            _ => None,
        };
        let steps = steps.iter().map(step).collect::<Option<Vec<i32>>>();
        tree.push((
            path.line,
            steps.filter(|steps| !steps.is_empty()).ok_or_else(|| wrong(path.line))?,
        ));
    }
    if tree.is_empty() {
        return Err((node.line, "is empty; list paths, or leave it out".into()));
    }
    let has = |wanted: &[i32]| tree.iter().any(|(_, path)| path == wanted);
    for (line, path) in &tree {
        let (_, before) = path.split_last().unwrap_or((&0, &[]));
        if !before.is_empty() && !has(before) {
            let rule =
                format!("has the path {path:?} but not {before:?}, which leads to it; add that");
            return Err((*line, rule));
        }
    }
    Ok(tree.into_iter().map(|(_, path)| path).collect())
}

/// What `speculative_config` must say together, and its defaults.
pub(super) fn check(reader: &mut Reader<'_>) {
    let Some(line) = reader.section_line(SECTION) else { return };
    if reader.is_broken(TYPE) {
        return; // what belongs to it is unknown
    }
    let Some(decoding) = reader.text(TYPE) else {
        let rule = "is not given: it says which kind of speculative decoding the others are about; \
                    say Lookahead, Medusa, Eagle, draft_tokens_external or explicit_draft_tokens";
        return reader.complain(line, TYPE, None, rule);
    };
    for taken in TAKEN {
        if let Some(only) = taken.only
            && only != decoding
        {
            let rule = format!("belongs to decoding_type {only}, not {decoding}; remove it");
            reader.complain_of(taken.key.name, &rule);
        }
    }
    match decoding.as_str() {
        LOOKAHEAD => {
            // The executor wants all of them or none.
            let speculative = &mut reader.options.speculative;
            speculative.lookahead_window.get_or_insert(4);
            speculative.lookahead_ngram.get_or_insert(3);
            speculative.lookahead_verification.get_or_insert(4);
        }
        EAGLE => eagle(reader),
        _ => {}
    }
}

fn eagle(reader: &mut Reader<'_>) {
    let dynamic = reader.options.speculative.eagle_dynamic_tree == Some(true);
    let top_k = reader.options.speculative.eagle_dynamic_tree_max_top_k.is_some();
    if dynamic && !reader.options.speculative.eagle_choices.is_empty() {
        reader.complain_of(CHOICES, &format!("cannot go with {DYNAMIC}; keep one"));
    }
    if dynamic && !top_k && !reader.is_broken(TOP_K) {
        reader.complain_of(DYNAMIC, &format!("needs {TOP_K}; give it"));
    }
    if !dynamic && top_k && !reader.is_broken(DYNAMIC) {
        reader.complain_of(TOP_K, &format!("needs {DYNAMIC}: true; say so, or remove it"));
    }
    if reader.options.speculative.eagle_greedy != Some(false) {
        let rule = "has no effect with greedy_sampling, which is on unless it is set to false; \
                    set greedy_sampling: false, or remove it";
        reader.complain_of(THRESHOLD, rule);
    }
    // One of the options makes an Eagle configuration.
    reader.options.speculative.eagle_greedy.get_or_insert(true);
}
