//! Every request's way in and out: its id, its API key, its route, its count.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower::ServiceExt;

use super::errors::{ApiError, Problem};
use super::openai::Limits;
use super::pool::Pool;
use super::{auth, generate, info, json, random, read, tokenize};
use crate::actors::failure::Failure;
use crate::actors::handle::FrontendHandle;
use crate::config::Frontend;
use crate::metrics::Refusal;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client.
const MAX_REQUEST_ID: usize = 128;

/// The routes as the OpenAPI document names them; `{id}` stands for the rest of the path.
pub(super) const ROUTES: [(&str, &str); 12] = [
    ("/v1/chat/completions", "post"),
    ("/v1/completions", "post"),
    ("/v1/models", "get"),
    ("/v1/models/{id}", "get"),
    ("/health", "get"),
    ("/live", "get"),
    ("/metrics", "get"),
    ("/openapi.json", "get"),
    ("/tokenize", "post"),
    ("/detokenize", "post"),
    ("/cluster/tree", "get"),
    ("/debug/faults", "post"),
];
/// Open to everyone: probes, scrapers and readers of the API have no key.
const OPEN: [&str; 4] = ["/health", "/live", "/metrics", "/openapi.json"];

/// What all connections share.
pub(super) struct App {
    pub(super) handle: FrontendHandle,
    config: Frontend,
    faults_enabled: bool,
    pool: Pool,
}

impl App {
    pub(super) fn new(handle: FrontendHandle, config: Frontend, faults_enabled: bool) -> Self {
        let waiting = handle.metrics().http.tokenizer_queue.clone();
        let pool = Pool::new(
            config.tokenizer_threads,
            config.tokenizer_queue,
            config.retry_after,
            waiting,
        );
        Self { handle, config, faults_enabled, pool }
    }

    /// The routes over this state.
    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(generate::chat))
            .route("/v1/completions", post(generate::completion))
            .route("/v1/models", get(info::models))
            .route("/v1/models/{*id}", get(info::model))
            .route("/health", get(info::health))
            .route("/live", get(info::live))
            .route("/metrics", get(info::metrics))
            .route("/openapi.json", get(info::openapi))
            .route("/tokenize", post(tokenize::tokenize))
            .route("/detokenize", post(tokenize::detokenize))
            .route("/cluster/tree", get(info::tree))
            .route("/debug/faults", post(info::inject_fault))
            .fallback(async |uri: Uri| unknown_route(uri.path()))
            .method_not_allowed_fallback(wrong_method)
            .with_state(self.clone())
    }

    /// The section of the configuration that it goes by.
    pub(super) fn config(&self) -> &Frontend {
        &self.config
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { max_choices: self.config.max_choices }
    }

    pub(super) fn faults_enabled(&self) -> bool {
        self.faults_enabled
    }

    /// Refused before any work is done for it.
    pub(super) fn refuse_if_draining(&self) -> Result<(), ApiError> {
        if !self.handle.draining() {
            return Ok(());
        }
        self.handle.metrics().http.refused.inc(Refusal::Draining);
        Err(Failure::Draining { retry_after: self.config.retry_after }.into())
    }

    /// The request's JSON body.
    pub(super) async fn body(&self, request: Request) -> Result<Bytes, ApiError> {
        read::json(request, self.config.max_body_bytes, self.config.header_timeout).await
    }

    /// Runs `work` on the tokenizer's pool.
    pub(super) async fn on_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let result = self.pool.run(work).await;
        if let Err(Failure::TooManyRequests { .. }) = result {
            self.handle.metrics().http.refused.inc(Refusal::Tokenizer);
        }
        Ok(result?)
    }

    /// Answers one request, whatever happens on the way.
    pub(super) async fn answer(&self, router: &Router, request: Request) -> Response {
        let id = request_id(request.headers());
        let route = route_of(request.uri().path());
        let method = method_of(request.method());
        let mut response = match self.admit_key(route, request.headers()) {
            Ok(()) => caught(router.clone().oneshot(request)).await,
            Err(error) => error.into_response(),
        };
        self.count(route, method, &response);
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        if self.handle.draining() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn admit_key(&self, route: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        if OPEN.contains(&route) { Ok(()) } else { auth::check(&self.config.api_keys, headers) }
    }

    fn count(&self, route: &'static str, method: &'static str, response: &Response) {
        let http = &self.handle.metrics().http;
        http.answered(route, method, response.status().as_u16());
        let refusal = match response.extensions().get::<Problem>() {
            Some(Problem::Unauthorized) => Refusal::Unauthorized,
            Some(Problem::BodyTooLarge) => Refusal::Body,
            Some(Problem::BodyTimeout) => Refusal::SlowRequest,
            Some(_) if response.status() == StatusCode::BAD_REQUEST => Refusal::Invalid,
            _ => return,
        };
        http.refused.inc(refusal);
    }
}

/// A JSON body with status 200.
pub(super) fn json_response(value: &serde_json::Value) -> Response {
    let mut response = value.to_string().into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// No such path.
pub(super) fn unknown_route(path: &str) -> ApiError {
    let path = json::shortened(path, 100);
    let text = format!("there is nothing at {path}; GET /openapi.json lists what there is");
    ApiError::new(Problem::UnknownRoute, text)
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path = json::shortened(uri.path(), 100);
    let text = format!("{path} does not know {method}; the Allow header lists what it knows");
    ApiError::new(Problem::Method, text)
}

/// A panic becomes a 500; the future is never polled again after it.
async fn caught<F>(future: F) -> Response
where
    F: Future<Output = Result<Response, std::convert::Infallible>>,
{
    let mut future = std::pin::pin!(future);
    let outcome = std::future::poll_fn(|cx| {
        let poll = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match poll {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    });
    match outcome.await {
        Some(Ok(response)) => response,
        None => {
            ApiError::new(Problem::Internal, "internal error: the handler panicked").into_response()
        }
    }
}

/// The client's id for its request if it is fit for a header and a log line; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match headers.get(&REQUEST_ID).filter(fit) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&random::id("req-"))
            .unwrap_or_else(|_| HeaderValue::from_static("req")),
    }
}

/// The pattern that a path belongs to: metrics count patterns, paths are without number.
fn route_of(path: &str) -> &'static str {
    match ROUTES.iter().find(|(route, _)| *route == path) {
        Some((route, _)) => route,
        None if path.starts_with("/v1/models/") => "/v1/models/{id}",
        None => "other",
    }
}

fn method_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        _ => "other",
    }
}
