//! Connections between nodes: dialled or accepted, TLS or plain, greeted within a bounded time.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::hello::{self, HelloError, Identity, Purpose};
use super::wire::{Io, Pulse};

/// A connection whose two ends know each other.
pub struct Connection {
    /// The other end.
    pub peer: Identity,
    /// What it is for.
    pub purpose: Purpose,
    /// The bytes after the greeting.
    pub io: Box<dyn Io>,
}

/// TLS in both directions.
#[derive(Clone)]
pub struct ClusterTls {
    /// Accepts nodes whose certificate our authority signed.
    pub acceptor: TlsAcceptor,
    /// Dials them.
    pub connector: TlsConnector,
    /// The name that every node's certificate carries.
    pub name: ServerName<'static>,
}

/// What this node says and asks for on every connection.
#[derive(Clone)]
pub struct Transport {
    /// Who this node is.
    pub me: Identity,
    /// What proves that a node belongs here.
    pub cookie: Vec<u8>,
    /// `None`: plain TCP.
    pub tls: Option<ClusterTls>,
    /// How connections are watched.
    pub pulse: Pulse,
    /// How long a connection may take until both ends know each other.
    pub handshake_timeout: Duration,
}

impl Transport {
    /// Connects to a node.
    ///
    /// # Errors
    /// It cannot be reached, is not what it should be, or refuses.
    pub async fn dial(&self, address: &str, purpose: Purpose) -> Result<Connection, HelloError> {
        self.in_time(async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let mut io: Box<dyn Io> = match &self.tls {
                None => Box::new(tcp),
                Some(tls) => Box::new(tls.connector.connect(tls.name.clone(), tcp).await?),
            };
            let peer = hello::dial(&mut *io, &self.me, &purpose, &self.cookie).await?;
            Ok(Connection { peer, purpose, io })
        })
        .await
    }

    /// Takes in a connection that `judge` wants.
    ///
    /// # Errors
    /// The peer is not what it should be, or is not wanted.
    pub async fn accept(
        &self,
        tcp: TcpStream,
        judge: impl FnOnce(&Identity, &Purpose) -> Result<(), String>,
    ) -> Result<Connection, HelloError> {
        self.in_time(async {
            tcp.set_nodelay(true)?;
            let mut io: Box<dyn Io> = match &self.tls {
                None => Box::new(tcp),
                Some(tls) => Box::new(tls.acceptor.accept(tcp).await?),
            };
            let (peer, purpose) = hello::listen(&mut *io, &self.me, &self.cookie, judge).await?;
            Ok(Connection { peer, purpose, io })
        })
        .await
    }

    /// What sessions between our nodes prove to each other: derived, so that it tells nothing.
    pub fn session_cookie(&self) -> String {
        let digest = Sha256::new().chain_update(b"session").chain_update(&self.cookie).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, HelloError>>,
    ) -> Result<T, HelloError> {
        let after = self.handshake_timeout;
        let outcome = tokio::time::timeout(after, work).await;
        outcome.unwrap_or(Err(HelloError::TimedOut { after }))
    }
}

/// The address others dial: the configured one, or the one we listen on.
pub fn advertised(configured: Option<&str>, listening: SocketAddr) -> String {
    configured.map_or_else(|| listening.to_string(), ToString::to_string)
}
