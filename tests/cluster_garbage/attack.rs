//! What may come to a node's door: strangers, who do not know the cookie, and one that does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cuelight::actors::cluster::hello::{HelloError, Identity, PROTOCOL, Purpose};
use cuelight::actors::cluster::transport::{Connection, Transport};
use cuelight::actors::cluster::wire::Pulse;
use cuelight::ids::{Generation, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::node::COOKIE;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.below(256) as u8).collect()
    }
}

/// What a stranger does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attack {
    /// Sends bytes without meaning and waits.
    Garbage,
    /// Sends bytes without meaning and goes.
    GarbageAndGone,
    /// Speaks HTTP.
    Http,
    /// Connects and says nothing.
    Silence,
    /// Says the first words a byte at a time.
    Drip,
    /// Announces a first message of up to 4 GiB.
    HugeLength,
    /// Sends a part of the first words and waits.
    HalfHello,
    /// Sends a part of the first words and goes.
    HalfHelloAndGone,
    /// Flips a bit of the first words, then proves what it cannot.
    BentHello,
    /// Speaks another version of the protocol.
    OtherVersion,
    /// Repeats what a real node has said, the proof as well.
    Replay,
    /// Has another cookie and says what follows from it.
    WrongCookie,
    /// Does all right, but for the proof, which is random.
    RandomProof,
}

impl Attack {
    pub(crate) const OF_STRANGERS: &[Self] = &[
        Self::Garbage,
        Self::GarbageAndGone,
        Self::Http,
        Self::Silence,
        Self::Drip,
        Self::HugeLength,
        Self::HalfHello,
        Self::HalfHelloAndGone,
        Self::BentHello,
        Self::OtherVersion,
        Self::Replay,
        Self::WrongCookie,
        Self::RandomProof,
    ];
}

/// Whether the other side has closed this connection, or does within `patience`.
pub(crate) fn is_closed(mut stream: &TcpStream, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    let mut bytes = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            }
        }
    }
}

/// Attacks a node once; an error says what it should not have done.
pub(crate) fn attack(
    kind: Attack,
    target: SocketAddr,
    rng: &mut Rng,
    patience: Duration,
) -> Result<(), String> {
    if let Attack::WrongCookie = kind {
        return wrong_cookie(target, rng);
    }
    let mut stream = TcpStream::connect(target).map_err(|error| error.to_string())?;
    stream.set_nodelay(true).unwrap();
    let hello = first_words(rng);
    let bytes = match kind {
        Attack::Garbage | Attack::GarbageAndGone => rng.bytes(10_000),
        Attack::Http => b"GET / HTTP/1.1\r\nHost: cuelight\r\n\r\n".to_vec(),
        Attack::Silence | Attack::WrongCookie => Vec::new(),
        Attack::Drip => return drip(&stream, &hello, patience),
        Attack::HugeLength => {
            let length = u32::MAX >> rng.below(20);
            [&length.to_le_bytes()[..], &rng.bytes(5_000)].concat()
        }
        Attack::HalfHello | Attack::HalfHelloAndGone => hello[..rng.below(hello.len())].to_vec(),
        Attack::BentHello => {
            let mut bent = hello.clone();
            bent[rng.below(hello.len())] ^= 1 << rng.below(8);
            [bent, proof(rng)].concat()
        }
        Attack::OtherVersion => {
            let mut other = hello.clone();
            let version = PROTOCOL.wrapping_add(1 + rng.below(60_000) as u16);
            other[12..14].copy_from_slice(&version.to_le_bytes()); // after length and magic
            other
        }
        Attack::Replay => conversation(rng),
        Attack::RandomProof => [hello, proof(rng)].concat(),
    };
    // The node may have closed already: that is what it should do.
    let _ = stream.write_all(&bytes);
    let stays = !matches!(kind, Attack::GarbageAndGone | Attack::HalfHelloAndGone);
    if stays && !is_closed(&stream, patience) {
        return Err(format!("still connected after {patience:?} and {} bytes", bytes.len()));
    }
    Ok(())
}

fn drip(mut stream: &TcpStream, hello: &[u8], patience: Duration) -> Result<(), String> {
    let end = Instant::now() + patience;
    for byte in hello.iter().cycle() {
        if stream.write_all(&[*byte]).is_err() || is_closed(stream, Duration::from_millis(20)) {
            return Ok(());
        }
        if Instant::now() > end {
            break;
        }
    }
    Err(format!("may go on byte by byte after {patience:?}"))
}

/// A message of the greeting that holds a proof which is none.
fn proof(rng: &mut Rng) -> Vec<u8> {
    let proof: Vec<u8> = (0..32).map(|_| rng.below(256) as u8).collect();
    [&32_u32.to_le_bytes()[..], &proof].concat()
}

