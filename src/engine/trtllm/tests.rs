//! The bridge against the stand-in: values both ways, callbacks, errors, cost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::ffi::*;
use super::hook::{LogitsHook, OnLogits};
use super::standin::{self, SourceRow, TokenSource};

/// The stand-in's options are the process's: one test at a time.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    standin::reset();
    standin::tokens_by_rule();
    guard
}

fn options() -> EngineOptions {
    EngineOptions {
        engine_dir: std::env::temp_dir().to_string_lossy().into_owned(),
        vocab_size: 512,
        ..Default::default()
    }
}

pub(super) fn engine(options: &EngineOptions) -> cxx::UniquePtr<Engine> {
    open(options, Box::new(LogitsHook(None)), false).unwrap()
}

pub(super) fn prompt(tokens: &[i32], max_tokens: i32) -> RequestOptions {
    RequestOptions { tokens: tokens.to_vec(), max_tokens, ..Default::default() }
}

/// Tokens and the last row of a request; at most ten seconds.
pub(super) fn run(engine: &Engine, request: &RequestOptions) -> (Vec<i32>, Row, Output) {
    let admitted = engine.enqueue(request).unwrap();
    assert_eq!(admitted.status, Admission::Accepted, "{}", admitted.text);
    let (mut tokens, mut out) = (Vec::new(), Output::default());
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        engine.poll(20, &mut out).unwrap();
        for row in out.rows.iter().filter(|row| row.request == admitted.request) {
            let from = row.tokens_at as usize;
            tokens.extend_from_slice(&out.tokens[from..from + row.tokens_len as usize]);
            if row.is_final {
                return (tokens, *row, out.clone());
            }
        }
    }
    panic!("no final response");
}

#[test]
fn tokens_and_their_end_cross_the_bridge() {
    let _alone = alone();
    let engine = engine(&options());
    let request = RequestOptions {
        client_id: 7.into(),
        return_log_probs: true,
        return_perf_metrics: true,
        ..prompt(&[1, 2, 3], 6)
    };
    let (tokens, last, out) = run(&engine, &request);
    assert_eq!(tokens.len(), 6);
    assert_eq!((last.finish, last.fault, last.client), (Finish::Length, Fault::None, 7));
    assert_eq!(last.log_probs_len, 1);
    assert!(out.metrics[last.metrics as usize].last_token_us > 0);
    let stopped = RequestOptions { stop_words: [&tokens[..2]].into_iter().collect(), ..request };
    assert_eq!(run(&engine, &stopped).0, tokens[..2]);
    let mut steps = Vec::new();
    engine.iterations(&mut steps).unwrap();
    assert!(steps.len() >= 8);
    engine.shutdown().unwrap();
    assert_eq!(engine.enqueue(&prompt(&[1], 1)).unwrap().status, Admission::Stopped);
}

#[test]
fn errors_name_their_call() {
    let _alone = alone();
    let engine = engine(&options());
    let refused = engine.enqueue(&prompt(&[], 1)).unwrap();
    assert_eq!(refused.status, Admission::Invalid);
    standin::set("throw_in", "await").unwrap();
    standin::set("throw_kind", "int").unwrap();
    let error = engine.poll(1, &mut Output::default()).unwrap_err();
    assert!(error.what().starts_with("Executor.awaitResponses: "), "{error}");
    standin::reset();
    let wrong = EngineOptions { context_chunking_policy: "NONE".into(), ..options() };
    let error = open(&wrong, Box::new(LogitsHook(None)), false).err().unwrap();
    assert!(error.what().starts_with("options: context_chunking_policy"), "{error}");
    assert!(standin::set("wedge", "1").is_err());
}

#[test]
fn a_handoff_crosses_the_bridge_twice() {
    let _alone = alone();
    let transceiver = TransceiverOptions { backend: "UCX".into(), ..Default::default() };
    let options = EngineOptions { transceiver, ..options() };
    let (prefill, decode) = (engine(&options), engine(&options));
    let tokens: Vec<i32> = (1..50).collect();
    let whole = run(&decode, &prompt(&tokens, 5)).0;
    let first = RequestOptions { phase: Phase::ContextOnly, ..prompt(&tokens, 5) };
    let (_, row, out) = run(&prefill, &first);
    let handoff = out.handoffs[row.handoff as usize].clone();
    assert!(handoff.some && handoff.has_state);
    let second = RequestOptions { phase: Phase::GenerationOnly, handoff, ..first };
    assert_eq!(run(&decode, &second).0, whole);
}

struct Forcing {
    panics: Arc<AtomicUsize>,
}

impl OnLogits for Forcing {
    fn on_logits(&self, processor: &str, of: LogitsOf, tokens: &[i32], logits: &mut [f32]) {
        assert!(of.client != 13, "unlucky");
        assert_eq!((processor, logits.len()), ("forced", 512));
        logits[tokens.len()] = 1000.0;
    }

    fn on_panic(&self, of: LogitsOf, text: String) {
        assert_eq!((of.client, text.as_str()), (13, "unlucky"));
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn logits_are_changed_in_rust_and_a_panic_stays_with_its_request() {
    let _alone = alone();
    let options = EngineOptions { processor_names: vec!["forced".to_owned()], ..options() };
    let panics = Arc::new(AtomicUsize::new(0));
    let hook = LogitsHook(Some(Box::new(Forcing { panics: panics.clone() })));
    let engine = open(&options, Box::new(hook), true).unwrap();
    let request = RequestOptions { processor: "forced".into(), ..prompt(&[1, 2], 3) };
    assert_eq!(run(&engine, &request).0, [2, 3, 4]);
    let unlucky = RequestOptions { client_id: 13.into(), ..request };
    assert_eq!(run(&engine, &unlucky).1.fault, Fault::None);
    assert_eq!(panics.load(Ordering::Relaxed), 3);
}

struct Successor;

impl TokenSource for Successor {
    fn forward(&self, _: &str, rows: &mut [SourceRow<'_>]) -> bool {
        for row in rows {
            row.token = row.tokens[row.tokens.len() - 1] + 1;
            row.logprob = -0.5;
            if let Some(logits) = &mut row.logits {
                logits[row.token as usize] = 9.0;
            }
            assert!(row.token != 100, "a panic fails the step");
        }
        true
    }

    fn forget(&self, _: &str, _: u64) {}
}

#[test]
fn tokens_come_from_rust_and_its_panic_fails_the_step() {
    let _alone = alone();
    standin::tokens_from(Box::new(Successor));
    let engine = engine(&options());
    assert_eq!(run(&engine, &prompt(&[5], 3)).0, [6, 7, 8]);
    assert_eq!(run(&engine, &prompt(&[98], 3)).1.fault, Fault::Forward);
    assert_eq!(run(&engine, &prompt(&[5], 3)).0, [6, 7, 8]);
    standin::tokens_by_rule();
}

#[test]
fn kv_events_cross_the_bridge() {
    let _alone = alone();
    let kv = KvCacheOptions { event_buffer_max_size: 100.into(), ..Default::default() };
    let engine = engine(&EngineOptions { kv, ..options() });
    let tokens: Vec<i32> = (1..40).collect();
    run(&engine, &prompt(&tokens, 2));
    let mut events = KvEvents::default();
    assert!(engine.kv_events(100, &mut events).unwrap());
    assert_eq!(events.rows[0].kind, KvEventKind::Created);
    let stored = events.rows[1];
    assert_eq!(
        (stored.kind, stored.has_parent, stored.blocks_len),
        (KvEventKind::Stored, false, 2)
    );
    assert_eq!(events.tokens[..32], tokens[..32]);
}
