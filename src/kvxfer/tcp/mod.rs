//! Between any two processes, with nothing but sockets: one connection for each direction of pulls,
//! read and written straight from and to the pools, several ranges with one system call.
//!
//! A descriptor holds a secret that opens the listener, and every pull names a grant: what arrives
//! without either is refused. The bytes themselves are not encrypted: for trusted networks.

mod client;
mod server;
mod thread;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::commands::Commands;
use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::layout::Layout;
use super::region::{Memory, MemoryKind};
use super::shared::{Job, Shared, random};
use super::transport::{
    Counters, GrantId, Limits, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId, Transport,
    Withdrawal,
};

/// The name in messages.
const NAME: &str = "tcp";

enum Command {
    Connect(PeerId, SocketAddr, u128),
    Disconnect(PeerId),
    Pull(Job),
    Abort(TransferId),
    Stop,
}

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
    shared: Arc<Shared>,
    commands: Arc<Commands<Command>>,
    address: SocketAddr,
    token: u128,
    thread: Option<JoinHandle<()>>,
}

impl Tcp {
    /// Binds the listener and starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`] if the address is taken, is one that peers cannot connect to, or
    /// the system gives no thread.
    pub fn start(listen: Listen, limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let fail = |why: String| XferError::Unavailable { transport: NAME, why };
        let io = |doing: &str, error: io::Error| fail(format!("{doing}: {error}"));
        let listener = TcpListener::bind(listen.bind)
            .map_err(|error| io(&format!("cannot listen on {}", listen.bind), error))?;
        let mut address = listener.local_addr().map_err(|error| io("listener", error))?;
        if let Some(advertise) = listen.advertise {
            address.set_ip(advertise);
        }
        if address.ip().is_unspecified() {
            return Err(fail(format!("peers cannot connect to {address}: advertise an address")));
        }
        let shared = Shared::new(NAME, limits)?;
        let token = random(NAME)?;
        let commands =
            Commands::new(shared.command_limit()).map_err(|error| io("eventfd", error))?;
        let commands = Arc::new(commands);
        let driver = thread::Driver::new(shared.clone(), commands.clone(), listener, token)
            .map_err(|error| io("epoll", error))?;
        let mine = shared.clone();
        let thread = std::thread::Builder::new()
            .name("kvxfer-tcp".into())
            .spawn(move || mine.run_thread(&sink, |sink| driver.run(sink)))
            .map_err(|error| io("thread", error))?;
        Ok(Self { shared, commands, address, token, thread: Some(thread) })
    }

    /// What peers connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.commands.push_end(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was told as `Stopped`
        }
    }
}

impl Transport for Tcp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        self.shared.register(memory, layout, &[MemoryKind::Host])
    }

    fn descriptor(&self) -> Result<Vec<u8>, XferError> {
        self.shared.describe(Endpoint::Tcp { address: self.address, token: self.token })
    }

    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError> {
        let descriptor = Descriptor::decode(descriptor)?;
        let Endpoint::Tcp { address, token } = descriptor.endpoint else {
            let why = "it is of another transport".into();
            return Err(XferError::BadDescriptor { why });
        };
        let (peer, new) = self.shared.add_peer(&descriptor)?;
        if new && let Err(full) = self.commands.push(Command::Connect(peer, address, token)) {
            self.shared.remove_peer(peer);
            return Err(full);
        }
        Ok(peer)
    }

    fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError> {
        self.shared.peer_regions(peer)
    }

    fn disconnect(&self, peer: PeerId) {
        if self.shared.remove_peer(peer) {
            self.commands.push_end(Command::Disconnect(peer));
        }
    }

    fn grant(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        self.shared.grant(grant, region, ranges)
    }

    fn withdraw(&self, grant: GrantId) -> Withdrawal {
        self.shared.grants.remove(grant);
        Withdrawal::Quiet
    }

    fn pull(&self, pull: Pull) -> Result<(), XferError> {
        let transfer = pull.transfer;
        let job = self.shared.admit(pull)?;
        self.commands.push(Command::Pull(job)).inspect_err(|_| self.shared.dismiss(transfer))
    }

    fn abort(&self, transfer: TransferId) {
        if self.shared.begin_abort(transfer) {
            self.commands.push_end(Command::Abort(transfer));
        }
    }

    fn counters(&self) -> Counters {
        self.shared.counters()
    }
}
