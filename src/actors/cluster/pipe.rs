//! Carries a `ractor_cluster` session over one of our connections: its bytes in our frames, with
//! our heartbeats, so that a silent peer ends the session and all that ractor hangs on it.

use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::transport::Connection;
use super::wire::{Io, Pulse, Reader, Writer};

/// Bytes between the session and the connection.
const BUFFER: usize = 64 << 10;

/// The session's end of a pipe.
pub(super) struct SessionEnd {
    stream: DuplexStream,
    peer: String,
}

impl ClusterBidiStream for SessionEnd {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(self.stream);
        (Box::new(read), Box::new(write))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.peer.clone())
    }

    fn local_label(&self) -> Option<String> {
        None
    }
}

/// The session's end, and the work that carries its bytes until either side ends; it says why.
pub(super) fn lay(
    connection: Connection,
    pulse: Pulse,
) -> (SessionEnd, impl Future<Output = String> + Send + 'static) {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let session = SessionEnd { stream: theirs, peer: connection.peer.node.to_string() };
    let (read, write) = tokio::io::split(connection.io);
    let (from_session, to_session) = tokio::io::split(ours);
    let work = async move {
        tokio::select! {
            why = outward(from_session, Writer::new(write), pulse.clone()) => why,
            why = inward(Reader::new(read, pulse), to_session) => why,
        }
    };
    (session, work)
}

async fn outward(
    mut from: ReadHalf<DuplexStream>,
    mut writer: Writer<WriteHalf<Box<dyn Io>>>,
    pulse: Pulse,
) -> String {
    let mut bytes = vec![0; BUFFER.min(pulse.max_frame)];
    loop {
        match tokio::time::timeout_at(pulse.next_beat(), from.read(&mut bytes)).await {
            Err(_) => writer.beat(),
            Ok(Ok(0)) => return "the session ended".to_string(),
            Ok(Ok(read)) => writer.put_bytes(&bytes[..read]),
            Ok(Err(error)) => return format!("the session failed: {error}"),
        }
        if let Err(error) = writer.flush().await {
            return format!("writing failed: {error}");
        }
    }
}

async fn inward(
    mut reader: Reader<ReadHalf<Box<dyn Io>>>,
    mut to: WriteHalf<DuplexStream>,
) -> String {
    loop {
        let bytes = match reader.next().await {
            Ok(bytes) => bytes,
            Err(error) => return error.to_string(),
        };
        if let Err(error) = to.write_all(&bytes).await {
            return format!("the session failed: {error}");
        }
    }
}
