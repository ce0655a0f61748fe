//! How two nodes greet each other on a new connection: who they are, that both know the cookie, and
//! what the connection is for. Nothing of a peer reaches anyone else before both proofs are in.
//!
//! ```text
//! dialler                                    listener
//!   magic, protocol, Hello ────────────────────▶
//!   ◀──────────────────────────── Welcome, or Refused
//!   proof ─────────────────────────────────────▶
//!   ◀───────────── Accepted with proof, or Refused
//! ```
//! A proof is HMAC-SHA256 under the cookie over everything said before, both nonces included. The
//! dialler proves first: who only knocks learns nothing to test guesses of the cookie against. This
//! keeps strangers out; against who can read or change bytes on the wire, use `cluster.tls`.

use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{Io, ReadError, decode, encode};
use crate::ids::{Generation, NodeId};

/// First bytes of every connection.
const MAGIC: [u8; 8] = *b"CUELIGHT";
/// Version of everything that nodes say to each other. Nodes of different versions do not connect.
pub const PROTOCOL: u16 = 7;
/// Largest message of a greeting, in bytes.
const MAX_GREETING: usize = 4096;

type Proof = [u8; 32];

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Purpose {
    /// Membership and control: one between two nodes.
    Control,
    /// The token stream of a worker on the listener's node.
    Tokens {
        /// The life of the node that is meant.
        node: NodeId,
        /// The worker's name there.
        worker: Arc<str>,
        /// The generation that is meant.
        generation: Generation,
    },
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Where it can be dialled, `host:port`.
    pub address: String,
    /// Its build.
    pub build: String,
}

#[derive(Debug, Encode, Decode)]
struct Hello {
    who: Identity,
    purpose: Purpose,
    nonce: [u8; 32],
}

#[derive(Debug, Encode, Decode)]
enum Answer {
    Welcome { who: Identity, nonce: [u8; 32] },
    Refused(String),
}

#[derive(Debug, Encode, Decode)]
enum Verdict {
    Accepted(Proof),
    Refused(String),
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The peer says why.
    #[error("refused by the peer: {why}")]
    Refused {
        /// Who it is, if it has said so.
        by: Option<NodeId>,
        /// Its reason.
        why: String,
    },
    /// Not one of us.
    #[error("it does not speak cuelight's cluster protocol")]
    Stranger,
    /// Another version.
    #[error(
        "it speaks version {theirs} of the cluster protocol, this node {PROTOCOL}; run one version of cuelight on all nodes"
    )]
    Protocol {
        /// What it speaks.
        theirs: u16,
    },
    /// It does not know the cookie.
    #[error("its cookie is another one; give all nodes the same cluster.cookie")]
    Cookie,
    /// It is refused here, for this reason.
    #[error("{0}")]
    Unwanted(String),
    /// It took too long.
    #[error("no answer within {:.1} s (cluster.handshake_timeout_s)", after.as_secs_f64())]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The connection failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Greets as the one who dialled.
///
/// # Errors
/// The peer is not what it should be, or refuses.
pub async fn dial(
    io: &mut dyn Io,
    me: &Identity,
    purpose: &Purpose,
    cookie: &[u8],
) -> Result<Identity, HelloError> {
    let hello = Hello { who: me.clone(), purpose: purpose.clone(), nonce: nonce()? };
    let said = [&MAGIC[..], &PROTOCOL.to_le_bytes(), &encode(&hello)].concat();
    put(io, &said).await?;
    let answer = get(io).await?;
    let (who, nonce) = match decode(&answer)? {
        Answer::Welcome { who, nonce } => (who, nonce),
        Answer::Refused(why) => return Err(HelloError::Refused { by: None, why }),
    };
    let talk = talk(&said, &who, &nonce);
    put(io, &prove(cookie, b"dialler", &talk)).await?;
    match decode(&get(io).await?)? {
        Verdict::Accepted(proof) if matches_proof(cookie, b"listener", &talk, &proof) => Ok(who),
        Verdict::Accepted(_) => Err(HelloError::Cookie),
        Verdict::Refused(why) => Err(HelloError::Refused { by: Some(who.node), why }),
    }
}

