//! What a client may ask to hear besides its answer: which ranks served it, and why those.

use crate::actors::router::Explanation;
use crate::http::json;

/// See the module's description. For each choice, in the order in which things happened.
#[derive(Debug)]
pub(crate) struct Told {
    /// As node/worker/rank; `None` if nobody asked.
    ranks: Option<Vec<Vec<String>>>,
    /// JSON objects; `None` if nobody asked.
    routing: Option<Vec<Vec<Vec<u8>>>>,
}

impl Told {
    /// `None` if nobody asked for any of it.
    pub(crate) fn new(choices: usize, ranks: bool, routing: bool) -> Option<Box<Self>> {
        let told = Self {
            ranks: ranks.then(|| vec![Vec::new(); choices]),
            routing: routing.then(|| vec![Vec::new(); choices]),
        };
        (ranks || routing).then(|| Box::new(told))
    }

    pub(super) fn started(&mut self, choice: usize, rank: String) {
        if let Some(ranks) = &mut self.ranks {
            ranks[choice].push(rank);
        }
    }

    pub(super) fn routed(&mut self, choice: usize, explanation: &Explanation) {
        if let Some(routing) = &mut self.routing {
            // Numbers and names can always be written.
            routing[choice].extend(serde_json::to_vec(explanation));
        }
    }

    /// `,"cuelight":{"ranks":[["node/worker/rank",…],…],"routing":[[{…},…],…]}`
    pub(super) fn render(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#","cuelight":{"#);
        if let Some(ranks) = &self.ranks {
            out.extend_from_slice(br#""ranks":"#);
            nested(out, ranks, |out, rank| json::string(out, rank));
        }
        if let Some(routing) = &self.routing {
            let comma: &[u8] = if self.ranks.is_some() { b"," } else { b"" };
            out.extend_from_slice(comma);
            out.extend_from_slice(br#""routing":"#);
            nested(out, routing, |out, explanation| out.extend_from_slice(explanation));
        }
        out.push(b'}');
    }
}

fn nested<T>(out: &mut Vec<u8>, lists: &[Vec<T>], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (i, list) in lists.iter().enumerate() {
        out.extend_from_slice(if i > 0 { b",[" } else { b"[" });
        for (j, one) in list.iter().enumerate() {
            if j > 0 {
                out.push(b',');
            }
            item(out, one);
        }
        out.push(b']');
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_json_and_has_what_was_asked_for() {
        assert!(Told::new(2, false, false).is_none());
        let explanation = Explanation {
            mode: "kv",
            blocks: 1.5,
            chosen: "n/w/0".into(),
            ranks: Vec::new(),
            prefill: None,
        };
        for (ranks, routing, want) in [
            (true, false, r#"{"cuelight":{"ranks":[["n/w/0","n/\"w/1"],[]]}}"#),
            (
                false,
                true,
                r#"{"cuelight":{"routing":[[],[{"mode":"kv","blocks":1.5,"chosen":"n/w/0","ranks":[]}]]}}"#,
            ),
        ] {
            let mut told = Told::new(2, ranks, routing).unwrap();
            told.started(0, "n/w/0".to_string());
            told.started(0, "n/\"w/1".to_string());
            told.routed(1, &explanation);
            let mut out = Vec::new();
            told.render(&mut out);
            out[0] = b'{';
            out.push(b'}');
            let text = String::from_utf8(out).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
            assert_eq!(text, want);
        }
    }
}
