//! `cuelight tree`: asks a running node for its supervision tree and draws it.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{TreeArgs, UNAVAILABLE, USAGE};

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer: more actors than a node may have.
const LARGEST: usize = 256 << 20;
/// Deeper than any tree of ours; keeps a strange answer from recursing without a bound.
const DEEPEST: usize = 32;

/// Why there is no tree to show, by exit code.
#[derive(Debug, thiserror::Error)]
enum TreeError {
    #[error("--url {0}: must be http://HOST:PORT (https is not supported)")]
    Url(String),
    #[error("{url} does not answer: {why}; is a node running there?")]
    NoAnswer { url: String, why: String },
    #[error("{url} answered {status}: {body}")]
    Status { url: String, status: u16, body: String },
    #[error("{url} answered something that is not a tree: {why}")]
    NoTree { url: String, why: String },
}

impl TreeError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Url(_) => USAGE,
            Self::NoAnswer { .. } | Self::Status { .. } | Self::NoTree { .. } => UNAVAILABLE,
        }
    }
}

/// Shows the tree of the node at `args.url` on `out`. An API key, if the node asks for one, is taken
/// from `key`. Returns the exit code: 0, [`USAGE`] for a wrong URL, [`UNAVAILABLE`] if no node
/// answers with a tree; the reason is on `err`.
pub fn tree(args: &TreeArgs, key: Option<&str>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    match show(args, key) {
        Ok(text) => {
            let _ = out.write_all(text.as_bytes());
            0
        }
        Err(error) => {
            let _ = writeln!(err, "{error}");
            error.exit_code()
        }
    }
}

fn show(args: &TreeArgs, key: Option<&str>) -> Result<String, TreeError> {
    let url = args.url.trim_end_matches('/').to_owned();
    let bad = || TreeError::Url(url.clone());
    let uri: Uri = format!("{url}/cluster/tree").parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
        return Err(bad());
    }
    let no_answer = |why: String| TreeError::NoAnswer { url: url.clone(), why };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| no_answer(error.to_string()))?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, get(&uri, key)).await });
    let late = |_| no_answer(format!("not within {} s", PATIENCE.as_secs()));
    let (status, body) = answer.map_err(late)?.map_err(|error| no_answer(error.to_string()))?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if status != 200 {
        let body = body.chars().take(500).collect();
        return Err(TreeError::Status { url, status, body });
    }
    let no_tree = |why: String| TreeError::NoTree { url: url.clone(), why };
    let root: Value = serde_json::from_str(&body).map_err(|error| no_tree(error.to_string()))?;
    if args.json {
        return Ok(body.trim_end().to_owned() + "\n");
    }
    if root.get("kind").is_none() {
        return Err(no_tree("the JSON has no `kind`".into()));
    }
    let mut text = String::new();
    draw(&root, "", "", 0, &mut text);
    Ok(text)
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One plain GET.
async fn get(uri: &Uri, key: Option<&str>) -> Result<(u16, Bytes), Failed> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(80);
    // The brackets of an IPv6 address belong to the URL, not to the address.
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = hyper::Request::get(path)
        .header("host", format!("{host}:{port}"))
        .header("accept", "application/json")
        .header("connection", "close");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST).collect().await?.to_bytes();
        Ok((status, body))
    };
    // The connection has to be driven while the answer is read.
    let driven = async {
        // How it ends shows in the answer.
        let _ = connection.await;
        std::future::pending::<Failed>().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => Err(never),
    }
}

