//! Tokens reach a request where they arrive, in the middle of a step that has tokens for others:
//! what goes wrong in one request stays there, and what comes together leaves together.

mod support;

use cuelight::actors::reply::Finish;
use support::{Ask, Harness};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_panics_on_a_token_ends_alone() {
    let node = Harness::start(&["worker.engine=sim", "worker.sim.step_us=1000"]).await;
    let others = ["one", "two", "three"].map(|prompt| Ask::new(prompt, 60));
    let mut want = Vec::new();
    for ask in &others {
        want.push(node.ask(ask).await.end().await);
    }
    let mut clients = Vec::new();
    for ask in &others {
        clients.push(node.ask(ask).await);
    }
    for client in &clients {
        client.tokens(2).await;
    }
    let generation = node.generation();
    let bad = node.ask(&Ask { panics_at: 5, ..Ask::new("bad", 60) }).await;
    let said = bad.end().await;
    assert!(said.dropped && said.tokens[0].len() == 5, "{said:?}");
    for (client, want) in clients.iter().zip(&want) {
        let got = client.end().await;
        assert_eq!((&got.text, &got.usage), (&want.text, &want.usage));
    }
    assert_eq!(node.generation(), generation);
    assert_eq!(node.census("WorkerLink"), 1);
    let lost = "cuelight_migrations_total{model=\"cuelight-tiny\",reason=\"worker_lost\"}";
    assert_eq!(node.metric(lost), 0.0);
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tokens_of_all_choices_in_a_step_leave_as_one_burst() {
    let node = Harness::start(&["worker.engine=sim", "worker.sim.step_us=2000"]).await;
    let (n, tokens) = (8, 50);
    let client = node.ask(&Ask { n, ..Ask::new("together", tokens) }).await;
    let said = client.end().await;
    assert!(said.tokens.iter().all(|choice| choice.len() == tokens as usize), "{said:?}");
    // Steps that arrive while the actor decides about the start are taken in with it.
    let most = tokens as usize + 10;
    assert!((2..=most).contains(&said.flushes), "{} bursts, {tokens} steps", said.flushes);
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_too_slowly_is_cut_off_in_the_middle_of_its_stream() {
    let sets = ["worker.engine=sim", "worker.sim.step_us=500", "frontend.stream_buffer_bytes=4096"];
    let node = Harness::start(&sets).await;
    let said = node.ask(&Ask { backlog: 4097, ..Ask::new("slow", 400) }).await.end().await;
    let failure = said.failed.unwrap_or_else(|| panic!("it was not cut off")).to_string();
    assert!(failure.contains("4097"), "{failure}");
    assert!(said.tokens[0].len() < 400, "{}", said.tokens[0].len());
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_found_in_the_middle_of_a_step_frees_the_leg_and_ends_the_answer() {
    let node = Harness::start(&["worker.engine=sim", "worker.sim.step_us=500"]).await;
    let plain = node.ask(&Ask::new("stop me", 300)).await.end().await.text.remove(0);
    let tail: String = plain.chars().skip(plain.chars().count() / 2).take(12).collect();
    let at = plain.find(&tail).unwrap();
    for _ in 0..20 {
        let ask = Ask { stop: vec![tail.clone()], n: 2, ..Ask::new("stop me", 300) };
        let said = node.ask(&ask).await.end().await;
        for choice in 0..2 {
            assert_eq!(said.finished[choice], Some(Finish::StopString(0)), "choice {choice}");
            assert_eq!(said.text[choice], plain[..at], "choice {choice}");
        }
        assert!(said.failed.is_none());
    }
    node.quiet().await;
}
