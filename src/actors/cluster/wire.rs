//! Frames on our own connections: a length, then that many bytes; no bytes are a heartbeat.
//!
//! Whoever reads gives up on a peer from which nothing came for `idle`, whoever writes sends
//! something every `beat`: so a stopped process or a silent network is noticed on every connection,
//! whatever the kernel thinks of it.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use bytes::{Buf, Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before each frame: its length, little-endian.
const HEADER: usize = 4;
/// Room made before each read.
const READ: usize = 64 << 10;
/// Most memory that decoding one frame may ask for.
const DECODED: usize = 256 << 20;

/// Both ways of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How a connection is watched, and how large its frames may be.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// Something is sent at least this often.
    pub beat: Duration,
    /// A peer that sends nothing for this long is lost.
    pub idle: Duration,
    /// Bytes of the largest frame.
    pub max_frame: usize,
    /// What beats are counted from.
    epoch: tokio::time::Instant,
    /// Bytes of the largest frame that came, over all connections.
    largest: Gauge,
}

impl Pulse {
    /// Notices a silent peer within `detection`: the last beat before the silence may be one beat
    /// old, and an eighth is left for telling everyone.
    pub fn new(detection: Duration, max_frame: usize, largest: Gauge) -> Self {
        let beat = (detection / 8).min(Duration::from_millis(250));
        let epoch = tokio::time::Instant::now();
        Self { beat, idle: detection - detection / 8, max_frame, epoch, largest }
    }

