//! What the checked load asks: requests whose answers must not depend on any fault.

use serde_json::{Value, json};

/// One request and what its answer must have.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// What it tries.
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    /// JSON.
    pub(super) body: String,
    pub(super) choices: usize,
    pub(super) stream: bool,
    /// The usage was asked for; answers in one piece always have it.
    pub(super) usage: bool,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

impl Ask {
    /// The body, with a salt that keeps what is cached of its prompt from others.
    pub(super) fn salted(&self, salt: Option<u64>) -> String {
        let rest = self.body.strip_prefix('{');
        match (salt, rest) {
            (Some(salt), Some(rest)) => format!("{{\"cache_salt\":\"chaos-{salt}\",{rest}"),
            _ => self.body.clone(),
        }
    }
}

/// The requests of the load. Every one has a seed or is greedy, so each has one right answer. If some
/// ranks prefill for others, there are more of those with long prompts.
pub(super) fn asks(model: &str, is_split: bool, greedy: bool) -> Vec<Ask> {
    let mut rows = rows();
    if is_split {
        rows.extend(long_rows());
    }
    for (_, (_, body)) in rows.iter_mut().filter(|_| greedy) {
        body["temperature"] = json!(0);
    }
    rows.into_iter().map(|(name, (path, body))| ask(name, path, model, body)).collect()
}

/// A name, a path and a body.
type Row = (&'static str, (&'static str, Value));

fn chat(text: &str, more: Value) -> (&'static str, Value) {
    (CHAT, merged(json!({ "messages": [user(text)] }), more))
}

fn text(prompt: Value, more: Value) -> (&'static str, Value) {
    (COMPLETIONS, merged(json!({ "prompt": prompt }), more))
}

/// Several hundred to more than a thousand tokens of prompt each.
fn long_rows() -> Vec<Row> {
    vec![
        ("prefill_greedy", chat(&long_prompt(40), json!({ "temperature": 0, "max_tokens": 64 }))),
        (
            "prefill_sampled",
            chat(
                &long_prompt(60),
                json!({ "seed": 17, "temperature": 0.9, "max_tokens": 48, "n": 2 }),
            ),
        ),
        (
            "prefill_logprobs",
            text(
                json!(long_prompt(50)),
                json!({ "seed": 4, "temperature": 0.8, "max_tokens": 80, "logprobs": 2,
                        "ignore_eos": true }),
            ),
        ),
        (
            "prefill_longest",
            text(
                json!(long_prompt(85)),
                json!({ "temperature": 0, "max_tokens": 120, "ignore_eos": true }),
            ),
        ),
        (
            "prefill_unary",
            chat(
                &long_prompt(45),
                json!({ "seed": 2, "temperature": 0.7, "max_tokens": 32, "stream": false }),
            ),
        ),
    ]
}

fn rows() -> Vec<Row> {
    let story = "Tell me a story about a fox and a lantern.";
    let ids: Vec<u32> = (40..72).collect();
    vec![
        ("short", chat("What is the capital of France?", json!({ "temperature": 0 }))),
        ("long", chat(story, json!({ "temperature": 0, "max_tokens": 400, "ignore_eos": true }))),
        (
            "sampled",
            chat(story, json!({ "seed": 11, "temperature": 1.0, "max_tokens": 160, "n": 2 })),
        ),
        (
            "logprobs",
            chat(
                story,
                json!({ "seed": 5, "temperature": 0.8, "max_tokens": 80, "logprobs": true,
                        "top_logprobs": 3 }),
            ),
        ),
        (
            "stop_string",
            chat(
                "Count from 5 to 40.",
                json!({ "temperature": 0, "max_tokens": 200, "stop": ["31, 3"] }),
            ),
        ),
        (
            "penalties",
            text(
                json!("Once upon a time"),
                json!({ "seed": 3, "temperature": 0.9, "top_p": 0.95, "max_tokens": 160,
                        "frequency_penalty": 0.4, "presence_penalty": 0.3,
                        "repetition_penalty": 1.1, "ignore_eos": true }),
            ),
        ),
        (
            "token_ids",
            text(json!(ids), json!({ "temperature": 0, "max_tokens": 120, "ignore_eos": true })),
        ),
        ("long_prompt", chat(&long_prompt(36), json!({ "temperature": 0, "max_tokens": 48 }))),
        (
            "unary_chat",
            chat(
                story,
                json!({ "seed": 9, "temperature": 0.7, "max_tokens": 120, "stream": false }),
            ),
        ),
        (
            "unary_text",
            text(
                json!(["Once upon a time", "The capital of"]),
                json!({ "seed": 21, "temperature": 1.0, "max_tokens": 64, "n": 2, "logprobs": 2,
                        "ignore_eos": true, "stream": false }),
            ),
        ),
    ]
}

