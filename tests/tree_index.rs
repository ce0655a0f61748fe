//! What routers know of prefix caches: a rank that does not tell is named, and whatever is wrong with
//! it costs time, never a token.
#![allow(clippy::unwrap_used)]

mod support;

use cuelight::actors::faults::Fault;
use cuelight::actors::reply::Wishes;
use cuelight::engine::faulty::Events;
use support::{Ask, Harness, Said};

/// Simulated ranks at 1 ms a step, whose tokens follow from all KV blocks.
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

fn named(prompt: &str, max_tokens: u32, rank: &str) -> Ask {
    let wishes = Wishes { rank: Some(rank.to_string()), ..ask("", 1).wishes };
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
async fn a_worker_that_tells_nothing_is_guessed_and_named() {
    let node = Harness::start(&with(&["worker.kv_events=false"])).await;
    let warnings = node.handle.readiness().remove(0).warnings;
    assert!(warnings.len() == 1 && warnings[0].reason.contains("worker.kv_events"), "{warnings:?}");
    let first = rank_of(&node, &ask(&long(1), 3)).await;
    let said = node.ask(&ask(&long(1), 3)).await.end().await;
    assert_eq!(said.ranks, [first]);
    assert!(said.routing[0].ranks.iter().any(|rank| rank.cached_blocks > 12), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_says_that_it_tells_and_does_not_is_named() {
    let node = Harness::start(&with(&["worker.dp_size=2"])).await;
    let one = rank_of(&node, &ask("x", 1)).await;
    let worker = one.rsplit_once('/').unwrap().0;
    let [mute, other] = [0, 1].map(|rank| format!("{worker}/{rank}"));
    let warnings = || node.handle.readiness().remove(0).warnings;
    for topic in 0..10 {
        rank_of(&node, &named(&long(topic), 3, &other)).await;
    }
    node.inject(Fault::KvEvents { are: Events::Lost });
    for topic in 0..7 {
        rank_of(&node, &named(&long(topic), 3, &mute)).await;
    }
    assert_eq!(warnings(), [], "its events may come late");
    rank_of(&node, &named(&long(7), 3, &mute)).await;
    let [warning] = &warnings()[..] else { panic!("{:?}", warnings()) };
    assert!(warning.reason.contains("worker.kv_events"), "{warning:?}");
    assert!(warning.reason.contains(&mute) && !warning.reason.contains(&other), "{warning:?}");
    node.inject(Fault::KvEvents { are: Events::Told });
    rank_of(&node, &named(&long(8), 3, &mute)).await;
    assert_eq!(warnings(), [], "it has told something");
}

/// What a client said so far in some conversations, and one more question in each of them.
fn questions(asked: &mut [String], round: usize) -> Vec<Ask> {
    let mut turn = |(topic, text): (usize, &mut String)| {
        text.push_str(&long(100 * (topic % 3) + round)[..80 + 40 * topic]);
        ask(text, 12)
    };
    asked.iter_mut().enumerate().map(&mut turn).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_index_changes_where_answers_come_from_and_not_one_token() {
    // Small pools and a host tier: blocks come, go, move and come back all the time. No guesses, which
    // would hide what the index has wrong.
    let small =
        ["worker.kv_blocks=100", "worker.sim.host_blocks=40", "frontend.router.predicted_ttl_s=0"];
    let node = Harness::start(&with(&small)).await;
    let alone = ["worker.engine=sim", "worker.sim.attend=true", "worker.prefix_cache=false"];
    let truth = Harness::start(&alone).await;
    let (mut wrong, mut hits) = ([0; 5], 0);
    let mut texts: Vec<String> = (0..6).map(|topic| long(topic % 3)).collect();
    let fates = [Events::Told, Events::Garbled, Events::Lost, Events::Garbled, Events::Told];
    for (round, are) in fates.into_iter().enumerate() {
        node.inject(Fault::KvEvents { are });
        let asks = questions(&mut texts, round);
        let mut clients = Vec::new();
        for ask in asks.iter().chain(&asks) {
            clients.push(node.ask(ask).await);
        }
        for (nth, client) in clients.iter().enumerate() {
            let (said, ask) = (client.end().await, &asks[nth % asks.len()]);
            let expected = truth.ask(ask).await.end().await;
            assert_eq!(said.tokens, expected.tokens, "{are:?}, {nth}: {said:?}");
            let why = &said.routing[0];
            let chosen = why.ranks.iter().find(|rank| rank.rank == why.chosen).unwrap();
            let counted_on = chosen.cached_blocks + chosen.host_blocks;
            let error = (cached(&said) / 16).abs_diff(counted_on.into());
            wrong[round] += u32::from(error > 2);
            hits += u32::from(cached(&said) > 0);
        }
        if round == 2 {
            // A rank begins anew, while events are lost.
            let rank = rank_in_tree(&node).await;
            node.kill_named("Rank", &rank);
            let whole = || node.handle.readiness()[0].ranks_ready == 4;
            node.eventually("whole again", whole).await;
        }
    }
    println!("wrong {wrong:?}, hits {hits}");
    assert!(wrong[1..4].iter().sum::<u32>() > 5 && hits > 10, "wrong {wrong:?}, hits {hits}");
    node.quiet().await;
}

/// A rank's name in the tree.
async fn rank_in_tree(node: &Harness) -> String {
    rank_of(node, &ask("x", 1)).await.split_once('/').unwrap().1.to_owned()
}
