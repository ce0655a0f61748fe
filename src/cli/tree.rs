//! `cuelight tree`: asks a running node for its supervision tree and draws it.

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
    let format = if args.json { "json" } else { "text" };
    let uri: Uri = format!("{url}/cluster/tree?format={format}").parse().map_err(|_| bad())?;
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
    if let Err(error) = serde_json::from_str::<Value>(&body)
        && args.json
    {
        return Err(TreeError::NoTree { url, why: error.to_string() });
    }
    Ok(body.trim_end().to_owned() + "\n")
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

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
    fn the_tree_is_asked_for_with_the_key_and_shown() {
        let tree = "NodeRoot here [running]\n└─ Worker w [serving] steps=5\n";
        let (url, server) = server(answer("200 OK", tree));
        assert_eq!(run(&url, false, Some("secret")), (0, tree.to_owned()));
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /cluster/tree?format=text HTTP/1.1\n"), "{head}");
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
            ("gibberish\r\n\r\n".into(), "does not answer: invalid HTTP version"),
            (String::new(), "does not answer: "),
        ] {
            let (url, _server) = server(reply.clone());
            let (code, text) = run(&url, true, None);
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
