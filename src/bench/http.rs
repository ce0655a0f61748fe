//! Reads one HTTP/1.1 response out of bytes: its head, and where its body and itself end.

use memchr::memmem;

/// Longest head that is taken.
const LONGEST_HEAD: usize = 64 << 10;

/// What a response says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// The body is a stream of events.
    pub(super) events: bool,
    /// The connection ends after this response.
    pub(super) closes: bool,
}

/// Bytes that are no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    #[error("the answer has no HTTP/1 status line")]
    NoStatus,
    #[error("the answer's head has no end within 64 KiB")]
    LongHead,
    #[error("the answer's chunks are broken")]
    Chunks,
    #[error("the answer's content-length is not a number")]
    Length,
    #[error("bytes after the end of the answer")]
    Beyond,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    /// In the line before a chunk; the size so far, and whether its digits are over.
    Size(u64, bool),
    Chunk(u64),
    /// After a chunk; so many bytes of the line end are to come.
    ChunkEnd(u8),
    /// After the last chunk; whether this line is empty so far.
    Trailer(bool),
    Length(u64),
    UntilClose,
    End,
}

/// A response as far as it has come.
#[derive(Debug)]
pub(super) struct Response {
    at: At,
    held: Vec<u8>,
    head: Head,
}

impl Response {
    pub(super) fn new() -> Self {
        Self { at: At::Head, held: Vec::new(), head: Head::default() }
    }

    /// `None` until it is complete.
    pub(super) fn head(&self) -> Option<&Head> {
        (self.at != At::Head).then_some(&self.head)
    }

    /// The whole response has come.
    pub(super) fn ended(&self) -> bool {
        self.at == At::End
    }

    /// Nothing has come.
    pub(super) fn untouched(&self) -> bool {
        self.at == At::Head && self.held.is_empty()
    }

    /// The connection has ended. True if that is the end of the response too.
    pub(super) fn close(&mut self) -> bool {
        if self.at == At::UntilClose {
            self.at = At::End;
        }
        self.ended()
    }

    /// Reads on, and hands out the body part by part.
    ///
    /// # Errors
    /// [`HttpError`] when the bytes are no response.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        body: &mut impl FnMut(&Head, &[u8]),
    ) -> Result<(), HttpError> {
        while let Some(&first) = bytes.first() {
            match self.at {
                At::Head => {
                    bytes = self.take_head(bytes)?;
                    continue;
                }
                At::Size(..) => self.at = self.size(first)?,
                At::ChunkEnd(left) => {
                    let expected = if left == 2 { b'\r' } else { b'\n' };
                    if first != expected {
                        return Err(HttpError::Chunks);
                    }
                    self.at = if left == 2 { At::ChunkEnd(1) } else { At::Size(0, false) };
                }
                At::Trailer(empty) => {
                    self.at = match first {
                        b'\n' if empty => At::End,
                        b'\n' => At::Trailer(true),
                        b'\r' => At::Trailer(empty),
                        _ => At::Trailer(false),
                    };
                }
                At::Chunk(left) | At::Length(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    body(&self.head, &bytes[..taken]);
                    let left = left - taken as u64;
                    self.at = match self.at {
                        At::Chunk(_) if left == 0 => At::ChunkEnd(2),
                        At::Chunk(_) => At::Chunk(left),
                        _ if left == 0 => At::End,
                        _ => At::Length(left),
                    };
                    bytes = &bytes[taken..];
                    continue;
                }
                At::UntilClose => {
                    body(&self.head, bytes);
                    return Ok(());
                }
                At::End => return Err(HttpError::Beyond),
            }
            bytes = &bytes[1..];
        }
        Ok(())
    }

    /// One byte of the line before a chunk.
    fn size(&self, byte: u8) -> Result<At, HttpError> {
        let At::Size(size, over) = self.at else { return Err(HttpError::Chunks) };
        match (byte, (byte as char).to_digit(16)) {
            (b'\n', _) if size == 0 => Ok(At::Trailer(true)),
            (b'\n', _) => Ok(At::Chunk(size)),
            (b';' | b'\r' | b' ', _) => Ok(At::Size(size, true)),
            _ if over => Ok(self.at),
            (_, Some(digit)) if size < 1 << 48 => Ok(At::Size(size * 16 + u64::from(digit), false)),
            _ => Err(HttpError::Chunks),
        }
    }

    /// Gathers the head; returns what comes after it.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], HttpError> {
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        let Some(end) = memmem::find(&self.held, b"\r\n\r\n") else {
            return if self.held.len() > LONGEST_HEAD { Err(HttpError::LongHead) } else { Ok(&[]) };
        };
        let text = String::from_utf8_lossy(&self.held[..end]).to_ascii_lowercase();
        let (head, at) = understand(&text)?;
        self.held = Vec::new();
        (self.head, self.at) = (head, at);
        Ok(&bytes[end + 4 - before..])
    }
}

