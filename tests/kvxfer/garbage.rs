//! A TCP listener meets strangers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::slice::from_ref;
use std::time::{Duration, Instant};

use cuelight::kvxfer::tcp::{Listen, Tcp};
use cuelight::kvxfer::{Event, Limits, Transport};

use super::moves::Rng;
use super::peer::{BLOCK_BYTES, layout, pool};
use super::puller::{PATIENCE, Puller, blocks};

/// Sends bytes and waits until the listener has closed the connection; gives what it answered.
fn knock(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = socket.write_all(bytes); // it may close before it has read all
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

#[test]
fn strangers_are_sent_away_and_friends_still_served() {
    let listen = Listen { bind: "127.0.0.1:0".parse().unwrap(), advertise: None };
    let limits =
        Limits { handshake: Duration::from_millis(300), peers: 8, runs: 100, ..Limits::default() };
    let server = Tcp::start(listen, limits, Box::new(|_| {})).unwrap();
    let region = server.register(pool(16), layout(16)).unwrap();
    let grant = server.grant(region, from_ref(&(0..16 * BLOCK_BYTES))).unwrap();
    let address = server.address();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for _ in 0..200 {
        let len = 24 + rng.below(4096);
        let noise: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
        assert_eq!(knock(address, &noise), b"");
    }
    let mut wrong_token = b"CLKVXF\x00\x02".to_vec();
    wrong_token.extend([0; 16]);
    assert_eq!(knock(address, &wrong_token), b"");
    assert_eq!(knock(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), b"");
    assert_eq!(server.counters().rejected, 202);

    // Silent ones are ended by the clock, and there are never more than the limit.
    let start = Instant::now();
    let idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    for mut socket in idle {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(server.counters().rejected, 222);

    let mut puller = Puller::start("tcp", 16).unwrap();
    puller.grant = grant;
    let id = puller.transport.connect(&server.descriptor().unwrap()).unwrap();
    let transfer = puller.pull(id, blocks(0, 16));
    assert_eq!(puller.event(), Event::Done { transfer, bytes: 16 * BLOCK_BYTES });
    puller.check(&blocks(0, 16));
}

#[test]
fn a_peer_that_answers_nonsense_is_lost() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let real = Tcp::start(
        Listen { bind: "127.0.0.1:0".parse().unwrap(), advertise: None },
        Limits::default(),
        Box::new(|_| {}),
    )
    .unwrap();
    let region = real.register(pool(4), layout(4)).unwrap();
    real.grant(region, from_ref(&(0..1))).unwrap();
    // A published address where somebody else answers.
    let published = replace_port(&real.descriptor().unwrap(), real.address().port(), port);
    let mut puller = Puller::start("tcp", 4).unwrap();
    for nonsense in [[0xFF; 64], [0x01; 64], [0x00; 64]] {
        let id = puller.transport.connect(&published).unwrap();
        let transfer = puller.pull(id, blocks(0, 4));
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(&nonsense).unwrap();
        let Event::Failed { .. } = puller.event() else { panic!("not failed") };
        assert_eq!(puller.event(), Event::Quiesced { transfer });
        assert!(matches!(puller.event(), Event::PeerDown { peer, .. } if peer == id));
    }
    drop(listener);
    let id = puller.transport.connect(&published).unwrap(); // nobody listens
    assert!(matches!(puller.event(), Event::PeerDown { peer, .. } if peer == id));
}

/// The descriptor with another port, as its encoding (bincode, variable integers) has it.
fn replace_port(descriptor: &[u8], from: u16, to: u16) -> Vec<u8> {
    let encode = |port: u16| {
        let [low, high] = port.to_le_bytes();
        [251, low, high]
    };
    let at = descriptor.windows(3).rposition(|window| window == encode(from)).unwrap();
    let mut changed = descriptor.to_vec();
    changed[at..at + 3].copy_from_slice(&encode(to));
    changed
}
