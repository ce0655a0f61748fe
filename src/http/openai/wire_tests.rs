//! Golden wire formats: what clients read, byte for byte.

use std::sync::Arc;

use expect_test::{Expect, expect};
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use super::{Head, Kind, StreamOptions, StreamReply, UnaryReply};
use crate::actors::failure::Failure;
use crate::actors::reply::{Delta, DeltaToken, Finish, Reply, Usage};
use crate::engine::{Candidate, TokenLogprobs};
use crate::http::outbox::outbox;
use crate::text::{TextLimits, TextModel};

const USAGE: Usage = Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: 4 };

fn head(kind: Kind) -> Head {
    Head { kind, id: "id".into(), model: "m\"1".into(), created: 7 }
}

fn text_model() -> Arc<TextModel> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cuelight-tiny");
    Arc::new(TextModel::load(&dir, TextLimits::default()).unwrap())
}

/// A token with the log probabilities -0.5 and, for another one, minus infinity.
fn token(text: &TextModel, token: &str, other: &str) -> DeltaToken {
    let id = |text_of: &str| text.encode(text_of, false).unwrap()[0];
    let candidates = [(id(token), -0.5), (id(other), f32::NEG_INFINITY)];
    let top = candidates.map(|(token, logprob)| Candidate { token, logprob }).to_vec();
    let logprobs = Some(Box::new(TokenLogprobs { chosen: -0.5, top }));
    DeltaToken { token: id(token), logprobs }
}

/// What a client reads of a stream during which `tell` is said.
fn streamed(
    kind: Kind,
    choices: usize,
    options: StreamOptions,
    tell: impl FnOnce(&mut StreamReply),
) -> String {
    let (outlet, outbox) = outbox(Gauge::default());
    let (begun, mut begins) = oneshot::channel();
    let mut reply = StreamReply::new(&head(kind), choices, options, outlet, begun);
    reply.accepted();
    tell(&mut reply);
    drop(reply);
    assert_eq!(begins.try_recv(), Ok(Ok(())));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(outbox.into_body(()).collect()).unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn text(choice: usize, text: &str) -> Delta<'_> {
    Delta { choice, text, tokens: &[] }
}

/// Compares, without the head that every event shares.
fn check(expected: Expect, stream: &str, kind: Kind) {
    let object = if kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
    let head = format!(
        r#"{{"id":"id","object":"{object}","created":7,"model":"m\"1","system_fingerprint":"cuelight-{}","choices":["#,
        env!("CARGO_PKG_VERSION")
    );
    expected.assert_eq(&stream.replace(&head, "{HEAD["));
}

