//! A client of etcd's JSON gateway: calls with a deadline, at the first endpoint that answers.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes as Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::wire::{Lines, Refusal, Streamed, Watched};

/// Bytes of one answer, and of one line of a stream.
const MAX_ANSWER: usize = 16 << 20;
/// gRPC's "not found": the lease that was named is gone.
const NOT_FOUND: u32 = 5;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error("no etcd endpoint is configured; list at least one")]
    NoEndpoint,
    #[error("the etcd endpoint {endpoint:?} is not http://host:port; correct it")]
    NotAnEndpoint { endpoint: Arc<str> },
    #[error("etcd at {endpoint} cannot be reached: {source}; check that it runs and the network")]
    Unreachable { endpoint: Arc<str>, source: io::Error },
    #[error("etcd at {endpoint} did not answer within {patience:?}; check its load and its disk")]
    Late { endpoint: Arc<str>, patience: Duration },
    #[error("the connection to etcd at {endpoint} was lost: {why}")]
    Lost { endpoint: Arc<str>, why: String },
    #[error("etcd at {endpoint} refused: {message} (gRPC code {code})")]
    Refused { endpoint: Arc<str>, code: u32, message: String },
    #[error(
        "what answers at {endpoint} is not etcd's API v3: {why}; check the endpoint and that etcd \
         is 3.4 or later"
    )]
    Foreign { endpoint: Arc<str>, why: String },
}

impl GatewayError {
    /// Whether the lease that was named is gone.
    pub(super) fn is_lease_gone(&self) -> bool {
        matches!(self, Self::Refused { code: NOT_FOUND, .. })
    }
}

/// Knows the endpoints, and which of them answered last.
pub(super) struct Gateway {
    endpoints: Vec<Arc<str>>,
    preferred: AtomicUsize,
    /// Longest wait for one endpoint.
    patience: Duration,
}

impl Gateway {
    pub(super) fn new(endpoints: Vec<String>, patience: Duration) -> Self {
        let endpoints = endpoints.into_iter().map(Arc::from).collect();
        Self { endpoints, preferred: AtomicUsize::new(0), patience }
    }

    /// One question, one answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Value,
    ) -> Result<T, GatewayError> {
        let answered = self.first_that(|endpoint| async move {
            let (answer, _driver) = ask(&endpoint, path, question).await?;
            let bytes = whole(&endpoint, answer).await?;
            Ok((endpoint, bytes))
        });
        let (endpoint, bytes) = answered.await?;
        serde_json::from_slice(&bytes).map_err(|error| foreign(&endpoint, &bytes, &error))
    }

    /// Opens a watch; the answer has begun, and goes on in lines.
    pub(super) async fn watch(&self, question: &Value) -> Result<Watch, GatewayError> {
        let opened = self.first_that(|endpoint| async move {
            let (answer, driver) = ask(&endpoint, "/v3/watch", question).await?;
            let (body, lines) = (answer.into_body(), Lines::new(MAX_ANSWER));
            Ok(Watch { endpoint, body, lines, _driver: driver })
        });
        opened.await
    }

    /// Tries the endpoints in turn, from the one that answered last.
    async fn first_that<T, F>(&self, attempt: impl Fn(Arc<str>) -> F) -> Result<T, GatewayError>
    where
        F: Future<Output = Result<T, GatewayError>>,
    {
        let first = self.preferred.load(Relaxed);
        let mut failure = GatewayError::NoEndpoint;
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let late =
                || GatewayError::Late { endpoint: endpoint.clone(), patience: self.patience };
            let tried = timeout(self.patience, attempt(endpoint.clone())).await;
            match tried.unwrap_or_else(|_| Err(late())) {
                Err(error) if !error.is_lease_gone() => failure = error,
                answered => {
                    self.preferred.store(index, Relaxed);
                    return answered;
                }
            }
        }
        Err(failure)
    }
}

/// Changes as they happen.
pub(super) struct Watch {
    endpoint: Arc<str>,
    body: Incoming,
    lines: Lines,
    /// Ends the connection when dropped.
    _driver: JoinSet<()>,
}

impl Watch {
    /// Waits for the next line.
    pub(super) async fn next(&mut self) -> Result<Watched, GatewayError> {
        let endpoint = &self.endpoint;
        let lost = |why: &str| GatewayError::Lost { endpoint: endpoint.clone(), why: why.into() };
        loop {
            if let Some(line) = self.lines.pop() {
                return match serde_json::from_slice(&line) {
                    Ok(Streamed::Result(watched)) => Ok(watched),
                    Ok(Streamed::Error(refusal)) => Err(refused(endpoint, refusal)),
                    Err(error) => Err(foreign(endpoint, &line, &error)),
                };
            }
            let frame = self.body.frame().await.ok_or_else(|| lost("it ended the watch"))?;
            let frame = frame.map_err(|error| lost(&reason(&error)))?;
            if let Some(bytes) = frame.data_ref()
                && !self.lines.push(bytes)
            {
                return Err(lost(&format!("a line of more than {MAX_ANSWER} bytes")));
            }
        }
    }
}

/// Sends a question on a connection of its own; the connection ends with what drives it.
async fn ask(
    endpoint: &str,
    path: &str,
    question: &Value,
) -> Result<(Response<Incoming>, JoinSet<()>), GatewayError> {
    let not_one = || GatewayError::NotAnEndpoint { endpoint: endpoint.into() };
    let lost =
        |error: hyper::Error| GatewayError::Lost { endpoint: endpoint.into(), why: reason(&error) };
    let uri: Uri = endpoint.parse().map_err(|_| not_one())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(not_one)?.as_str();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Frame::from(question.to_string())))
        .map_err(|_| not_one())?;
    let stream = TcpStream::connect(authority)
        .await
        .map_err(|source| GatewayError::Unreachable { endpoint: endpoint.into(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let mut driver = JoinSet::new();
    // Its errors reach the request or the body.
    driver.spawn(async move { drop(connection.await) });
    let answer = sender.send_request(request).await.map_err(lost)?;
    if answer.status().is_success() {
        return Ok((answer, driver));
    }
    let status = answer.status();
    let bytes = whole(endpoint, answer).await?;
    // etcd's refusals are JSON objects; a proxy's are not.
    Err(match serde_json::from_slice::<Refusal>(&bytes) {
        Ok(refusal) if refusal.code != 0 => refused(endpoint, refusal),
        _ => GatewayError::Foreign { endpoint: endpoint.into(), why: status.to_string() },
    })
}

async fn whole(endpoint: &str, answer: Response<Incoming>) -> Result<Frame, GatewayError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    body.map(|body| body.to_bytes())
        .map_err(|error| GatewayError::Lost { endpoint: endpoint.into(), why: error.to_string() })
}

fn refused(endpoint: &str, refusal: Refusal) -> GatewayError {
    let Refusal { code, message } = refusal;
    GatewayError::Refused { endpoint: endpoint.into(), code, message }
}

fn foreign(endpoint: &str, bytes: &[u8], error: &serde_json::Error) -> GatewayError {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    GatewayError::Foreign { endpoint: endpoint.into(), why: format!("{error} in {start:?}") }
}

/// The innermost cause: hyper's own text only says which part failed.
fn reason(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}