fn transport(cookie: &str, name: String) -> Transport {
    let node = NodeId { name: name.as_str().into(), boot: 1 };
    let address = "127.0.0.1:9".to_owned(); // nobody is there
    Transport {
        me: Identity { node, address, build: "test".into() },
        cookie: cookie.as_bytes().to_vec(),
        tls: None,
        pulse: Pulse::new(Duration::from_secs(2), 1 << 20, Default::default()),
        handshake_timeout: Duration::from_secs(5),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn wrong_cookie(target: SocketAddr, rng: &mut Rng) -> Result<(), String> {
    let liar = transport("not the secret", format!("liar-{}", rng.below(1000)));
    match runtime().block_on(liar.dial(&target.to_string(), Purpose::Control)) {
        Err(HelloError::Cookie | HelloError::Refused { .. }) => Ok(()),
        Err(error) => Err(format!("not told why: {error}")),
        Ok(_) => Err("let in".into()),
    }
}

/// What a dialler says first, its length included: taken from a real one.
fn first_words(rng: &mut Rng) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let name = format!("stranger-{}", rng.below(1000));
    let dialler = thread::spawn(move || {
        let dialled = runtime().block_on(transport(COOKIE, name).dial(&address, Purpose::Control));
        assert!(dialled.is_err());
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut words = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut words).unwrap();
    drop(stream);
    dialler.join().unwrap();
    [&length[..], &words].concat()
}

/// All that a dialler with the right cookie says to a listener with the right cookie.
fn conversation(rng: &mut Rng) -> Vec<u8> {
    let name = format!("victim-{}", rng.below(1000));
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    runtime().block_on(async {
        let honest = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [to, at] = [&honest, &between].map(|l| l.local_addr().unwrap());
        let heard = said.clone();
        let relay = async {
            let (mut from, _) = between.accept().await.unwrap();
            let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
            let ((mut from, mut back), (mut answers, mut to)) = (from.split(), to.split());
            let forth = async {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut bytes).await {
                    heard.lock().unwrap().extend_from_slice(&bytes[..read]);
                    to.write_all(&bytes[..read]).await.unwrap();
                }
            };
            tokio::select! {
                () = forth => {}
                _ = tokio::io::copy(&mut answers, &mut back) => {}
            }
        };
        let listener = transport(COOKIE, "listener".into());
        let listen = async {
            let (tcp, _) = honest.accept().await.unwrap();
            listener.accept(tcp, |_, _| Ok(())).await.unwrap()
        };
        let dialler = transport(COOKIE, name);
        let at = at.to_string();
        let meet = async { tokio::join!(listen, dialler.dial(&at, Purpose::Control)) };
        tokio::select! {
            (_, dialled) = meet => drop(dialled.unwrap()),
            () = relay => panic!("the relay ended first"),
        }
    });
    let said = said.lock().unwrap().clone();
    assert!(said.len() > 36, "hello and proof");
    said
}

/// A peer that knows the cookie: gets in, then breaks the rules in one of several ways.
pub(crate) fn accomplice(
    round: usize,
    target: SocketAddr,
    rng: &mut Rng,
    patience: Duration,
) -> Result<(), String> {
    let purpose = match round % 4 {
        3 => {
            let node = NodeId { name: "nobody".into(), boot: 7 };
            Purpose::Tokens { node, worker: "nobody".into(), generation: Generation(7) }
        }
        _ => Purpose::Control,
    };
    let wanted = purpose == Purpose::Control;
    let transport = transport(COOKIE, format!("accomplice-{round}"));
    runtime().block_on(async {
        let dialled = transport.dial(&target.to_string(), purpose).await;
        let mut connection: Connection = match dialled {
            Ok(connection) if wanted => connection,
            Ok(_) => return Err("let in for a worker that is not there".into()),
            Err(HelloError::Refused { .. }) if !wanted => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
        let bytes = match round % 4 {
            0 => (u32::MAX >> rng.below(4)).to_le_bytes().to_vec(),
            1 => (0..20).flat_map(|_| frame(&rng.bytes(2_000))).collect(),
            // A ractor session's message announces its own length, here of up to 2^63 bytes.
            _ => {
                let length = (u64::MAX >> (1 + rng.below(40))).to_be_bytes();
                frame(&[&length[..], &rng.bytes(2_000)].concat())
            }
        };
        let _ = connection.io.write_all(&bytes).await; // closed already: as it should be
        let mut rest = Vec::new();
        let end = tokio::time::timeout(patience, connection.io.read_to_end(&mut rest)).await;
        end.map(drop).map_err(|_| format!("still connected after {patience:?}"))
    })
}

/// What somebody who is no node answers to one who dials.
pub(crate) fn answer(number: u32, mut stream: &TcpStream, rng: &mut Rng) {
    let bytes = match number % 4 {
        0 => Vec::new(),
        1 => rng.bytes(5_000),
        2 => u32::MAX.to_le_bytes().to_vec(),
        _ => {
            let garbage = rng.bytes(1_000);
            [&(garbage.len() as u32).to_le_bytes()[..], &garbage].concat()
        }
    };
    let _ = stream.write_all(&bytes); // it may have gone
}
