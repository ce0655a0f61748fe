//! Whatever part of the tree is lost, it heals, and only the requests that had to fail do.

mod support;

use std::time::Duration;

use cuelight::actors::failure::Failure;
use cuelight::actors::faults::Fault;
use cuelight::actors::reply::Finish;
use cuelight::engine::Sampling;
use support::{Ask, Harness, Said};

/// A simulated engine at 1 ms a step, with restarts enough for a table of faults.
const SIM: [&str; 4] = [
    "worker.engine=sim",
    "worker.sim.step_us=1000",
    "supervision.restarts=100",
    "supervision.delay_ms=1",
];

/// What must be the same with and without a fault: all but what the prefix cache saved, and how
/// tokens came together.
fn essence(said: &Said) -> Said {
    let mut said = said.clone();
    said.usage.as_mut().unwrap_or_else(|| panic!("no usage: {:?}", said.failed)).cached_tokens = 0;
    said.flushes = 0;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_part_harms_only_what_hangs_on_it() {
    let sim = Harness::start(&SIM).await;
    let ask = Ask::new("What is the capital of France?", 60);
    let want = sim.ask(&ask).await.end().await;
    assert_eq!(want.tokens[0].len(), 60);
    // (what is killed, whether the request under way goes on)
    let cases = [
        ("Sequence", true),
        ("Rank", true),
        ("Worker", true),
        ("WorkerLink", true),
        ("Models", true),
        ("Request", false),
        ("Requests", false),
        ("Frontend", false),
    ];
    for (kind, goes_on) in cases {
        sim.inject(Fault::SlowSteps { ms: 10 });
        let client = sim.ask(&ask).await;
        client.tokens(10).await;
        sim.kill(kind);
        sim.inject(Fault::SlowSteps { ms: 0 });
        let got = client.end().await;
        if goes_on {
            assert_eq!(essence(&got), essence(&want), "after the loss of the {kind}");
        } else {
            assert!(got.dropped, "after the loss of the {kind}: {got:?}");
        }
        sim.ready().await;
        sim.quiet().await;
        let healed = sim.ask(&ask).await.end().await;
        assert_eq!(essence(&healed), essence(&want), "healed from the loss of the {kind}");
        for part in ["NodeRoot", "Frontend", "Models", "Requests", "WorkerLink", "Worker", "Rank"] {
            assert_eq!(sim.census(part), 1, "{part} after the loss of the {kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_fault_starts_a_new_generation_and_the_answer_stays_the_same() {
    let mut sets = SIM.to_vec();
    sets[0] = "worker.engine=native";
    sets.push("worker.step_timeout_s=0.3");
    sets.push("worker.max_hung_engines=9");
    let node = Harness::start(&sets).await;
    let prompt =
        "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n";
    let sampled = Sampling { temperature: 0.9, seed: 7, logprobs: Some(2), ..Sampling::default() };
    let mut asks = [Ask::new(prompt, 50), Ask::new(prompt, 50)];
    asks[1].sampling = Sampling { ignore_eos: true, ..sampled };
    asks[1].n = 3;
    let faults = [Fault::EnginePanic, Fault::StepFails, Fault::StepHangs { ms: 3000 }];
    for ask in &asks {
        let want = node.ask(ask).await.end().await;
        for fault in &faults {
            let generation = node.generation();
            node.inject(Fault::SlowSteps { ms: 5 });
            let client = node.ask(ask).await;
            client.tokens(5).await;
            node.inject(fault.clone());
            client.tokens(12).await;
            node.inject(Fault::SlowSteps { ms: 0 });
            let got = client.end().await;
            assert_eq!(essence(&got), essence(&want), "{fault:?}");
            assert_eq!(node.generation(), generation + 1, "{fault:?}");
        }
    }
    assert!(node.metric("cuelight_restarts_total{part=\"worker\"}") >= 6.0);
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_at_any_token_leaves_nothing_behind() {
    let node = Harness::start(&["worker.engine=sim", "worker.sim.step_us=200"]).await;
    let seed = std::process::id();
    println!("seed {seed}");
    let mut random = u64::from(seed) << 1 | 1;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let mut kills = 0;
    for round in 0.. {
        if kills == 200 {
            break;
        }
        let mut ask = Ask::new(&"once upon a time ".repeat(1 + below(40) as usize), 64);
        ask.n = 1 + below(3) as usize;
        let mut client = node.ask(&ask).await;
        let at = below(40) as usize;
        if at > 0 {
            client.tokens(at).await;
        }
        if below(3) == 0 {
            client.leave();
        } else if node.census("Request") > 0 {
            // It may just have ended, which is as good.
            let fault = Fault::KillActor { kind: "Request".to_string(), name: None };
            kills += u32::from(node.handle.inject(fault).is_ok());
        }
        if round % 20 == 19 {
            node.quiet().await;
        }
    }
    node.quiet().await;
    let cancelled = "cuelight_cancellations_total{model=\"cuelight-tiny\",reason=\"disconnect\"}";
    assert!(node.metric(cancelled) > 20.0, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_keeps_failing_ends_the_node() {
    let mut node = Harness::start(&[
        "worker.engine=sim",
        "worker.sim.step_us=1000",
        "supervision.restarts=2",
        "supervision.delay_ms=1",
        "frontend.migration_limit=10",
    ])
    .await;
    let client = node.ask(&Ask::new("on and on", 2000)).await;
    for _ in 0..3 {
        let had = client.said().tokens[0].len();
        client.tokens(had + 5).await;
        node.inject(Fault::EnginePanic);
    }
    let said = client.end().await;
    assert!(said.dropped && said.usage.is_none(), "{said:?}");
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut node.tree.ended).await;
    assert!(ended.is_ok(), "the root did not give up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_placed_again_only_so_often() {
    let mut sets = SIM.to_vec();
    sets.push("frontend.migration_limit=2");
    let node = Harness::start(&sets).await;
    let client = node.ask(&Ask::new("on and on", 2000)).await;
    for _ in 0..3 {
        let had = client.said().tokens[0].len();
        client.tokens(had + 5).await;
        node.kill("Sequence");
    }
    match client.end().await.failed {
        Some(Failure::RanksLost { times: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_refuse_with_words_and_waits_have_bounds() {
    let node = Harness::start(&[
        "worker.engine=sim",
        "worker.sim.step_us=1000",
        "frontend.request_timeout_s=1",
        "frontend.stream_buffer_bytes=4096",
        "worker.max_running=1",
        "worker.max_waiting=1",
    ])
    .await;
    let long = Ask::new("on and on", 2000);
    let (first, second) = (node.ask(&long).await, node.ask(&long).await);
    first.until("acceptance", |said| said.accepted).await;
    second.until("acceptance", |said| said.accepted).await;
    let third = node.ask(&long).await;
    match third.end().await.failed {
        Some(Failure::TooManyRequests { limit, .. }) => assert_eq!(limit, 2),
        other => panic!("{other:?}"),
    }
    for client in [first, second] {
        let failed = client.end().await.failed;
        assert_eq!(failed, Some(Failure::TimedOut { after: Duration::from_secs(1) }));
    }
    node.quiet().await;
    let slow = Ask { backlog: 5000, ..long.clone() };
    let failed = node.ask(&slow).await.end().await.failed;
    assert_eq!(failed, Some(Failure::SlowClient { unread: 5000, limit: 4096 }));
    node.quiet().await;
    node.handle.drain();
    assert!(matches!(node.try_ask(&long).await.err(), Some(Failure::Draining { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_the_limit_is_refused() {
    let mut sets = SIM.to_vec();
    sets.push("frontend.max_requests=2");
    let node = Harness::start(&sets).await;
    let long = Ask::new("on and on", 2000);
    let _running = (node.ask(&long).await, node.ask(&long).await);
    match node.try_ask(&long).await.err() {
        Some(Failure::TooManyRequests { current: 2, limit: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_have_begun_wait_for_room_when_their_rank_is_full() {
    let mut sets = SIM.to_vec();
    sets.extend(["worker.max_running=1", "worker.max_waiting=1"]);
    let node = Harness::start(&sets).await;
    let asks = [Ask::new("one thing", 60), Ask::new("another thing", 60)];
    let mut expected = Vec::new();
    for ask in &asks {
        expected.push(node.ask(ask).await.end().await.tokens);
    }
    let (first, second) = (node.ask(&asks[0]).await, node.ask(&asks[1]).await);
    first.tokens(5).await;
    second.until("acceptance", |said| said.accepted).await;
    // Both legs are lost to the front end, while the rank still holds them: it is full.
    node.kill("WorkerLink");
    for (client, expected) in [first, second].iter().zip(expected) {
        let said = client.end().await;
        assert_eq!((said.failed, said.tokens), (None, expected));
    }
    let placed_again =
        node.metric("cuelight_migrations_total{model=\"cuelight-tiny\",reason=\"pressure\"}");
    assert!(placed_again < 50.0, "a full rank was asked {placed_again} times");
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_rank_new_requests_are_refused_and_old_ones_wait_only_so_long() {
    let mut sets = SIM.to_vec();
    sets[3] = "supervision.delay_ms=2000";
    sets.push("frontend.no_rank_wait_s=0.3");
    let node = Harness::start(&sets).await;
    let client = node.ask(&Ask::new("on and on", 2000)).await;
    client.tokens(5).await;
    node.inject(Fault::StepFails);
    let refused = node.eventually("down", || node.handle.readiness()[0].reason.is_some());
    refused.await;
    match node.try_ask(&Ask::new("hello", 5)).await.err() {
        Some(Failure::NotReady { reason, .. }) => {
            assert!(reason.contains("injected fault"), "{reason}");
            assert!(reason.contains("generation 2"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.end().await.failed, Some(Failure::NotReady { .. })));
    node.ready().await;
    node.ask(&Ask::new("hello", 5)).await.end().await;
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_ends_the_choice_and_its_leg() {
    let node = Harness::start(&["worker.engine=native"]).await;
    let prompt =
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let mut ask = Ask::new(prompt, 500);
    ask.stop = vec!["of Fr".to_string(), "never".to_string()];
    let said = node.ask(&ask).await.end().await;
    assert_eq!(said.text[0], "The capital ");
    assert_eq!(said.finished[0], Some(Finish::StopString(0)));
    node.quiet().await;
}
