//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::app::App;
use super::auth;
use super::errors::{ApiError, Problem};
use super::openai::{Head, Kind, Limits, StreamOptions, StreamReply, Told, UnaryReply};
use super::outbox::outbox;
use super::prepare::{self, Job};
use super::random;
use crate::actors::failure::Failure;
use crate::actors::handle::FrontendHandle;
use crate::actors::reply::{NewRequest, Reply, Wishes};

/// Longer bodies are parsed and tokenized on the pool: about a millisecond of work.
const INLINE_BYTES: usize = 4 << 10;

/// The rank that a client wants.
const RANK_HEADER: &str = "x-cuelight-rank";
/// The session that a request belongs to.
const SESSION_HEADER: &str = "x-cuelight-session";

type Prepare = fn(&FrontendHandle, &[u8], Limits) -> Result<Job, ApiError>;

pub(super) async fn chat(app: State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(&app, request, prepare::chat).await
}

pub(super) async fn completion(
    app: State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&app, request, prepare::completion).await
}

async fn answer(app: &App, request: Request, prepare: Prepare) -> Result<Response, ApiError> {
    app.refuse_if_draining()?;
    let rank = text_header(&request, RANK_HEADER)?;
    let session = text_header(&request, SESSION_HEADER)?;
    let tenant = auth::tenant(request.headers());
    let body = app.body(request).await?;
    let mut job = job(app, body, prepare).await?;
    job.common.rank = rank.or(job.common.rank);
    job.common.session = session.or(job.common.session);
    job.tenant = tenant;
    let head = Head {
        kind: job.kind,
        id: random::id(match job.kind {
            Kind::Chat => "chatcmpl-",
            Kind::Completion => "cmpl-",
        }),
        model: job.model.name.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    if job.common.stream { stream(app, job, head).await } else { unary(app, job, head).await }
}

/// What the client wants of the router and says in a header: that goes over the body.
fn text_header(request: &Request, name: &str) -> Result<Option<String>, ApiError> {
    let Some(value) = request.headers().get(name) else { return Ok(None) };
    let text = value.to_str().map_err(|_| {
        ApiError::of(Problem::InvalidValue, name, format!("{name}: must be visible ASCII text"))
    })?;
    Ok(Some(text.to_owned()))
}

async fn job(app: &App, body: Bytes, prepare: Prepare) -> Result<Job, ApiError> {
    let limits = app.limits();
    if body.len() <= INLINE_BYTES {
        return prepare(&app.handle, &body, limits);
    }
    let handle = app.handle.clone();
    app.on_pool(move || prepare(&handle, &body, limits)).await?
}

/// One body, once the answer is whole. Dropped before that (the client is gone), it takes its guard
/// along, and so cancels the request.
async fn unary(app: &App, job: Job, head: Head) -> Result<Response, ApiError> {
    let (answered, answer) = oneshot::channel();
    let logprobs = job.sampling.logprobs.is_some().then(|| job.model.text.clone());
    let choices = job.prompts.len() * job.common.n;
    let id = head.id.clone();
    let echo = job.echo.as_deref();
    let told = Told::new(choices, job.common.return_ranks, job.common.explain_routing);
    let reply = UnaryReply::new(head, choices, job.common.n, logprobs, echo, told, answered);
    let _guard = app.handle.admit(new_request(job, id, Box::new(reply))?).await?;
    let body = answer.await.unwrap_or(Err(DROPPED))?;
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// Events as they come; the status waits until a rank has taken the request.
async fn stream(app: &App, job: Job, head: Head) -> Result<Response, ApiError> {
    let (outlet, outbox) = outbox(app.handle.metrics().http.stream_backlog_bytes.clone());
    let (begun, begins) = oneshot::channel();
    let options = StreamOptions {
        include_usage: job.common.include_usage,
        ranks: job.common.return_ranks,
        routing: job.common.explain_routing,
        logprobs: job.sampling.logprobs.is_some().then(|| job.model.text.clone()),
        echo: job.echo.clone(),
        n: job.common.n,
    };
    let choices = job.prompts.len() * job.common.n;
    let reply = StreamReply::new(&head, choices, options, outlet, begun);
    let guard = app.handle.admit(new_request(job, head.id, Box::new(reply))?).await?;
    begins.await.unwrap_or(Err(DROPPED))?;
    let mut response = Response::new(Body::new(outbox.into_body(guard)));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies such as nginx would hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// The request's actor ended without a word.
const DROPPED: Failure = Failure::Internal("the request was stopped before it was answered");

fn new_request(job: Job, public_id: String, reply: Box<dyn Reply>) -> Result<NewRequest, ApiError> {
    let stop = job.model.text.stop_strings(&job.common.stop);
    Ok(NewRequest {
        stop: stop
            .map_err(|error| ApiError::of(Problem::InvalidValue, "stop", error.to_string()))?,
        model: job.model,
        prompts: job.prompts,
        n: job.common.n,
        max_tokens: job.max_tokens,
        sampling: job.sampling,
        include_stop: job.common.include_stop,
        skip_special_tokens: job.common.skip_special_tokens,
        salt: job.common.salt,
        wishes: Wishes {
            tell_ranks: job.common.return_ranks,
            explain: job.common.explain_routing,
            rank: job.common.rank,
            session: job.common.session.map(|session| xxh3_64(session.as_bytes())),
            tenant: job.tenant,
            priority: job.common.priority,
        },
        public_id,
        reply,
    })
}
