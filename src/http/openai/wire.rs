//! The JSON that all answers to one request share, rendered once and copied from then on.

use crate::actors::reply::{Finish, Usage};
use crate::http::json;

/// Shown to clients that ask which build answered.
const FINGERPRINT: &str = concat!("cuelight-", env!("CARGO_PKG_VERSION"));

/// Which endpoint an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// What stands at the top of every object of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// `chatcmpl-…` or `cmpl-…`.
    pub(crate) id: String,
    /// The name that was asked for.
    pub(crate) model: String,
    /// Unix seconds.
    pub(crate) created: u64,
}

impl Head {
    /// `{"id":…,"choices":[`, for an event or for the whole answer.
    pub(super) fn render(&self, out: &mut Vec<u8>, event: bool) {
        out.extend_from_slice(br#"{"id":"#);
        json::string(out, &self.id);
        out.extend_from_slice(match (self.kind, event) {
            (Kind::Chat, true) => br#","object":"chat.completion.chunk","created":"#,
            (Kind::Chat, false) => br#","object":"chat.completion","created":"#,
            (Kind::Completion, _) => br#","object":"text_completion","created":"#,
        });
        json::integer(out, self.created);
        out.extend_from_slice(br#","model":"#);
        json::string(out, &self.model);
        out.extend_from_slice(br#","system_fingerprint":""#);
        out.extend_from_slice(FINGERPRINT.as_bytes());
        out.extend_from_slice(br#"","choices":["#);
    }
}

/// OpenAI's word for why a choice ended.
pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) => "stop",
        Finish::Length => "length",
    }
}

/// `"usage":{…}`
pub(super) fn usage(out: &mut Vec<u8>, usage: &Usage) {
    let total = usage.prompt_tokens + usage.completion_tokens;
    for (name, number) in [
        (&br#""usage":{"prompt_tokens":"#[..], usage.prompt_tokens),
        (br#","completion_tokens":"#, usage.completion_tokens),
        (br#","total_tokens":"#, total),
        (br#","prompt_tokens_details":{"cached_tokens":"#, usage.cached_tokens),
    ] {
        out.extend_from_slice(name);
        json::integer(out, number);
    }
    out.extend_from_slice(b"}}");
}
