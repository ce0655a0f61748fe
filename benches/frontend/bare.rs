//! The bare server: hyper and tokio writing the same SSE bytes, and nothing else.
//!
//! It reads the request body to its end, looks up `max_tokens` in it and answers with the events
//! that a chat stream has. Every token is an event of its own, made when it is due. Unpaced, all
//! tokens are there at once and hyper joins them into large writes; paced, each stream has its own
//! timer, so that every token is a wake-up and a write.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, Sleep};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Serves on a free loopback port until it is killed; prints the port on a line of its own.
///
/// # Errors
/// No runtime, no port.
pub(crate) fn serve(
    pace: Option<Duration>,
    threads: Option<usize>,
    one_buffer: bool,
) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads);
    }
    runtime.enable_all().build()?.block_on(async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        // The default of 128 would refuse the first SYN of a burst of clients, for a second.
        let listener = socket.listen(BACKLOG)?;
        crate::load::print_line(&listener.local_addr()?.port())?;
        // A task of its own: the blocked-on future runs outside the worker threads.
        tokio::spawn(accept(listener, pace, one_buffer)).await?
    })
}

async fn accept(listener: TcpListener, pace: Option<Duration>, one_buffer: bool) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, pace));
            let served = hyper::server::conn::http1::Builder::new()
                .writev(!one_buffer)
                .serve_connection(TokioIo::new(socket), service)
                .await;
            drop(served); // a client that hangs up is the usual end
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    pace: Option<Duration>,
) -> Result<Response<TokenBody>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let output = number_after(&body, b"\"max_tokens\":").unwrap_or(0);
    let prompt = memmem::find(&body, b"\"model\"").unwrap_or(0) as u32 / 6;
    let mut response = Response::new(TokenBody::new(prompt, output, pace));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn number_after(body: &[u8], key: &[u8]) -> Option<u32> {
    let from = memmem::find(body, key)? + key.len();
    let digits = body[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&body[from..from + digits]).ok()?.parse().ok()
}

/// What every event of a stream starts with: as long as the real one.
const HEAD: &[u8] = b"data: {\"id\":\"chatcmpl-018f6a1e5c7d7b3a9c0d1e2f3a4b5c6d\",\
\"object\":\"chat.completion.chunk\",\"created\":1795381857,\"model\":\"cuelight-tiny\",\
\"system_fingerprint\":\"cuelight-0.1.0\",\"choices\":[";
const ROLE: &[u8] = b"{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\
\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
const TEXT: &[u8] = b"{\"index\":0,\"delta\":{\"content\":\"";
const TEXT_END: &[u8] = b"\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
const FINISH: &[u8] =
    b"{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}],\
\"usage\":null}\n\n";
const TEXTS: [&[u8]; 8] =
    [b" the", b" of", b" Lisbon", b" river", b"s", b" and", b" meadow", b" a"];

/// The events of one stream, made one by one.
struct TokenBody {
    next: u32,
    output: u32,
    prompt: u32,
    timer: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl TokenBody {
    fn new(prompt: u32, output: u32, pace: Option<Duration>) -> Self {
        let timer = pace.map(|pace| (Box::pin(tokio::time::sleep(pace)), pace));
        Self { next: 0, output, prompt, timer }
    }

    /// Role, then one event a token, then the finish, the usage and the end mark.
    fn event(&self) -> Option<Bytes> {
        let mut event = BytesMut::with_capacity(HEAD.len() + 144);
        match self.next.checked_sub(1) {
            None => {
                event.put(HEAD);
                event.put(ROLE);
            }
            Some(token) if token < self.output => {
                event.put(HEAD);
                event.put(TEXT);
                event.put(TEXTS[token as usize % TEXTS.len()]);
                event.put(TEXT_END);
            }
            Some(after) => match after - self.output {
                0 => {
                    event.put(HEAD);
                    event.put(FINISH);
                }
                1 => {
                    let (prompt, output) = (self.prompt, self.output);
                    let usage = format!(
                        "],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{output},\
                         \"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":0}}}}}}\n\n",
                        prompt + output
                    );
                    event.put(HEAD);
                    event.put(usage.as_bytes());
                }
                2 => event.put(&b"data: [DONE]\n\n"[..]),
                _ => return None,
            },
        }
        Some(event.freeze())
    }
}

impl http_body::Body for TokenBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let is_token = (1..=self.output).contains(&self.next);
        if let Some((timer, pace)) = self.timer.as_mut().filter(|_| is_token) {
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let due = (timer.deadline() + *pace).max(Instant::now());
            timer.as_mut().reset(due);
        }
        let event = self.event();
        self.next += 1;
        Poll::Ready(event.map(|event| Ok(Frame::data(event))))
    }
}
