//! Log lines as they come out, and a collector that answers, is silent, or is not there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_sdk::error::OTelSdkError;
use tracing::{debug_span, error, info, info_span, warn};

use super::*;
use crate::config::{Profile, load};
use crate::metrics::SPANS;

fn log(sets: &[&str]) -> Log {
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(None, &sets, Profile::Serve).unwrap().log
}

/// What is written while `work` runs under this configuration.
fn written(log: &Log, work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = Lines::default();
    let to = text.clone();
    let lines = lines(log, BoxMakeWriter::new(move || to.clone()), false).unwrap();
    let (layers, guard) = layers(log, "here", lines).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layers), work);
    drop(guard);
    let text = text.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}

fn story() {
    let _request = info_span!("request", id = "07", model = "m").entered();
    info!(tokens = 3, "done");
    info!(target: "hyper::proto", "chatter");
    warn!(target: "h2", "trouble");
}

#[test]
fn json_lines_have_time_level_target_spans_fields_and_message() {
    let text = written(&log(&["log.format=json"]), story);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0]["target"], "cuelight::telemetry::tests");
    assert_eq!(lines[0]["message"], "done");
    assert_eq!(lines[0]["tokens"], 3);
    assert_eq!(lines[0]["spans"][0]["name"], "request");
    assert_eq!(lines[0]["spans"][0]["id"], "07");
    lines[0]["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(lines[1]["target"], "h2");
}

#[test]
fn text_lines_have_the_same_without_colour_where_no_terminal_is() {
    let text = written(&log(&[]), story);
    let first = text.lines().next().unwrap();
    let rest = "request{id=\"07\" model=\"m\"}: cuelight::telemetry::tests: done tokens=3";
    assert!(first.contains(" INFO ") && first.ends_with(rest), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_level_is_ours_and_dependencies_say_warnings() {
    for (level, expected) in [
        ("info", "warn,ractor_cluster=error,cuelight=info"),
        ("debug", "warn,ractor_cluster=error,cuelight=debug"),
        ("TRACE", "warn,ractor_cluster=error,cuelight=TRACE"),
        ("error", "error"),
        ("off", "off"),
        ("info, hyper=debug", "warn,ractor_cluster=error,cuelight=info,hyper=debug"),
        ("cuelight::engine=debug", "warn,ractor_cluster=error,cuelight::engine=debug"),
    ] {
        assert_eq!(directives(level), expected);
    }
    assert_eq!(written(&log(&["log.level=off"]), || error!("x")), "");
    assert_eq!(written(&log(&["log.level=error"]), || warn!("x")), "");
}

/// A collector that takes one post and hands it back.
fn collector() -> (String, std::thread::JoinHandle<Post>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (endpoint, std::thread::spawn(move || take(&listener)))
}

struct Post {
    /// In lower case.
    head: String,
    body: Vec<u8>,
}

fn take(listener: &TcpListener) -> Post {
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while reader.read_line(&mut head).unwrap() > 2 {}
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect(&head);
    let mut body = vec![0; length.trim().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer).unwrap();
    Post { head, body }
}

fn has(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn spans_reach_the_collector_as_protobuf_and_nothing_else_does() {
    let (endpoint, collector) = collector();
    // Exporting does not depend on what is logged.
    let log = log(&[&format!("log.otlp_endpoint={endpoint}"), "log.level=off"]);
    written(&log, || {
        let request = info_span!("request", id = "abc123").entered();
        debug_span!("step", batch = 4).in_scope(|| info!("an event"));
        info_span!("helper").in_scope(|| {});
        info_span!(target: "hyper", "request", id = "of hyper").in_scope(|| {});
        info_span!(target: "cuelights", "request", id = "of a namesake").in_scope(|| {});
        drop(request);
    });
    let Post { head, body } = collector.join().unwrap();
    assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    for text in ["request", "abc123", "step", "service.name", "cuelight", "here"] {
        assert!(has(&body, text), "{text} is missing");
    }
    for text in ["helper", "of hyper", "of a namesake", "an event"] {
        assert!(!has(&body, text), "{text} was exported");
    }
}

#[test]
fn a_share_of_nothing_exports_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("log.otlp_endpoint=http://{}", listener.local_addr().unwrap());
    written(&log(&[&endpoint, "log.otlp_sample=0"]), || {
        info_span!("request").in_scope(|| {});
    });
    assert!(listener.accept().is_err(), "the collector was called");
}

#[test]
fn a_collector_that_is_silent_or_gone_costs_no_time() {
    // Bound but never accepted: connections are made, and no answer comes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), gone] {
        let endpoint = format!("log.otlp_endpoint=http://{address}");
        let log = log(&[&endpoint, "log.otlp_queue=64"]);
        let (mut serving, dropped) = (Duration::MAX, SPANS.dropped());
        let mut ending = Instant::now();
        written(&log, || {
            let start = Instant::now();
            for id in 0..20_000 {
                info_span!("request", id).in_scope(|| {});
            }
            serving = start.elapsed();
            ending = Instant::now();
        });
        // All but those in the queue and under way, and those that another test still has there.
        let dropped = SPANS.dropped() - dropped;
        assert!(dropped > 10_000, "{dropped} of 20000 spans are said to be dropped");
        // 20,000 waits of any kind would take longer.
        assert!(serving < Duration::from_secs(2), "{address}: {serving:?}");
        let ending = ending.elapsed();
        assert!(ending < otlp::FLUSH + Duration::from_secs(1), "{address}: {ending:?}");
        println!("{address}: {:?} a span, {ending:?} to end", serving / 20_000);
    }
}

#[test]
fn a_collector_that_is_gone_is_reported_once_and_once_more_when_it_is_back() {
    let text = written(&log(&[]), || {
        let health = otlp::Health::default();
        let lost = || Err(OTelSdkError::InternalFailure("refused".into()));
        for sent in [Ok(()), lost(), lost(), lost(), Ok(()), Ok(())] {
            health.report("http://c", &sent);
        }
    });
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("WARN") && lines[0].contains("refused"), "{text}");
    assert!(lines[1].contains("INFO") && lines[1].contains("lost_batches=3"), "{text}");
}

#[test]
fn an_empty_queue_ends_at_once_even_if_the_collector_is_gone() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = log(&[&format!("log.otlp_endpoint=http://{gone}")]);
    let (spans, _tracer) = otlp::start(&log, log.otlp_endpoint.as_ref().unwrap(), "here").unwrap();
    let start = Instant::now();
    drop(spans);
    assert!(start.elapsed() < otlp::FLUSH, "{:?}", start.elapsed());
}