/// Draws an actor and what it supervises. `first` stands before its own line, `rest` before those
/// of its children.
fn draw(actor: &Value, first: &str, rest: &str, depth: usize, text: &mut String) {
    let word = |key: &str| actor.get(key).and_then(Value::as_str).unwrap_or_default();
    let generation = actor.get("generation").and_then(Value::as_u64).unwrap_or(0);
    let gap = if word("name").is_empty() { "" } else { " " };
    let _ = write!(text, "{first}{}{gap}{}", word("kind"), word("name"));
    let _ = write!(text, "  {}  generation {generation}", word("state"));
    for counter in actor.get("counters").and_then(Value::as_array).into_iter().flatten() {
        if let Some((name, value)) = counter.get(0).and_then(Value::as_str).zip(counter.get(1)) {
            let _ = write!(text, "  {name}={value}");
        }
    }
    text.push('\n');
    if depth == DEEPEST {
        return;
    }
    let children = actor.get("children").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, child) in children.iter().enumerate() {
        let last = index + 1 == children.len();
        let (branch, trunk) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(child, &format!("{rest}{branch}"), &format!("{rest}{trunk}"), depth + 1, text);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use expect_test::expect;

    use super::*;

    const TREE: &str = r#"{"kind":"NodeRoot","name":"here","state":"serving","generation":1,"counters":[],
        "children":[{"kind":"Frontend","name":"","state":"open","generation":1,"counters":[["requests",3]],
        "children":[{"kind":"Request","name":"07","state":"streaming","generation":1,"counters":[]}]},
        {"kind":"Worker","name":"w","state":"ready","generation":2,"counters":[["steps",5],["lost",1]]}]}"#;

    /// Serves one canned answer; returns its address and, in the end, the request's head.
    fn server(answer: String) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head = lines.map(Result::unwrap).take_while(|line| !line.is_empty());
            let head = head.collect::<Vec<_>>().join("\n");
            stream.write_all(answer.as_bytes()).unwrap();
            head
        });
        (url, thread)
    }

    fn run(url: &str, json: bool, key: Option<&str>) -> (u8, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = tree(&TreeArgs { url: url.into(), json }, key, &mut out, &mut err);
        assert!(out.is_empty() != err.is_empty(), "one of the two");
        (code, String::from_utf8(if code == 0 { out } else { err }).unwrap())
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn the_tree_is_drawn() {
        let (url, server) = server(answer("200 OK", TREE));
        let (code, text) = run(&url, false, Some("secret"));
        assert_eq!(code, 0, "{text}");
        expect![[r#"
            NodeRoot here  serving  generation 1
            ├─ Frontend  open  generation 1  requests=3
            │  └─ Request 07  streaming  generation 1
            └─ Worker w  ready  generation 2  steps=5  lost=1
        "#]]
        .assert_eq(&text);
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /cluster/tree HTTP/1.1\n"), "{head}");
        assert!(head.contains("authorization: Bearer secret"), "{head}");
    }

    #[test]
    fn json_comes_out_as_it_came_in_also_in_chunks() {
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                      4\r\n{\"ki\r\n8\r\nnd\":\"x\"}\r\n0\r\n\r\n";
        let (url, _server) = server(chunks.into());
        assert_eq!(run(&format!("{url}/"), true, None), (0, "{\"kind\":\"x\"}\n".into()));
    }

    #[test]
    fn errors_say_what_answered_and_end_with_69() {
        for (reply, words) in [
            (answer("401 Unauthorized", "no key"), "answered 401: no key"),
            (answer("200 OK", "<html>"), "is not a tree: expected value"),
            (answer("200 OK", "{}"), "no `kind`"),
            ("gibberish\r\n\r\n".into(), "does not answer: invalid HTTP version"),
            (String::new(), "does not answer: "),
        ] {
            let (url, _server) = server(reply.clone());
            let (code, text) = run(&url, false, None);
            assert_eq!(code, UNAVAILABLE, "{text}");
            assert!(text.contains(words), "{reply}: {text}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_unavailable_and_a_wrong_url_is_usage() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (code, text) = run(&format!("http://{free}"), false, None);
        assert_eq!(code, UNAVAILABLE, "{text}");
        assert!(text.contains("is a node running there?"), "{text}");
        for url in ["https://127.0.0.1:1", "127.0.0.1:8000", "http://", "ftp://x", "http://a b"] {
            let (code, text) = run(url, false, None);
            assert_eq!(code, USAGE, "{url}: {text}");
        }
    }
}
