//! A server that answers well at first, and then does not: what the harness is for.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of one test

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

/// In which way it lies, after so many good answers that the harness believes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Liar {
    /// A stream ends like a complete one, without its end.
    Truncates,
    /// A text differs.
    Changes,
    /// A stream goes on after `[DONE]`.
    EndsTwice,
    /// A block is never free again.
    Leaks,
}

/// More than the harness asks before it starts the load.
const GOOD: usize = 20;

impl Liar {
    /// Serves until the test process ends; returns the URL.
    pub fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answered = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answered = answered.clone();
                std::thread::spawn(move || self.answer(stream, &answered));
            }
        });
        url
    }

    fn answer(self, mut stream: TcpStream, answered: &AtomicUsize) -> Option<()> {
        let (path, body) = request(&stream)?;
        let lies = answered.load(Ordering::Relaxed) > GOOD;
        let ok = |body: String| head("200 OK", "application/json", &body);
        let reply = match path.as_str() {
            "/live" => ok("{}".to_owned()),
            "/v1/models" => ok(json!({ "data": [{ "id": "m" }] }).to_string()),
            "/health" => {
                let model = json!({ "id": "m", "ranks_ready": 1, "ready": true });
                ok(json!({ "status": "ready", "models": [model] }).to_string())
            }
            "/metrics" => {
                let used = u8::from(lies && self == Self::Leaks);
                let steps = answered.fetch_add(1, Ordering::Relaxed);
                ok(format!("cuelight_kv_blocks_used {used}\ncuelight_steps_total {steps}\n"))
            }
            "/cluster/tree" => ok(json!({ "kind": "NodeRoot", "name": "n" }).to_string()),
            "/debug/faults" => head("404 Not Found", "application/json", "{}"),
            _ => {
                answered.fetch_add(1, Ordering::Relaxed);
                self.completion(&body, lies)
            }
        };
        // A client may leave before its answer.
        stream.write_all(reply.as_bytes()).ok()
    }

    fn completion(self, body: &Value, lies: bool) -> String {
        let n = body["n"].as_u64().unwrap_or(1);
        let prompts = match &body["prompt"] {
            Value::Array(prompts) if prompts[0].is_string() => prompts.len() as u64,
            _ => 1,
        };
        let text = if lies && self == Self::Changes { "lies" } else { "truth" };
        let usage = json!({ "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 });
        let choice = |index| {
            let delta = json!({ "content": text });
            json!({ "index": index, "text": text, "delta": delta, "message": delta,
                    "finish_reason": "stop" })
        };
        let choices: Vec<_> = (0..n * prompts).map(choice).collect();
        if body["stream"] != true {
            let answer = json!({ "id": "a", "choices": choices, "usage": usage });
            return head("200 OK", "application/json", &answer.to_string());
        }
        let chunk = json!({ "id": "a", "choices": choices });
        let last = json!({ "id": "a", "choices": [], "usage": usage });
        let mut events = format!("data: {chunk}\n\ndata: {last}\n\n");
        match self {
            Self::Truncates if lies => {}
            Self::EndsTwice if lies => events.push_str("data: [DONE]\n\ndata: [DONE]\n\n"),
            _ => events.push_str("data: [DONE]\n\n"),
        }
        head("200 OK", "text/event-stream", &events)
    }
}

fn head(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

/// Path and JSON body of the request that comes.
fn request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
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
    Some((path, serde_json::from_slice(&body).unwrap_or_default()))
}
