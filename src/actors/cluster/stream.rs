//! The token stream of a worker on another node: legs go there, one frame a step comes back.
//!
//! One connection for each pair of front end and worker, apart from the control session: a leg is
//! admitted, cancelled, answered and lost on the same connection, so that nothing can overtake and
//! there is one loss to notice, not two.

use std::sync::Arc;

use bincode::{Decode, Encode};
use tokio::io::{AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::hello::{HelloError, Purpose};
use super::transport::Transport;
use super::wire::{Io, Pulse, ReadError, Reader, Writer};
use crate::actors::link::Frame;
use crate::actors::worker::WorkerUp;
use crate::engine::Leg;
use crate::ids::{LegId, NodeId, RankIndex};
use crate::kvxfer::{KvBlocks, KvOffer};
use crate::metrics::{Depth, Queued};
use crate::task::Task;

/// Bytes that are gathered for one write.
const GATHER: usize = 64 << 10;
/// Messages that may wait for a stream, whatever its ranks can hold.
const MOST_WAITING: usize = 1 << 20;

/// From the front end to the worker.
#[derive(Debug, Encode, Decode)]
pub enum Up {
    /// Start this leg. Idempotent by the leg's id.
    Admit {
        /// Where.
        rank: RankIndex,
        /// What.
        leg: Leg,
        /// Where the KV of its prompt can be fetched, if that is computed elsewhere.
        offer: Option<Box<KvOffer>>,
    },
    /// More of a leg's KV can be fetched. Unknown legs are ignored.
    More {
        /// Where it is.
        rank: RankIndex,
        /// Which.
        leg: LegId,
        /// What follows; `None`: nothing more will come.
        more: Option<KvBlocks>,
    },
    /// Tell all that the prefix cache has.
    Snapshot {
        /// Of which rank.
        rank: RankIndex,
    },
    /// End this leg. Unknown legs are ignored.
    Cancel {
        /// Where it is.
        rank: RankIndex,
        /// Which.
        leg: LegId,
    },
}

/// From the worker to the front end.
#[derive(Debug, Encode, Decode)]
#[expect(clippy::large_enum_variant, reason = "nearly all are frames")]
pub enum Down {
    /// A rank's news.
    Frame(Frame),
    /// The worker's node drains: place nothing new here.
    Draining,
}

/// Sends legs to a worker on another node.
#[derive(Clone)]
pub struct ToWorker {
    queue: mpsc::Sender<(Up, Queued)>,
    depth: Arc<Depth>,
}

impl ToWorker {
    /// Sends a leg; `false` if the stream has ended, or is not read.
    pub fn admit(&self, rank: RankIndex, leg: Leg, offer: Option<Box<KvOffer>>) -> bool {
        self.send(Up::Admit { rank, leg, offer })
    }

    /// Tells a leg of more to fetch; `false` if the stream has ended, or is not read.
    pub fn more(&self, rank: RankIndex, leg: LegId, more: Option<KvBlocks>) -> bool {
        self.send(Up::More { rank, leg, more })
    }

    /// Ends a leg; `false` if the stream has ended, or is not read: only its end will end the leg.
    pub fn cancel(&self, rank: RankIndex, leg: LegId) -> bool {
        self.send(Up::Cancel { rank, leg })
    }

    /// Asks for all that a rank has cached; `false` if the stream has ended, or is not read.
    pub fn snapshot(&self, rank: RankIndex) -> bool {
        self.send(Up::Snapshot { rank })
    }

    fn send(&self, message: Up) -> bool {
        self.queue.try_send((message, self.depth.put())).is_ok()
    }
}

/// What comes from a worker on another node. Dropping it closes the stream.
pub struct FromWorker {
    reader: Reader<ReadHalf<Box<dyn Io>>>,
    _writer: Task,
}

impl FromWorker {
    /// The next message.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self) -> Result<Down, ReadError> {
        self.reader.message().await
    }
}

/// A worker on another node, as one dials it.
pub struct RemoteWorker {
    transport: Arc<Transport>,
    node: NodeId,
    address: String,
    depth: Arc<Depth>,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The node cannot be reached, or refuses.
    #[error("{address}: {source}")]
    Hello {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: HelloError,
    },
}

impl RemoteWorker {
    /// The workers of `node` are dialled at `address`; `depth` counts what waits to be sent there.
    pub fn new(
        transport: Arc<Transport>,
        node: NodeId,
        address: String,
        depth: Arc<Depth>,
    ) -> Self {
        Self { transport, node, address, depth }
    }

    /// Opens a stream to the worker, in the generation that is up.
    ///
    /// # Errors
    /// The node cannot be reached, is another one, or does not have this generation.
    pub async fn open(&self, worker: &WorkerUp) -> Result<(ToWorker, FromWorker), OpenError> {
        let address = self.address.clone();
        let (name, generation) = (worker.id.worker.clone(), worker.generation);
        let purpose = Purpose::Tokens { node: self.node.clone(), worker: name, generation };
        // Every leg that the credits allow may have its start and its end waiting here, and some of
        // them more to fetch: a stream that is so far behind ends.
        let legs = worker.description.max_running + worker.description.max_waiting;
        let room = (4 * legs * worker.ranks.len()).clamp(1, MOST_WAITING);
        let connection = match self.transport.dial(&address, purpose).await {
            Ok(connection) => connection,
            Err(source) => return Err(OpenError::Hello { address, source }),
        };
        let (read, write) = tokio::io::split(connection.io);
        let (to, queue) = mpsc::channel(room);
        let reader = Reader::new(read, self.transport.pulse.clone());
        let writer = Task::spawn(write_up(write, queue, self.transport.pulse.clone()));
        Ok((
            ToWorker { queue: to, depth: self.depth.clone() },
            FromWorker { reader, _writer: writer },
        ))
    }
}

async fn write_up(
    to: WriteHalf<Box<dyn Io>>,
    mut queue: mpsc::Receiver<(Up, Queued)>,
    pulse: Pulse,
) {
    let mut writer = Writer::new(to);
    loop {
        match tokio::time::timeout_at(pulse.next_beat(), queue.recv()).await {
            Err(_) => writer.beat(),
            Ok(None) => return writer.close().await,
            Ok(Some((first, _))) => {
                writer.put(&first);
                gather(&mut writer, || queue.try_recv().ok().map(|(message, _)| message));
            }
        }
        if writer.flush().await.is_err() {
            return; // the reading side says why
        }
    }
}

/// Adds what waits already to the next write.
pub fn gather<W: AsyncWrite + Unpin, T: Encode>(
    writer: &mut Writer<W>,
    mut next: impl FnMut() -> Option<T>,
) {
    while writer.pending() < GATHER
        && let Some(message) = next()
    {
        writer.put(&message);
    }
}
