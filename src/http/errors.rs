//! Errors in OpenAI's shape, and the one table that maps every problem to its status.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::json;
use crate::actors::failure::{self, Failure};
use crate::engine::{EngineError, Reach};

/// Everything that can be wrong with a request or its fate, one row of the table each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The body is not a JSON object.
    MalformedBody,
    /// A parameter that is needed is absent.
    Missing,
    /// A parameter is of the wrong JSON type.
    WrongType,
    /// A parameter is outside its range, or contradicts another one.
    InvalidValue,
    /// A parameter asks for what this server does not do.
    Unsupported,
    /// Prompt and output together are longer than the model's context.
    ContextLength,
    /// No API key, or an unknown one.
    Unauthorized,
    /// No model has this name.
    UnknownModel,
    /// No such path.
    UnknownRoute,
    /// The path does not know this method.
    Method,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The body is larger than `frontend.max_body_bytes`.
    BodyTooLarge,
    /// The body is not declared as JSON.
    ContentType,
    /// A limit of this node; try again later.
    TooManyRequests,
    /// The client did not read its stream.
    SlowClient,
    /// This node's own fault.
    Internal,
    /// No rank can serve the model now.
    NotReady,
    /// This node is going away.
    Draining,
    /// The request lost its rank too often.
    RanksLost,
    /// The request lived longer than `frontend.request_timeout_s`.
    TimedOut,
}

