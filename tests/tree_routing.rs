//! Requests go where their prefix is and where there is room; a rank's loss is its own affair.
#![allow(clippy::unwrap_used)]

mod support;

use cuelight::actors::failure::Failure;
use cuelight::actors::reply::Wishes;
use support::{Ask, Harness, Said};

/// Four simulated ranks at 1 ms a step.
const RANKS: [&str; 6] = [
    "worker.engine=sim",
    "worker.sim.attend=true",
    "worker.sim.step_us=1000",
    "worker.dp_size=4",
    "supervision.restarts=100",
    "supervision.delay_ms=1",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    RANKS.iter().copied().chain(more.iter().copied()).collect()
}

fn ask(prompt: &str, max_tokens: u32) -> Ask {
    let wishes = Wishes { tell_ranks: true, explain: true, ..Wishes::default() };
    Ask { wishes, ..Ask::new(prompt, max_tokens) }
}

/// A prompt of some twenty blocks that shares nothing with one of another `topic`.
fn long(topic: usize) -> String {
    (0..60).map(|i| format!("{topic} and {i}, ")).collect()
}

async fn rank_of(node: &Harness, ask: &Ask) -> String {
    let said = node.ask(ask).await.end().await;
    assert!(said.failed.is_none(), "{said:?}");
    said.ranks[0].clone()
}

