//! The benchmarks' load client reads responses as they are, however the network cuts them.

// A benchmark has no test harness of its own, so its reader is tested from here.
#[path = "../benches/frontend/sse.rs"]
mod sse;

use sse::{Response, ResponseError};

fn chunked(parts: &[&str]) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for part in parts {
        bytes.extend_from_slice(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn a_stream_counts_the_same_wherever_the_reads_are_cut() {
    let bytes = chunked(&[
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\" a\"}}]}\n\ndata: {\"cho",
        "ices\":[{\"delta\":{\"content\":\" b\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    ]);
    for size in 1..bytes.len() {
        let mut response = Response::new();
        for part in bytes.chunks(size) {
            assert!(!response.ended(), "reads of {size}");
            response.feed(part).unwrap();
        }
        assert!(response.ended() && response.done && response.finished, "reads of {size}");
        assert_eq!(response.text_events, 2, "reads of {size}");
        assert_eq!(response.completion_tokens, Some(2), "reads of {size}");
        assert_eq!(response.prompt_tokens, Some(7), "reads of {size}");
        assert!(!response.failed && !response.closes, "reads of {size}");
    }
}

#[test]
fn an_error_answer_ends_where_its_length_says() {
    let mut response = Response::new();
    response.feed(b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\n{\"a\"").unwrap();
    assert!(response.ended());
    assert_eq!(response.status, 429);
    assert_eq!(response.feed(b"x"), Err(ResponseError::Framing));
    response.reset();
    response.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert!(response.ended());
}

#[test]
fn bytes_that_are_no_response_are_refused() {
    assert_eq!(Response::new().feed(b"SSH-2.0\r\n\r\n"), Err(ResponseError::Head));
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for bad in [&b"zz\r\n"[..], b"1\r\nabc"] {
        let mut response = Response::new();
        response.feed(head).unwrap();
        assert_eq!(response.feed(bad), Err(ResponseError::Framing), "{bad:?}");
    }
}
