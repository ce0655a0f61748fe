//! The thread that drives all connections of one TCP transport.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;

use super::Way;
use super::client::Client;
use super::server::{Closed, Server};
use crate::kvxfer::commands::Commands;
use crate::kvxfer::error::XferError;
use crate::kvxfer::front::Command;
use crate::kvxfer::shared::{Shared, count};
use crate::kvxfer::transport::{PeerId, Sink, TransferId};

/// Events taken from the system at a time.
const EVENTS: usize = 64;
/// How long accepting rests when the system has no file descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(100);
const WAKE: u64 = 0;
const LISTENER: u64 = 1;

enum Link {
    Client(Client),
    Server(Server),
}

/// What the thread owns.
pub(super) struct Driver {
    shared: Arc<Shared>,
    commands: Arc<Commands<Command<Way, Infallible>>>,
    listener: TcpListener,
    token: u128,
    epoll: OwnedFd,
    links: FxHashMap<u64, Link>,
    /// Links that can go on without an event.
    ready: VecDeque<u64>,
    peers: FxHashMap<PeerId, u64>,
    next_key: u64,
    /// Incoming connections.
    servers: usize,
    accept_from: Option<Instant>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: Arc<Commands<Command<Way, Infallible>>>,
        listener: TcpListener,
        token: u128,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*commands, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self {
            shared,
            commands,
            listener,
            token,
            epoll,
            links: FxHashMap::default(),
            ready: VecDeque::new(),
            peers: FxHashMap::default(),
            next_key: LISTENER + 1,
            servers: 0,
            accept_from: None,
        })
    }

    pub(super) fn run(mut self, sink: &Sink) -> Result<(), String> {
        let mut next_look: Option<Instant> = None;
        loop {
            for (key, flags) in self.wait(next_look)? {
                match key {
                    WAKE => {
                        if !self.obey(sink) {
                            return Ok(());
                        }
                    }
                    LISTENER => self.accept(),
                    key => self.serve(sink, key, flags),
                }
            }
            for key in std::mem::take(&mut self.ready) {
                self.serve(sink, key, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP);
            }
            next_look = self.check_time(sink, Instant::now());
        }
    }

    /// Sleeps until something happens or the clock must be looked at.
    fn wait(&self, until: Option<Instant>) -> Result<Vec<(u64, EventFlags)>, String> {
        let timeout = match until {
            _ if !self.ready.is_empty() => Some(Duration::ZERO),
            // One more millisecond: never awake too early, with nothing to do.
            Some(until) => {
                Some(until.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            }
            None => None,
        };
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut events = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                Ok(events.iter().map(|event| (event.data.u64(), event.flags)).collect())
            }
            Err(error) => Err(format!("epoll: {error}")),
        }
    }

    /// Does what callers asked; `false` when it is time to end.
    fn obey(&mut self, sink: &Sink) -> bool {
        for command in self.commands.take() {
            match command {
                Command::Connect(peer, way) => self.connect(sink, peer, way),
                Command::Disconnect(peer) => {
                    if let Some(key) = self.peers.get(&peer) {
                        self.drop_client(sink, *key, XferError::Aborted);
                    }
                }
                Command::Pull(job) => {
                    let peer = job.pull.peer;
                    let key = self.peers.get(&peer).copied();
                    match key.and_then(|key| Some((key, self.links.get_mut(&key)?))) {
                        Some((key, Link::Client(client))) => {
                            client.start(job);
                            self.serve(sink, key, EventFlags::OUT);
                        }
                        _ => {
                            let why = XferError::UnknownPeer { peer };
                            self.shared.failed_quiet(sink, job.pull.transfer, why);
                        }
                    }
                }
                Command::Abort(transfer) => self.abort(sink, transfer),
                Command::Stop => return false,
            }
        }
        true
    }

    fn abort(&mut self, sink: &Sink, transfer: TransferId) {
        let mut found = None;
        for (key, link) in &mut self.links {
            if let Link::Client(client) = link
                && let Some(number) = client.number_of(transfer)
            {
                client.fail(&self.shared, sink, number, XferError::Aborted);
                found = Some(*key);
            }
        }
        if let Some(key) = found {
            self.serve(sink, key, EventFlags::OUT); // tells the peer to send no more
        }
    }

    fn connect(&mut self, sink: &Sink, peer: PeerId, (address, token): Way) {
        if self.peers.contains_key(&peer) || !self.shared.knows(peer) {
            return; // connected before, or lost since
        }
        match dial(address, self.shared.limits.stall) {
            Ok(socket) => {
                let client = Client::new(peer, socket, token, self.shared.limits.handshake);
                match self.add(Link::Client(client)) {
                    Ok(key) => drop(self.peers.insert(peer, key)),
                    Err(error) => {
                        self.shared.peer_down(sink, peer, XferError::lost("epoll", error));
                    }
                }
            }
            Err(error) => {
                let why = XferError::lost(&format!("connect to {address}"), error);
                self.shared.peer_down(sink, peer, why);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(_) if self.servers >= self.shared.limits.peers => {
                    count(&self.shared.stats.rejected, 1);
                }
                Ok((socket, _)) => {
                    let prepared = prepare(&socket, self.shared.limits.stall);
                    let hello_by = Instant::now() + self.shared.limits.handshake;
                    let link = Link::Server(Server::new(socket, hello_by));
                    if prepared.is_ok() && self.add(link).is_ok() {
                        self.servers += 1;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Out of descriptors: the event would come again at once, and again.
                    if epoll::delete(&self.epoll, &self.listener).is_ok() {
                        self.accept_from = Some(Instant::now() + ACCEPT_REST);
                    }
                    return;
                }
            }
        }
    }

    fn add(&mut self, link: Link) -> io::Result<u64> {
        let key = self.next_key;
        // Edge-triggered: one registration for the link's life, whatever it wants.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, link.socket(), EventData::new_u64(key), flags)?;
        self.next_key += 1;
        self.links.insert(key, link);
        Ok(key)
    }

    /// Lets one link go on.
    fn serve(&mut self, sink: &Sink, key: u64, flags: EventFlags) {
        let Some(link) = self.links.get_mut(&key) else { return };
        let readable = flags.intersects(!EventFlags::OUT);
        let closing = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let outcome = match link {
            Link::Client(client) => {
                let more =
                    if readable { client.read(&self.shared, sink, closing) } else { Ok(false) };
                more.and_then(|more| client.write().map(|()| more)).map_err(Some)
            }
            Link::Server(server) => {
                serve_server(server, &self.shared, self.token, (readable, closing)).map_err(
                    |closed| {
                        count(&self.shared.stats.rejected, u64::from(closed.rejected));
                        None
                    },
                )
            }
        };
        match outcome {
            Ok(true) => self.ready.push_back(key),
            Ok(false) => {}
            Err(Some(why)) => self.drop_client(sink, key, why),
            Err(None) => self.drop_server(key),
        }
    }

    fn drop_server(&mut self, key: u64) {
        if self.links.remove(&key).is_some() {
            self.servers -= 1;
        }
    }

    fn drop_client(&mut self, sink: &Sink, key: u64, why: XferError) {
        if let Some(Link::Client(mut client)) = self.links.remove(&key) {
            self.peers.remove(&client.peer);
            client.fail_all(&self.shared, sink, &why);
            self.shared.peer_down(sink, client.peer, why);
        }
    }

    /// Ends what is late. Returns when to look again.
    fn check_time(&mut self, sink: &Sink, now: Instant) -> Option<Instant> {
        let (mut next, mut lost, mut silent) = (None::<Instant>, Vec::new(), Vec::new());
        let mut look_at = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if let Some(at) = self.accept_from {
            let listener = EventData::new_u64(LISTENER);
            let rested = now >= at
                && epoll::add(&self.epoll, &self.listener, listener, EventFlags::IN).is_ok();
            self.accept_from = (!rested).then_some(at.max(now + ACCEPT_REST / 2));
            self.accept_from.into_iter().for_each(&mut look_at);
        }
        for (key, link) in &mut self.links {
            match link {
                Link::Client(client) => match client.check_time(&self.shared, sink, now) {
                    Ok(at) => at.into_iter().for_each(&mut look_at),
                    Err(why) => lost.push((*key, why)),
                },
                Link::Server(server) => match server.hello_by {
                    Some(at) if now >= at => silent.push(*key),
                    at => at.into_iter().for_each(&mut look_at),
                },
            }
        }
        for (key, why) in lost {
            self.drop_client(sink, key, why);
        }
        for key in silent {
            count(&self.shared.stats.rejected, 1);
            self.drop_server(key);
        }
        next
    }
}

impl Link {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Client(client) => &client.socket,
            Self::Server(server) => &server.socket,
        }
    }
}

fn serve_server(
    server: &mut Server,
    shared: &Shared,
    token: u128,
    (readable, closing): (bool, bool),
) -> Result<bool, Closed> {
    let more = readable && server.read(shared, token, closing)?;
    Ok(server.write(shared)? || more)
}

/// Begins a connection; the socket is writable when it stands.
fn dial(address: SocketAddr, stall: Duration) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(socket);
    prepare(&socket, stall)?;
    Ok(socket)
}

fn prepare(socket: &TcpStream, stall: Duration) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    // A host that vanished is noticed also while we owe it bytes.
    let stall_ms = u32::try_from(stall.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket.as_fd(), stall_ms)?;
    Ok(())
}
