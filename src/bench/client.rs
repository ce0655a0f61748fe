//! A client for HTTP/1.1 over kept connections, with one buffer for all of them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::{Head, Response};

/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(10);
/// What is read at once, at most.
const READ_BYTES: usize = 64 << 10;

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The server sent something that is not HTTP, or not a stream of events.
    #[error("{0}")]
    Protocol(String),
    /// A status other than 200.
    #[error("{1}")]
    Status(u16, String),
    /// An event in the stream says so.
    #[error("{0}")]
    ErrorEvent(String),
    /// The stream ended before `[DONE]`.
    #[error("{0}")]
    Truncated(&'static str),
    /// It took too long.
    #[error("no end within {0} s")]
    Timeout(u64),
}

impl Failure {
    /// What failures are counted by.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Connection(_) => "connection".into(),
            Self::Protocol(_) => "protocol".into(),
            Self::Status(status, _) => format!("http_{status}"),
            Self::ErrorEvent(_) => "error_event".into(),
            Self::Truncated(_) => "truncated".into(),
            Self::Timeout(_) => "timeout".into(),
        }
    }
}

/// Takes an answer as it comes.
pub(super) trait Sink {
    /// Part of the body; what one read brought comes in one piece or more.
    fn body(&mut self, head: &Head, bytes: &[u8]);
    /// All that a read brought has been handed out.
    fn read(&mut self, now: Instant);
}

impl Sink for Vec<u8> {
    fn body(&mut self, _: &Head, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn read(&mut self, _: Instant) {}
}

/// Connections to one server.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    /// Open and unused; the last one used comes first.
    idle: RefCell<Vec<TcpStream>>,
    buffer: RefCell<Box<[u8]>>,
}

impl Client {
    /// A client of the first of these addresses that accepts a connection, which is kept.
    pub(super) async fn reach(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let stream = connect(addresses).await?;
        let address = stream.peer_addr().map_err(|error| Failure::Connection(error.to_string()))?;
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self { address, idle: RefCell::new(vec![stream]), buffer: RefCell::new(buffer) })
    }

    /// Sends a request and hands its answer to `sink`. The server may close a connection that is not in
    /// use; a request that meets this is sent again on a new one.
    pub(super) async fn exchange(
        &self,
        request: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Head, Failure> {
        let kept = self.idle.borrow_mut().pop();
        if let Some(stream) = kept {
            let mut response = Response::new();
            match self.on(stream, request, &mut response, sink).await {
                Err(Failure::Connection(_)) if response.untouched() => {}
                other => return other,
            }
        }
        let stream = connect(&[self.address]).await?;
        self.on(stream, request, &mut Response::new(), sink).await
    }

    async fn on(
        &self,
        mut stream: TcpStream,
        request: &[u8],
        response: &mut Response,
        sink: &mut impl Sink,
    ) -> Result<Head, Failure> {
        let broke =
            |error: std::io::Error| Failure::Connection(format!("connection broke: {error}"));
        stream.write_all(request).await.map_err(broke)?;
        while !response.ended() {
            if !self.read(&mut stream, response, sink).await? {
                if response.close() {
                    break;
                }
                let when =
                    if response.head().is_some() { "in the answer" } else { "before the answer" };
                return Err(Failure::Connection(format!("connection closed {when}")));
            }
        }
        let head = *response.head().unwrap_or(&Head::default());
        if !head.closes {
            self.idle.borrow_mut().push(stream);
        }
        Ok(head)
    }

    /// One read; false when the connection has ended.
    async fn read(
        &self,
        stream: &mut TcpStream,
        response: &mut Response,
        sink: &mut impl Sink,
    ) -> Result<bool, Failure> {
        // The buffer is borrowed only while it is filled and read, never across a wait.
        poll_fn(|cx| {
            let mut buffer = self.buffer.borrow_mut();
            let mut read = ReadBuf::new(&mut buffer);
            let done = ready!(Pin::new(&mut *stream).poll_read(cx, &mut read));
            Poll::Ready(match done {
                Err(error) => Err(Failure::Connection(format!("connection broke: {error}"))),
                Ok(()) if read.filled().is_empty() => Ok(false),
                Ok(()) => {
                    let fed =
                        response.feed(read.filled(), &mut |head, bytes| sink.body(head, bytes));
                    sink.read(Instant::now());
                    fed.map(|()| true).map_err(|error| Failure::Protocol(error.to_string()))
                }
            })
        })
        .await
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
    let failed = |why: String| Failure::Connection(format!("no connection: {why}"));
    let stream = timeout(CONNECT, TcpStream::connect(addresses)).await;
    let stream = stream.map_err(|_| failed(format!("not within {} s", CONNECT.as_secs())))?;
    let stream = stream.map_err(|error| failed(error.to_string()))?;
    let _ = stream.set_nodelay(true); // only a matter of speed
    Ok(stream)
}