/// Greets as the one who listens. `judge` may refuse a peer that has proved who it is.
///
/// # Errors
/// The peer is not what it should be, or is refused; it has been told why.
pub async fn listen(
    io: &mut dyn Io,
    me: &Identity,
    cookie: &[u8],
    judge: impl FnOnce(&Identity, &Purpose) -> Result<(), String>,
) -> Result<(Identity, Purpose), HelloError> {
    let said = get(io).await?;
    let Some(rest) = said.strip_prefix(&MAGIC) else { return Err(HelloError::Stranger) };
    let Some((version, rest)) = rest.split_first_chunk() else { return Err(HelloError::Stranger) };
    let theirs = u16::from_le_bytes(*version);
    if theirs != PROTOCOL {
        let why = format!(
            "it speaks version {PROTOCOL} of the cluster protocol (cuelight {}), not {theirs}",
            me.build
        );
        put(io, &encode(&Answer::Refused(why))).await?;
        return Err(HelloError::Protocol { theirs });
    }
    let hello: Hello = decode(rest)?;
    let nonce = nonce()?;
    let talk = talk(&said, me, &nonce);
    put(io, &encode(&Answer::Welcome { who: me.clone(), nonce })).await?;
    let theirs = get(io).await?;
    if !matches_proof(cookie, b"dialler", &talk, &theirs) {
        let why = "the cookie is another one; give all nodes the same cluster.cookie";
        put(io, &encode(&Verdict::Refused(why.into()))).await?;
        return Err(HelloError::Cookie);
    }
    if let Err(why) = judge(&hello.who, &hello.purpose) {
        put(io, &encode(&Verdict::Refused(why.clone()))).await?;
        return Err(HelloError::Unwanted(why));
    }
    put(io, &encode(&Verdict::Accepted(prove(cookie, b"listener", &talk)))).await?;
    Ok((hello.who, hello.purpose))
}

fn nonce() -> std::io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    Ok(nonce)
}

/// All that was said before the proofs.
fn talk(hello: &[u8], listener: &Identity, nonce: &[u8; 32]) -> Vec<u8> {
    encode(&(hello, listener, nonce))
}

fn mac(cookie: &[u8], role: &[u8], talk: &[u8]) -> Hmac<Sha256> {
    let mut mac = match Hmac::<Sha256>::new_from_slice(cookie) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of every length"),
    };
    mac.update(role);
    mac.update(talk);
    mac
}

fn prove(cookie: &[u8], role: &[u8], talk: &[u8]) -> Proof {
    mac(cookie, role, talk).finalize().into_bytes().into()
}

fn matches_proof(cookie: &[u8], role: &[u8], talk: &[u8], proof: &[u8]) -> bool {
    mac(cookie, role, talk).verify_slice(proof).is_ok()
}

async fn put(io: &mut dyn Io, bytes: &[u8]) -> Result<(), HelloError> {
    io.write_u32_le(bytes.len() as u32).await?;
    io.write_all(bytes).await?;
    Ok(io.flush().await?)
}

async fn get(io: &mut dyn Io) -> Result<Vec<u8>, HelloError> {
    let bytes = match io.read_u32_le().await {
        Ok(bytes) => bytes as usize,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(ReadError::Closed.into());
        }
        Err(error) => return Err(error.into()),
    };
    if bytes > MAX_GREETING {
        return Err(HelloError::Stranger); // what speaks another protocol rarely starts with a length
    }
    let mut message = vec![0; bytes];
    io.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(name: &str) -> Identity {
        let node = NodeId { name: name.into(), boot: 7 };
        Identity { node, address: format!("{name}:7000"), build: "1".into() }
    }

    type Outcome = (Result<Identity, HelloError>, Result<(Identity, Purpose), HelloError>);

    async fn greet(cookies: [&str; 2], judged: Result<(), String>) -> Outcome {
        let (mut a, mut b) = tokio::io::duplex(256);
        let dialled = async {
            let outcome = dial(&mut a, &who("a"), &Purpose::Control, cookies[0].as_bytes()).await;
            drop(a);
            outcome
        };
        let listened = async {
            let outcome = listen(&mut b, &who("b"), cookies[1].as_bytes(), |_, _| judged).await;
            drop(b);
            outcome
        };
        tokio::join!(dialled, listened)
    }

    #[tokio::test]
    async fn two_nodes_with_one_cookie_learn_who_the_other_is() {
        let (dialled, listened) = greet(["c", "c"], Ok(())).await;
        assert_eq!(dialled.unwrap(), who("b"));
        assert_eq!(listened.unwrap(), (who("a"), Purpose::Control));
    }

    #[tokio::test]
    async fn another_cookie_is_refused_on_both_sides() {
        let (dialled, listened) = greet(["c", "d"], Ok(())).await;
        assert!(dialled.unwrap_err().to_string().contains("cookie"));
        assert!(matches!(listened, Err(HelloError::Cookie)));
    }

    #[tokio::test]
    async fn who_is_judged_unwanted_hears_why() {
        let (dialled, listened) = greet(["c", "c"], Err("too many".into())).await;
        assert_eq!(dialled.unwrap_err().to_string(), "refused by the peer: too many");
        assert_eq!(listened.unwrap_err().to_string(), "too many");
    }

    #[tokio::test]
    async fn another_version_and_strangers_are_told_apart() {
        let other = [&MAGIC[..], &9u16.to_le_bytes(), b"whatever"].concat();
        let cases: [(&[u8], &str); 2] = [(&other, "version 9"), (b"GET / HTTP/1.1", "not speak")];
        for (said, want) in cases {
            let (mut a, mut b) = tokio::io::duplex(256);
            put(&mut a, said).await.unwrap();
            let outcome = listen(&mut b, &who("b"), b"c", |_, _| Ok(())).await;
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
