//! Reads through NIXL, which moves host memory by a UCX of its own.
//!
//! `libnixl_capi` is loaded when a transport starts; without it there is a clear word. What is known
//! of NIXL and shapes this code:
//! - It cannot abort a read. Releasing one that is under way says that all is well, and the memory is
//!   written later. So nothing is released before it has ended well.
//! - An error ends the look at a read, not the read: parts of it may go on. What proves that nothing
//!   writes any more is the end of the agent that reads, with its connections and queues. So each peer
//!   has an agent of its own here, and a peer that is given up, for whatever reason, takes it along.
//! - Of a list of ranges only the last one's outcome is looked at: a read has one range.
//! - A read that ended well says nothing of the peer's health, and one from a frozen peer never ends:
//!   deadlines are ours, and so is the look at idle peers.
//! - As with [`ucx`](super::ucx), whoever knows an agent can read what is registered with it: a pull
//!   ends with a read of its grant's word.
//! - Over TCP its UCX, as that of [`ucx`](super::ucx), ends the process that is read with an abort if
//!   a reader vanishes in the middle of a read. So TCP is not among the default transports.
//! - Its UCX is a second one beside that of [`ucx`](super::ucx). A worker uses one of the two
//!   transports; only the benchmark has both in one process.

mod agent;
mod library;
mod pull;
mod thread;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::descriptor::{Descriptor, Endpoint, NixlEndpoint};
use super::error::XferError;
use super::front::{self, Front, Kind, OTHER_TRANSPORT};
use super::layout::Layout;
use super::process::Process;
use super::region::{Memory, MemoryKind};
use super::shared::Shared;
use super::transport::{Limits, RegionId, Sink};
use super::words::Words;
use thread::{Driver, Hello};

/// The name in messages.
const NAME: &str = "nixl";
/// Memory of GPUs is left to `ucx`: a copy that a GPU was given may outlive the agent.
const KINDS: [MemoryKind; 1] = [MemoryKind::Host];

/// A pool to register, and whom to tell what peers need to read all that is registered by then.
type Registration = (Arc<Memory>, SyncSender<Result<Vec<u8>, String>>);
type Command = front::Command<NixlEndpoint, Registration>;

/// What NIXL's UCX is told. `UCX_*` in the environment wins over it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Options {
    /// The folder with `libnixl_capi.so`. `CUELIGHT_NIXL_DIR` wins over it; without both, `../lib/nixl`
    /// beside the executable and then the system's loader are asked. The first transport of a
    /// process decides.
    pub dir: Option<PathBuf>,
    /// `UCX_TLS`: one name, since NIXL takes no lists. Default `^tcp`, all but TCP.
    pub transports: String,
    /// `UCX_NET_DEVICES`: one name. Default `lo`: this host only.
    pub devices: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { dir: None, transports: "^tcp".into(), devices: "lo".into() }
    }
}

/// Pulls through NIXL.
pub struct Nixl {
    front: Front<NixlEndpoint, Registration>,
    hello: Hello,
    /// By region: its address, and what peers need to read it and those before it.
    published: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Nixl {
    /// Loads NIXL if nobody has, and starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`]: no library, or settings that it refuses.
    pub fn start(options: &Options, limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let unavailable = |why| XferError::Unavailable { transport: NAME, why };
        let settings = settings(options).map_err(unavailable)?;
        let nixl = library::load(options.dir.as_deref())?;
        let words = Words::new(NAME, limits.grants)?;
        let (ready, started) = sync_channel(1);
        let shared = Shared::new(NAME, limits, Some(words))?;
        let front = Front::start(shared, sink, |shared, commands| {
            // All that is NIXL's is made on the thread and stays there.
            Ok(move |sink: &Sink| {
                let (driver, hello) = match Driver::new(nixl, settings, shared, commands) {
                    Ok((driver, hello)) => (Ok(driver), Ok(hello)),
                    Err(why) => (Err(why.clone()), Err(why)),
                };
                let _ = ready.send(hello); // `start` waits for it
                driver?.run(sink)
            })
        })?;
        let hello = started.recv().unwrap_or_else(|_| Err("its thread panicked".into()));
        Ok(Self { front, hello: hello.map_err(unavailable)?, published: Mutex::default() })
    }

    fn map(&self, memory: Arc<Memory>) -> Result<Vec<u8>, XferError> {
        let Front { shared, commands, .. } = &self.front;
        let (reply, answer) = sync_channel(1);
        commands.push(Command::Work((memory, reply)))?;
        let stopped = || shared.running().err().map_or_else(String::new, |e| e.to_string());
        let metadata = answer.recv().unwrap_or_else(|_| Err(stopped()));
        metadata.map_err(|what| XferError::Unsupported { transport: NAME, what })
    }
}

/// Settings of NIXL's UCX, for all agents, as NIXL takes them.
fn settings(options: &Options) -> Result<String, String> {
    let Options { transports, devices, .. } = options;
    for (what, value) in [("transports", transports), ("devices", devices)] {
        if value.contains([',', '=']) {
            return Err(format!(
                "{what} {value}: NIXL takes one name and no list (UCX_TLS and UCX_NET_DEVICES in the \
                 environment may be lists)"
            ));
        }
    }
    // The reasons are those of `ucx`; the rest NIXL sets itself.
    let mut settings = format!(
        "TLS={transports},NET_DEVICES={devices},KEEPALIVE_INTERVAL=1s,TCP_USER_TIMEOUT=3s,\
         TCP_TX_SEG_SIZE=128k,TCP_RX_SEG_SIZE=128k"
    );
    for kind in ["POSIX", "SYSV"] {
        settings += &format!(",{kind}_ERROR_HANDLING=y");
        // Each peer takes an agent: 1 MiB of shared memory for it, not 4.
        settings += &format!(",{kind}_FIFO_SIZE=64,{kind}_RX_BUFS_GROW=64");
    }
    Ok(settings)
}

impl Kind for Nixl {
    type Way = NixlEndpoint;
    type Work = Registration;

