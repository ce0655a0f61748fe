//! What an answer said, and whether it said the same as another one.

use serde_json::Value;

/// A complete answer, streamed or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// In order of their index.
    pub(crate) choices: Vec<Choice>,
    /// Prompt, completion and total tokens.
    pub(crate) usage: Option<[u64; 3]>,
}

/// One choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub(crate) text: String,
    /// One entry a token, with its candidates.
    pub(crate) logprobs: Vec<Value>,
    pub(crate) finish: Option<String>,
}

/// How a request ended, as its client saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// With all that belongs to an answer.
    Complete(Answer),
    /// With an error that says so: an `error` event, or a status that is no success.
    Error(String),
    /// Before it began: 429, 503 or no connection.
    Refused(String),
    /// The connection broke, which the client can see.
    Broken(String),
    /// Against the rules, whatever else happens in the cluster.
    Wrong(String),
}

/// Where `found` first differs from `expected`; `None` if it does not.
pub(crate) fn difference(expected: &Answer, found: &Answer) -> Option<String> {
    if expected.choices.len() != found.choices.len() {
        let (expected, found) = (expected.choices.len(), found.choices.len());
        return Some(format!("{found} choices instead of {expected}"));
    }
    for (index, (expected, found)) in expected.choices.iter().zip(&found.choices).enumerate() {
        if let Some(what) = choice_difference(expected, found) {
            return Some(format!("choice {index}: {what}"));
        }
    }
    if expected.usage != found.usage {
        return Some(format!("usage {:?} instead of {:?}", found.usage, expected.usage));
    }
    None
}

fn choice_difference(expected: &Choice, found: &Choice) -> Option<String> {
    if expected.text != found.text {
        let pairs = expected.text.char_indices().zip(found.text.chars());
        let same = pairs.take_while(|((_, a), b)| a == b).last();
        let at = same.map_or(0, |((at, a), _)| at + a.len_utf8());
        let (expected, found) = (&expected.text[at..], &found.text[at..]);
        return Some(format!("at byte {at} {} instead of {}", short(found), short(expected)));
    }
    if expected.finish != found.finish {
        return Some(format!(
            "finish_reason {:?} instead of {:?}",
            found.finish.as_deref().unwrap_or("none"),
            expected.finish.as_deref().unwrap_or("none")
        ));
    }
    if expected.logprobs != found.logprobs {
        let pairs = expected.logprobs.iter().zip(&found.logprobs);
        let same = pairs.take_while(|(a, b)| a == b).count();
        let show = |rows: &[Value]| rows.get(same).map_or("nothing".into(), Value::to_string);
        let (found, expected) = (show(&found.logprobs), show(&expected.logprobs));
        return Some(format!("log probabilities of token {same}: {found} instead of {expected}"));
    }
    None
}

/// The first words, quoted.
fn short(text: &str) -> String {
    let shown: String = text.chars().take(40).collect();
    format!("{shown:?}{}", if shown.len() < text.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Answer {
        let choice = Choice {
            text: "one twö three".into(),
            logprobs: vec![json!(1), json!(2)],
            finish: Some("stop".into()),
        };
        Answer { choices: vec![Choice::default(), choice], usage: Some([1, 2, 3]) }
    }

    #[test]
    fn the_first_difference_is_named() {
        type Case = (fn(&mut Answer), &'static str);
        let cases: [Case; 6] = [
            (|a| a.choices[1].text = "one twö tree".into(), "choice 1: at byte 10 \"ree\" instead"),
            (|a| a.choices[1].text.truncate(3), "choice 1: at byte 3 \"\" instead of \" twö"),
            (|a| a.choices[1].finish = None, "finish_reason \"none\" instead of \"stop\""),
            (|a| a.choices[1].logprobs[1] = json!(3), "of token 1: 3 instead of 2"),
            (|a| a.usage = Some([1, 3, 4]), "usage Some([1, 3, 4]) instead of Some([1, 2, 3])"),
            (|a| a.choices.truncate(1), "1 choices instead of 2"),
        ];
        for (change, words) in cases {
            let mut other = answer();
            change(&mut other);
            let found = difference(&answer(), &other).unwrap();
            assert!(found.contains(words), "{found}");
        }
        assert_eq!(difference(&answer(), &answer()), None);
    }
}
