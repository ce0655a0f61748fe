//! What the checker must find in a stream, and what it must let pass.

use serde_json::json;

use super::*;

const TEXT: &str =
    r#"{"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}"#;
const STOP: &str = r#"{"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"id":"a","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
const ERROR: &str = r#"{"error":{"message":"gone","type":"server_error"}}"#;
const DONE: &str = "[DONE]";
const WHOLE: BodyEnd = BodyEnd::Whole { left: 0 };

fn ending(events: &[&str], body: BodyEnd) -> Ending {
    let mut transcript = Transcript::new(1, true);
    events.iter().for_each(|event| transcript.event(event));
    transcript.end(body)
}

fn wrong(events: &[&str], body: BodyEnd) -> String {
    match ending(events, body) {
        Ending::Wrong(what) => what,
        other => panic!("{events:?}: {other:?}"),
    }
}

#[test]
fn a_complete_stream_is_an_answer() {
    let Ending::Complete(answer) = ending(&[TEXT, TEXT, STOP, USAGE, DONE], WHOLE) else {
        panic!("not complete")
    };
    assert_eq!(answer.choices[0].text, "xx");
    assert_eq!(answer.choices[0].finish.as_deref(), Some("stop"));
    assert_eq!(answer.usage, Some([1, 2, 3]));
}

#[test]
fn an_error_event_ends_a_stream_properly_and_a_broken_connection_is_seen() {
    assert_eq!(ending(&[TEXT, ERROR], WHOLE), Ending::Error("gone (server_error)".into()));
    assert_eq!(ending(&[ERROR], WHOLE), Ending::Error("gone (server_error)".into()));
    let cut = || BodyEnd::Cut("reset".into());
    assert_eq!(ending(&[TEXT], cut()), Ending::Broken("reset".into()));
    assert_eq!(ending(&[TEXT, STOP], cut()), Ending::Broken("reset".into()));
    assert!(matches!(ending(&[TEXT, STOP, USAGE, DONE], cut()), Ending::Complete(_)));
}

#[test]
fn a_stream_that_was_cut_short_and_looks_complete_is_found() {
    let cases: [(&[&str], BodyEnd, &str); 6] = [
        (&[TEXT], WHOLE, "truncated: the stream ends like a complete one"),
        (&[], WHOLE, "truncated: the stream ends like a complete one"),
        (&[TEXT, STOP, USAGE], WHOLE, "without [DONE]"),
        (&[TEXT, DONE], WHOLE, "truncated: [DONE] before choice 0 has finished"),
        (&[TEXT], BodyEnd::Whole { left: 5 }, "truncated: the stream ends 5 bytes into an event"),
        (&[TEXT], BodyEnd::Late("no byte for 9 s".into()), "never ended: no byte for 9 s"),
    ];
    for (events, body, words) in cases {
        let found = wrong(events, body);
        assert!(found.contains(words), "{events:?}: {found}");
    }
}

#[test]
fn a_stream_that_ends_twice_or_goes_on_after_its_end_is_found() {
    let cases: [(&[&str], &str); 7] = [
        (&[STOP, USAGE, DONE, DONE], "an event after [DONE]: [DONE]"),
        (&[STOP, USAGE, DONE, ERROR], "an event after [DONE]"),
        (&[TEXT, ERROR, TEXT], "an event after the error"),
        (&[TEXT, ERROR, DONE], "an event after the error"),
        (&[STOP, TEXT], "choice 0 goes on after its finish_reason"),
        (&[STOP, STOP], "choice 0 goes on after its finish_reason"),
        (&[STOP, USAGE, USAGE], "a chunk after the usage"),
    ];
    for (events, words) in cases {
        let found = wrong(events, WHOLE);
        assert!(found.contains(words), "{events:?}: {found}");
    }
}

#[test]
fn what_a_chunk_must_have_is_asked_for() {
    let other_id = TEXT.replace(r#""id":"a""#, r#""id":"b""#);
    let other_choice = TEXT.replace(r#""index":0"#, r#""index":1"#);
    let bad_sum = USAGE.replace("3}", "4}");
    let cases: [(&[&str], &str); 8] = [
        (&[STOP, DONE], "[DONE] without the usage"),
        (&[TEXT, &other_id], "id \"b\" after \"a\""),
        (&[&other_choice], "a choice that was not asked for"),
        (&[TEXT, USAGE], "usage before choice 0 has finished"),
        (&[STOP, &bad_sum], "a usage that does not add up"),
        (&["{"], "an event that is not JSON"),
        (&["{}"], "a chunk without id"),
        (&[r#"{"error":"gone"}"#], "an error without message and type"),
    ];
    for (events, words) in cases {
        let found = wrong(events, WHOLE);
        assert!(found.contains(words), "{events:?}: {found}");
    }
}

#[test]
fn bytes_that_are_no_events_are_wrong() {
    let mut transcript = Transcript::new(1, false);
    transcript.garbage("no event");
    assert_eq!(transcript.end(WHOLE), Ending::Wrong("no event".into()));
}

#[test]
fn a_body_is_an_answer_an_error_a_refusal_or_wrong() {
    let choice = json!({ "index": 0, "text": "x", "finish_reason": "stop" });
    let usage = json!({ "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 });
    let end = |status, value: &Value| unary(status, value.to_string().as_bytes(), 1);
    let good = json!({ "choices": [choice], "usage": usage });
    assert!(matches!(end(200, &good), Ending::Complete(answer) if answer.choices[0].text == "x"));
    let error = json!({ "error": { "message": "m", "type": "t" } });
    assert_eq!(end(500, &error), Ending::Error("500: m (t)".into()));
    assert_eq!(end(503, &error), Ending::Refused("503: m (t)".into()));
    assert_eq!(end(429, &error), Ending::Refused("429: m (t)".into()));
    for bad in [
        json!({ "choices": [choice] }),
        json!({ "choices": [], "usage": usage }),
        json!({ "choices": [{ "index": 0, "text": "x" }], "usage": usage }),
        json!({ "choices": [{ "index": 1, "finish_reason": "stop" }], "usage": usage }),
        json!({}),
    ] {
        assert!(matches!(end(200, &bad), Ending::Wrong(_)), "{bad}");
    }
    assert!(matches!(end(500, &json!({})), Ending::Wrong(_)));
    assert!(matches!(unary(200, b"<html>", 1), Ending::Wrong(_)));
}

#[test]
fn log_probabilities_are_one_row_a_token_in_either_shape() {
    let chat = json!({ "logprobs": { "content": [{ "token": "a" }, { "token": "b" }] } });
    assert_eq!(logprobs(&chat), [json!({ "token": "a" }), json!({ "token": "b" })]);
    let columns = json!({ "logprobs": {
        "tokens": ["a"], "token_logprobs": [-1.5], "top_logprobs": [{ "a": -1.5 }], "text_offset": [0]
    } });
    assert_eq!(logprobs(&columns), [json!(["a", -1.5, { "a": -1.5 }, 0])]);
    assert!(logprobs(&json!({ "logprobs": null })).is_empty());
}
