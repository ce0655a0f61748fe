//! A transport that does what real ones were seen to do: it goes on writing after it has said that a
//! pull failed, until it says that the pull is quiet.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cuelight::kvxfer::{
    Counters, Event, GrantId, Layout, Memory, PeerId, Pull, RegionId, RegionInfo, Run, Sink,
    TransferId, Transport, XferError,
};

/// What late writes write.
pub(crate) const POISON: u8 = 0xDB;

/// How late it is, and whether it ever proves quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lateness {
    /// From `Failed` to the late write; `Quiesced` follows it.
    pub(crate) delay: Duration,
    /// Keeps `Quiesced` back for ever: what a dead peer's stuck requests do.
    pub(crate) never_quiet: bool,
}

type Targets = Arc<Mutex<HashMap<TransferId, (RegionId, Vec<Run>)>>>;
type Pools = Arc<Mutex<Vec<Arc<Memory>>>>;

/// Another transport, made late.
pub(crate) struct Late {
    inner: Option<Box<dyn Transport>>,
    targets: Targets,
    pools: Pools,
    thread: Option<JoinHandle<()>>,
}

impl Late {
    /// Wraps the transport that `start` makes with the sink it is given.
    pub(crate) fn start(
        lateness: Lateness,
        sink: Sink,
        start: impl FnOnce(Sink) -> Result<Box<dyn Transport>, XferError>,
    ) -> Result<Self, XferError> {
        let (targets, pools) = (Targets::default(), Pools::default());
        let (to, events): (Sender<Event>, Receiver<Event>) = channel();
        let inner = start(Box::new(move |event| drop(to.send(event))))?;
        let writer = Writer {
            lateness,
            sink,
            targets: targets.clone(),
            pools: pools.clone(),
            due: VecDeque::new(),
        };
        let builder = std::thread::Builder::new().name("kvxfer-late".into());
        let thread = builder.spawn(move || writer.run(&events)).map_err(|error| {
            XferError::Unavailable { transport: "late", why: format!("thread: {error}") }
        })?;
        Ok(Self { inner: Some(inner), targets, pools, thread: Some(thread) })
    }

    fn inner(&self) -> &dyn Transport {
        self.inner.as_deref().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.inner = None; // its sink goes with it, and that ends the thread
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Writer {
    lateness: Lateness,
    sink: Sink,
    targets: Targets,
    pools: Pools,
    /// Pulls that failed, and when they are written to.
    due: VecDeque<(Instant, TransferId)>,
}

impl Writer {
    fn run(mut self, events: &Receiver<Event>) {
        loop {
            let wait = self.due.front().map_or(Duration::from_secs(3600), |(at, _)| {
                at.saturating_duration_since(Instant::now())
            });
            match events.recv_timeout(wait) {
                Ok(Event::Quiesced { .. }) => {} // we say when
                Ok(event) => {
                    match &event {
                        Event::Failed { transfer, .. } => {
                            self.due.push_back((Instant::now() + self.lateness.delay, *transfer));
                        }
                        Event::Done { transfer, .. } => drop(self.take(*transfer)),
                        Event::Quiesced { .. } | Event::PeerDown { .. } => {}
                    }
                    (self.sink)(event);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while self.due.front().is_some_and(|(at, _)| *at <= Instant::now()) {
                let Some((_, transfer)) = self.due.pop_front() else { break };
                self.write(transfer);
            }
        }
    }

    fn take(&self, transfer: TransferId) -> Option<(RegionId, Vec<Run>)> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).remove(&transfer)
    }

    fn write(&self, transfer: TransferId) {
        if let Some((region, runs)) = self.take(transfer) {
            let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            for run in runs {
                let poison = vec![POISON; run.bytes as usize];
                pools[region.0 as usize].write(run.local, &poison);
            }
        }
        if !self.lateness.never_quiet {
            (self.sink)(Event::Quiesced { transfer });
        }
    }
}

impl Transport for Late {
    fn name(&self) -> &'static str {
        self.inner().name()
    }

    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let region = self.inner().register(memory.clone(), layout)?;
        pools.push(memory);
        Ok(region)
    }

    fn descriptor(&self) -> Result<Vec<u8>, XferError> {
        self.inner().descriptor()
    }

    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError> {
        self.inner().connect(descriptor)
    }

    fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError> {
        self.inner().peer_regions(peer)
    }

    fn disconnect(&self, peer: PeerId) {
        self.inner().disconnect(peer);
    }

    fn grant(&self, region: RegionId, ranges: &[Range<u64>]) -> Result<GrantId, XferError> {
        self.inner().grant(region, ranges)
    }

    fn extend(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        self.inner().extend(grant, region, ranges)
    }

    fn withdraw(&self, grant: GrantId) {
        self.inner().withdraw(grant);
    }

    fn pull(&self, pull: Pull) -> Result<(), XferError> {
        let (transfer, target) = (pull.transfer, (pull.local, pull.runs.clone()));
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !targets.contains_key(&transfer);
        if is_new {
            targets.insert(transfer, target);
        }
        drop(targets);
        self.inner().pull(pull).inspect_err(|_| {
            if is_new {
                self.targets.lock().unwrap_or_else(PoisonError::into_inner).remove(&transfer);
            }
        })
    }

    fn abort(&self, transfer: TransferId) {
        self.inner().abort(transfer);
    }

    fn counters(&self) -> Counters {
        self.inner().counters()
    }
}
