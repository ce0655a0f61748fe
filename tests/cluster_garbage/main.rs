//! Strangers, broken peers and liars at the doors of a cluster change nothing: two real nodes serve a
//! client through all of it, stay connected, and afterwards hold no more descriptors than before.
#![allow(clippy::unwrap_used)] // a test may

mod attack;
mod node;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use attack::{Attack, Rng, accomplice, attack};
use node::{Cluster, Node, eventually};

/// `cluster.handshake_timeout_s` of the nodes.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// `cluster.max_handshakes` of the nodes.
const MAX_HANDSHAKES: usize = 16;
/// A busy machine may be this much later.
const SLACK: Duration = Duration::from_secs(5);

fn seed() -> u64 {
    let seed = std::env::var("CUELIGHT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(20_261_123);
    println!("run again with CUELIGHT_SEED={seed}");
    seed
}

/// A client that asks the same again and again, and writes down what is wrong with the answers.
struct Client {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    wrong: Arc<Mutex<Vec<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Client {
    fn start(front: &Node) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let expected = front.complete().expect("the cluster serves");
        let (http, asked) = (front.http(), (stop.clone(), answered.clone(), wrong.clone()));
        let thread = thread::spawn(move || {
            let (stop, answered, wrong) = asked;
            while !stop.load(SeqCst) {
                match http.complete() {
                    Ok(text) if text == expected => drop(answered.fetch_add(1, SeqCst)),
                    other => wrong.lock().unwrap().push(format!("{other:?}")),
                }
            }
        });
        Self { stop, answered, wrong, thread }
    }

    /// How many answers were right; none may have been wrong.
    fn stop(self) -> u32 {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap();
        assert_eq!(*self.wrong.lock().unwrap(), [""; 0]);
        self.answered.load(SeqCst)
    }
}

/// What must be afterwards as it was before.
#[derive(Debug, PartialEq)]
struct Level {
    descriptors: usize,
    connected: f64,
    lost: f64,
}

fn level(node: &Node) -> Level {
    Level {
        descriptors: node.descriptors(),
        connected: node.metric("cuelight_cluster_nodes"),
        lost: node.metric("cuelight_cluster_lost_total"),
    }
}

/// The level once it has stayed the same for a while.
fn settled(node: &Node) -> Level {
    let mut last = level(node);
    let mut since = Instant::now();
    eventually("standstill", || {
        let now = level(node);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    last
}

/// Waits until `node` is at `before` again.
fn back_at(node: &Node, before: &Level) {
    eventually(&format!("return of {} to {before:?}", node.name), || {
        let now = level(node);
        assert_eq!((now.connected, now.lost), (before.connected, before.lost), "{}", node.name);
        now.descriptors <= before.descriptors
    });
}

/// Runs every attack on both nodes `rounds` times, many at once, while a client is served.
fn attack_all(cluster: &Cluster, attacks: &'static [Attack], rounds: usize, seed: u64) {
    let before = [&cluster.front, &cluster.back].map(settled);
    let memory = [&cluster.front, &cluster.back].map(Node::memory_kib);
    let client = Client::start(&cluster.front);
    let targets = [cluster.front.peers, cluster.back.peers];
    let mut running = Vec::new();
    for (index, kind) in attacks.iter().enumerate() {
        let seed = seed.wrapping_add(index as u64);
        running.push(thread::spawn(move || {
            let mut rng = Rng(seed);
            for round in 0..rounds {
                let target = targets[round % 2];
                let began = Instant::now();
                if let Err(what) = attack(*kind, target, &mut rng, HANDSHAKE + SLACK) {
                    panic!("{kind:?} on {target}, seed {seed}, round {round}: {what}");
                }
                assert!(began.elapsed() < HANDSHAKE * 2 + SLACK, "{kind:?}, seed {seed}");
            }
        }));
    }
    for attacker in running {
        attacker.join().expect("every attacker is dropped");
    }
    let answered = client.stop();
    assert!(answered >= 5, "only {answered} answers");
    for ((node, before), memory) in
        [&cluster.front, &cluster.back].into_iter().zip(&before).zip(memory)
    {
        back_at(node, before);
        let grown = node.memory_kib().saturating_sub(memory);
        assert!(grown < 64 << 10, "{} grew by {grown} KiB", node.name);
        assert_eq!(node.complaints(), [""; 0], "{}", node.name);
    }
}

#[test]
fn strangers_are_dropped_without_effect() {
    let cluster = Cluster::start(&[]);
    let turned = || {
        [&cluster.front, &cluster.back]
            .map(|node| node.metric("cuelight_cluster_turned_away_total"))
            .iter()
            .sum::<f64>()
    };
    let before = turned();
    attack_all(&cluster, Attack::OF_STRANGERS, 12, seed());
    let turned = turned() - before;
    let least = (Attack::OF_STRANGERS.len() * 12) as f64;
    assert!(turned >= least, "{turned} of {least} were counted as turned away");
}

#[test]
fn a_peer_that_knows_the_cookie_and_sends_garbage_harms_only_itself() {
    let cluster = Cluster::start(&[]);
    let before = [&cluster.front, &cluster.back].map(settled);
    let client = Client::start(&cluster.front);
    let (seed, mut rng) = (seed(), Rng(seed() ^ 1));
    for round in 0..40 {
        let target = [cluster.front.peers, cluster.back.peers][round % 2];
        if let Err(what) = accomplice(round, target, &mut rng, HANDSHAKE + SLACK) {
            panic!("seed {seed}, round {round} on {target}: {what}");
        }
    }
    assert!(client.stop() >= 1);
    for (node, before) in [&cluster.front, &cluster.back].into_iter().zip(&before) {
        eventually(&format!("return of {} to {before:?}", node.name), || {
            let now = level(node); // it has lost us, again and again
            now.descriptors <= before.descriptors && now.connected == before.connected
        });
    }
    let client = Client::start(&cluster.front);
    eventually("more answers", || client.answered.load(SeqCst) >= 3);
    client.stop();
}

#[test]
fn silent_connections_beyond_the_limit_wait_outside_and_a_node_still_comes_in() {
    let mut cluster = Cluster::start(&[]);
    let before = settled(&cluster.front);
    let flood: Vec<_> = (0..MAX_HANDSHAKES * 5)
        .map(|_| TcpStream::connect(cluster.front.peers).expect("the kernel's backlog takes it"))
        .collect();
    let began = Instant::now();
    let mut most = 0;
    cluster.back.restart();
    // The returning node stands in the same queue: the flood passes at the pace of its timeouts.
    eventually("the other node among the flood", || {
        most = most.max(cluster.front.descriptors());
        cluster.front.complete().is_ok()
    });
    println!("the other node was back after {:?}", began.elapsed());
    // Besides those greeting: the connections of the client here and of the node that comes back.
    let limit = before.descriptors + MAX_HANDSHAKES + 8;
    assert!(most <= limit, "{most} descriptors, {before:?}");
    for stream in &flood {
        assert!(attack::is_closed(stream, HANDSHAKE * 6 + SLACK), "a silent stranger is still in");
    }
    drop(flood);
    eventually("return", || cluster.front.descriptors() <= before.descriptors);
}

#[test]
fn a_node_listens_where_it_was_told_and_nowhere_else() {
    let cluster = Cluster::start(&[]);
    for node in [&cluster.front, &cluster.back] {
        assert_eq!(node.listens(), node.told_to_listen(), "{}", node.name);
    }
}

#[test]
fn whoever_answers_at_a_seed_cannot_hurt_who_dials() {
    let fake = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = fake.local_addr().unwrap();
    let dialled = Arc::new(AtomicU32::new(0));
    let (count, seed) = (dialled.clone(), seed());
    thread::spawn(move || {
        let mut rng = Rng(seed);
        let mut held = Vec::new();
        for stream in fake.incoming().flatten() {
            let number = count.fetch_add(1, SeqCst);
            attack::answer(number, &stream, &mut rng);
            if number % 3 == 0 {
                held.push(stream); // silent and open
            } else {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    });
    let cluster = Cluster::start(&[&address.to_string()]);
    let before = [&cluster.front, &cluster.back].map(settled);
    let client = Client::start(&cluster.front);
    let already = dialled.load(SeqCst);
    eventually("dials and answers", || {
        dialled.load(SeqCst) >= already + 12 && client.answered.load(SeqCst) >= 5
    });
    client.stop();
    for (node, before) in [&cluster.front, &cluster.back].into_iter().zip(&before) {
        let now = level(node);
        assert_eq!((now.connected, now.lost), (before.connected, before.lost), "{}", node.name);
        assert!(now.descriptors <= before.descriptors + 2, "{now:?} {before:?}");
        assert_eq!(node.complaints(), [""; 0], "{}", node.name);
    }
}
