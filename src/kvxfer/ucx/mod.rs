//! One-sided gets through UCX: shared memory on one host, RDMA between hosts, NVLink between GPUs.
//!
//! `libucp` is loaded when a transport starts; without it there is a clear word and `tcp`. What is
//! known of UCX and shapes this code:
//! - No posted get can be taken back. An aborted pull posts no more, waits until all that it has
//!   posted has ended, flushes, and is quiet then. Little is posted ahead ([`Limits::window_bytes`]).
//! - A get that ended well says nothing of the peer's health, and requests to a dead peer may never
//!   end: such a pull fails by its deadline and stays unquiet until the worker itself has ended.
//! - Whoever knows a region's key can read it, whatever was granted: [`Transport::withdraw`] proves
//!   nothing here. UCX over TCP has no authentication at all: keep [`Options::devices`] to trusted
//!   networks.

mod endpoint;
mod library;
mod pull;
mod thread;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::commands::Commands;
use super::descriptor::{Descriptor, Endpoint, UcxEndpoint};
use super::error::XferError;
use super::layout::Layout;
use super::process::Process;
use super::region::{Memory, MemoryKind};
use super::shared::{Job, Shared};
use super::transport::{
    Counters, GrantId, Limits, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId, Transport,
    Withdrawal,
};

/// The name in messages.
const NAME: &str = "ucx";

enum Command {
    Register(Arc<Memory>, SyncSender<Result<Vec<u8>, String>>),
    Connect(PeerId, UcxEndpoint),
    Disconnect(PeerId),
    Pull(Job),
    Abort(TransferId),
    Stop,
}

/// What UCX is told. `UCX_*` in the environment wins over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder with libucm, libucs, libuct and libucp. `CUELIGHT_UCX_DIR` wins over it; without
    /// both, `../lib/ucx` beside the executable and then the system's loader are asked. The first
    /// transport of a process decides.
    pub dir: Option<PathBuf>,
    /// `UCX_TLS`. Default `posix,sysv,cma,tcp`, and for pools on GPUs `cuda_copy,cuda_ipc`.
    pub transports: String,
    /// `UCX_NET_DEVICES`. Default `lo`: this host only.
    pub devices: String,
    /// How often a silent peer is looked at. Default 1 s.
    pub keepalive: Duration,
    /// When TCP gives up on bytes that nobody acknowledges. Default 3 s.
    pub tcp_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: None,
            transports: "posix,sysv,cma,tcp,cuda_copy,cuda_ipc".into(),
            devices: "lo".into(),
            keepalive: Duration::from_secs(1),
            tcp_timeout: Duration::from_secs(3),
        }
    }
}

