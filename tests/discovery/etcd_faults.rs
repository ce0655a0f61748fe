//! etcd itself is killed, loses its data, or hangs.

use std::time::Duration;

use super::etcd::{Etcd, PREFIX, key};
use super::{Node, stays};
use cuelight::actors::cluster::discovery::Discovery;

const TTL: Duration = Duration::from_secs(2);

/// Two nodes that know each other.
fn pair(etcd: &Etcd) -> (Node, Node) {
    let a = Node::start("a", 1, etcd.discovery(TTL));
    let b = Node::start("b", 1, etcd.discovery(TTL));
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    a.count_peers();
    b.count_peers();
    (a, b)
}

#[test]
fn peers_are_kept_while_etcd_is_gone_and_it_may_come_back_with_its_data() {
    let mut etcd = Etcd::start();
    let (a, b) = pair(&etcd);
    etcd.kill();
    a.has_problem("cannot be reached");
    b.has_problem("cannot be reached");
    stays(&a, TTL * 2, |known| known.peers.len() != 1 || known.problem.is_none());
    etcd.run();
    a.works();
    b.works();
    etcd.has_keys(&[key("a", 1), key("b", 1)]);
    stays(&a, TTL * 2, |known| known.peers.len() != 1 || known.problem.is_some());
    assert_eq!((a.fewest(), b.fewest()), (1, 1), "peers were forgotten");
}

#[test]
fn everybody_is_announced_again_when_etcd_comes_back_empty_and_the_dead_are_forgotten() {
    let mut etcd = Etcd::start();
    let (a, b) = pair(&etcd);
    let c = Node::start("c", 1, etcd.discovery(TTL));
    a.sees(&[("b", 1), ("c", 1)]);
    etcd.kill();
    a.has_problem("cannot be reached");
    c.kill();
    etcd.wipe();
    etcd.run();
    etcd.has_keys(&[key("a", 1), key("b", 1)]);
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    a.works();
    assert_eq!((a.fewest(), b.fewest()), (1, 1), "the living were forgotten");
    let d = Node::start("d", 1, etcd.discovery(TTL));
    a.sees(&[("b", 1), ("d", 1)]);
    d.sees(&[("a", 1), ("b", 1)]);
}

#[test]
fn a_restart_that_nobody_had_time_to_notice_is_noticed() {
    let mut etcd = Etcd::start();
    let (a, b) = pair(&etcd);
    for round in 1..=3 {
        etcd.kill();
        etcd.wipe();
        etcd.run();
        etcd.has_keys(&[key("a", 1), key("b", 1)]);
        assert_eq!((a.fewest(), b.fewest()), (1, 1), "peers were forgotten in round {round}");
    }
    a.works();
    b.works();
}

#[test]
fn peers_are_kept_while_etcd_hangs_and_when_all_leases_lapse_as_it_goes_on() {
    let etcd = Etcd::start();
    let (a, b) = pair(&etcd);
    for _ in 0..2 {
        etcd.signal("-STOP");
        a.has_problem("did not answer within");
        stays(&a, TTL * 2, |known| known.peers.len() != 1 || known.problem.is_none());
        etcd.signal("-CONT");
        a.works();
        b.works();
        etcd.has_keys(&[key("a", 1), key("b", 1)]);
    }
    stays(&a, TTL * 2, |known| known.peers.len() != 1);
    assert_eq!((a.fewest(), b.fewest()), (1, 1), "peers were forgotten");
}

#[test]
fn a_node_that_starts_before_etcd_joins_when_it_is_there_and_one_can_leave_without_it() {
    let mut etcd = Etcd::start();
    etcd.kill();
    let a = Node::start("a", 1, etcd.discovery(TTL));
    a.has_problem("cannot be reached");
    etcd.run();
    a.works();
    etcd.has_keys(&[key("a", 1)]);
    etcd.signal("-STOP");
    let start = std::time::Instant::now();
    a.leave();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn what_is_not_etcd_is_a_problem_with_a_way_out() {
    let etcd = Etcd::start();
    let at = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|text| (*text).to_owned()).collect();
        Node::start("a", 1, Discovery::Etcd { endpoints, prefix: PREFIX.into(), ttl: TTL })
    };
    at(&[]).has_problem("no etcd endpoint is configured");
    let https = etcd.endpoint().replace("http:", "https:");
    at(&[&https]).has_problem("is not http://host:port");
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let node = at(&[&format!("http://{}", web.local_addr().unwrap())]);
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in web.incoming().flatten() {
            let _ = (&stream).read(&mut [0; 4096]); // closing with something unread would reset it
            let _ = (&stream).write_all(b"HTTP/1.0 404 Not Found\r\n\r\n<html>");
        }
    });
    node.has_problem("is not etcd's API v3");
}