/// What a head in small letters says, and where the response stands after it.
fn understand(text: &str) -> Result<(Head, At), HttpError> {
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("http/1."));
    let (version, status) =
        status.and_then(|rest| rest.split_once(' ')).ok_or(HttpError::NoStatus)?;
    let status = status.get(..3).and_then(|code| code.parse().ok()).ok_or(HttpError::NoStatus)?;
    let mut head = Head { status, events: false, closes: version == "0" };
    let (mut chunked, mut length) = (false, None);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name {
            "content-type" => head.events = value.starts_with("text/event-stream"),
            "connection" => head.closes = value == "close",
            "transfer-encoding" => chunked = value.ends_with("chunked"),
            "content-length" => length = Some(value.parse::<u64>().map_err(|_| HttpError::Length)?),
            _ => {}
        }
    }
    let at = match (chunked, length) {
        (true, _) => At::Size(0, false),
        (false, Some(0)) => At::End,
        (false, Some(length)) => At::Length(length),
        (false, None) => {
            head.closes = true;
            At::UntilClose
        }
    };
    Ok((head, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The response and its body, read in parts of `size` bytes.
    fn read(bytes: &[u8], size: usize) -> Result<(Response, Vec<u8>), HttpError> {
        let (mut response, mut body) = (Response::new(), Vec::new());
        for part in bytes.chunks(size) {
            response.feed(part, &mut |_, bytes| body.extend_from_slice(bytes))?;
        }
        Ok((response, body))
    }

    #[test]
    fn a_body_is_the_same_however_it_is_framed_and_cut() {
        let chunked = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; x\r\n\
                       Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;ext=1\r\n0123456789\r\n\
                       0\r\ntrailer: x\r\n\r\n";
        let length = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      content-length: 13\r\n\r\nabc0123456789";
        for bytes in [chunked, length] {
            for size in 1..=bytes.len() {
                let (response, body) = read(bytes.as_bytes(), size).unwrap();
                assert!(response.ended() && body == b"abc0123456789", "{size}: {bytes}");
                let head = Head { status: 200, events: true, closes: false };
                assert_eq!(response.head(), Some(&head));
            }
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        for (bytes, ends) in [
            ("HTTP/1.1 200 OK\r\n\r\nabc", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
            ("HTTP/1.1 20", false),
        ] {
            let (mut response, _) = read(bytes.as_bytes(), 7).unwrap();
            assert!(!response.ended());
            assert_eq!(response.close(), ends, "{bytes}");
        }
        assert!(Response::new().untouched());
        let (response, _) =
            read(b"HTTP/1.1 204 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", 9).unwrap();
        assert!(response.ended() && response.head().unwrap().closes);
    }

    #[test]
    fn bytes_that_are_no_response_are_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(LONGEST_HEAD));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (bytes, error) in [
            ("SSH-2.0\r\n\r\n".to_owned(), HttpError::NoStatus),
            ("HTTP/1.1 x\r\n\r\n".to_owned(), HttpError::NoStatus),
            (long, HttpError::LongHead),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_owned(), HttpError::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab".to_owned(), HttpError::Beyond),
            (format!("{chunked}zz\r\n"), HttpError::Chunks),
            (format!("{chunked}1\r\nabc"), HttpError::Chunks),
        ] {
            assert_eq!(read(bytes.as_bytes(), 1000).unwrap_err(), error, "{bytes}");
        }
    }
}