#[test]
fn a_chat_stream_is_role_text_finish_usage_done() {
    let options = StreamOptions { include_usage: true, ..StreamOptions::default() };
    let stream = streamed(Kind::Chat, 2, options, |reply| {
        reply.delta(text(1, "a\n\"b\""));
        reply.delta(text(1, ""));
        reply.flush();
        reply.delta(text(1, "é"));
        reply.finished(1, Finish::StopString(0));
        reply.finished(0, Finish::Length);
        reply.done(&USAGE);
    });
    let expected = expect![[r#"
        data: {HEAD[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {HEAD[{"index":1,"delta":{"content":"a\n\"b\""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {HEAD[{"index":1,"delta":{"content":"é"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {HEAD[{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {HEAD[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {HEAD[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}

        data: {HEAD[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}

        data: [DONE]

    "#]];
    check(expected, &stream, Kind::Chat);
}

#[test]
fn a_completion_stream_begins_with_the_prompt_if_it_is_echoed() {
    let echo = Some(["p".to_owned(), "q".to_owned()].as_slice().into());
    let options = StreamOptions { echo, n: 2, ..StreamOptions::default() };
    let stream = streamed(Kind::Completion, 4, options, |reply| {
        reply.delta(text(2, "x"));
        reply.finished(2, Finish::Stop);
        reply.finished(1, Finish::Stop);
        reply.done(&USAGE);
    });
    let expected = expect![[r#"
        data: {HEAD[{"index":2,"text":"q","logprobs":null,"finish_reason":null}]}

        data: {HEAD[{"index":2,"text":"x","logprobs":null,"finish_reason":null}]}

        data: {HEAD[{"index":2,"text":"","logprobs":null,"finish_reason":"stop"}]}

        data: {HEAD[{"index":1,"text":"p","logprobs":null,"finish_reason":null}]}

        data: {HEAD[{"index":1,"text":"","logprobs":null,"finish_reason":"stop"}]}

        data: [DONE]

    "#]];
    check(expected, &stream, Kind::Completion);
}

#[test]
fn logprobs_have_the_shape_of_their_endpoint() {
    let model = text_model();
    let tokens = [token(&model, "the", "日"), token(&model, "日", "the")];
    for (kind, expected) in [
        (
            Kind::Chat,
            expect![[r#"
                data: {HEAD[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

                data: {HEAD[{"index":0,"delta":{"content":"the"},"logprobs":{"content":[{"token":"the","logprob":-0.5,"bytes":[116,104,101],"top_logprobs":[{"token":"the","logprob":-0.5,"bytes":[116,104,101]},{"token":"�","logprob":-9999,"bytes":[230]}]},{"token":"�","logprob":-0.5,"bytes":[230],"top_logprobs":[{"token":"�","logprob":-0.5,"bytes":[230]},{"token":"the","logprob":-9999,"bytes":[116,104,101]}]}],"refusal":null},"finish_reason":null}]}

                data: [DONE]

            "#]],
        ),
        (
            Kind::Completion,
            expect![[r#"
                data: {HEAD[{"index":0,"text":"the","logprobs":{"tokens":["the","bytes:\\xe6"],"token_logprobs":[-0.5,-0.5],"top_logprobs":[{"the":-0.5,"bytes:\\xe6":-9999},{"bytes:\\xe6":-0.5,"the":-9999}],"text_offset":[0,3]},"finish_reason":null}]}

                data: [DONE]

            "#]],
        ),
    ] {
        let options = StreamOptions { logprobs: Some(model.clone()), ..StreamOptions::default() };
        let stream = streamed(kind, 1, options, |reply| {
            reply.delta(Delta { choice: 0, text: "the", tokens: &tokens });
            reply.done(&USAGE);
        });
        check(expected, &stream, kind);
    }
}

#[test]
fn a_stream_that_breaks_ends_in_an_error_and_never_in_done() {
    let lost = Failure::RanksLost { times: 2, last: "x".into() };
    let failed = streamed(Kind::Chat, 1, StreamOptions::default(), |reply| {
        reply.delta(text(0, "a"));
        reply.failed(&lost);
    });
    let killed =
        streamed(Kind::Chat, 1, StreamOptions::default(), |reply| reply.delta(text(0, "a")));
    for (stream, code) in [(failed, "ranks_lost"), (killed, "internal_error")] {
        let last = stream.trim_end().rsplit("\n\n").next().unwrap();
        assert!(last.starts_with("data: {\"error\":{\"message\":"), "{last}");
        assert!(last.contains(&format!("\"code\":\"{code}\"")), "{last}");
        assert!(!stream.contains("[DONE]"), "{stream}");
    }
}

#[test]
fn a_request_that_fails_before_it_is_accepted_says_so_instead_of_streaming() {
    for killed in [false, true] {
        let (outlet, outbox) = outbox(Gauge::default());
        let (begun, mut begins) = oneshot::channel();
        let options = StreamOptions::default();
        let mut reply = StreamReply::new(&head(Kind::Chat), 1, options, outlet, begun);
        if !killed {
            reply.failed(&Failure::Internal("on purpose"));
        }
        drop(reply);
        assert!(matches!(begins.try_recv(), Ok(Err(Failure::Internal(_)))));
        assert!(http_body::Body::is_end_stream(&outbox.into_body(())));
    }
}

/// The body of a unary answer during which `tell` is said; `None` if there is none.
fn answered(
    kind: Kind,
    logprobs: Option<Arc<TextModel>>,
    echo: Option<&[String]>,
    tell: impl FnOnce(&mut UnaryReply),
) -> Option<Result<String, Failure>> {
    let (answered, mut answer) = oneshot::channel();
    let mut reply = UnaryReply::new(head(kind), 2, 2, logprobs, echo, None, answered);
    reply.accepted();
    tell(&mut reply);
    drop(reply);
    let answer = answer.try_recv().ok()?;
    Some(answer.map(|body| String::from_utf8(body).unwrap()))
}

fn tell_two_choices(reply: &mut UnaryReply, tokens: &[DeltaToken]) {
    reply.delta(Delta { choice: 0, text: "a\"", tokens });
    reply.delta(text(1, "b"));
    reply.delta(text(0, "c"));
    reply.finished(0, Finish::Stop);
    reply.finished(1, Finish::Length);
    reply.done(&USAGE);
}

#[test]
fn a_unary_answer_has_every_choice_and_the_usage() {
    let body = answered(Kind::Chat, None, None, |reply| tell_two_choices(reply, &[]));
    expect![[r#"{"id":"id","object":"chat.completion","created":7,"model":"m\"1","system_fingerprint":"cuelight-0.1.0","choices":[{"index":0,"message":{"role":"assistant","content":"a\"c","refusal":null},"logprobs":null,"finish_reason":"stop"},{"index":1,"message":{"role":"assistant","content":"b","refusal":null},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#]]
        .assert_eq(&body.unwrap().unwrap());
    let echo = ["p: ".to_owned()];
    let body = answered(Kind::Completion, None, Some(&echo), |reply| tell_two_choices(reply, &[]));
    expect![[r#"{"id":"id","object":"text_completion","created":7,"model":"m\"1","system_fingerprint":"cuelight-0.1.0","choices":[{"index":0,"text":"p: a\"c","logprobs":null,"finish_reason":"stop"},{"index":1,"text":"p: b","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#]]
        .assert_eq(&body.unwrap().unwrap());
}

#[test]
fn a_unary_answer_with_logprobs_is_valid_json() {
    let model = text_model();
    let tokens = [token(&model, "the", "日"), token(&model, " of", "the")];
    for kind in [Kind::Chat, Kind::Completion] {
        let body =
            answered(kind, Some(model.clone()), None, |reply| tell_two_choices(reply, &tokens));
        let body: serde_json::Value = serde_json::from_str(&body.unwrap().unwrap()).unwrap();
        let logprobs = |i: usize| &body["choices"][i]["logprobs"];
        let column = if kind == Kind::Chat { "content" } else { "tokens" };
        assert_eq!(logprobs(0)[column].as_array().unwrap().len(), 2, "{kind:?}");
        assert_eq!(logprobs(1)[column].as_array().unwrap().len(), 0, "{kind:?}");
    }
}

#[test]
fn a_unary_request_that_is_killed_has_no_answer() {
    assert_eq!(answered(Kind::Chat, None, None, |reply| reply.delta(text(0, "a"))), None);
    let failure = Failure::Internal("on purpose");
    let failed = answered(Kind::Chat, None, None, |reply| reply.failed(&failure));
    assert_eq!(failed, Some(Err(failure)));
}