fn cached(said: &Said) -> u64 {
    said.usage.unwrap().cached_tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_prefixes_meet_on_one_rank_and_the_rest_spreads() {
    let node = Harness::start(&RANKS).await;
    let mut ranks = std::collections::BTreeSet::new();
    for topic in 0..12 {
        let first = rank_of(&node, &ask(&long(topic), 3)).await;
        let said = node.ask(&ask(&(long(topic) + "what else?"), 3)).await.end().await;
        assert_eq!(said.ranks[..], [&*first], "topic {topic}: {:?}", said.routing);
        assert!(cached(&said) > 200, "{said:?}");
        ranks.insert(first);
    }
    assert!(ranks.len() > 1, "all prompts went to {ranks:?}");
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_equal_prompts_does_not_scatter() {
    // All come within the first one's first step.
    let node = Harness::start(&with(&["worker.sim.step_us=300000"])).await;
    let wanted = ask(&long(1), 3);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(node.ask(&wanted).await);
    }
    let mut ranks = Vec::new();
    for client in &clients {
        ranks.extend(client.end().await.ranks);
    }
    ranks.dedup();
    assert_eq!(ranks.len(), 1, "{ranks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_is_explained_with_the_scores_of_all() {
    let node = Harness::start(&RANKS).await;
    rank_of(&node, &ask(&long(1), 3)).await;
    let said = node.ask(&ask(&long(1), 3)).await.end().await;
    let [why] = &said.routing[..] else { panic!("{:?}", said.routing) };
    assert_eq!((why.mode, why.ranks.len(), &why.chosen), ("kv", 4, &said.ranks[0]));
    let chosen = why.ranks.iter().find(|rank| rank.rank == why.chosen).unwrap();
    assert!(chosen.cached_blocks > 12 && f64::from(chosen.cached_blocks) <= why.blocks, "{why:?}");
    for other in why.ranks.iter().filter(|rank| rank.rank != why.chosen) {
        assert!(other.cost > chosen.cost && other.cached_blocks == 0, "{why:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_name_the_rank_and_in_direct_mode_must() {
    let node = Harness::start(&with(&["frontend.router.mode=direct"])).await;
    let without = node.ask(&ask("x", 3)).await.end().await;
    let Some(Failure::RankNeeded { known }) = without.failed else { panic!("{without:?}") };
    for name in known.split(", ") {
        let wishes = Wishes { tell_ranks: true, rank: Some(name.to_string()), ..Wishes::default() };
        assert_eq!(rank_of(&node, &Ask { wishes, ..Ask::new("x", 3) }).await, name);
    }
    let wishes = Wishes { rank: Some("nowhere/x/0".to_string()), ..Wishes::default() };
    let wrong = node.ask(&Ask { wishes, ..Ask::new("x", 3) }).await.end().await;
    assert!(matches!(wrong.failed, Some(Failure::UnknownRank { .. })), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_without_prefixes_spread_equal_prompts() {
    for mode in ["round-robin", "random", "power-of-two", "least-loaded"] {
        let mode_set = format!("frontend.router.mode={mode}");
        let node = Harness::start(&with(&[&mode_set])).await;
        let mut ranks = std::collections::BTreeSet::new();
        for _ in 0..40 {
            ranks.insert(rank_of(&node, &ask(&long(1), 2)).await);
        }
        assert!(ranks.len() == 4, "{mode}: {ranks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_may_have_a_mode_of_its_own() {
    let modes = "frontend.router.modes=[\"other=random\", \"cuelight-tiny=round-robin\"]";
    let node = Harness::start(&with(&[modes])).await;
    let said = node.ask(&ask("x", 2)).await.end().await;
    assert_eq!(said.routing[0].mode, "round-robin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_rank_takes_only_its_own_requests_along_and_comes_back_empty() {
    let node = Harness::start(&RANKS).await;
    let asks: Vec<_> = (0..12).map(|topic| ask(&long(topic), 150)).collect();
    let mut expected = Vec::new();
    for ask in &asks {
        expected.push(node.ask(ask).await.end().await.tokens);
    }
    let mut clients = Vec::new();
    for ask in &asks {
        clients.push(node.ask(ask).await);
    }
    for client in &clients {
        client.tokens(5).await;
    }
    let lost = clients[0].said().ranks[0].clone();
    let name = lost.split_once('/').unwrap().1;
    node.kill_named("Rank", name);
    for (client, expected) in clients.iter().zip(expected) {
        let said = client.end().await;
        assert_eq!(said.tokens, expected, "{:?}", said.failed);
        assert_eq!(said.ranks.len() > 1, said.ranks[0] == lost, "{:?}, lost {lost}", said.ranks);
    }
    assert_eq!(node.generation(), 1, "the worker goes on");
    let ready = || node.handle.readiness()[0].ranks_ready == 4;
    node.eventually("whole again", ready).await;
    let wishes = Wishes { rank: Some(lost.clone()), ..asks[0].wishes.clone() };
    let again = node.ask(&Ask { wishes, ..asks[0].clone() }).await.end().await;
    assert_eq!((cached(&again), again.routing[0].ranks[0].cached_blocks), (0, 0), "{again:?}");
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_router_or_link_costs_nothing_and_the_index_is_whole_again() {
    let node = Harness::start(&RANKS).await;
    let first = rank_of(&node, &ask(&long(1), 3)).await;
    for (kind, part) in [("Router", "router"), ("WorkerLink", "worker_link"), ("Models", "models")]
    {
        node.kill(kind);
        let restarts = format!("cuelight_restarts_total{{part=\"{part}\"}} 1");
        let restarted = || node.handle.metrics().encode().contains(&restarts);
        node.eventually("restarted", || restarted() && node.census(kind) == 1).await;
        // What was cached there is known again, sooner or later.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let Ok(client) = node.try_ask(&ask(&long(1), 3)).await else { continue };
            let said = client.end().await;
            let ranks = said.routing.iter().flat_map(|why| &why.ranks);
            if ranks.into_iter().any(|rank| rank.rank == first && rank.cached_blocks > 12) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "after {kind}: {said:?}");
        }
    }
}

/// One rank that serves one request at a time, and a line before it.
const ONE: [&str; 4] = [
    "worker.engine=sim",
    "worker.sim.step_us=1000",
    "worker.max_running=1",
    "worker.max_waiting=1",
];

/// One runs and one waits on the rank: it is full.
async fn fill(node: &Harness) -> [support::Client; 2] {
    let first = node.ask(&ask("the one that all wait for", 150)).await;
    first.tokens(1).await;
    let second = node.ask(&ask("and the next", 20)).await;
    second.until("acceptance", |said| said.accepted).await;
    [first, second]
}

/// Asks all at once, and returns in which order they ended.
async fn race(node: &Harness, asks: &[Ask]) -> Vec<usize> {
    let _full = fill(node).await;
    let mut clients = Vec::new();
    for (place, ask) in asks.iter().enumerate() {
        clients.push(node.ask(ask).await);
        let waiting =
            || node.metric("cuelight_router_queue{model=\"cuelight-tiny\",pool=\"decode\"}");
        node.eventually("in line", || waiting() == (place + 1) as f64).await;
    }
    let mut waiting = tokio::task::JoinSet::new();
    for (place, client) in clients.into_iter().enumerate() {
        waiting.spawn(async move { (place, client.end().await) });
    }
    let mut ended = Vec::new();
    while let Some(next) = waiting.join_next().await {
        let (place, said) = next.unwrap();
        assert!(said.failed.is_none(), "{said:?}");
        ended.push(place);
    }
    node.quiet().await;
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_all_ranks_full_stands_in_line_and_goes_by_priority_tenant_and_length() {
    let line = [&ONE[..], &["frontend.router.queue=10"]].concat();
    let claim = |topic, priority, tenant| {
        let wishes = Wishes { priority, tenant, ..Wishes::default() };
        Ask { wishes, ..Ask::new(&long(topic), 20) }
    };
    let node = Harness::start(&line).await;
    let by_priority = [claim(1, 5, 0), claim(2, 0, 0), claim(3, -1, 0), claim(4, 0, 0)];
    assert_eq!(race(&node, &by_priority).await, [2, 1, 3, 0]);
    let by_tenant = [claim(5, 0, 7), claim(6, 0, 7), claim(7, 0, 7), claim(8, 0, 9)];
    assert_eq!(race(&node, &by_tenant).await, [0, 3, 1, 2]);
    let node = Harness::start(
        &[&line[..], &["frontend.router.queue_policy=shortest-uncached-first"]].concat(),
    )
    .await;
    let by_length = [Ask::new(&long(1), 20), Ask::new("short", 20), Ask::new(&long(2)[..300], 20)];
    assert_eq!(race(&node, &by_length).await, [1, 2, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_line_is_bounded_in_number_and_time_and_who_leaves_it_leaves_nothing() {
    let sets = ["frontend.router.queue=2", "frontend.router.queue_wait_s=0.3"];
    let node = Harness::start(&[&ONE[..], &sets].concat()).await;
    let first = node.ask(&ask("on and on", 1500)).await;
    first.tokens(1).await;
    let next = node.ask(&ask("and on", 5)).await;
    next.until("acceptance", |said| said.accepted).await;
    let (second, mut third) = (node.ask(&ask("b", 5)).await, node.ask(&ask("c", 5)).await);
    let waiting = || node.metric("cuelight_router_queue{model=\"cuelight-tiny\",pool=\"decode\"}");
    node.eventually("in line", || waiting() == 2.0).await;
    match node.ask(&ask("d", 5)).await.end().await.failed {
        Some(Failure::TooManyRequests { what, limit: 2, .. }) => assert!(what.contains("queue")),
        other => panic!("{other:?}"),
    }
    third.leave();
    node.eventually("out of line", || waiting() <= 1.0).await;
    match second.end().await.failed {
        Some(Failure::TooManyRequests { what, .. }) => assert!(what.contains("queue_wait_s")),
        other => panic!("{other:?}"),
    }
    drop((first, next));
    node.quiet().await;
    assert_eq!(waiting(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_on_its_rank_while_that_lives() {
    for affinity in ["soft", "hard"] {
        let set = format!("frontend.router.affinity={affinity}");
        let node = Harness::start(&with(&["frontend.router.mode=random", &set])).await;
        let of = |session| {
            let wishes = Wishes { session: Some(session), ..ask("", 1).wishes };
            Ask { wishes, ..Ask::new("x", 2) }
        };
        let mut ranks = std::collections::BTreeSet::new();
        for session in 0..12 {
            let rank = rank_of(&node, &of(session)).await;
            for _ in 0..3 {
                assert_eq!(rank_of(&node, &of(session)).await, rank, "{affinity}, {session}");
            }
            ranks.insert(rank);
        }
        assert!(ranks.len() > 1, "all sessions are on {ranks:?}");
        let lost = rank_of(&node, &of(0)).await;
        node.kill_named("Rank", lost.split_once('/').unwrap().1);
        let restarts =
            || node.handle.metrics().encode().contains("restarts_total{part=\"rank\"} 1");
        node.eventually("lost", restarts).await;
        rank_of(&node, &of(0)).await; // anywhere
    }
}

/// Two ranks that serve one request at a time, let one wait, and do not come back when killed.
const TWO: [&str; 8] = [
    "worker.engine=sim",
    "worker.sim.step_us=1000",
    "worker.dp_size=2",
    "worker.max_running=1",
    "worker.max_waiting=1",
    "supervision.delay_ms=60000",
    "frontend.router.queue=10",
    "frontend.router.queue_wait_s=20",
];

fn named(prompt: &str, max_tokens: u32, rank: &str) -> Ask {
    let wishes = Wishes { rank: Some(rank.to_string()), ..ask("", 1).wishes };
    Ask { wishes, ..Ask::new(prompt, max_tokens) }
}

/// The two ranks' names.
async fn two_ranks(node: &Harness) -> [String; 2] {
    let one = rank_of(node, &ask("x", 1)).await;
    let worker = one.rsplit_once('/').unwrap().0;
    [format!("{worker}/0"), format!("{worker}/1")]
}

fn in_line(node: &Harness) -> f64 {
    node.metric("cuelight_router_queue{model=\"cuelight-tiny\",pool=\"decode\"}")
}

async fn accepted(node: &Harness, ask: &Ask) -> support::Client {
    let client = node.ask(ask).await;
    client.until("acceptance", |said| said.accepted).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_begun_goes_before_the_line() {
    let node = Harness::start(&TWO).await;
    let [lost, stays] = two_ranks(&node).await;
    let running = accepted(&node, &named("a", 3000, &lost)).await;
    let waits = accepted(&node, &named("b", 20, &lost)).await;
    let _full = [accepted(&node, &named("c", 600, &stays)).await, {
        accepted(&node, &named("d", 20, &stays)).await
    }];
    running.tokens(3).await;
    let mut urgent = ask("e", 5);
    urgent.wishes.priority = -1;
    let urgent = node.ask(&urgent).await;
    node.eventually("in line", || in_line(&node) == 1.0).await;
    node.kill_named("Rank", lost.split_once('/').unwrap().1);
    // Both that have begun find room before the other does.
    let said = urgent.until("acceptance", |said| said.accepted).await;
    assert!(said.failed.is_none(), "{said:?}");
    assert!(running.said().ranks.len() == 2, "{:?}", running.said());
    let said = waits.end().await;
    assert!(said.failed.is_none() && said.ranks.len() == 1, "{said:?}");
    assert!(running.end().await.failed.is_none());
    assert!(urgent.end().await.failed.is_none());
    node.eventually("nothing left", || node.census("Sequence") + node.census("Request") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_one_rank_does_not_hold_up_the_others_and_keeps_its_place() {
    let node = Harness::start(&TWO).await;
    let [busy, soon] = two_ranks(&node).await;
    let mut long = Vec::new();
    for (rank, tokens) in [(&busy, 700), (&busy, 20), (&soon, 150), (&soon, 20)] {
        long.push(accepted(&node, &named("on and on", tokens, rank)).await);
    }
    let mut first = named("first", 5, &busy);
    first.wishes.priority = -1;
    let first = node.ask(&first).await;
    node.eventually("in line", || in_line(&node) == 1.0).await;
    let second = node.ask(&ask("second", 5)).await;
    node.eventually("in line", || in_line(&node) == 2.0).await;
    let later = node.ask(&named("later", 5, &busy)).await;
    node.eventually("in line", || in_line(&node) == 3.0).await;
    assert_eq!(second.end().await.ranks, [soon]);
    assert!(!first.said().ended() && !later.said().ended(), "their rank is full");
    assert_eq!(first.end().await.ranks, std::slice::from_ref(&busy));
    assert_eq!(later.end().await.ranks, [busy]);
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_placed_in_part_waits_for_the_rest_before_the_line() {
    let sets = ["frontend.router.queue=5", "frontend.router.queue_wait_s=0.3"];
    let node = Harness::start(&[&ONE[..], &sets].concat()).await;
    let first = accepted(&node, &ask("on and on", 700)).await;
    first.tokens(1).await;
    let two = node.ask(&Ask { n: 2, ..ask("two", 5) }).await;
    node.eventually("accepted", || node.census("Sequence") == 2).await;
    let next = node.ask(&ask("next", 5)).await;
    match next.end().await.failed {
        Some(Failure::TooManyRequests { what, .. }) => assert!(what.contains("queue_wait_s")),
        other => panic!("{other:?}"),
    }
    let said = two.end().await;
    assert!(said.failed.is_none(), "{said:?}");
    assert!(first.end().await.failed.is_none());
    node.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_rank_that_restarts_is_waited_for_and_an_unknown_one_is_not() {
    let node = Harness::start(&with(&["supervision.delay_ms=300"])).await;
    let rank = rank_of(&node, &ask("x", 1)).await;
    node.kill_named("Rank", rank.split_once('/').unwrap().1);
    let down = || node.handle.readiness()[0].ranks_ready == 3;
    node.eventually("lost", down).await;
    let said = node.ask(&named("y", 3, &rank)).await.end().await;
    assert_eq!((said.ranks, said.failed), (vec![rank.clone()], None));
    let unknown = format!("{rank}9");
    match node.ask(&named("y", 3, &unknown)).await.end().await.failed {
        Some(Failure::UnknownRank { rank, .. }) => assert_eq!(rank, unknown),
        other => panic!("{other:?}"),
    }
    node.quiet().await;
}
