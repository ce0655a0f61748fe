//! One-sided gets through UCX: shared memory on one host, RDMA between hosts, NVLink between GPUs.
//!
//! `libucp` is loaded when a transport starts; without it there is a clear word and `tcp`. What is
//! known of UCX and shapes this code:
//! - No posted get can be taken back. An aborted pull posts no more, waits until all that it has
//!   posted has ended, flushes, and is quiet then. Little is posted ahead ([`Limits::window_bytes`]).
//! - A get that ended well says nothing of the peer's health, and requests to a dead peer may never
//!   end: such a pull fails by its deadline and stays unquiet until the worker itself has ended.
//! - Whoever knows a region's key can read it, whatever was granted and until when. So a pull ends
//!   with one more get, of its grant's word there: if the word is still the grant's name, all that
//!   was read before was read while the grant held. Else the pull is refused, and what it has read
//!   is worth nothing.
//! - UCX over TCP has no authentication at all: keep [`Options::devices`] to trusted networks.

mod endpoint;
mod library;
mod pull;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::descriptor::{Descriptor, Endpoint, UcxEndpoint};
use super::error::XferError;
use super::front::{self, Front, Kind, OTHER_TRANSPORT};
use super::layout::Layout;
use super::process::Process;
use super::region::{Memory, MemoryKind};
use super::shared::Shared;
use super::transport::{Limits, RegionId, Sink};
use super::words::Words;
pub(super) use library::quiet;
use thread::{Driver, Hello};

/// The name in messages.
const NAME: &str = "ucx";

/// A pool to register with UCX, and whom to tell the key that peers need for it.
type Registration = (Arc<Memory>, SyncSender<Result<Vec<u8>, String>>);
type Command = front::Command<UcxEndpoint, Registration>;

/// What UCX is told. `UCX_*` in the environment wins over it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
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

/// Whether UCX's transport of this name goes past the operating system to other hosts.
fn is_rdma(name: &str) -> bool {
    let family = name.split_once('_').map_or(name, |(family, _)| family);
    ["rc", "dc", "ud", "ib", "srd"].contains(&family)
}

impl Options {
    /// Whether it has more than sockets to every peer: one host's memory, or RDMA. Over sockets UCX reads by
    /// asking its peer's threads, and ends a process that answers a connection that was closed meanwhile (seen
    /// with 1.22); plain TCP does neither.
    pub fn beats_sockets(&self) -> bool {
        let said = std::env::var("UCX_TLS").unwrap_or_else(|_| self.transports.clone());
        self.devices == "lo" || said.split(',').any(|name| is_rdma(name.trim()))
    }
}

/// Pulls through UCX.
pub struct Ucx {
    front: Front<UcxEndpoint, Registration>,
    hello: Hello,
    kinds: Vec<MemoryKind>,
    /// By region: its address and what peers need to read it.
    keys: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Ucx {
    /// Loads UCX if nobody has, and starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`]: no library, one that is too old, or settings that it refuses.
    pub fn start(options: &Options, limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let ucp = library::load(options.dir.as_deref())?;
        let words = Words::new(NAME, limits.grants)?;
        let (ready, started) = sync_channel(1);
        let settings = settings(options);
        let shared = Shared::new(NAME, limits, Some(words))?;
        let front = Front::start(shared, sink, |shared, commands| {
            // All that is UCP's is made on the thread and stays there.
            Ok(move |sink: &Sink| {
                let (driver, hello) = match Driver::new(ucp, &settings, shared, commands) {
                    Ok((driver, hello)) => (Ok(driver), Ok(hello)),
                    Err(why) => (Err(why.clone()), Err(why)),
                };
                let _ = ready.send(hello); // `start` waits for it
                driver?.run(sink)
            })
        })?;
        let hello = started.recv().unwrap_or_else(|_| Err("its thread panicked".into()));
        let hello = hello.map_err(|why| XferError::Unavailable { transport: NAME, why })?;
        let mut kinds = vec![MemoryKind::Host];
        kinds.extend(hello.cuda.then_some(MemoryKind::Cuda));
        Ok(Self { front, hello, kinds, keys: Mutex::default() })
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
        let Front { shared, commands, .. } = &self.front;
        let (reply, answer) = sync_channel(1);
        commands.push(Command::Work((memory, reply)))?;
        let stopped = || shared.running().err().map_or_else(String::new, |e| e.to_string());
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

impl Kind for Ucx {
    type Way = UcxEndpoint;
    type Work = Registration;

    fn front(&self) -> &Front<UcxEndpoint, Registration> {
        &self.front
    }

    fn endpoint(&self, regions: usize) -> Endpoint {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys.iter().take(regions).cloned().collect();
        let Hello { address, words, .. } = self.hello.clone();
        Endpoint::Ucx(UcxEndpoint { worker: address, keys, process: Process::me(), words })
    }

    fn way(&self, there: &Descriptor) -> Result<UcxEndpoint, &'static str> {
        match &there.endpoint {
            Endpoint::Ucx(endpoint) => Ok(endpoint.clone()),
            _ => Err(OTHER_TRANSPORT),
        }
    }

    /// Waits for the thread to register the memory with UCX.
    fn add_region(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        // Held to the end: regions and keys are in the same order, and no region lacks its key.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.front.shared;
        shared.may_register(&memory, &layout, &self.kinds)?;
        let packed = self.map(memory.clone())?;
        keys.push((memory.address().addr() as u64, packed));
        shared.register(memory, layout, &self.kinds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_and_rdma_beat_sockets() {
        assert!(Options::default().beats_sockets());
        let of = |transports: &str| transports.split(',').any(|name| is_rdma(name.trim()));
        for transports in ["posix,sysv,cma,tcp, rc", "rc_x", "dc_mlx5", "ud_verbs", "ib", "srd"] {
            assert!(of(transports), "{transports}");
        }
        for transports in ["tcp", "^tcp", "tcp,cuda_copy,gdr_copy", "posix,", "self,rocm_ipc"] {
            assert!(!of(transports), "{transports}");
        }
        assert!(!of(&Options::default().transports));
    }
}
