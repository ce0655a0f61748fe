//! A server that lists a model, and answers requests for tokens as badly as it is told to.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of one test

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Longest wait for requests.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a request for tokens is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Behaviour {
    /// A stream ends properly, but without `[DONE]`.
    EndsWithoutDone,
    /// The connection is closed in the middle of a stream.
    Breaks,
    /// The stream has an error in it.
    SaysError,
    /// Nothing comes.
    Hangs,
    /// Well; then the connection is closed without a word.
    ClosesAfterwards,
}

/// A server, until the test process ends.
pub struct Fake {
    pub url: String,
    requests: Arc<(Mutex<usize>, Condvar)>,
}

impl Fake {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<(Mutex<usize>, Condvar)> = Arc::default();
        let counted = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counted = counted.clone();
                std::thread::spawn(move || serve(&stream, behaviour, &counted));
            }
        });
        Self { url, requests }
    }

    /// Waits until so many requests for tokens have come.
    pub fn wait_for_requests(&self, count: usize) {
        let (number, changed) = &*self.requests;
        let number = number.lock().unwrap();
        let (number, _) =
            changed.wait_timeout_while(number, PATIENCE, |number| *number < count).unwrap();
        assert!(*number >= count, "only {number} of {count} requests within {PATIENCE:?}");
    }
}

/// Answers the requests of one connection; `None` when it has ended.
fn serve(
    stream: &TcpStream,
    behaviour: Behaviour,
    requests: &(Mutex<usize>, Condvar),
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while request(&mut reader)?.starts_with("GET ") {
        let models = "{\"data\":[{\"id\":\"m\"}]}";
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{models}", models.len());
        writer.write_all(answer.as_bytes()).ok()?;
    }
    *requests.0.lock().unwrap() += 1;
    requests.1.notify_all();
    let token = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let done = "data: [DONE]\n\n";
    let error = "event: error\ndata: {\"error\":{\"message\":\"worker lost\"}}\n\n";
    let (body, length) = match behaviour {
        Behaviour::EndsWithoutDone => (token.to_owned(), token.len()),
        Behaviour::Breaks => (token.to_owned(), token.len() + 1),
        Behaviour::SaysError => {
            (format!("{token}{error}{done}"), token.len() + error.len() + done.len())
        }
        Behaviour::ClosesAfterwards => (format!("{token}{done}"), token.len() + done.len()),
        // Until the client goes away.
        Behaviour::Hangs => return request(&mut reader).map(|_| ()),
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream";
    writer.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes()).ok()
}

/// The first line of the next request; its body is read and forgotten.
fn request(reader: &mut BufReader<&TcpStream>) -> Option<String> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(first)
}