/// Pulls through UCX.
pub struct Ucx {
    shared: Arc<Shared>,
    commands: Arc<Commands<Command>>,
    /// Of the worker.
    address: Vec<u8>,
    kinds: Vec<MemoryKind>,
    /// By region: its address and what peers need to read it.
    keys: Mutex<Vec<(u64, Vec<u8>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Ucx {
    /// Loads UCX if nobody has, and starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`]: no library, one that is too old, or settings that it refuses.
    pub fn start(options: &Options, limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let unavailable = |why| XferError::Unavailable { transport: NAME, why };
        let ucp = library::load(options.dir.as_deref())?;
        let shared = Shared::new(NAME, limits)?;
        let commands = Commands::new(shared.command_limit())
            .map_err(|error| unavailable(format!("eventfd: {error}")))?;
        let commands = Arc::new(commands);
        let (ready, started) = sync_channel(1);
        let (mine, theirs, settings) = (shared.clone(), commands.clone(), settings(options));
        let body = move || {
            let begin = || thread::Driver::new(ucp, &settings, mine.clone(), theirs);
            mine.run_thread(&sink, |sink| match begin() {
                Ok((driver, hello)) => {
                    let _ = ready.send(Ok(hello)); // `start` waits for it
                    driver.run(sink)
                }
                Err(why) => {
                    let _ = ready.send(Err(why.clone()));
                    Err(why)
                }
            });
        };
        let spawned = std::thread::Builder::new().name("kvxfer-ucx".into()).spawn(body);
        let thread = spawned.map_err(|error| unavailable(format!("thread: {error}")))?;
        let started = started.recv().unwrap_or_else(|_| Err("its thread panicked".into()));
        let thread::Hello { address, cuda } = started.map_err(unavailable)?;
        let mut kinds = vec![MemoryKind::Host];
        kinds.extend(cuda.then_some(MemoryKind::Cuda));
        let keys = Mutex::default();
        Ok(Self { shared, commands, address, kinds, keys, thread: Some(thread) })
    }

    /// The version of the library, loaded if nobody has; for people.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn version(dir: Option<&Path>) -> Result<String, XferError> {
        Ok(library::load(dir)?.version_text())
    }

    /// The kinds of memory it can move here.
    pub fn memory_kinds(&self) -> &[MemoryKind] {
        &self.kinds
    }

    fn map(&self, memory: Arc<Memory>) -> Result<Vec<u8>, XferError> {
        let (reply, answer) = sync_channel(1);
        self.commands.push(Command::Register(memory, reply))?;
        let stopped = || self.shared.running().err().map_or_else(String::new, |e| e.to_string());
        let packed = answer.recv().unwrap_or_else(|_| Err(stopped()));
        packed.map_err(|what| XferError::Unsupported { transport: NAME, what })
    }
}

/// `ucp_config_modify`'s arguments. Pairs of names and values.
fn settings(options: &Options) -> Vec<(&'static str, String)> {
    let seconds = |time: Duration| format!("{}s", time.as_secs_f64());
    vec![
        ("TLS", options.transports.clone()),
        ("NET_DEVICES", options.devices.clone()),
        // Without it, peer error handling silently turns zero-copy off.
        ("RNDV_THRESH", "inf".into()),
        ("KEEPALIVE_INTERVAL", seconds(options.keepalive)),
        // Without these, shared memory cannot have peer error handling.
        ("POSIX_ERROR_HANDLING", "y".into()),
        ("SYSV_ERROR_HANDLING", "y".into()),
        ("TCP_USER_TIMEOUT", seconds(options.tcp_timeout)),
        // Gets over TCP are emulated in pieces of this size; 8 KiB costs half the speed.
        ("TCP_TX_SEG_SIZE", "128k".into()),
        ("TCP_RX_SEG_SIZE", "128k".into()),
    ]
}

impl Drop for Ucx {
    fn drop(&mut self) {
        self.commands.push_end(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was told as `Stopped`
        }
    }
}

impl Transport for Ucx {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Waits for the thread to register the memory with UCX.
    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.may_register(&memory, &layout, &self.kinds)?;
        let packed = self.map(memory.clone())?;
        keys.push((memory.address().addr() as u64, packed));
        self.shared.register(memory, layout, &self.kinds)
    }

    fn descriptor(&self) -> Result<Vec<u8>, XferError> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let (worker, keys) = (self.address.clone(), keys.clone());
        let endpoint = UcxEndpoint { worker, keys, process: Process::me() };
        self.shared.describe(Endpoint::Ucx(endpoint))
    }

    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError> {
        let descriptor = Descriptor::decode(descriptor)?;
        let Endpoint::Ucx(endpoint) = &descriptor.endpoint else {
            let why = "it is of another transport".into();
            return Err(XferError::BadDescriptor { why });
        };
        let (peer, new) = self.shared.add_peer(&descriptor)?;
        // An old peer may have registered more since.
        self.commands.push(Command::Connect(peer, endpoint.clone())).inspect_err(|_| {
            if new {
                self.shared.remove_peer(peer);
            }
        })?;
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
        Withdrawal::Unproven
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
