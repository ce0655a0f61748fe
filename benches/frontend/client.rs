//! The load client, a process of its own: N streams in a closed loop over one epoll.
//!
//! It must cost little, because it shares the machine with the server: one thread, no futures, one
//! read call per readable stream, no JSON parser. It checks every answer all the same: status, the
//! exact number of tokens, `finish_reason`, `[DONE]`, and that the connection can be used again.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::load::{Load, Outcome};
use crate::prompt::Prompts;
use crate::sse::Response;

/// Connections whose handshake may be under way at once: below every accept backlog.
const MAX_CONNECTING: usize = 128;
/// A request that has moved no byte for so long counts as lost.
const STALL: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 64 << 10;

/// One connection and the request on it.
struct Stream {
    socket: TcpStream,
    connected: bool,
    out: Vec<u8>,
    sent: usize,
    response: Response,
    /// A request is on its way and its response has not ended.
    busy: bool,
    started: Instant,
    last_byte: Instant,
    last_text: Option<Instant>,
}

/// The client while it runs.
pub(crate) struct Client {
    poll: Poll,
    addr: SocketAddr,
    prompts: Prompts,
    output: u32,
    streams: Vec<Stream>,
    connecting: usize,
    /// Streams without a request, to be given one in this order.
    idle: VecDeque<usize>,
    buffer: Vec<u8>,
    /// Requests whose first text has come.
    pub(crate) first_texts: usize,
    /// Requests that were written out completely.
    pub(crate) written: usize,
    ended: usize,
    ttft_us: Vec<u32>,
    itl_us: Vec<u32>,
    tokens: u64,
    events: u64,
    prompt_tokens: u64,
    good: usize,
    errors: BTreeMap<String, usize>,
}

