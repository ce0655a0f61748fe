//! Requests over a connection of their own: what breaks one breaks no other.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Largest body that is read whole: a tree of very many actors.
const LARGEST: usize = 64 << 20;
/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(3);

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The listener.
    pub(crate) address: SocketAddr,
    /// An API key, if the node asks for one.
    pub(crate) key: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody accepts connections.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// The connection ended before the head of an answer.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It ended in the middle of one.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// It took too long.
    #[error("no end within {0} ms")]
    Late(u128),
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Whether there is a `Retry-After`.
    pub(crate) retry_after: bool,
    /// Whether the body is a stream of events.
    pub(crate) events: bool,
}

/// The body of an answer, part by part. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Body {
    incoming: Incoming,
    connection: JoinHandle<()>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Body {
    /// The next part; `None` after a proper end.
    pub(crate) async fn part(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.incoming.frame().await {
            let frame = frame.map_err(|error| ClientError::Broken(cause(&error)))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// All that is left, up to a limit.
    pub(crate) async fn rest(mut self) -> Result<Bytes, ClientError> {
        let whole = Limited::new(&mut self.incoming, LARGEST).collect().await;
        whole.map(|body| body.to_bytes()).map_err(|error| ClientError::Broken(error.to_string()))
    }
}

/// Sends a request and waits for the head of its answer. A `small` client takes little at a time.
pub(crate) async fn open(
    to: &Endpoint,
    path: &str,
    json: Option<&str>,
    small: bool,
) -> Result<(Head, Body), ClientError> {
    let no_connection =
        |error: &dyn std::fmt::Display| ClientError::NoConnection(error.to_string());
    let socket = if to.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| no_connection(&error))?;
    if small {
        socket.set_recv_buffer_size(4096).map_err(|error| no_connection(&error))?;
    }
    let stream = timeout(CONNECT, socket.connect(to.address)).await;
    let stream = stream.map_err(|_| no_connection(&"not accepted in time"))?;
    let stream = stream.map_err(|error| no_connection(&error))?;
    let _ = stream.set_nodelay(true); // only a matter of speed
    let mut builder = hyper::client::conn::http1::Builder::new();
    if small {
        builder.max_buf_size(8192);
    }
    let shaken = builder.handshake(TokioIo::new(stream)).await;
    let no_answer = |error: hyper::Error| ClientError::NoAnswer(cause(&error));
    let (mut sender, connection) = shaken.map_err(no_answer)?;
    let connection = tokio::spawn(async move {
        let _ = connection.await; // how it ends shows in the answer
    });
    let response = sender.send_request(request(to, path, json)).await;
    let response = response.inspect_err(|_| connection.abort()).map_err(no_answer)?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let head = Head {
        status: response.status().as_u16(),
        retry_after: header("retry-after").is_some(),
        events: header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")),
    };
    Ok((head, Body { incoming: response.into_body(), connection }))
}

fn request(to: &Endpoint, path: &str, json: Option<&str>) -> hyper::Request<Full<Bytes>> {
    let method = if json.is_some() { "POST" } else { "GET" };
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.address.to_string())
        .header("content-type", "application/json");
    if let Some(key) = &to.key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let body = Full::new(Bytes::copy_from_slice(json.unwrap_or_default().as_bytes()));
    request.body(body).unwrap_or_else(|_| hyper::Request::new(Full::default()))
}

/// The innermost reason; hyper's own text is short of it.
fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        text = format!("{text}: {error}");
        inner = error.source();
    }
    text
}

/// A whole GET.
pub(crate) async fn get(
    to: &Endpoint,
    path: &str,
    limit: Duration,
) -> Result<(u16, Bytes), ClientError> {
    whole(to, path, None, limit).await
}

/// A whole POST.
pub(crate) async fn post(
    to: &Endpoint,
    path: &str,
    json: &str,
    limit: Duration,
) -> Result<(u16, Bytes), ClientError> {
    whole(to, path, Some(json), limit).await
}

async fn whole(
    to: &Endpoint,
    path: &str,
    json: Option<&str>,
    limit: Duration,
) -> Result<(u16, Bytes), ClientError> {
    let answer = async {
        let (head, body) = open(to, path, json, false).await?;
        Ok((head.status, body.rest().await?))
    };
    timeout(limit, answer).await.unwrap_or(Err(ClientError::Late(limit.as_millis())))
}