    /// When the next beat is due, at most one beat from now. All connections of a node beat
    /// together: one wake-up for all of them, here and at the peer.
    pub fn next_beat(&self) -> tokio::time::Instant {
        let since = self.epoch.elapsed().as_nanos();
        let into = Duration::from_nanos((since % self.beat.as_nanos().max(1)) as u64);
        tokio::time::Instant::now() + (self.beat - into)
    }
}

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The peer stopped or cannot be reached.
    #[error("nothing came for {} ms (cluster.failure_detection_ms)", idle.as_millis())]
    Silent {
        /// The limit.
        idle: Duration,
    },
    /// The peer announced a frame over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit} (cluster.max_frame_bytes)")]
    TooLarge {
        /// Announced.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The frame does not say what it should.
    #[error("a frame of {bytes} bytes cannot be understood: {detail}")]
    Garbage {
        /// Its size.
        bytes: usize,
        /// What is wrong.
        detail: String,
    },
    /// The system's word.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Takes frames off a connection.
pub struct Reader<R> {
    from: R,
    buffer: BytesMut,
    pulse: Pulse,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Nothing is read yet.
    pub fn new(from: R, pulse: Pulse) -> Self {
        Self { from, buffer: BytesMut::new(), pulse }
    }

    /// The next frame that is no heartbeat. Cancelling loses nothing.
    ///
    /// # Errors
    /// Nothing more can be read.
    pub async fn next(&mut self) -> Result<Bytes, ReadError> {
        loop {
            if let Some(frame) = self.split()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// The next frame, decoded.
    ///
    /// # Errors
    /// Nothing more can be read, or it cannot be understood.
    pub async fn message<T: Decode<()>>(&mut self) -> Result<T, ReadError> {
        decode(&self.next().await?)
    }

    fn split(&mut self) -> Result<Option<Bytes>, ReadError> {
        while let Some(header) = self.buffer.first_chunk::<HEADER>() {
            let (bytes, limit) = (u32::from_le_bytes(*header) as usize, self.pulse.max_frame);
            if bytes > limit {
                return Err(ReadError::TooLarge { bytes, limit });
            }
            if bytes as i64 > self.pulse.largest.get() {
                self.pulse.largest.inner().fetch_max(bytes as i64, Ordering::Relaxed);
            }
            if self.buffer.len() < HEADER + bytes {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            if bytes > 0 {
                return Ok(Some(self.buffer.split_to(bytes).freeze()));
            }
        }
        Ok(None)
    }

    /// Reads what there is. Before a peer is taken for silent it gets a last, short chance: if it was
    /// this process that stood still, what came meanwhile is seen then.
    async fn fill(&mut self) -> Result<(), ReadError> {
        let (idle, began) = (self.pulse.idle, Instant::now());
        for wait in [idle, self.pulse.beat / 4, self.pulse.beat] {
            self.buffer.reserve(READ);
            match tokio::time::timeout(wait, self.from.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(ReadError::Closed),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                // Only who woke late needs the last of these waits.
                Err(_) if began.elapsed() > idle + self.pulse.beat => {}
                Err(_) if wait == idle => {}
                Err(_) => break,
            }
        }
        Err(ReadError::Silent { idle })
    }
}

/// Puts frames on a connection, many at a time.
pub struct Writer<W> {
    to: W,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Nothing is written yet.
    pub fn new(to: W) -> Self {
        Self { to, buffer: Vec::new() }
    }

    /// Adds a frame to the next [`Writer::flush`].
    pub fn put(&mut self, message: &impl Encode) {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEADER]);
        encode_into(&mut self.buffer, message);
        let bytes = (self.buffer.len() - at - HEADER) as u32;
        self.buffer[at..at + HEADER].copy_from_slice(&bytes.to_le_bytes());
    }

    /// Adds a frame of these bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds a heartbeat.
    pub fn beat(&mut self) {
        self.buffer.extend_from_slice(&[0; HEADER]);
    }

    /// Bytes that the next flush writes.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Writes all that was put. Not to be cancelled: half a frame would be on the wire.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer).await?;
        self.buffer.clear();
        self.buffer.shrink_to(READ);
        self.to.flush().await
    }

    /// Says that nothing more comes.
    pub async fn close(mut self) {
        // The peer is gone already: nobody is left to be told.
        let _ = self.to.shutdown().await;
    }
}

/// A message's bytes.
pub fn encode(message: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(&mut bytes, message);
    bytes
}

fn encode_into(bytes: &mut Vec<u8>, message: &impl Encode) {
    // A Vec takes everything, and our messages have no state that cannot be encoded.
    let written = bincode::encode_into_std_write(message, bytes, bincode::config::standard());
    debug_assert!(written.is_ok(), "{written:?}");
}

/// The message that these bytes are.
///
/// # Errors
/// [`ReadError::Garbage`]: they are none, or more than one.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, ReadError> {
    let garbage = |detail: String| ReadError::Garbage { bytes: bytes.len(), detail };
    let config = bincode::config::standard().with_limit::<DECODED>();
    let (message, read) =
        bincode::decode_from_slice(bytes, config).map_err(|error| garbage(error.to_string()))?;
    if read < bytes.len() {
        return Err(garbage(format!("{} bytes are left over", bytes.len() - read)));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(ms: u64) -> Pulse {
        Pulse::new(Duration::from_millis(ms), 1000, Gauge::default())
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_heartbeats_are_not_seen() {
        let (a, b) = tokio::io::duplex(3);
        let mut writer = Writer::new(a);
        writer.put(&(7u32, "seven".to_string()));
        writer.beat();
        writer.put(&(8u32, String::new()));
        let send = async { writer.flush().await.unwrap() };
        let mut reader = Reader::new(b, pulse(60_000));
        let receive = async {
            let one: (u32, String) = reader.message().await.unwrap();
            let two: (u32, String) = reader.message().await.unwrap();
            assert_eq!((one.0, &*one.1, two.0), (7, "seven", 8));
        };
        tokio::join!(send, receive);
        drop(writer);
        assert!(matches!(reader.next().await, Err(ReadError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_lost_and_a_beating_one_is_not() {
        let (mut a, b) = tokio::io::duplex(64);
        let mut reader = Reader::new(b, pulse(800));
        let beats = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(pulse(800).beat).await;
                a.write_all(&[0; HEADER]).await.unwrap();
            }
            a // open, but silent from now on
        });
        let began = tokio::time::Instant::now();
        let error = reader.next().await.unwrap_err();
        assert!(matches!(error, ReadError::Silent { .. }), "{error}");
        let silent = began.elapsed() - 100 * pulse(800).beat;
        assert!(silent <= Duration::from_millis(800), "{silent:?}");
        drop(beats.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_a_node_beat_together_however_much_they_said_before() {
        let pulse = pulse(800);
        let began = tokio::time::Instant::now();
        for after in [0, 1, 30, 99, 250] {
            let now = began + Duration::from_millis(after);
            tokio::time::sleep_until(now).await;
            let into = pulse.next_beat() - began;
            assert_eq!(into.as_nanos() % pulse.beat.as_nanos(), 0, "{after}");
            assert!(into > now - began && into - (now - began) <= pulse.beat, "{after}");
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let (mut a, b) = tokio::io::duplex(64);
        a.write_all(&2_000_000_000u32.to_le_bytes()).await.unwrap();
        let error = Reader::new(b, pulse(60_000)).next().await.unwrap_err();
        assert!(error.to_string().contains("2000000000 bytes"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_message_are_told_apart_from_a_message() {
        let good = encode(&vec![1u64, 2, 3]);
        assert_eq!(decode::<Vec<u64>>(&good).unwrap(), [1, 2, 3]);
        let longer = [&good[..], &[0]].concat();
        let huge = [252, 255, 255, 255, 255, 1]; // claims four thousand million entries
        for bad in [&good[..2], &longer, &huge] {
            assert!(matches!(decode::<Vec<u64>>(bad), Err(ReadError::Garbage { .. })), "{bad:?}");
        }
    }
}
