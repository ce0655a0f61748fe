//! etcd works; nodes come, go and die, and others write under the prefix.

use std::time::{Duration, Instant};

use cuelight::actors::cluster::discovery::Discovery;

use super::etcd::{Etcd, PREFIX, key};
use super::{Node, eventually, stays, warnings};

/// The least that etcd grants.
const TTL: Duration = Duration::from_secs(2);
/// etcd looks for lapsed leases twice a second, and this machine may be busy.
const SLACK: Duration = Duration::from_secs(3);

#[test]
fn nodes_find_each_other_and_lose_who_is_killed_within_the_ttl() {
    let etcd = Etcd::start();
    let start = |name, incarnation| Node::start(name, incarnation, etcd.discovery(TTL));
    let (a, b, c) = (start("a", 1), start("b", 1), start("c", 1));
    a.sees(&[("b", 1), ("c", 1)]);
    let known = b.sees(&[("a", 1), ("c", 1)]);
    c.sees(&[("a", 1), ("b", 1)]);
    assert_eq!(known.problem, None);
    assert_eq!(known.peers[1].address, "c:7000");
    stays(&a, TTL * 2, |known| known.peers.len() != 2); // leases are kept alive

    c.kill();
    let killed = Instant::now();
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    assert!(killed.elapsed() < TTL + SLACK, "{:?}", killed.elapsed());
    etcd.has_keys(&[key("a", 1), key("b", 1)]);
}

#[test]
fn a_node_that_comes_back_replaces_its_former_self_at_once_and_one_that_leaves_is_gone_at_once() {
    let ttl = Duration::from_secs(60); // nothing lapses during this test
    let etcd = Etcd::start();
    let a = Node::start("a", 1, etcd.discovery(ttl));
    let b = Node::start("b", 1, etcd.discovery(ttl));
    a.sees(&[("b", 1)]);
    b.kill();
    let b = Node::start("b", 2, etcd.discovery(ttl));
    a.sees(&[("b", 2)]);
    etcd.has_keys(&[key("a", 1), key("b", 1), key("b", 2)]);
    b.sees(&[("a", 1)]);

    b.leave();
    assert_eq!(etcd.keys().unwrap(), [key("a", 1), key("b", 1)]);
    a.sees(&[("b", 1)]); // until its lease lapses
    etcd.delete(&key("b", 1));
    a.sees(&[]);
    let runtime = a.runtime;
    drop(a.following); // leaves in the background
    etcd.has_keys(&[]);
    drop(runtime);
}

#[test]
fn garbage_under_the_prefix_changes_nothing_and_is_complained_about_once() {
    let etcd = Etcd::start();
    let garbage: [(&str, &[u8]); 4] = [
        ("garbage-text", b"garbage"),
        ("garbage-half", br#"{"name":"x","incar"#),
        ("garbage-bytes", b"\xff\xfe\x00"),
        ("garbage-address", br#"{"name":"x","incarnation":1,"address":"nowhere"}"#),
    ];
    etcd.put(&format!("{PREFIX}/early-{}", garbage[0].0), garbage[0].1);
    let a = Node::start("a", 1, etcd.discovery(TTL));
    let b = Node::start("b", 1, etcd.discovery(TTL));
    a.sees(&[("b", 1)]);
    for (key, value) in garbage {
        etcd.put(&format!("{PREFIX}/{key}"), value);
        etcd.put(&format!("{PREFIX}/{key}"), value);
    }
    etcd.put(&format!("{PREFIX}extra/x"), br#"{"name":"x","incarnation":1,"address":"x:1"}"#);
    stays(&a, TTL * 2, |known| known.peers.len() != 1 || known.problem.is_some());
    for word in ["early-garbage-text", "/garbage-half", "/garbage-bytes", "/garbage-address"] {
        assert_eq!(warnings(word).len(), 2, "one for each node: {:?}", warnings(word));
    }
    let c = Node::start("c", 1, etcd.discovery(TTL));
    b.sees(&[("a", 1), ("c", 1)]);
    c.sees(&[("a", 1), ("b", 1)]);
}

#[test]
fn an_announcement_that_somebody_removes_or_overwrites_is_written_again() {
    let ttl = Duration::from_secs(60); // not by the next keep-alive or list
    let etcd = Etcd::start();
    let a = Node::start("a", 1, etcd.discovery(ttl));
    let b = Node::start("b", 1, etcd.discovery(ttl));
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    etcd.delete(&key("b", 1));
    etcd.has_keys(&[key("a", 1), key("b", 1)]);
    etcd.put(&key("b", 1), b"garbage");
    let c = Node::start("c", 1, etcd.discovery(ttl));
    c.sees(&[("a", 1), ("b", 1)]);
    a.sees(&[("b", 1), ("c", 1)]);
}

#[test]
fn a_watch_survives_compactions_and_misses_nothing() {
    let etcd = Etcd::start();
    let a = Node::start("a", 1, etcd.discovery(TTL));
    a.works();
    for round in 0..5 {
        let name = format!("n{round}");
        let node = Node::start(&name, 1, etcd.discovery(TTL));
        etcd.compact();
        a.sees(&[(&name, 1)]);
        etcd.compact();
        node.leave();
        a.sees(&[]);
    }
    eventually("end of doubts", || a.now().problem.is_none());
}

#[test]
fn one_endpoint_that_answers_is_enough() {
    let etcd = Etcd::start();
    let endpoints = ["http://127.0.0.1:9", "nonsense", &etcd.endpoint()].map(String::from).to_vec();
    let discovery = Discovery::Etcd { endpoints, prefix: format!("{PREFIX}/"), ttl: TTL };
    let a = Node::start("a", 1, discovery);
    let b = Node::start("b", 1, etcd.discovery(TTL));
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    a.works();
}
