//! Reads one HTTP/1.1 response at a time, cheaply: its head, its framing and its SSE events.
//!
//! Only what a load client must know is looked at: how many events carried text, what `usage` said,
//! whether `[DONE]` came, and where the response ends, so that the connection can be used again.

use memchr::memmem;

/// The longest response head, or event, that is kept while its end has not arrived.
const MAX_HELD_BYTES: usize = 1 << 20;

/// Why a response could not be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The head has no status line.
    #[error("no HTTP status line in the response head")]
    Head,
    /// A chunk size is not hexadecimal, or a chunk does not end where its size says.
    #[error("broken chunked framing")]
    Framing,
    /// An event or the head goes on for too long.
    #[error("more than {MAX_HELD_BYTES} bytes without an end of event")]
    TooLong,
}

/// Where the reader stands in the byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    ChunkSize(u64),
    ChunkData(u64),
    /// After a chunk's data; so many bytes of its line end are still to come.
    ChunkEnd(u8),
    /// In the lines after the last chunk; true at the start of a line.
    Trailer(bool),
    Length(u64),
    UntilClose,
    End,
}

/// One response, as far as it has been read.
#[derive(Debug)]
pub(crate) struct Response {
    at: At,
    held: Vec<u8>,
    /// The status code; 0 until the head is complete.
    pub(crate) status: u16,
    /// Events whose delta carried text.
    pub(crate) text_events: u32,
    /// `usage.completion_tokens`, once it has come.
    pub(crate) completion_tokens: Option<u32>,
    /// `usage.prompt_tokens`, once it has come.
    pub(crate) prompt_tokens: Option<u32>,
    /// An event with a `finish_reason` came.
    pub(crate) finished: bool,
    /// `[DONE]` came.
    pub(crate) done: bool,
    /// An `error` event came.
    pub(crate) failed: bool,
    /// The server will close the connection after this response.
    pub(crate) closes: bool,
}

impl Response {
    /// A response of which nothing has been read.
    pub(crate) fn new() -> Self {
        Self {
            at: At::Head,
            held: Vec::new(),
            status: 0,
            text_events: 0,
            completion_tokens: None,
            prompt_tokens: None,
            finished: false,
            done: false,
            failed: false,
            closes: false,
        }
    }

    /// Starts the next response of the same connection; keeps the buffer.
    pub(crate) fn reset(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.clear();
        *self = Self { held, ..Self::new() };
    }

    /// True when the whole response has been read.
    pub(crate) fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Reads on.
    ///
    /// # Errors
    /// [`ResponseError`] when the bytes are no HTTP/1.1 response.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ResponseError> {
        while !bytes.is_empty() {
            match self.at {
                At::Head => bytes = self.head(bytes)?,
                At::ChunkSize(size) => {
                    let byte = bytes[0];
                    bytes = &bytes[1..];
                    self.at = match (byte, (byte as char).to_digit(16)) {
                        (b'\n', _) if size == 0 => At::Trailer(true),
                        (b'\n', _) => At::ChunkData(size),
                        (b'\r', _) => At::ChunkSize(size),
                        (_, Some(digit)) if size < 1 << 40 => {
                            At::ChunkSize(size * 16 + u64::from(digit))
                        }
                        _ => return Err(ResponseError::Framing),
                    };
                }
                At::ChunkData(left) => {
                    let (data, rest) = split(bytes, left);
                    self.body(data)?;
                    let left = left - data.len() as u64;
                    self.at = if left == 0 { At::ChunkEnd(2) } else { At::ChunkData(left) };
                    bytes = rest;
                }
                At::ChunkEnd(left) => {
                    if bytes[0] != if left == 2 { b'\r' } else { b'\n' } {
                        return Err(ResponseError::Framing);
                    }
                    self.at = if left == 2 { At::ChunkEnd(1) } else { At::ChunkSize(0) };
                    bytes = &bytes[1..];
                }
                At::Trailer(line_start) => {
                    self.at = match bytes[0] {
                        b'\n' if line_start => At::End,
                        b'\n' => At::Trailer(true),
                        b'\r' => At::Trailer(line_start),
                        _ => At::Trailer(false),
                    };
                    bytes = &bytes[1..];
                }
                At::Length(left) => {
                    let (data, rest) = split(bytes, left);
                    self.body(data)?;
                    let left = left - data.len() as u64;
                    self.at = if left == 0 { At::End } else { At::Length(left) };
                    bytes = rest;
                }
                At::UntilClose => {
                    self.body(bytes)?;
                    bytes = &[];
                }
                At::End => return Err(ResponseError::Framing),
            }
        }
        Ok(())
    }

    /// Collects the head; returns what follows it.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ResponseError> {
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        let Some(end) = memmem::find(&self.held, b"\r\n\r\n") else {
            let too_long = self.held.len() > MAX_HELD_BYTES;
            return if too_long { Err(ResponseError::TooLong) } else { Ok(&[]) };
        };
        let head = String::from_utf8_lossy(&self.held[..end]).to_ascii_lowercase();
        self.status = head
            .strip_prefix("http/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or(ResponseError::Head)?;
        self.closes = head.contains("connection: close");
        self.at = if head.contains("transfer-encoding: chunked") {
            At::ChunkSize(0)
        } else {
            let length = head.split("content-length: ").nth(1).and_then(|rest| {
                rest.split("\r\n").next().and_then(|digits| digits.trim().parse::<u64>().ok())
            });
            match length {
                Some(0) => At::End,
                Some(length) => At::Length(length),
                None => {
                    self.closes = true;
                    At::UntilClose
                }
            }
        };
        self.held.clear();
        Ok(&bytes[end + 4 - before..])
    }

    /// Takes the events out of body bytes; keeps the start of an unfinished one.
    fn body(&mut self, bytes: &[u8]) -> Result<(), ResponseError> {
        if self.held.is_empty() {
            let used = self.events(bytes);
            self.held.extend_from_slice(&bytes[used..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            let used = self.events(&held);
            held.drain(..used);
            self.held = held;
        }
        if self.held.len() > MAX_HELD_BYTES { Err(ResponseError::TooLong) } else { Ok(()) }
    }

    /// Looks at every complete event; returns how many bytes they took.
    fn events(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        for end in memmem::find_iter(bytes, b"\n\n") {
            self.event(&bytes[used..end]);
            used = end + 2;
        }
        used
    }

    fn event(&mut self, event: &[u8]) {
        let Some(data) = event.strip_prefix(b"data: ") else { return };
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        const TEXT: &[u8] = b"\"content\":\"";
        if let Some(at) = memmem::find(data, TEXT)
            && data.get(at + TEXT.len()).is_some_and(|next| *next != b'"')
        {
            self.text_events += 1;
        }
        if memmem::find(data, b"\"finish_reason\":\"").is_some() {
            self.finished = true;
        }
        if let Some(count) = number_after(data, b"\"completion_tokens\":") {
            self.completion_tokens = Some(count);
            self.prompt_tokens = number_after(data, b"\"prompt_tokens\":");
        }
        if data.starts_with(b"{\"error\"") {
            self.failed = true;
        }
    }
}

fn split(bytes: &[u8], at_most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(at_most).unwrap_or(usize::MAX).min(bytes.len()))
}

fn number_after(data: &[u8], key: &[u8]) -> Option<u32> {
    let from = memmem::find(data, key)? + key.len();
    let digits = data[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&data[from..from + digits]).ok()?.parse().ok()
}
