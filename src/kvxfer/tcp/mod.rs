//! Between any two processes, with nothing but sockets: one connection for each direction of pulls,
//! read and written straight from and to the pools, several ranges with one system call.
//!
//! A descriptor holds a secret that opens the listener, and every pull names a grant: what arrives
//! without either is refused. The bytes themselves are not encrypted: for trusted networks.

mod client;
mod server;
mod thread;
mod wire;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener};

use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::front::{Front, Kind, OTHER_TRANSPORT};
use super::shared::{Shared, random};
use super::transport::{Limits, Sink};

/// The name in messages.
const NAME: &str = "tcp";

/// Where a peer listens, and the secret that opens it.
type Way = (SocketAddr, u128);

/// Where a TCP transport listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Port 0 takes any.
    pub bind: SocketAddr,
    /// What peers connect to, if it is not `bind`'s address (0.0.0.0, or behind NAT).
    pub advertise: Option<IpAddr>,
}

/// Pulls over TCP.
pub struct Tcp {
    front: Front<Way, Infallible>,
    address: SocketAddr,
    token: u128,
}

impl Tcp {
    /// Binds the listener and starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`] if the address is taken, is one that peers cannot connect to, or
    /// the system gives no thread.
    pub fn start(listen: Listen, limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let unavailable = |why: String| XferError::Unavailable { transport: NAME, why };
        let listener = TcpListener::bind(listen.bind)
            .map_err(|error| unavailable(format!("cannot listen on {}: {error}", listen.bind)))?;
        let address = listener.local_addr();
        let mut address = address.map_err(|error| unavailable(format!("listener: {error}")))?;
        if let Some(advertise) = listen.advertise {
            address.set_ip(advertise);
        }
        if address.ip().is_unspecified() {
            let why = format!("peers cannot connect to {address}: advertise an address");
            return Err(unavailable(why));
        }
        let (shared, token) = (Shared::new(NAME, limits, None)?, random(NAME)?);
        let front = Front::start(shared, sink, |shared, commands| {
            let driver = thread::Driver::new(shared, commands, listener, token);
            let driver = driver.map_err(|error| format!("epoll: {error}"))?;
            Ok(move |sink: &Sink| driver.run(sink))
        })?;
        Ok(Self { front, address, token })
    }

    /// What peers connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Kind for Tcp {
    type Way = Way;
    type Work = Infallible;

    fn front(&self) -> &Front<Way, Infallible> {
        &self.front
    }

    fn endpoint(&self, _regions: usize) -> Endpoint {
        Endpoint::Tcp { address: self.address, token: self.token }
    }

    fn way(&self, there: &Descriptor) -> Result<Way, &'static str> {
        match there.endpoint {
            Endpoint::Tcp { address, token } => Ok((address, token)),
            _ => Err(OTHER_TRANSPORT),
        }
    }
}
