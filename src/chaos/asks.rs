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

/// The requests of the load. Every one has a seed or is greedy, so each has one right answer.
pub(super) fn asks(model: &str) -> Vec<Ask> {
    let story = "Tell me a story about a fox and a lantern.";
    let chat = |text: &str, more: Value| (CHAT, merged(json!({ "messages": [user(text)] }), more));
    let text =
        |prompt: Value, more: Value| (COMPLETIONS, merged(json!({ "prompt": prompt }), more));
    let ids: Vec<u32> = (40..72).collect();
    let rows = [
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
        ("long_prompt", chat(&long_prompt(), json!({ "temperature": 0, "max_tokens": 48 }))),
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
    ];
    rows.into_iter().map(|(name, (path, body))| ask(name, path, model, body)).collect()
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
pub(super) fn longest(model: &str) -> Ask {
    let body = json!({ "prompt": "Once upon a time", "temperature": 0, "max_tokens": 800,
                       "ignore_eos": true });
    ask("longest", COMPLETIONS, model, body)
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// Long enough to be computed in several chunks.
fn long_prompt() -> String {
    let mut text = String::from("Read this and say how it ends.");
    for number in 0..36 {
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
        let asks = asks("m");
        for (index, ask) in asks.iter().enumerate() {
            let body: Value = serde_json::from_str(&ask.body).unwrap();
            assert_eq!(body["model"], "m");
            let fixed = body["temperature"] == json!(0) || body["seed"].is_u64();
            assert!(fixed, "{} is neither greedy nor seeded", ask.name);
            assert_eq!(body["stream"], ask.stream, "{}", ask.name);
            assert_eq!(body["stream_options"]["include_usage"] == json!(true), ask.usage);
            assert!(asks[..index].iter().all(|other| other.name != ask.name), "{}", ask.name);
        }
        let choices = |name| asks.iter().find(|ask| ask.name == name).unwrap().choices;
        assert_eq!((choices("sampled"), choices("unary_text"), choices("token_ids")), (2, 4, 1));
        assert_eq!(longest("m").choices, 1);
    }
}