    fn front(&self) -> &Front<NixlEndpoint, Registration> {
        &self.front
    }

    fn endpoint(&self, regions: usize) -> Endpoint {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let published = &published[..regions.min(published.len())];
        let metadata = published.last().map_or(&self.hello.metadata, |(_, metadata)| metadata);
        Endpoint::Nixl(NixlEndpoint {
            checksum: xxh3_64(metadata),
            metadata: metadata.clone(),
            bases: published.iter().map(|(base, _)| *base).collect(),
            process: Process::me(),
            words: self.hello.words.clone(),
        })
    }

    fn way(&self, there: &Descriptor) -> Result<NixlEndpoint, &'static str> {
        match &there.endpoint {
            Endpoint::Nixl(endpoint) => Ok(endpoint.clone()),
            _ => Err(OTHER_TRANSPORT),
        }
    }

    /// Waits for the thread to register the memory with NIXL.
    fn add_region(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        // Held to the end: regions and what is published are in the same order.
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.front.shared;
        shared.may_register(&memory, &layout, &KINDS)?;
        let metadata = self.map(memory.clone())?;
        published.push((memory.address().addr() as u64, metadata));
        shared.register(memory, layout, &KINDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvxfer::layout::Sizes;
    use crate::kvxfer::transport::{Event, Transport};
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Of the client tests' Python environment.
    fn installed() -> Option<PathBuf> {
        let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/lib");
        let pythons = std::fs::read_dir(venv).into_iter().flatten().flatten();
        let dirs = pythons.map(|p| p.path().join("site-packages/.nixl_cu13.mesonpy.libs"));
        dirs.into_iter().find(|dir| dir.is_dir())
    }

    #[test]
    fn an_idle_peer_that_cannot_be_watched_is_read_from_until_it_is_gone() {
        let options = Options { dir: installed(), transports: "tcp".into(), ..Options::default() };
        let source = match Nixl::start(&options, Limits::default(), Box::new(|_| {})) {
            Ok(source) => source,
            Err(error) => return eprintln!("SKIPPED, NOTHING TESTED: {error}"),
        };
        let sizes = Sizes {
            blocks: 4,
            layers: 1,
            planes: 2,
            heads: 0..1,
            block_tokens: 16,
            head_bytes: 64,
        };
        let layout = Layout::block_major(sizes).unwrap();
        source.register(Memory::zeroed(1 << 16).unwrap(), layout).unwrap();
        let mut there = Descriptor::decode(&source.descriptor().unwrap()).unwrap();
        let Endpoint::Nixl(endpoint) = &mut there.endpoint else { unreachable!() };
        endpoint.process = None; // as of another host
        let (to, events) = channel();
        let sink = Box::new(move |event| drop(to.send(event)));
        let reader = Nixl::start(&options, Limits::default(), sink).unwrap();
        let id = reader.connect(&there.encode().unwrap()).unwrap();
        let quiet = events.recv_timeout(Duration::from_millis(2500));
        assert!(quiet.is_err(), "{quiet:?} of a peer that lives");
        drop(source);
        let event = events.recv_timeout(Duration::from_secs(20)).expect("its loss is noticed");
        assert!(matches!(event, Event::PeerDown { peer, .. } if peer == id), "{event:?}");
    }

    #[test]
    fn settings_are_single_names() {
        let settings = |transports: &str, devices: &str| {
            let (transports, devices) = (transports.to_owned(), devices.to_owned());
            super::settings(&Options { dir: None, transports, devices })
        };
        assert!(settings("tcp", "lo").unwrap().starts_with("TLS=tcp,NET_DEVICES=lo,"));
        for (transports, devices) in [("tcp,cma", "lo"), ("tcp", "eth0,eth1"), ("tcp=x", "lo")] {
            let refused = settings(transports, devices).unwrap_err();
            assert!(refused.contains("NIXL takes one name and no list"), "{refused}");
        }
    }
}