impl Client {
    /// A client without connections.
    ///
    /// # Errors
    /// The system gives no epoll.
    pub(crate) fn new(
        addr: SocketAddr,
        model: &str,
        prompt: usize,
        output: u32,
        seed: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            addr,
            prompts: Prompts::new(addr, model, prompt, output, seed),
            output,
            streams: Vec::new(),
            connecting: 0,
            idle: VecDeque::new(),
            buffer: vec![0; READ_BYTES],
            first_texts: 0,
            written: 0,
            ended: 0,
            ttft_us: Vec::new(),
            itl_us: Vec::new(),
            tokens: 0,
            events: 0,
            prompt_tokens: 0,
            good: 0,
            errors: BTreeMap::new(),
        })
    }

    /// Runs `load` to its end.
    ///
    /// # Errors
    /// A connection cannot be opened, or epoll fails. Failed requests are counted, not returned.
    pub(crate) fn run(mut self, load: &Load) -> io::Result<Outcome> {
        let start = Instant::now();
        let mut issued = 0;
        let mut events = Events::with_capacity(1024);
        let mut swept = start;
        while self.ended < load.requests {
            let now = Instant::now();
            // The first request of each stream waits for its turn in the ramp, so that the streams
            // do not tick in step; later ones follow at once.
            while issued < load.requests {
                if self.streams.len() < load.streams {
                    let turn = load.ramp() * self.streams.len() as u32 / load.streams as u32;
                    if self.connecting >= MAX_CONNECTING || start + turn > now {
                        break;
                    }
                    self.open()?;
                } else if let Some(index) = self.idle.pop_front() {
                    self.ask(index);
                } else {
                    break;
                }
                issued += 1;
            }
            if issued < load.requests && !self.streams.iter().any(|stream| stream.busy) {
                return Err(io::Error::other(format!("no stream is left: {:?}", self.errors)));
            }
            let ramping = self.streams.len() < load.streams && issued < load.requests;
            self.turn(&mut events, if ramping { 1 } else { 1000 })?;
            if swept.elapsed() > STALL / 4 {
                self.sweep();
                swept = Instant::now();
            }
        }
        Ok(self.outcome(start.elapsed()))
    }

    /// Opens a connection and queues a request on it.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        let index = self.streams.len();
        let socket = self.connect(index)?;
        let now = Instant::now();
        self.streams.push(Stream {
            socket,
            connected: false,
            out: Vec::new(),
            sent: 0,
            response: Response::new(),
            busy: false,
            started: now,
            last_byte: now,
            last_text: None,
        });
        self.ask(index);
        Ok(())
    }

    /// True while another connection may be opened.
    pub(crate) fn may_open(&self) -> bool {
        self.connecting < MAX_CONNECTING
    }

    /// What went wrong so far.
    pub(crate) fn errors(&self) -> &BTreeMap<String, usize> {
        &self.errors
    }

    /// Waits for the sockets once, at most `timeout_ms`, and serves those that are ready.
    pub(crate) fn turn(&mut self, events: &mut Events, timeout_ms: u64) -> io::Result<()> {
        match self.poll.poll(events, Some(Duration::from_millis(timeout_ms))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &*events {
            let index = event.token().0;
            if event.is_writable() && self.streams[index].sent < self.streams[index].out.len() {
                self.send(index);
            }
            if event.is_readable() || event.is_read_closed() {
                self.receive(index);
            }
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect(self.addr)?;
        socket.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(index), interest)?;
        self.connecting += 1;
        Ok(socket)
    }

    /// Gives a stream its next request.
    fn ask(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        self.prompts.write(&mut stream.out);
        stream.sent = 0;
        stream.response.reset();
        stream.busy = true;
        stream.started = Instant::now();
        stream.last_byte = stream.started;
        stream.last_text = None;
        if stream.connected {
            self.send(index);
        }
    }

    fn send(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        while stream.sent < stream.out.len() {
            match stream.socket.write(&stream.out[stream.sent..]) {
                Ok(bytes) => stream.sent += bytes,
                Err(error) if waits(&error) => return,
                Err(error) => return self.lose(index, &format!("write: {:?}", error.kind())),
            }
            if !stream.connected {
                stream.connected = true;
                self.connecting -= 1;
            }
        }
        self.written += 1;
    }

    /// Reads what has arrived. A read that does not fill the buffer has emptied the socket: epoll
    /// reports what comes later as a new edge.
    fn receive(&mut self, index: usize) {
        loop {
            let stream = &mut self.streams[index];
            let bytes = match stream.socket.read(&mut self.buffer) {
                Ok(0) if stream.busy => return self.lose(index, "closed before the end"),
                Ok(0) => return self.reopen(index),
                Ok(bytes) => bytes,
                Err(error) if waits(&error) => return,
                Err(error) => return self.lose(index, &format!("read: {:?}", error.kind())),
            };
            let now = Instant::now();
            stream.last_byte = now;
            let before = stream.response.text_events;
            if let Err(error) = stream.response.feed(&self.buffer[..bytes]) {
                return self.lose(index, &error.to_string());
            }
            let new = stream.response.text_events - before;
            if new > 0 {
                let since = match stream.last_text.replace(now) {
                    Some(last) => micros(now - last),
                    None => {
                        self.first_texts += 1;
                        self.ttft_us.push(micros(now - stream.started));
                        0
                    }
                };
                if before > 0 {
                    self.itl_us.push(since);
                }
                // What came in the same read came at the same time.
                self.itl_us.extend(std::iter::repeat_n(0, new as usize - 1));
            }
            if stream.response.ended() {
                return self.end(index);
            }
            if bytes < self.buffer.len() {
                return;
            }
        }
    }

    /// Judges a complete response and frees its stream for the next request.
    fn end(&mut self, index: usize) {
        let response = &self.streams[index].response;
        let tokens = response.completion_tokens.unwrap_or(response.text_events);
        let fault = if response.status != 200 {
            Some(format!("status {}", response.status))
        } else if response.failed {
            Some("error event".to_string())
        } else if !response.done {
            Some("no [DONE]".to_string())
        } else if !response.finished {
            Some("no finish_reason".to_string())
        } else if tokens != self.output {
            Some(format!("{tokens} tokens instead of {}", self.output))
        } else {
            None
        };
        match fault {
            Some(fault) => *self.errors.entry(fault).or_default() += 1,
            None => {
                self.good += 1;
                self.tokens += u64::from(tokens);
                self.events += u64::from(response.text_events);
                self.prompt_tokens += u64::from(response.prompt_tokens.unwrap_or(0));
            }
        }
        self.ended += 1;
        self.streams[index].busy = false;
        if self.streams[index].response.closes {
            self.reopen(index);
        } else {
            self.idle.push_back(index);
        }
    }

    /// Counts a request as failed and replaces its connection.
    fn lose(&mut self, index: usize, why: &str) {
        *self.errors.entry(why.to_string()).or_default() += 1;
        self.ended += 1;
        self.streams[index].busy = false;
        self.reopen(index);
    }

    fn reopen(&mut self, index: usize) {
        if !self.streams[index].connected {
            self.connecting -= 1;
        }
        match self.connect(index) {
            Ok(socket) => {
                self.streams[index].socket = socket;
                self.streams[index].connected = false;
                self.streams[index].out.clear();
                self.streams[index].sent = 0;
                if !self.idle.contains(&index) {
                    self.idle.push_back(index);
                }
            }
            Err(error) => {
                *self.errors.entry(format!("connect: {:?}", error.kind())).or_default() += 1;
            }
        }
    }

    /// Gives up on requests that have stalled.
    fn sweep(&mut self) {
        for index in 0..self.streams.len() {
            if self.streams[index].busy && self.streams[index].last_byte.elapsed() > STALL {
                self.lose(index, "stalled");
            }
        }
    }

    fn outcome(mut self, wall: Duration) -> Outcome {
        self.ttft_us.sort_unstable();
        self.itl_us.sort_unstable();
        Outcome {
            requests: self.good,
            tokens: self.tokens,
            events: self.events,
            prompt_tokens: self.prompt_tokens,
            wall_s: wall.as_secs_f64(),
            ttft_ms: [percentile_ms(&self.ttft_us, 50), percentile_ms(&self.ttft_us, 99)],
            itl_ms: [percentile_ms(&self.itl_us, 50), percentile_ms(&self.itl_us, 99)],
            errors: self.errors,
        }
    }
}

/// The socket has nothing for us yet, or is still connecting.
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn percentile_ms(sorted_us: &[u32], percent: usize) -> f64 {
    let at = sorted_us.len() * percent / 100;
    sorted_us.get(at.min(sorted_us.len().saturating_sub(1))).map_or(0.0, |us| f64::from(*us) / 1e3)
}