fn ask(name: &'static str, path: &'static str, model: &str, body: Value) -> Ask {
    let stream = body["stream"] != json!(false);
    let prompts = match &body["prompt"] {
        Value::Array(prompts) if prompts.first().is_some_and(Value::is_string) => prompts.len(),
        _ => 1,
    };
    let choices = prompts * body["n"].as_u64().unwrap_or(1) as usize;
    let mut body = merged(json!({ "model": model, "stream": stream }), body);
    if stream {
        body["stream_options"] = json!({ "include_usage": true });
    }
    Ask { name, path, body: body.to_string(), choices, stream, usage: stream }
}

/// A request that goes on for long, for clients that leave or read slowly.
pub(super) fn longest(model: &str, is_split: bool) -> Ask {
    let prompt = if is_split { long_prompt(36) } else { "Once upon a time".to_owned() };
    let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 800,
                       "ignore_eos": true });
    ask("longest", COMPLETIONS, model, body)
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// Long enough to be computed in several chunks: about twelve tokens a day.
fn long_prompt(days: usize) -> String {
    let mut text = String::from("Read this and say how it ends.");
    for number in 0..days {
        text.push_str(&format!(" On day {number} the fox found {} lanterns.", number % 7));
    }
    text
}

fn merged(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ask_has_one_right_answer_and_a_name_of_its_own() {
        let asks = asks("m", true, false);
        assert_eq!(asks.len(), super::asks("m", false, true).len() + 5);
        for (index, ask) in asks.iter().enumerate() {
            let body: Value = serde_json::from_str(&ask.body).unwrap();
            assert_eq!(body["model"], "m");
            let fixed = body["temperature"] == json!(0) || body["seed"].is_u64();
            assert!(fixed, "{} is neither greedy nor seeded", ask.name);
            assert_eq!(body["stream"], ask.stream, "{}", ask.name);
            assert_eq!(body["stream_options"]["include_usage"] == json!(true), ask.usage);
            assert!(asks[..index].iter().all(|other| other.name != ask.name), "{}", ask.name);
        }
        for ask in super::asks("m", true, true) {
            let body: Value = serde_json::from_str(&ask.body).unwrap();
            assert_eq!(body["temperature"], 0, "{}", ask.name);
        }
        let choices = |name| asks.iter().find(|ask| ask.name == name).unwrap().choices;
        assert_eq!((choices("sampled"), choices("unary_text"), choices("token_ids")), (2, 4, 1));
        assert_eq!(longest("m", false).choices, 1);
    }

    #[test]
    fn a_salt_changes_nothing_else() {
        let ask = longest("m", true);
        assert_eq!(ask.salted(None), ask.body);
        let mut salted: Value = serde_json::from_str(&ask.salted(Some(7))).unwrap();
        assert_eq!(salted.as_object_mut().unwrap().remove("cache_salt"), Some(json!("chaos-7")));
        assert_eq!(salted, serde_json::from_str::<Value>(&ask.body).unwrap());
    }
}