impl Problem {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 20] = [
        Self::MalformedBody,
        Self::Missing,
        Self::WrongType,
        Self::InvalidValue,
        Self::Unsupported,
        Self::ContextLength,
        Self::Unauthorized,
        Self::UnknownModel,
        Self::UnknownRoute,
        Self::Method,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::ContentType,
        Self::TooManyRequests,
        Self::SlowClient,
        Self::Internal,
        Self::NotReady,
        Self::Draining,
        Self::RanksLost,
        Self::TimedOut,
    ];

    /// The status table: status, `type` and `code`. No wildcard arm: a new problem must choose.
    pub fn row(self) -> (StatusCode, &'static str, &'static str) {
        const CLIENT: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::MalformedBody => (StatusCode::BAD_REQUEST, CLIENT, "invalid_body"),
            Self::Missing => (StatusCode::BAD_REQUEST, CLIENT, "missing_required_parameter"),
            Self::WrongType => (StatusCode::BAD_REQUEST, CLIENT, "invalid_type"),
            Self::InvalidValue => (StatusCode::BAD_REQUEST, CLIENT, "invalid_value"),
            Self::Unsupported => (StatusCode::BAD_REQUEST, CLIENT, "unsupported_value"),
            Self::ContextLength => (StatusCode::BAD_REQUEST, CLIENT, "context_length_exceeded"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, CLIENT, "invalid_api_key"),
            Self::UnknownModel => (StatusCode::NOT_FOUND, CLIENT, "model_not_found"),
            Self::UnknownRoute => (StatusCode::NOT_FOUND, CLIENT, "unknown_url"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, CLIENT, "method_not_allowed"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, CLIENT, "body_timeout"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, CLIENT, "body_too_large"),
            Self::ContentType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, CLIENT, "unsupported_content_type")
            }
            Self::TooManyRequests => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded")
            }
            Self::SlowClient => (StatusCode::REQUEST_TIMEOUT, CLIENT, "client_too_slow"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "model_not_ready"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining"),
            Self::RanksLost => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "ranks_lost"),
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, SERVER, "request_timeout"),
        }
    }
}

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Which row of the table.
    pub problem: Problem,
    /// For people: names the thing, shows the value, says what to do.
    pub message: String,
    /// The parameter at fault, e.g. `messages[0].role`.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error without a parameter.
    pub fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into(), param: None, retry_after: None }
    }

    /// An error of one parameter.
    pub fn of(problem: Problem, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { problem, message: message.into(), param: Some(param.into()), retry_after: None }
    }

    /// No model is served under this name.
    pub(super) fn unknown_model(name: &str) -> Self {
        let name = json::shortened(name, 100);
        Self::of(
            Problem::UnknownModel,
            "model",
            format!("model {name} is not served here; GET /v1/models lists what is"),
        )
    }

    /// `{"error":{…}}`, appended to `out`.
    pub(super) fn render(&self, out: &mut Vec<u8>) {
        let (_, kind, code) = self.problem.row();
        out.extend_from_slice(br#"{"error":{"message":""#);
        json::escape(out, &self.message);
        out.extend_from_slice(br#"","type":""#);
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(br#"","param":"#);
        match &self.param {
            Some(param) => json::string(out, param),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","code":""#);
        out.extend_from_slice(code.as_bytes());
        out.extend_from_slice(br#""}}"#);
    }
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        let (problem, retry_after) = match failure {
            Failure::Rejected(error) => (rejected(error), None),
            Failure::UnknownRank { .. } => (Problem::InvalidValue, None),
            Failure::RankNeeded { .. } => (Problem::Missing, None),
            Failure::TooManyRequests { retry_after, .. } => {
                (Problem::TooManyRequests, Some(*retry_after))
            }
            Failure::NotReady { retry_after, .. } => (Problem::NotReady, Some(*retry_after)),
            Failure::Draining { retry_after } => (Problem::Draining, Some(*retry_after)),
            Failure::RanksLost { .. } => (Problem::RanksLost, None),
            Failure::TimedOut { .. } => (Problem::TimedOut, None),
            Failure::SlowClient { .. } => (Problem::SlowClient, None),
            Failure::Internal(_) => (Problem::Internal, None),
        };
        let of_rank = matches!(failure, Failure::UnknownRank { .. } | Failure::RankNeeded { .. });
        let param = of_rank.then(|| "rank".to_owned());
        Self { problem, message: failure.to_string(), param, retry_after }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::from(&failure)
    }
}

fn rejected(error: &EngineError) -> Problem {
    match error {
        EngineError::PromptTooLong { .. } | EngineError::PoolTooSmall { .. } => {
            Problem::ContextLength
        }
        // The request's own end, but nothing its client could have known.
        EngineError::BadNumbers { .. } => Problem::Internal,
        other => match other.reach() {
            Reach::Request => Problem::InvalidValue,
            Reach::Retry => Problem::TooManyRequests,
            Reach::Engine => Problem::RanksLost,
        },
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, ..) = self.problem.row();
        let mut body = Vec::with_capacity(128 + self.message.len());
        self.render(&mut body);
        let mut response = (status, body).into_response();
        response.extensions_mut().insert(self.problem);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, failure::seconds(after).into());
        }
        if self.problem == Problem::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn rendered(error: &ApiError) -> String {
        let mut out = Vec::new();
        error.render(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_error_has_openais_shape() {
        let error = ApiError::of(Problem::WrongType, "temperature", "temperature = \"hot\": no");
        expect![[r#"{"error":{"message":"temperature = \"hot\": no","type":"invalid_request_error","param":"temperature","code":"invalid_type"}}"#]]
            .assert_eq(&rendered(&error));
        let error = ApiError::new(Problem::UnknownRoute, "no route");
        expect![[r#"{"error":{"message":"no route","type":"invalid_request_error","param":null,"code":"unknown_url"}}"#]]
            .assert_eq(&rendered(&error));
    }

    #[test]
    fn every_failure_has_its_status_and_its_advice() {
        let s = Duration::from_secs;
        let model = || "m".to_owned();
        let cases = [
            (Failure::Rejected(EngineError::EmptyPrompt), 400, None),
            (Failure::Rejected(EngineError::PromptTooLong { tokens: 9, context: 8 }), 400, None),
            (Failure::Rejected(EngineError::BadNumbers { what: "a NaN".into() }), 500, None),
            (Failure::Rejected(EngineError::QueueFull { waiting: 1, limit: 1 }), 429, None),
            (
                Failure::TooManyRequests { what: "x", current: 1, limit: 1, retry_after: s(2) },
                429,
                Some("2"),
            ),
            (
                Failure::NotReady { model: model(), reason: model(), retry_after: s(0) },
                503,
                Some("1"),
            ),
            (Failure::Draining { retry_after: s(5) }, 503, Some("5")),
            (Failure::UnknownRank { rank: model(), known: model() }, 400, None),
            (Failure::RankNeeded { known: model() }, 400, None),
            (Failure::RanksLost { times: 3, last: model() }, 503, None),
            (Failure::TimedOut { after: s(600) }, 504, None),
            (Failure::SlowClient { unread: 2, limit: 1 }, 408, None),
            (Failure::Internal("x"), 500, None),
        ];
        for (failure, status, retry_after) in cases {
            let response = ApiError::from(&failure).into_response();
            assert_eq!(response.status(), status, "{failure:?}");
            let header = response.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap());
            assert_eq!(header, retry_after, "{failure:?}");
        }
    }
}
